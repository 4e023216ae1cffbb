"""The pools of all workers, against what the servers allow: told by `check --database`, with the true numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.core.checks import Tags, run_checks
from django.db import connections
from django.test import override_settings
from django_rig import database, run
from psycopg import sql

from poolkit_django import conf, limits
from poolkit_django.backends import pools
from poolkit_django.checks import check_limits
from poolkit_django.limits import Limit


def told(*aliases: str) -> list[str]:
    """What the check says for these aliases."""
    return [f"{message.id} {message.msg}" for message in check_limits(databases=aliases)]


@contextmanager
def sized(**pool: Any) -> Iterator[None]:
    """The default alias with a pool of this size."""
    usual = connections["default"].settings_dict["OPTIONS"]
    connections.close_all()
    before, usual["pool"] = usual["pool"], pool
    try:
        yield
    finally:
        connections.close_all()
        pools.retire(connections["default"])
        usual["pool"] = before


@pytest.fixture
def most(monitor: psycopg.Connection[Any]) -> int:
    """The server's max_connections."""
    row = monitor.execute("SELECT current_setting('max_connections')::int").fetchone()
    assert row is not None
    return int(row[0])


def test_what_fits_is_told_nothing() -> None:
    """The check is a database check of Django's: it runs where a command names the databases, and is content here."""
    assert run_checks(tags=[Tags.database], databases=["default", "other"]) == []
    assert told("default", "other") == []


def test_without_databases_nothing_is_asked(fresh_pools: None) -> None:
    """A plain `manage.py check` opens no connection."""
    assert check_limits() == []
    assert {pool.stats().opened for pool in pools.live()} <= {0}


def test_one_worker_that_is_too_large(most: int) -> None:
    """The workers are not known, and one alone may ask for more than there is: both aliases count, asked or not."""
    with sized(max_size=most, reserved=2):
        (line,) = told("default")
    assert line.startswith("poolkit.W010 1 worker process with pools of up to")
    assert f"(default {most + 2}, other 3) may ask for {most + 5} connections" in line
    assert f"max_connections is {most}" in line


def test_native_async_pools_count_as_well(most: int) -> None:
    """Those that POOLKIT_ASYNC names: a process may fill both."""
    with override_settings(POOLKIT_ASYNC={"other": {"max_size": most}}):
        (line,) = told("default")
    assert f"(default 3, other {most + 3})" in line


