"""Resets that fail, hang, lose their line or meet a timeout: no statement may ever run in a session as it was left.

The server itself keeps the book: each statement of the next requests draws a number from a sequence where it finds the
session unclean. A sequence forgets nothing in a rollback, nor where the answer was lost.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import mysql_kinds
import psycopg
import pytest
from matrix_cells import Way, drive, eventually, rows, session

from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.drivers.psycopg2 import Psycopg2Driver
from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.testing import FaultProxy

__all__ = ["FAULTS", "Fault", "nobody_in_a_crowd_ran_in_it", "nobody_ran_in_it", "server_of", "the_book_is_kept"]

FAULTS = [
    "fails",
    pytest.param("hangs", marks=pytest.mark.slow),  # for a second
    "is cut off",
    "meets its end",
    "meets a timeout",
]

CROWD = 6  # requests at the same moment
NEW = [("", None)]  # what a request finds in a session as new
_TENANT = "coalesce(current_setting('kind.tenant', true), '')"
_POSTGRESQL = {
    "leave": ["CREATE TEMPORARY TABLE IF NOT EXISTS kind_mine (i int)", "SET kind.tenant = 'acme'"],
    "hurry": [
        "DO $$ BEGIN FOR n IN 1..60 LOOP EXECUTE 'CREATE TEMPORARY TABLE kind_' || n || ' ()'; END LOOP; END $$",
        "SET statement_timeout = 1",
    ],
    "look": f"SELECT {_TENANT}, CASE WHEN {_TENANT} <> '' THEN nextval('kind_unclean') END",
    "rest": "SELECT set_config('kind.rest', (SELECT count(*)::text FROM kind_rest), false)",
    "kill": "SELECT pg_terminate_backend({})",
}
_MYSQL = {
    "leave": ["CREATE TEMPORARY TABLE IF NOT EXISTS kind_mine (id int)", "SET @mine = 'acme'"],
    "hurry": ["SET max_statement_time = 0.001"],
    "look": "SELECT IF(@mine IS NULL, '', 'acme'), IF(@mine IS NULL, NULL, nextval(kind_unclean))",
    "rest": "SET @kind_rest = (SELECT count(*) FROM kind_rest)",
    "kill": "KILL {}",
}


class Server:
    """A connection of the test's own, and what the server has seen."""

    def __init__(self, kind: str, execute: Callable[[str], list[Any]]) -> None:
        self.execute = execute
        self.texts: dict[str, Any] = _MYSQL if kind == "mysql" else _POSTGRESQL
        self.kind = kind
        for statement in (
            "DROP SEQUENCE IF EXISTS kind_unclean",
            "CREATE SEQUENCE kind_unclean",
            "DROP TABLE IF EXISTS kind_rest",
            "CREATE TABLE kind_rest (i int)",
        ):
            execute(statement)

    def unclean(self) -> bool:
        """Whether a statement of an innocent request has run in a session as it was left."""
        if self.kind == "mysql":
            return self.execute("SELECT next_not_cached_value FROM kind_unclean") != [(1,)]
        return self.execute("SELECT is_called FROM kind_unclean") != [(False,)]


@contextmanager
def server_of(url: str) -> Iterator[Server]:
    """Connect to the server of a URL, beside the proxy."""
    kind, _, rest = url.partition(":")
    if kind.startswith("mysql"):
        driver = PymysqlDriver(url)
        conn: Any = driver.open(10)
        try:
            yield Server("mysql", lambda statement: mysql_kinds.run(conn, statement))
        finally:
            driver.close(conn)
        return
    with psycopg.connect(f"postgresql:{rest}", autocommit=True) as own:
        yield Server("postgresql", lambda statement: drive(rows(own, statement)))


