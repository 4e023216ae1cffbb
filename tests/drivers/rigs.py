"""One face for every leased driver, sync or async, so that the same cases run for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sqlite3
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pymysql
import pymysql.cursors
import pytest

from poolkit.aio import AsyncPool
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.drivers.psycopg2 import Psycopg2Driver
from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.drivers.sqlite import SqliteDriver
from poolkit.threads import Pool


class Undo(Exception):
    """Raised to leave a nested transaction."""


class Rig:
    """A driver and what a test needs to know of its library. Everything is called synchronously."""

    errors: type[Exception]  # the root of the library's errors
    refusals: tuple[type[Exception], ...] = ()  # what it raises besides, where it is closed
    postgres = True
    mysql = False
    commits_midway = True  # the connection has a commit() of its own
    folds = False  # BEGIN rides with the first statement
    ending: tuple[type[Exception], ...] = ()  # errors with which the server ends a session
    an_option = "connect_timeout"

    def __init__(self, driver: Any, again: Callable[..., Any]) -> None:
        self.driver = driver
        self.again = again  # makes another driver like it, with other arguments
        self._opened: list[Any] = []

    def run(self, result: Any) -> Any:
        return result

    def open(self) -> Any:
        conn = self.run(self.driver.open(10))
        self._opened.append(conn)
        return conn

    def ping(self, conn: Any, timeout: float = 10) -> bool:
        return self.run(self.driver.ping(conn, timeout))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.driver, name)
        return lambda *args, **kwargs: self.run(method(*args, **kwargs))

    def rows(self, conn: Any, query: str) -> list[tuple[Any, ...]]:
        cursor = self.run(conn.execute(query))
        return self.run(cursor.fetchall()) if cursor.description else []

    def value(self, conn: Any, query: str) -> Any:
        return self.rows(conn, query)[0][0]

    def do(self, conn: Any, *queries: str) -> None:
        for query in queries:
            self.rows(conn, query)

    def listen(self, conn: Any, channel: str) -> Callable[[], list[str]]:
        """Listen on a channel; returns a function that says what was heard."""
        heard: list[str] = []
        conn.add_notify_handler(lambda notification: heard.append(notification.payload))
        self.do(conn, f"LISTEN {channel}")
        return lambda: heard

    def hang_up(self, conn: Any) -> None:
        """Close as a careless user would."""
        self.run(conn.close())

    def savepoint(self, conn: Any, query: str, *, fail: bool) -> None:
        """Run a query in the library's own nested transaction, and let it fail afterwards."""
        with contextlib.suppress(Undo), conn.transaction():
            self.do(conn, query)
            if fail:
                raise Undo

    def transaction(self, pool: Any, work: Callable[[Any], None]) -> None:
        with pool.transaction() as conn:
            work(conn)

    def make_pool(self, driver: Any) -> Any:
        return Pool(driver, max_size=1)

    def close_all(self) -> None:
        for conn in self._opened:
            self.run(self.driver.close(conn))


class PsycopgRig(Rig):
    errors = psycopg.Error
    folds = True
    ending = (
        psycopg.errors.AdminShutdown, psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.ConnectionFailure,
    )  # fmt: skip
    kind: Any = PsycopgDriver


class _AsyncRig(Rig):
    @staticmethod
    def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
        return None

    def __init__(self, driver: Any, again: Callable[..., Any]) -> None:
        super().__init__(driver, again)
        self.runner = asyncio.Runner(loop_factory=self.loop_factory())
        self.runner.__enter__()

    def run(self, result: Any) -> Any:
        return self.runner.run(_awaited(result)) if hasattr(result, "__await__") else result

    def savepoint(self, conn: Any, query: str, *, fail: bool) -> None:
        async def work() -> None:
            async with conn.transaction():
                await conn.execute(query)
                if fail:
                    raise Undo

        with contextlib.suppress(Undo):
            self.run(work())

    def transaction(self, pool: Any, work: Callable[[Any], None]) -> None:
        entered = pool.transaction()
        conn = self.run(entered.__aenter__())
        try:
            work(conn)
        except BaseException as error:
            self.run(entered.__aexit__(type(error), error, None))
            raise
        self.run(entered.__aexit__(None, None, None))

    def make_pool(self, driver: Any) -> Any:
        return AsyncPool(driver, max_size=1)

    def close_all(self) -> None:
        for conn in self._opened:  # as the pool does: goodbyes are for the living
            if self.driver.alive(conn):
                self.run(self.driver.close(conn))
            else:
                self.driver.terminate(conn)
        self.runner.__exit__(None, None, None)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


class AsyncPsycopgRig(_AsyncRig):
    errors = psycopg.Error
    folds = True
    ending = PsycopgRig.ending
    kind: Any = AsyncPsycopgDriver


