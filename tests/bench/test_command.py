"""`poolkit bench URL`: what it refuses, what it says it will do, and that it does no more than that."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner, Result

from poolkit import ConfigError, cli
from poolkit.bench.advice import Limits
from poolkit.bench.command import intent, plainly, poolkit
from poolkit.bench.database import Database, Facts, room, understood, usable


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(poolkit, ["bench", *arguments])


def everything(_: str) -> bool:
    return True


# what a URL means


@pytest.mark.parametrize(
    ("url", "drivers"),
    [
        ("postgresql://h/d", ("psycopg", "psycopg2", "asyncpg")),
        ("postgres://h/d", ("psycopg", "psycopg2", "asyncpg")),
        ("postgresql+psycopg://h/d", ("psycopg",)),
        ("postgresql+asyncpg://h/d", ("asyncpg",)),
    ],
)
def test_a_scheme_names_libraries(url: str, drivers: tuple[str, ...]) -> None:
    """A plain URL is measured with all that fit; one that names a library with that one."""
    assert understood(url, everything) == Database("postgresql://h/d", drivers)


def test_only_installed_libraries_count() -> None:
    """What is not there is left out; if nothing is there, the error names the extras."""
    assert understood("postgresql://h/d", lambda name: name == "asyncpg").drivers == ("asyncpg",)
    with pytest.raises(ConfigError, match=r"pip install 'poolkit\[asyncpg\]'"):
        understood("postgresql+asyncpg://h/d", lambda _: False)


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/d", "https://u:hunter2@h/", "hunter2", "sqlite:///", "sqlite://"])
def test_what_cannot_be_measured_is_said(url: str) -> None:
    """In one error, without what may be a password."""
    with pytest.raises(ConfigError) as caught:
        understood(url)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Measuring somebody's database does not begin with creating it."""
    result = ran(f"sqlite:///{tmp_path}/none.db")
    assert result.exit_code == 1
    assert "there is no file" in result.output
    assert list(tmp_path.iterdir()) == []


# how much of the server


@pytest.mark.parametrize(
    ("limits", "size", "said"),
    [
        (None, 8, ""),
        (Limits(100, 3, 81), 8, ""),
        (Limits(100, 3, 82), 8, "--size 8 may take 16 connections for moments, and 15 are free: 100 (max"),
        (Limits(100, 3, 82), 8, "Give --size 7 or less"),
        (Limits(100, 3, 96), 8, "1 connections free: too few"),
        (Limits(100, 3, 99), 1, "0 connections free: too few"),
    ],
)
def test_no_more_is_taken_than_is_free(limits: Limits | None, size: int, said: str) -> None:
    """Who asks for more is told the sum, and what would fit."""
    assert said in room(limits, size)
    assert bool(room(limits, size)) is bool(said)


def test_it_says_before_what_it_will_do() -> None:
    """Where to, which suites, what is sent, how many connections; without the password."""
    database = Database("postgresql://u:hunter2@h/d", ("psycopg",))
    said = intent(database, Facts(Limits(100, 3, 17), 0.001, 0.0003), ["micro", "query"], 8)
    assert "postgresql://u@h/d: micro, query; sends SELECT 1" in said
    assert "8 connections at a time, for moments 16; 80 are free" in said
    assert "hunter2" not in said


# the command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sqlite:///x", "nonsense"], "'nonsense' is not one of 'micro', 'query', 'round_trips', 'contention'"),
        (["sqlite:///x", "--size", "0"], "0 is not in the range"),
        (["sqlite:///x", "--rate", "0"], "0.0 is not in the range"),
        (["sqlite:///x", "--workers", "none"], "not a valid integer"),
        ([], "Missing argument 'URL'"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str) -> None:
    """Each is refused with what is wrong with it."""
    result = ran(*arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.slow
def test_a_server_that_is_not_there(unused_port: int) -> None:
    """The error says what could not be reached, and no password."""
    result = ran(f"postgresql+psycopg://u:hunter2@127.0.0.1:{unused_port}/d?connect_timeout=2", "round_trips")
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    assert "Traceback" not in result.output
    assert result.output.startswith("Error: ")


@pytest.fixture
def unused_port() -> int:
    import socket  # noqa: PLC0415 - for this alone

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """One sentence with the extra's name, not the traceback of an import."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(SystemExit, match=rf"needs {missing}; pip install 'poolkit\[cli\]'"):
        cli.main()


def test_importing_the_library_imports_no_bench() -> None:
    """Who only uses poolkit pays nothing for it."""
    code = "import sys, poolkit; sys.exit(any(n.startswith(('poolkit.bench', 'click', 'rich')) for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_failure_of_the_database_is_one_line() -> None:
    """Its kind, without a text that may hold the password; a fault of ours stays a traceback."""
    with pytest.raises(click.ClickException) as caught, plainly():
        raise psycopg.OperationalError("connection to postgresql://u:hunter2@h/d lost")
    assert "psycopg.OperationalError" in caught.value.message
    assert "hunter2" not in caught.value.message
    with pytest.raises(ZeroDivisionError), plainly():
        raise ZeroDivisionError


# against real databases


@pytest.mark.slow
def test_a_library_that_cannot_use_the_url_is_left_out(pg_dsn: str) -> None:
    """A parameter that libpq follows and asyncpg can't: the others are measured all the same."""
    url = f"{pg_dsn}{'&' if '?' in pg_dsn else '?'}sslsni=0"
    database, unusable = usable(Database(url, ("psycopg", "asyncpg")))
    assert database.drivers == ("psycopg",)
    assert unusable.keys() == {"asyncpg"}


@pytest.mark.slow
def test_a_file(tmp_path: Path) -> None:
    """A file of SQLite is measured and left as it was: the same bytes, in the same mode, with nothing beside it."""
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    before = file.read_bytes()
    result = ran(f"sqlite:///{file}", "micro", "contention", "--quick", "--size", "2")
    assert result.exit_code == 0, result.output
    assert "poolkit, sqlite3" in result.output
    assert "SELECT 1" in result.output
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["shop.db"]


@pytest.mark.slow
def test_a_server(pg_dsn: str, tmp_path: Path) -> None:
    """By `python -m poolkit`: says what it does, writes every sample, and ends with advice."""
    file = tmp_path / "bench.json"
    line = [sys.executable, "-m", "poolkit", "bench", pg_dsn, "round_trips", "--quick", "--size", "2"]
    done = subprocess.run(
        [*line, "--rate", "100", "--workers", "2", "--hold", "20", "--json", str(file)],
        check=True, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert "writes nothing" in done.stdout
    assert "100 requests/s / 2 workers = 50/s each" in done.stdout
    written = json.loads(file.read_text())
    assert written["conditions"]["advice"]["max_size"] == 4
    trips = {table["key"]: table["rows"] for table in written["tables"]}["round-trips-threads"]
    assert trips["poolkit, psycopg"]["autocommit"]["all"] == [1.0]
    assert not any(table["targets"] for table in written["tables"])
    secret = psycopg.conninfo.conninfo_to_dict(pg_dsn).get("password")
    assert secret is None or str(secret) not in done.stdout + done.stderr + file.read_text()


@pytest.mark.slow
def test_too_many_connections_are_refused_before_any_is_taken(private_pg: Any) -> None:
    """`--size` beyond what is free: refused with the sum, and nothing was measured."""
    result = ran(private_pg.dsn, "contention", "--size", "60", "--quick")
    assert result.exit_code == 1
    assert "Error: --size 60 may take 120 connections for moments, and" in result.output
    assert "borrow and return" not in result.output