class Fault:
    """What happens to a reset, just before it is sent; `configure` is the pool's."""

    def __init__(self, name: str, server: Server, proxy: FaultProxy) -> None:
        self.name, self.server, self.proxy = name, server, proxy
        self.armed = 0  # so many resets are struck
        self.struck = 0
        self._lock = threading.Lock()

    def strike(self, session: int) -> None:
        """Let it happen to a session."""
        with self._lock:
            if self.armed:
                self.armed -= 1
                self.struck += 1
                self._strike(session)

    def _strike(self, session: int) -> None:
        if self.name == "fails":  # its state of rest can't be made again
            self.server.execute("DROP TABLE kind_rest")
        elif self.name == "hangs":
            self.proxy.half_open()
        elif self.name == "is cut off":
            self.proxy.cut()
        elif self.name == "meets its end":
            self.server.execute(self.server.texts["kill"].format(session))

    def configure(self, conn: Any) -> None:
        """Give each session a state of rest, as long as it can be given."""
        if not self.struck:
            drive(rows(conn, self.server.texts["rest"]))

    async def aconfigure(self, conn: Any) -> None:
        """Do the same for asyncio."""
        if not self.struck:
            await rows(conn, self.server.texts["rest"])

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Have every driver's reset struck."""
        for kind, name in (
            (PsycopgDriver, "send_reset"),
            (PymysqlDriver, "send_reset"),
            (Psycopg2Driver, "reset"),
            (AsyncPsycopgDriver, "reset"),
            (AsyncpgDriver, "reset"),
        ):
            patch.setattr(kind, name, self._struck(getattr(kind, name)))

    def _struck(self, reset: Callable[..., Any]) -> Callable[..., Any]:
        def struck(driver: Any, resource: Any, *, full: bool) -> Any:
            self.strike(session(resource))
            return reset(driver, resource, full=full)

        return struck


def the_book_is_kept(driver: Any, server: Server) -> None:
    """Run on an unclean session, without a pool between: the server tells of it, though it was rolled back."""
    conn = driver.open(10)
    try:
        for statement in [server.texts["look"], *server.texts["leave"], "BEGIN"]:
            drive(rows(conn, statement))
        assert not server.unclean()
        for statement in [server.texts["look"], "ROLLBACK"]:
            drive(rows(conn, statement))
        assert server.unclean()
    finally:
        driver.close(conn)


def nobody_ran_in_it(make: Callable[..., Way], fault: Fault, *, asynchronous: bool) -> None:
    """Leave a session whose reset is struck: the next requests get a 200, and run in a new one."""
    server, texts = fault.server, fault.server.texts
    way = make(max_size=1, timeout=4, configure=fault.aconfigure if asynchronous else fault.configure)
    seen: list[Any] = []
    changed: list[int] = []

    async def look(conn: Any) -> None:
        seen.append((session(conn), await rows(conn, texts["look"])))

    async def leave(conn: Any) -> None:
        for statement in texts["leave"]:
            await rows(conn, statement)
        changed.append(session(conn))
        if fault.name == "meets a timeout":
            for statement in texts["hurry"]:
                await rows(conn, statement)
        fault.armed = 1

    try:
        assert way.serve(look) == 200
        assert way.serve(leave) in {200, 500, 599}  # a COMMIT may be too late for its timeout
        for _ in range(3):
            assert way.serve(look) == 200
        assert fault.struck == 1
        assert [found for _, found in seen] == [NEW] * 4
        assert not server.unclean()
        if fault.name != "meets a timeout":
            assert changed[0] not in {number for number, _ in seen[1:]}
            assert way.stats.opened == 2
        eventually(lambda: way.stats.size == 1)
    finally:
        way.close()


def nobody_in_a_crowd_ran_in_it(make: Callable[..., Way], fault: Fault) -> None:
    """Half of the requests of a crowd change their session, and the server ends it before its reset."""
    server, texts = fault.server, fault.server.texts
    way = make(max_size=2, timeout=10)
    turns = itertools.count()
    seen: list[Any] = []

    async def work(conn: Any) -> None:
        if next(turns) % 2:
            for statement in texts["leave"]:
                await rows(conn, statement)
        else:
            seen.extend(await rows(conn, texts["look"]))

    fault.armed = 10
    try:
        with ThreadPoolExecutor(CROWD) as crowd:
            statuses = list(crowd.map(lambda _: way.serve(work), range(40)))
        assert statuses == [200] * 40
        assert fault.struck == 10
        assert seen == NEW * 20
        assert not server.unclean()
        eventually(lambda: way.stats.out == way.stats.resetting == 0)
        assert way.stats.opened >= 10
    finally:
        way.close()
