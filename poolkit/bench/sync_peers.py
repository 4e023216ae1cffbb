"""The pools for threads, over psycopg, psycopg2 and sqlite3. Each library is imported where it is used."""

from __future__ import annotations

import sqlite3
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from poolkit import Pool
from poolkit.bench.peers import Bench, Peer, Settings, getting, holding, lending, with_scheme

__all__ = ["SYNC"]

Opened = Callable[[Settings], AbstractContextManager[Bench]]


def _execute(settings: Settings) -> Callable[[Any], object]:
    """How a connection is used that has `execute` itself."""
    statement = settings.statement

    def run(connection: Any) -> None:
        connection.execute(statement).fetchone()

    return holding(run, settings.hold)


def _by_cursor(settings: Settings) -> Callable[[Any], object]:
    """How a PEP 249 connection is used, with the COMMIT that its pool leaves to its user."""
    statement, commits = settings.statement, settings.transaction

    def run(connection: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.fetchone()
        cursor.close()
        if commits:
            connection.commit()

    return holding(run, settings.hold)


# poolkit


def _poolkit(scheme: str, *, looks: bool = False, cursor: bool = False) -> Opened:
    @contextmanager
    def opened(settings: Settings) -> Iterator[Bench]:
        url = with_scheme(settings.url, scheme)
        source: Any = _looking(url) if looks else url
        pool: Pool[Any] = Pool(source, max_size=settings.size, timeout=settings.timeout)
        use = _by_cursor(settings._replace(transaction=False)) if cursor else _execute(settings)
        try:
            yield lending(pool.transaction if settings.transaction else pool.acquire, use)
        finally:
            pool.close(1)

    return opened


def _looking(url: str) -> object:
    """A driver without the moment after a return in which poolkit does not look at the socket."""
    from poolkit.drivers.psycopg import PsycopgDriver  # noqa: PLC0415

    class Looking(PsycopgDriver[Any]):
        alive_bypass = 0.0

    return Looking(url)


# bare connections


@contextmanager
def _bare_psycopg(settings: Settings) -> Iterator[Bench]:
    import psycopg  # noqa: PLC0415

    with closing(psycopg.connect(settings.url, autocommit=not settings.transaction)) as connection:
        use = _execute(settings)

        def run(_: object) -> None:
            use(connection)
            if settings.transaction:
                connection.commit()

        yield getting(_always(connection), _keep, run)


@contextmanager
def _bare_psycopg2(settings: Settings) -> Iterator[Bench]:
    import psycopg2  # noqa: PLC0415

    with closing(psycopg2.connect(settings.url)) as connection:
        connection.autocommit = not settings.transaction
        yield getting(_always(connection), _keep, _by_cursor(settings))


@contextmanager
def _bare_pymysql(settings: Settings) -> Iterator[Bench]:
    with closing(_pymysql_connect(settings)()) as connection:
        yield getting(_always(connection), _keep, _by_cursor(settings))


def _pymysql_connect(settings: Settings) -> Callable[[], Any]:
    import pymysql  # noqa: PLC0415

    parts = urlsplit(settings.url)
    place: dict[str, Any] = {
        "host": parts.hostname or "localhost",
        "port": parts.port or 3306,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": unquote(parts.path.removeprefix("/")) or None,
    }
    return lambda: pymysql.connect(**place, autocommit=not settings.transaction)


@contextmanager
def _bare_sqlite(settings: Settings) -> Iterator[Bench]:
    with closing(_sqlite_connect(settings)()) as connection:
        yield getting(_always(connection), _keep, _by_cursor(settings))


def _always(connection: Any) -> Callable[[], Any]:
    return lambda: connection


def _keep(_: object) -> None:
    """Nothing is given back."""


def _sqlite_connect(settings: Settings) -> Callable[[], sqlite3.Connection]:
    # sqlite3 itself would begin before a write only, and nothing is written here: BEGIN is sent where one is wanted.
    class Begun(sqlite3.Connection):
        def cursor(self, *arguments: Any, **more: Any) -> Any:
            if settings.transaction and not self.in_transaction:
                self.execute("BEGIN")
            return super().cursor(*arguments, **more)

    path = settings.url.partition("///")[2].partition("?")[0] or ":memory:"
    return lambda: sqlite3.connect(
        f"file:{path}?mode=ro" if path != ":memory:" else path,
        uri=path != ":memory:", isolation_level=None, check_same_thread=False, factory=Begun,
    )  # fmt: skip


# psycopg_pool


def _psycopg_pool(*, check: bool) -> Opened:
    @contextmanager
    def opened(settings: Settings) -> Iterator[Bench]:
        from psycopg_pool import ConnectionPool  # noqa: PLC0415

        pool = ConnectionPool(
            settings.url, min_size=settings.size, max_size=settings.size, timeout=settings.timeout, open=True,
            kwargs={"autocommit": not settings.transaction}, check=ConnectionPool.check_connection if check else None,
        )  # fmt: skip
        try:
            pool.wait()
            yield lending(pool.connection, _execute(settings))
        finally:
            pool.close(1)

    return opened


# SQLAlchemy


def _sqlalchemy(scheme: str, *, core: bool, ping: bool) -> Opened:
    @contextmanager
    def opened(settings: Settings) -> Iterator[Bench]:
        from sqlalchemy import create_engine, pool  # noqa: PLC0415

        url = _file_url(settings.url) if scheme == "sqlite" else with_scheme(settings.url, scheme)
        engine = create_engine(
            url, poolclass=pool.QueuePool, pool_size=settings.size, max_overflow=0,
            pool_timeout=settings.timeout, pool_pre_ping=ping,
            **({} if settings.transaction else {"isolation_level": "AUTOCOMMIT"}),
        )  # fmt: skip
        try:
            if core:
                yield lending(engine.begin if settings.transaction else engine.connect, _core(settings))
            else:
                yield getting(engine.raw_connection, lambda connection: connection.close(), _by_cursor(settings))
        finally:
            engine.dispose()

    return opened


def _file_url(url: str) -> str:
    """The URL of a file to be read only, in SQLAlchemy's words."""
    return f"sqlite:///file:{url.partition('///')[2].partition('?')[0]}?mode=ro&uri=true"


def _core(settings: Settings) -> Callable[[Any], object]:
    from sqlalchemy import text  # noqa: PLC0415

    statement = text(settings.statement)
    return holding(lambda connection: connection.execute(statement).fetchone(), settings.hold)


# psycopg2's own, and DBUtils


@contextmanager
def _psycopg2_pool(settings: Settings) -> Iterator[Bench]:
    """It raises where all are in use; who uses it among many threads puts a semaphore before it, so `work` has one."""
    import psycopg2.pool  # noqa: PLC0415

    pool = psycopg2.pool.ThreadedConnectionPool(settings.size, settings.size, settings.url)
    places = threading.Semaphore(settings.size)
    connections = [pool.getconn() for _ in range(settings.size)]
    for connection in connections:
        connection.autocommit = not settings.transaction
        pool.putconn(connection)

    def get() -> Any:
        places.acquire()
        return pool.getconn()

    def put(connection: Any) -> None:
        pool.putconn(connection)
        places.release()

    try:
        alone = getting(pool.getconn, pool.putconn, _by_cursor(settings))
        yield getting(get, put, _by_cursor(settings))._replace(loop=alone.loop)
    finally:
        pool.closeall()


def _dbutils(connect: Callable[[Settings], Callable[[], Any]], library: str) -> Opened:
    @contextmanager
    def opened(settings: Settings) -> Iterator[Bench]:
        from dbutils.pooled_db import PooledDB  # noqa: PLC0415

        errors = _errors_of(library)
        creator = types.SimpleNamespace(connect=connect(settings), threadsafety=1, **errors)
        pool = PooledDB(creator, maxconnections=settings.size, blocking=True)
        try:
            yield getting(pool.connection, lambda connection: connection.close(), _by_cursor(settings))
        finally:
            pool.close()

    return opened


def _errors_of(library: str) -> dict[str, Any]:
    module: Any
    if library == "psycopg2":
        import psycopg2 as module  # noqa: PLC0415
    elif library == "pymysql":
        import pymysql as module  # noqa: PLC0415
    else:
        module = sqlite3
    return {name: getattr(module, name) for name in ("OperationalError", "InterfaceError", "InternalError")}


def _psycopg2_connect(settings: Settings) -> Callable[[], Any]:
    import psycopg2  # noqa: PLC0415

    def connect() -> Any:
        connection = psycopg2.connect(settings.url)
        connection.autocommit = not settings.transaction
        return connection

    return connect


def _sqlalchemy_rows(driver: str, scheme: str) -> Iterator[Peer]:
    for core, ping in ((False, False), (False, True), (True, False), (True, True)):
        what = f"SQLAlchemy {'Core' if core else 'raw_connection'}, {driver}{', pre_ping' if ping else ''}"
        needs = ("sqlalchemy", driver) if driver != "sqlite" else ("sqlalchemy",)
        yield Peer(what, driver, _sqlalchemy(scheme, core=core, ping=ping), needs, checks=ping)


PSYCOPG = "postgresql"
PSYCOPG2 = "postgresql+psycopg2"
SYNC = (
    Peer("bare psycopg", "psycopg", _bare_psycopg, ("psycopg",), blocks=False),
    Peer("poolkit, psycopg", "psycopg", _poolkit(PSYCOPG), ("psycopg",), checks=True),
    Peer(
        "poolkit, psycopg, looks each time", "psycopg", _poolkit(PSYCOPG, looks=True), ("psycopg",), checks=True,
    ),
    Peer("psycopg_pool", "psycopg", _psycopg_pool(check=False), ("psycopg", "psycopg_pool")),
    Peer("psycopg_pool, check", "psycopg", _psycopg_pool(check=True), ("psycopg", "psycopg_pool"), checks=True),
    *_sqlalchemy_rows("psycopg", "postgresql+psycopg"),
    Peer("bare psycopg2", "psycopg2", _bare_psycopg2, ("psycopg2",), blocks=False),
    Peer("poolkit, psycopg2", "psycopg2", _poolkit(PSYCOPG2, cursor=True), ("psycopg2",), checks=True),
    Peer("psycopg2 ThreadedConnectionPool", "psycopg2", _psycopg2_pool, ("psycopg2",)),
    Peer("DBUtils PooledDB, psycopg2", "psycopg2", _dbutils(_psycopg2_connect, "psycopg2"), ("psycopg2", "dbutils")),
    *_sqlalchemy_rows("psycopg2", "postgresql+psycopg2"),
    Peer("bare PyMySQL", "pymysql", _bare_pymysql, ("pymysql",), blocks=False),
    Peer("poolkit, PyMySQL", "pymysql", _poolkit("mysql+pymysql", cursor=True), ("pymysql",), checks=True),
    Peer("DBUtils PooledDB, PyMySQL", "pymysql", _dbutils(_pymysql_connect, "pymysql"), ("pymysql", "dbutils")),
    *_sqlalchemy_rows("pymysql", "mysql+pymysql"),
    Peer("bare sqlite3", "sqlite", _bare_sqlite, blocks=False),
    Peer("poolkit, sqlite3", "sqlite", _poolkit("sqlite"), checks=True),
    Peer("DBUtils PooledDB, sqlite3", "sqlite", _dbutils(_sqlite_connect, "sqlite3"), ("dbutils",)),
    *_sqlalchemy_rows("sqlite", "sqlite"),
)  # fmt: skip
