"""Whatever users do in whatever order, a connection that folds and its twin that does not can't be told apart."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from fold_ways import Alike, made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rigs import RIGS

Step = Callable[[Any, Any], Awaitable[Any]]

QUERIES = (
    "SELECT count(*) FROM thing",
    "SELECT n FROM thing ORDER BY n -- all",
    "INSERT INTO thing VALUES (1)",
    "INSERT INTO thing VALUES (2) RETURNING n",
    "INSERT INTO thing VALUES (3); INSERT INTO thing VALUES (4)",
    "DELETE FROM thing WHERE n < 3",
    "SELECT 1/0",
    "SELEC 1",
    "SELECT $1",
    "SELECT 'a;b'",
    "SAVEPOINT one",
    "ROLLBACK TO one",
    "SET LOCAL application_name = 'twin'",
    "SHOW application_name",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "DECLARE held CURSOR FOR SELECT n FROM thing",
    "",
)


def _execute(query: str, *args: Any, **keywords: Any) -> Step:
    async def step(_: Any, conn: Any) -> Any:
        cursor = await conn.execute(query, *args, **keywords)
        rows = await cursor.fetchall() if cursor.description else None
        return rows, cursor.statusmessage, cursor.rowcount

    step.__name__ = f"execute({query!r}, {args}, {keywords})"
    return step


def _promise(name: str) -> Step:
    async def step(driver: Any, conn: Any) -> None:
        done = getattr(driver, name)(conn.real if isinstance(conn, Alike) else conn)
        if done is not None:
            await done

    step.__name__ = name
    return step


async def commit(_: Any, conn: Any) -> None:
    await conn.commit()


async def rollback(_: Any, conn: Any) -> None:
    await conn.rollback()


async def client(_: Any, conn: Any) -> Any:
    cursor = await made(conn, "ClientCursor").execute("SELECT %s, count(*) FROM thing", ["$;"])
    return await cursor.fetchall()


async def many(_: Any, conn: Any) -> Any:
    cursor = conn.cursor()
    await cursor.executemany("INSERT INTO thing VALUES (%s)", [[5], [6]])
    return cursor.rowcount


async def copy(_: Any, conn: Any) -> None:
    async with conn.cursor().copy("COPY thing FROM STDIN") as rows:
        await rows.write_row([7])


async def stream(_: Any, conn: Any) -> Any:
    return [row async for row in conn.cursor().stream("SELECT n FROM thing ORDER BY n")]


async def named(_: Any, conn: Any) -> Any:
    async with conn.cursor("mine") as cursor:
        await cursor.execute("SELECT n FROM thing ORDER BY n")
        return await cursor.fetchall()


async def nested(_: Any, conn: Any) -> None:
    async with conn.transaction():
        await conn.execute("INSERT INTO thing VALUES (8)")


async def nested_in_vain(_: Any, conn: Any) -> None:
    with contextlib.suppress(psycopg.errors.DivisionByZero):
        async with conn.transaction():
            await conn.execute("INSERT INTO thing VALUES (9)")
            await conn.execute("SELECT 1/0")


async def pipeline(_: Any, conn: Any) -> Any:
    async with conn.pipeline():
        first = await conn.execute("INSERT INTO thing VALUES (10) RETURNING n")
        await conn.execute("SELECT 1")
    return await first.fetchall()


async def autocommit(_: Any, conn: Any) -> None:
    await conn.set_autocommit(True)


async def no_autocommit(_: Any, conn: Any) -> None:
    await conn.set_autocommit(False)


async def isolation(_: Any, conn: Any) -> None:
    await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)


STEPS = [
    *(_execute(query) for query in QUERIES),
    _execute("INSERT INTO thing VALUES (%s)", [11]),
    _execute("SELECT %s::int", [1], prepare=True),
    _execute("SELECT n FROM thing WHERE n = %s", [1], binary=True),
    _execute("SELECT %s", []),
    _execute("SELECT n FROM nowhere", prepare=True),
    *(_promise(name) for name in ("begin", "commit", "rollback")),
    commit, rollback, client, many, copy, stream, named, nested, nested_in_vain, pipeline, autocommit, no_autocommit,
    isolation,
]  # fmt: skip


class _Twin:
    def __init__(self, rig: Any, *, fold_begin: bool) -> None:
        self.rig = rig
        self.driver = rig.driver = rig.again(options={"fold_begin": fold_begin, "prepare_threshold": 2})
        self.conn = rig.open()
        rig.do(self.conn, "CREATE TEMP TABLE thing (n int PRIMARY KEY)")
        self.driver.settled(self.conn)

    def afresh(self) -> None:
        self.rig.run(self.driver.rollback(self.conn))
        self.rig.run(self.driver.reset(self.conn, full=False))
        self.rig.do(self.conn, "DELETE FROM thing", "RESET application_name")

    def take(self, step: Step) -> tuple[Any, ...]:
        try:
            answer = self._run(step)
        except psycopg.Error as error:
            # The statements that psycopg prepares are numbered through, and a BEGIN of its own counts as one.
            answer = (type(error), re.sub(r"_pg3_\d+", "_pg3_N", str(error)), error.sqlstate)
        driver, conn = self.driver, self.conn
        return answer, driver.in_transaction(conn), driver.aborted(conn), driver.is_broken(conn, None), conn.autocommit

    def _run(self, step: Step) -> Any:
        steps: Any = step(self.driver, Alike.of(self.conn))
        if hasattr(self.rig, "runner"):
            return self.rig.run(steps)
        try:
            steps.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("a sync connection was awaited")


def _compare(kind: str, url: str, examples: int) -> None:
    again = RIGS[kind].kind
    rig = RIGS[kind](again(url), lambda **keywords: again(url, **keywords))
    try:
        twins = [_Twin(rig, fold_begin=fold_begin) for fold_begin in (True, False)]

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(steps=st.lists(st.sampled_from(STEPS), max_size=12))
        def same(steps: list[Step]) -> None:
            for twin in twins:
                twin.afresh()
            for step in [_promise("begin"), *steps, _promise("commit"), _execute("SELECT n FROM thing ORDER BY n")]:
                seen = [twin.take(step) for twin in twins]
                assert seen[0] == seen[1], step.__name__

        same()
    finally:
        rig.close_all()


@pytest.mark.parametrize("kind", ["psycopg", "psycopg-async"])
def test_twins(kind: str, tables: str) -> None:
    """Same answers, same errors, same state after every step."""
    _compare(kind, tables, 10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["psycopg", "psycopg-async"])
def test_twins_for_longer(kind: str, tables: str) -> None:
    """The same, many times over."""
    _compare(kind, tables, 150)
