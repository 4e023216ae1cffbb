"""Settings that a session gets with the connect, and what the drivers check alike."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from poolkit.drivers._startup import joined, session_settings
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.drivers.psycopg2 import Psycopg2Driver
from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.errors import ConfigError


def test_values_arrive_as_they_are(pg_dsn: str) -> None:
    """White space and backslashes reach the server unchanged, behind the user's own options, and RESET keeps them."""
    given = {"my.text": "a  b\\c\td", "search_path": 'one, "two three"', "enable_seqscan": False, "work_mem": 64}
    options = joined("-c my.other=x -c work_mem=99", session_settings(given, 1.5, ""))
    wanted = {
        "my.text": "a  b\\c\td", "my.other": "x", "search_path": 'one, "two three"', "enable_seqscan": "off",
        "work_mem": "64kB", "statement_timeout": "1500ms",
    }  # fmt: skip
    with psycopg.connect(pg_dsn, autocommit=True, options=options) as conn:
        for statement in ("SELECT 1", "SET my.text = 'mine'; SET work_mem = 70; RESET ALL"):
            conn.execute(statement.encode())
            for name, value in wanted.items():
                assert conn.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,)


@pytest.mark.parametrize(
    ("settings", "timeout", "message"),
    [
        (["search_path"], None, "must map names to values, not list"),
        ({"search_path": None}, None, r"\['search_path'\] must be a string"),
        ({"search path": "x"}, None, "'search path' is no name of a setting"),
        ({"x -c y": "x"}, None, "no name"),
        ({"a.b": "\0"}, None, "must be a string"),
        ({}, 0, "must be a number of seconds, not 0"),
        ({}, True, "must be a number of seconds, not True"),
    ],
)
def test_what_cannot_be_sent(settings: object, timeout: object, message: str) -> None:
    """What the server could not take, or would take for something else, is refused when the driver is made."""
    with pytest.raises(ConfigError, match=message):
        session_settings(settings, timeout, "")


def test_nothing_to_tell() -> None:
    """Without settings the user's options stay as they are."""
    assert joined(None, {}) == ""
    assert joined("-c a=b", session_settings(None, None, "")) == "-c a=b"


@pytest.mark.parametrize("wrong", ["audit", 5, [1]])
@pytest.mark.parametrize("kind", [PsycopgDriver, AsyncPsycopgDriver, Psycopg2Driver, AsyncpgDriver, PymysqlDriver])
def test_functions_that_are_no_names(kind: Any, wrong: object) -> None:
    """`harmless_functions` is a list of names with every driver; one name alone would be read letter by letter."""
    url = "mysql://h/db" if kind is PymysqlDriver else "postgresql://h/db"
    with pytest.raises(ConfigError, match="harmless_functions must be a list of names"):
        kind(url, options={"harmless_functions": wrong})
