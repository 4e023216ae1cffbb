"""Cells of the matrix: a driver, a kind of state, and a way in which a framework lends a connection to a request.

A `Way` serves requests on a pool of one connection. In a cell one request leaves a kind of state in its session, and
the next one looks for that state and for every other kind: it has to find what it finds on a connection that was just
opened.
"""

from __future__ import annotations

import inspect
import itertools
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import pymysql
from mysql_kinds import KINDS as MYSQL
from mysql_kinds import Kind as MysqlKind
from mysql_kinds import run as run_mysql
from state_kinds import POSTGRES, SQLITE, PostgresKind, SqliteKind

from poolkit.stats import PoolStats

__all__ = ["KINDS", "AnyKind", "Way", "Work", "drive", "eventually", "few", "rows", "session", "unlike_new"]

AnyKind = PostgresKind | MysqlKind | SqliteKind
Work = Callable[[Any], Coroutine[Any, Any, None]]

KINDS: dict[str, tuple[AnyKind, ...]] = {"postgresql": POSTGRES, "mysql": MYSQL, "sqlite": SQLITE}

# For good, and by DO and functions in PL/pgSQL as well; it is looked for after LOAD itself.
_LOADED = {"LOAD"}
# It shows outside of a transaction only: what looks for it has another connection write to the same table.
_OUTSIDE = ("a cursor half read",)
# It writes a row, which is saved by a transaction that succeeds, and where each statement has a session of its own.
_WRITES = {"an open transaction", "a transaction"}


class LeftError(Exception):
    """A request that leaves something behind, and fails."""


class Way:
    """One way to a connection. `serve` gives a request to the app, whose view does `work` on its connection."""

    transaction = False  # whether the work is inside of one
    keeps = True  # whether one session does all of the work
    cells = 0  # how many kinds were left and looked for

    def serve(self, work: Work) -> int:
        """Give one request to the app; return the status of the answer."""
        raise NotImplementedError

    def pools(self) -> list[Any]:
        """The pools that exist now."""
        raise NotImplementedError

    @property
    def stats(self) -> PoolStats:
        """The numbers of the pool that serves."""
        return max((pool.stats() for pool in self.pools()), key=lambda stats: stats.acquired)

    def close(self) -> None:
        """Close the pool."""


async def settle(value: Any) -> Any:
    """Wait for what an asynchronous library returns, and take what the others return as it is."""
    return await value if inspect.isawaitable(value) else value


def drive(work: Awaitable[Any]) -> Any:
    """Run to its end what has nothing to wait for: the work on a connection for threads."""
    iterator = work.__await__()
    try:
        next(iterator)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


async def rows(conn: Any, statement: str) -> list[Any]:
    """Run one statement, or several in one text, on a connection of any library; return the rows of the first."""
    if hasattr(conn, "fetchval"):  # asyncpg
        if statement.startswith("SELECT") and ";" not in statement:
            return [tuple(row) for row in await conn.fetch(statement)]
        await conn.execute(statement)
        return []
    cursor = conn.cursor()
    await settle(cursor.execute(statement))
    found = list(await settle(cursor.fetchall())) if cursor.description else []
    await settle(cursor.close())
    return found


def _own(conn: Any) -> Any:
    """The library's connection, where this is Django's."""
    if not hasattr(conn, "ensure_connection"):
        return conn
    conn.ensure_connection()
    return conn.connection


def session(conn: Any) -> int:
    """The number that the server has for a session; it is not asked for it."""
    own = _own(conn)
    if hasattr(own, "get_server_pid"):  # asyncpg
        return own.get_server_pid()
    if hasattr(own, "thread_id"):  # MySQL's
        return own.thread_id()
    return own.info.backend_pid


def eventually(what: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for what happens in another thread, no longer than it takes."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


async def _leave(conn: Any, kind: AnyKind) -> None:
    if isinstance(kind, SqliteKind):
        kind.dirty(_own(conn))
        return
    for step in kind.dirty:
        if not isinstance(step, str):
            step(_own(conn))
        elif isinstance(kind, MysqlKind):
            run_mysql(conn, step)
        else:
            await rows(conn, step)


async def _look(conn: Any, kind: AnyKind) -> object:
    if callable(kind.look):
        return kind.look(_own(conn))
    return run_mysql(conn, kind.look) if isinstance(kind, MysqlKind) else await rows(conn, kind.look)


def few(kinds: Iterable[AnyKind], names: Iterable[str]) -> list[AnyKind]:
    """Choose kinds by name."""
    chosen = [kind for kind in kinds if kind.name in set(names)]
    assert len(chosen) == len(set(names))
    return chosen


async def _in_transaction(conn: Any) -> bool:
    """Whether two statements are in one transaction."""
    own = _own(conn)
    if isinstance(own, sqlite3.Connection):
        await rows(conn, "SELECT count(*) FROM item")  # it begins with the first look into a table
        return own.in_transaction
    if isinstance(own, pymysql.connections.Connection):
        await rows(conn, "SELECT count(*) FROM item")
        return (await rows(conn, "SELECT @@in_transaction"))[0][0] == 1
    return await rows(conn, "SELECT now()") == await rows(conn, "SELECT now()")


class Cells:
    """Leaves kinds of state by one request, and looks by the next one for `everything`."""

    def __init__(self, way: Way, everything: Iterable[AnyKind]) -> None:
        self.way = way
        outside = _OUTSIDE if way.transaction else ()
        self.looks = {kind.look: kind for kind in reversed(tuple(everything)) if not kind.name.startswith(outside)}
        self.found: dict[object, object] = {}
        self.left: list[object] = []
        assert way.serve(self._look_first) == 200
        self.new = dict(self.found)

    async def _look_first(self, conn: Any) -> None:
        assert await _in_transaction(conn) == self.way.transaction
        await self.look(conn)

    async def look(self, conn: Any) -> None:
        """Look for everything."""
        for name, kind in self.looks.items():
            self.found[name] = await _look(conn, kind)

    def run(self, kind: AnyKind, *, fails: bool) -> list[str]:
        """Run one cell; return what is wrong."""

        async def leave(conn: Any) -> None:
            await _leave(conn, kind)
            if kind.look in self.looks:
                self.left.append(await _look(conn, kind))
            if fails:
                raise LeftError

        self.left.clear()
        self.found.clear()
        statuses = self.way.serve(leave), self.way.serve(self.look)
        wrong = [] if statuses[1] == 200 else [f"{kind}: {statuses[0]}, and then {statuses[1]}"]
        if self.way.keeps and not self.way.transaction and self.left in ([], [self.new.get(kind.look)]):
            wrong.append(f"{kind}: left nothing")
        return wrong + [
            f"{kind}: {self.looks[look]}: {found} where new {self.new[look]}"
            for look, found in self.found.items()
            if found != self.new[look] and (look == kind.look or self.looks[look].name not in _LOADED)
        ]


def unlike_new(way: Way, kinds: Iterable[AnyKind], everything: Iterable[AnyKind]) -> list[str]:
    """Run one cell after the other; return what a request found that it would not find on a new connection.

    After each kind that a request has left, `everything` is looked for. In a transaction each is left once more, by a
    request that fails.
    """
    cells, wrong = Cells(way, everything), []
    for kind, fails in itertools.product(kinds, (False, True) if way.transaction else (False,)):
        if kind.name not in _WRITES or fails or (way.keeps and not way.transaction):
            wrong += cells.run(kind, fails=fails)
            way.cells += 1
    return wrong