@pytest.mark.parametrize(
    "said",
    [
        {"setting": 40},
        {"WEB_CONCURRENCY": "40"},
        {"GUNICORN_CMD_ARGS": "--bind=0 --workers 40 -t 3"},
        {"GUNICORN_CMD_ARGS": "-w40", "WEB_CONCURRENCY": "1"},
        {"GUNICORN_CMD_ARGS": "--workers=40"},
    ],
)
def test_workers_are_counted(said: Mapping[str, Any], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are told; and the hint says how many fit."""
    for name in ("WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"):
        monkeypatch.delenv(name, raising=False)
        if name in said:
            monkeypatch.setenv(name, said[name])
    with override_settings(POOLKIT_WORKERS=said.get("setting")), sized(max_size=most // 4):
        (message,) = check_limits(databases=["default"])
    assert f"40 worker processes with pools of up to {most // 4 + 3}" in message.msg
    assert "at most 3 workers" in str(message.hint)


@pytest.mark.parametrize("said", ["", "--bind 0:80", "--worker-class gthread", "-w many", "-w 0"])
def test_workers_nobody_tells_are_not_known(said: str) -> None:
    """What is no number of workers is not taken for one."""
    assert conf.workers({"GUNICORN_CMD_ARGS": said, "WEB_CONCURRENCY": "auto"}) is None


def test_what_must_be_opened_and_can_not_is_an_error(most: int) -> None:
    """min_size is not opened on demand: a deployment that can't have it is wrong."""
    with override_settings(POOLKIT_WORKERS=3), sized(min_size=most // 2, max_size=most // 2):
        (line,) = told("default")
    assert line.startswith("poolkit.E006 3 worker processes")
    assert f"must open {most // 2 * 3} connections" in line


@pytest.fixture
def stranger(monitor: psycopg.Connection[Any], dsn: str) -> Iterator[Callable[[], None]]:
    """The default alias as a role that is no superuser; limits may be put on it."""
    role = "poolkit_limited"
    drop = f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}"
    if monitor.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
        monitor.execute(drop)
    monitor.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pass-word' CONNECTION LIMIT 7")
    usual = connections["default"].settings_dict
    before = dict(usual)
    connections.close_all()
    usual.update({**before, **database(dsn, pool={"max_size": 4}), "USER": role, "PASSWORD": "pass-word"})
    try:
        yield lambda: None
    finally:
        connections.close_all()
        pools.retire(connections["default"])
        usual.update(before)
        monitor.execute(drop)


@pytest.mark.usefixtures("stranger")
def test_a_roles_own_limit_counts() -> None:
    """And for who is no superuser, the places kept for others are taken off."""
    with override_settings(POOLKIT_WORKERS=2):
        (line,) = told("default")
    assert line.startswith("poolkit.W011 2 worker processes with pools of up to 4 (default 4) may ask for 8")
    assert "the role's CONNECTION LIMIT is 7" in line
    server, role = limits.limits_of("default")
    assert role == Limit("role", 7, "the role's CONNECTION LIMIT is 7")
    kept = int(run("SHOW superuser_reserved_connections")[0][0]) + int(run("SHOW reserved_connections")[0][0])
    assert server.most == int(run("SHOW max_connections")[0][0]) - kept


@pytest.mark.usefixtures("fresh_pools", "stranger")
def test_a_databases_own_limit_counts(monitor: psycopg.Connection[Any]) -> None:
    """Of all roles together."""
    name = sql.Identifier(connections["default"].settings_dict["NAME"])
    monitor.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 13").format(name))
    try:
        with override_settings(POOLKIT_WORKERS=2):
            lines = told("default")
    finally:
        monitor.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1").format(name))
    assert [line.partition(" ")[0] for line in lines] == ["poolkit.W011", "poolkit.W012"], lines


def test_a_server_that_is_away_is_told_without_a_password() -> None:
    """One error of the check, not a traceback."""
    usual = connections["default"].settings_dict
    before = dict(usual)
    connections.close_all()
    usual.update(HOST="127.0.0.1", PORT="9", PASSWORD="very secret")
    try:
        (line,) = told("default")
    finally:
        connections.close_all()
        usual.update(before)
    assert line.startswith("poolkit.E005")
    assert "very secret" not in line


MARIADB, MYSQL = "10.11.19-MariaDB-0+deb12u1", "8.4.3"


@pytest.mark.parametrize(
    ("row", "of_user"),
    [
        ((151, 0, 0, MARIADB, "PROCESS"), None),
        ((151, 20, 20, MARIADB, "PROCESS"), 20),
        ((151, 20, 20, MARIADB, None), 20),
        ((151, 20, 20, MARIADB, "PROCESS,SUPER"), None),
        ((151, 20, 20, "11.4.2-MariaDB", "PROCESS,SUPER"), 20),
        ((151, 20, 20, "11.4.2-MariaDB", "CONNECTION ADMIN"), None),
        ((151, 20, 20, MYSQL, "SUPER"), 20),
        ((151, 20, 0, MARIADB, "SUPER"), 20),
    ],
)
def test_mysqls_answer_is_read(row: tuple[Any, ...], of_user: int | None) -> None:
    """max_user_connections counts where it is set and binds; the server's does not bind MariaDB's administrators."""
    server, *others = limits._mysql(row)
    assert server == Limit("server", 151, "max_connections is 151")
    found = [] if of_user is None else [Limit("role", of_user, f"max_user_connections is {of_user}")]
    assert others == found
