"""Rigs, a database prepared for them, and a proxy that counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rigs import RIGS, Rig, _AsyncRig

from poolkit import AsyncUnitOfWork, Registry, UnitOfWork
from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.testing import FaultProxy

TABLES = (
    "DROP TABLE IF EXISTS child",
    "DROP TABLE IF EXISTS item",
    "CREATE TABLE item (id integer PRIMARY KEY)",
    "CREATE TABLE child (item integer REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)",
)


@pytest.fixture
def url(rig_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with the tables above, empty, for the rig the test runs on."""
    if rig_name == "sqlite-file":
        return f"sqlite:///{tmp_path}/test.db"
    if rig_name == "sqlite-memory":
        return "sqlite:///:memory:"
    return request.getfixturevalue("mysql_tables" if RIGS[rig_name].mysql else "tables")


@pytest.fixture
def tables(pg_dsn: str) -> str:
    """The PostgreSQL of the run, with the tables above, empty."""
    with psycopg.connect(pg_dsn, autocommit=True) as conn:
        conn.execute("SET client_min_messages = error")
        for statement in TABLES:
            conn.execute(statement)
        conn.execute("CREATE SEQUENCE IF NOT EXISTS counter")
    return pg_dsn


@pytest.fixture
def mysql_tables(mysql_dsn: str) -> str:
    """The MariaDB of the run, with the same tables, but that it can't defer a check."""
    driver = PymysqlDriver(mysql_dsn)
    conn = driver.open(10)
    for statement in TABLES:
        conn.query(statement.replace(" DEFERRABLE INITIALLY DEFERRED", ""))
    driver.close(conn)
    return mysql_dsn


@pytest.fixture
def kill(rig_name: str, request: pytest.FixtureRequest) -> Callable[[int], None]:
    """A function that has the server end a session of its."""
    if RIGS[rig_name].mysql:
        return request.getfixturevalue("mysql_admin").kill
    admin = request.getfixturevalue("admin")
    return lambda pid: admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


@pytest.fixture
def mysql_admin(mysql_tables: str) -> Iterator[Any]:
    """A connection beside the driver's, to look and to meddle with."""
    driver = PymysqlDriver(mysql_tables)
    conn = driver.open(10)
    yield conn
    driver.close(conn)


@pytest.fixture(params=list(RIGS))
def rig_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rig(rig_name: str, url: str) -> Iterator[Rig]:
    """Every leased driver in turn."""
    yield from _rig(rig_name, url)


def _rig(name: str, url: str) -> Iterator[Rig]:
    kind = RIGS[name]

    def again(source: Any = url, **arguments: Any) -> Any:
        return kind.kind(source, **arguments)

    rig = kind(again(), again)
    if not rig.postgres and not rig.mysql:
        conn = rig.open()
        rig.do(conn, *TABLES)
    yield rig
    rig.close_all()


@pytest.fixture
def proxy(tables: str) -> Iterator[FaultProxy]:
    with FaultProxy(tables) as proxy:
        yield proxy


@pytest.fixture
def mysql_proxy(mysql_tables: str) -> Iterator[FaultProxy]:
    with FaultProxy(mysql_tables) as proxy:
        yield proxy


@pytest.fixture
def counted(
    rig_name: str, url: str, request: pytest.FixtureRequest
) -> Iterator[tuple[Rig, Callable[[Callable[[], Any]], int]]]:
    """A rig whose connections go through the proxy, and a function that counts the round trips of some work."""
    rig = RIGS[rig_name]
    proxy = request.getfixturevalue("mysql_proxy" if rig.mysql else "proxy")
    driver = rig.kind(proxy.url(url))

    def trips(work: Callable[[], Any]) -> int:
        before = proxy.round_trips
        work()
        return proxy.round_trips - before

    made = rig(driver, rig.kind)
    yield made, trips
    made.close_all()


@pytest.fixture
def admin(tables: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside the driver's, to look and to meddle with."""
    with psycopg.connect(tables, autocommit=True) as conn:
        yield conn


@pytest.fixture
def unit(rig: Rig, rig_name: str, url: str) -> Iterator[Any]:
    """A function that makes units of work on the rig's kind of driver."""
    plain = {"psycopg2": "postgresql+psycopg2", "asyncpg": "postgresql+asyncpg", "mysqlclient": "mysql+mysqlclient"}
    kind = url.partition("://")[0] if rig_name not in plain else plain[rig_name]
    registry = Registry({"default": {"url": f"{kind}://{url.partition('://')[2]}", "max_size": 1, "timeout": 2}})
    make: Any = AsyncUnitOfWork if isinstance(rig, _AsyncRig) else UnitOfWork
    if rig_name == "sqlite-memory":
        setup = make(registry)
        rig.do(setup.get(), "CREATE TABLE item (id integer PRIMARY KEY)")
        setup.finish()
    yield lambda: make(registry, "GET /")
    rig.run(registry.aclose() if isinstance(rig, _AsyncRig) else registry.close(5))