class AsyncpgRig(_AsyncRig):
    errors = asyncpg.PostgresError
    refusals = (asyncpg.InterfaceError,)
    ending = (
        asyncpg.AdminShutdownError, asyncpg.IdleInTransactionSessionTimeoutError, asyncpg.ConnectionFailureError,
    )  # fmt: skip
    an_option = "command_timeout"
    commits_midway = False
    folds = True
    kind: Any = AsyncpgDriver

    def listen(self, conn: Any, channel: str) -> Callable[[], list[str]]:
        heard: list[str] = []
        self.run(conn.add_listener(channel, lambda *arguments: heard.append(arguments[3])))
        return lambda: heard

    def rows(self, conn: Any, query: str) -> list[tuple[Any, ...]]:
        if query.split(maxsplit=1)[0].upper() in {"SELECT", "SHOW"}:
            return [tuple(row) for row in self.run(conn.fetch(query))]
        self.run(conn.execute(query))
        return []


class _OnUvloop:
    """The loop of uvicorn, whose transports are no relatives of asyncio's."""

    @staticmethod
    def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
        return pytest.importorskip("uvloop").new_event_loop


class AsyncPsycopgUvloopRig(_OnUvloop, AsyncPsycopgRig):
    pass


class AsyncpgUvloopRig(_OnUvloop, AsyncpgRig):
    pass


class _PlainRig(Rig):
    """For libraries of PEP 249: all is done by cursors, and a nested transaction is plain SQL."""

    def rows(self, conn: Any, query: str) -> list[tuple[Any, ...]]:
        cursor = conn.cursor()
        try:
            cursor.execute(query)
            return list(cursor.fetchall()) if cursor.description else []
        finally:
            cursor.close()

    def savepoint(self, conn: Any, query: str, *, fail: bool) -> None:
        self.do(conn, "SAVEPOINT mine", query)
        self.do(conn, *(["ROLLBACK TO SAVEPOINT mine"] if fail else []), "RELEASE SAVEPOINT mine")


class Psycopg2Rig(_PlainRig):
    errors = psycopg2.Error
    ending = (
        psycopg2.errors.AdminShutdown, psycopg2.errors.IdleInTransactionSessionTimeout,
        psycopg2.errors.ConnectionFailure,
    )  # fmt: skip
    kind: Any = Psycopg2Driver

    def listen(self, conn: Any, channel: str) -> Callable[[], list[str]]:
        self.do(conn, f"LISTEN {channel}")
        return lambda: [notification.payload for notification in conn.notifies]


def _numbered(base: type[Exception], number: int) -> type[Exception]:
    """Make a class of errors that are told apart by a number, as MySQL's are."""
    return type("Numbered", (base,), {"__init__": lambda self, text: Exception.__init__(self, number, text)})


_ENDING = (2006, 2013, 2055, 1053, 1927, 4031)


class PymysqlRig(_PlainRig):
    errors = pymysql.Error
    ending = tuple(_numbered(pymysql.OperationalError, number) for number in _ENDING)
    postgres, mysql = False, True
    kind: Any = PymysqlDriver
    streaming: Any = pymysql.cursors.SSCursor

    def stream(self, conn: Any, query: str, rows: int = 2) -> Any:
        """Read some rows one by one, as the library's unbuffered cursor does."""
        cursor = conn.cursor(self.streaming)
        cursor.execute(query)
        cursor.fetchmany(rows)
        return cursor


class SqliteRig(_PlainRig):
    errors = sqlite3.Error
    an_option = "busy_timeout"
    postgres = False
    kind: Any = SqliteDriver


RIGS: dict[str, Any] = {
    "psycopg": PsycopgRig,
    "psycopg-async": AsyncPsycopgRig,
    "psycopg-async-uvloop": AsyncPsycopgUvloopRig,
    "psycopg2": Psycopg2Rig,
    "pymysql": PymysqlRig,
    "asyncpg": AsyncpgRig,
    "asyncpg-uvloop": AsyncpgUvloopRig,
    "sqlite-file": SqliteRig,
    "sqlite-memory": SqliteRig,
}

# It has to be built, so it is in no lock, and its cases run where somebody has installed it.
MYSQLCLIENT = importlib.util.find_spec("MySQLdb") is not None
if MYSQLCLIENT:
    import MySQLdb
    import MySQLdb.cursors

    from poolkit.drivers.mysqlclient import MysqlclientDriver

    class MysqlclientRig(PymysqlRig):
        errors = MySQLdb.Error
        ending = tuple(_numbered(MySQLdb.OperationalError, number) for number in _ENDING)
        kind: Any = MysqlclientDriver
        streaming: Any = MySQLdb.cursors.SSCursor

    RIGS["mysqlclient"] = MysqlclientRig

MYSQL = [name for name, rig in RIGS.items() if rig.mysql]
