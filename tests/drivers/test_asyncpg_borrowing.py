"""asyncpg: a borrowing has an object of its own; one that was given back refuses all, whoever has the session now."""

from __future__ import annotations

import asyncio
import gc
import io
import warnings
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg
import pytest

from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.errors import LeaseError, Returned

PLACE = Returned("default", "GET /orders")
Work = Callable[[AsyncpgDriver, Any], Awaitable[None]]


class Keeping(AsyncpgDriver):
    """Has a reference to each connection, as the pool has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: Any = None

    def renew(self, resource: Any, returned: Returned) -> Any:
        self.kept = super().renew(resource, returned)
        return self.kept


def lent(url: str, work: Work, **arguments: Any) -> None:
    """Run `work(driver, connection)` with a connection as a pool has it."""

    async def main() -> None:
        driver = Keeping(url, **arguments)
        driver.kept = conn = await driver.open(10)
        driver.settled(conn)
        try:
            await work(driver, conn)
        finally:
            driver.terminate(driver.kept)

    asyncio.run(main())


async def nothing(*_: object) -> None:
    """Be called back."""


def settings_of(conn: Any) -> Any:
    return conn.get_settings()


def pid_of(conn: Any) -> Any:
    return conn.get_server_pid()


LATE: dict[str, Callable[[Any], Any]] = {
    "execute": lambda conn: conn.execute("INSERT INTO item VALUES (66)"),
    "execute with arguments": lambda conn: conn.execute("INSERT INTO item VALUES ($1)", 66),
    "executemany": lambda conn: conn.executemany("INSERT INTO item VALUES ($1)", [(66,)]),
    "fetch": lambda conn: conn.fetch("INSERT INTO item VALUES (66) RETURNING id"),
    "fetchrow": lambda conn: conn.fetchrow("INSERT INTO item VALUES (66) RETURNING id"),
    "fetchval": lambda conn: conn.fetchval("INSERT INTO item VALUES (66) RETURNING id"),
    "prepare": lambda conn: conn.prepare("INSERT INTO item VALUES (66)"),
    "cursor": lambda conn: conn.cursor("SELECT 1"),
    "transaction": lambda conn: conn.transaction(),
    "copy in": lambda conn: conn.copy_records_to_table("item", records=[(66,)]),
    "copy out": lambda conn: conn.copy_from_query("SELECT 1", output=io.BytesIO()),
    "add_listener": lambda conn: conn.add_listener("mine", nothing),
    "add_log_listener": lambda conn: conn.add_log_listener(nothing),
    "add_termination_listener": lambda conn: conn.add_termination_listener(nothing),
    "add_query_logger": lambda conn: conn.add_query_logger(nothing),
    "set_type_codec": lambda conn: conn.set_type_codec(
        "int4", encoder=str, decoder=int, format="text", schema="pg_catalog"
    ),
    "reset_type_codec": lambda conn: conn.reset_type_codec("int4", schema="pg_catalog"),
    "reload_schema_state": lambda conn: conn.reload_schema_state(),
    "reset": lambda conn: conn.reset(),
    "is_in_transaction": lambda conn: conn.is_in_transaction(),
    "get_settings": settings_of,
    "get_server_pid": pid_of,
}


async def done(result: Any) -> Any:
    return await result if hasattr(result, "__await__") else result


@pytest.mark.parametrize("late", LATE)
def test_all_is_refused_while_another_works(tables: str, admin: psycopg.Connection[Any], late: str) -> None:
    """Whatever is asked of a connection after its return is refused with its place, and the next one is not touched."""

    async def work(driver: AsyncpgDriver, old: Any) -> None:
        new = driver.renew(old, PLACE)
        await driver.begin(new)
        running = asyncio.ensure_future(new.execute("INSERT INTO item SELECT 1 FROM pg_sleep(0.05)"))
        await asyncio.sleep(0)
        with pytest.raises(LeaseError, match="given back by GET /orders"):
            await done(LATE[late](old))
        await running
        await driver.commit(new)
        assert driver.clean(new)

    lent(tables, work)
    assert admin.execute("SELECT id FROM item").fetchall() == [(1,)]


async def a_statement(conn: Any) -> Any:
    statement = await conn.prepare("INSERT INTO item VALUES (66) RETURNING id")
    return [statement.fetch, statement.fetchval, statement.get_parameters, lambda: statement.executemany([()])]


async def a_cursor(conn: Any) -> Any:
    await conn.execute("BEGIN")
    opened = await conn.cursor("SELECT generate_series(1, 100)")
    await opened.fetchrow()
    await conn.execute("COMMIT")
    return [lambda: opened.fetch(1), opened.fetchrow, lambda: opened.forward(1)]


async def an_iterator(conn: Any) -> Any:
    await conn.execute("BEGIN")
    rows = aiter(conn.cursor("SELECT generate_series(1, 100)", prefetch=2))
    await anext(rows)
    await conn.execute("COMMIT")
    return [lambda: anext(rows)]


async def a_factory(conn: Any) -> Any:
    cursor = conn.cursor("SELECT 1")
    return [lambda: aiter(cursor), lambda: done(cursor)]


async def a_block(conn: Any) -> Any:
    block = conn.transaction()
    return [block.start, block.commit, block.rollback, block.__aenter__]


@pytest.mark.parametrize("make", [a_statement, a_cursor, an_iterator, a_factory, a_block])
def test_what_was_made_from_it_is_refused(
    tables: str, admin: psycopg.Connection[Any], make: Callable[[Any], Awaitable[Any]]
) -> None:
    """A prepared statement, cursor or transaction of an earlier borrowing is refused, also while another works."""

    async def work(driver: AsyncpgDriver, old: Any) -> None:
        uses = await make(old)
        await driver.reset(old, full=False)
        new = driver.renew(old, PLACE)
        running = asyncio.ensure_future(new.execute("INSERT INTO item SELECT 1 FROM pg_sleep(0.05)"))
        await asyncio.sleep(0)
        for use in uses:
            with pytest.raises(LeaseError, match="given back by GET /orders"):
                await done(use())
        del uses, use
        await running
        assert await new.fetchval("SELECT count(*) FROM item") == 1

    lent(tables, work)
    assert admin.execute("SELECT id FROM item").fetchall() == [(1,)]


def test_what_must_not_break(tables: str) -> None:
    """A late repr, close, end of a block that failed anyway, and garbage collection touch nothing and say nothing."""

    async def work(driver: AsyncpgDriver, old: Any) -> None:
        block = old.transaction()
        await block.__aenter__()
        await driver.reset(old, full=False)
        new = driver.renew(old, PLACE)
        assert "Connection" in repr(old)
        assert isinstance(old, asyncpg.Connection)
        assert old.is_closed()
        await old.close()
        old.terminate()
        await block.__aexit__(ValueError, ValueError(), None)
        with pytest.raises(LeaseError):  # what it did is not saved, so this end is no success
            await block.__aexit__(None, None, None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del old, block
            gc.collect()
        assert await new.fetchval("SELECT 1") == 1
        assert driver.alive(new)

    lent(tables, work)


def test_many_borrowings_of_one_session(tables: str) -> None:
    """Statements in the cache, listeners of rest, notices and cancellation follow the session from object to object."""
    heard: list[str] = []

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.add_listener("news", lambda on, pid, channel, payload: heard.append(f"{payload} {on.is_closed()}"))
        driver.settled(conn)
        pid = await conn.fetchval("SELECT pg_backend_pid()")
        for number in range(3):
            kept, conn = conn, driver.renew(conn, PLACE)
            assert await conn.fetchval("SELECT pg_backend_pid()") == pid
            await conn.execute(f"NOTIFY news, '{number}'")
            await conn.fetch("SELECT 1")
            with pytest.raises(TimeoutError):
                await conn.execute("SELECT pg_sleep(5)", timeout=0.3)
            conn = driver.renew(conn, PLACE)  # the cancellation is under way
            await driver.reset(conn, full=False)
            assert await conn.fetchval("SELECT 1") == 1
            assert driver.clean(conn)
            del kept
        assert heard == ["0 False", "1 False", "2 False"]

    lent(tables, work)


def test_a_forgotten_statement_is_closed_at_the_server(tables: str) -> None:
    """Prepared statements and cursors that are collected after the return do not pile up in the session."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        for number in range(5):
            statement = await conn.prepare(f"SELECT {number}")
            conn = driver.renew(conn, PLACE)
            del statement
        await conn.fetch("SELECT 'another, so that asyncpg tidies up'")
        named = await conn.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement ~ '^SELECT [0-9]$'")
        assert named == 0

    lent(tables, work)


@pytest.mark.parametrize("kind", ["fetch", "execute", "statement", "cursor", "prepare", "copy"])
def test_under_way_at_the_return(tables: str, kind: str) -> None:
    """What another task still does at the return is seen, whoever asked for it: the session is not lent again."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        slow = "SELECT pg_sleep(0.3)"
        if kind == "statement":
            asked = (await conn.prepare(slow)).fetch()
        elif kind == "cursor":
            await conn.execute("BEGIN")
            cursor = await conn.cursor("SELECT pg_sleep(0.3) FROM generate_series(1, 2)")
            asked = cursor.fetch(1)
        elif kind == "prepare":
            await conn.execute("SET jit = off")
            asked = conn.prepare("SELECT 1")
        elif kind == "copy":
            asked = conn.copy_from_query(slow, output=io.BytesIO())
        else:
            asked = getattr(conn, kind)(slow)
        task = asyncio.ensure_future(asked)
        await asyncio.sleep(0 if kind == "prepare" else 0.05)
        assert not driver.clean(conn)
        new = driver.renew(conn, PLACE)
        with pytest.raises(asyncpg.InterfaceError, match="under way"):
            await driver.reset(new, full=False)
        driver.terminate(new)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, LeaseError)):
            await task

    lent(tables, work)


def test_a_coroutine_made_before_the_return(tables: str) -> None:
    """One that was made in time and is awaited late is refused as well."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        late = conn.fetchval("SELECT 1")
        driver.renew(conn, PLACE)
        with pytest.raises(LeaseError):
            await late

    lent(tables, work)


# -- closed by its borrower --------------------------------------------------------------------------------------------


# -- the commit tells the truth ----------------------------------------------------------------------------------------


async def killed(conn: Any, kill: Callable[[int], None]) -> None:
    pid = conn.get_server_pid()
    await conn.execute("INSERT INTO item VALUES (1)")
    kill(pid)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):  # noqa: PT012  when it hears of it
        for _ in range(200):
            await conn.execute("SELECT 1")
            await asyncio.sleep(0.01)


async def killed_in_the_first(conn: Any, kill: Callable[[int], None]) -> None:
    pid = conn.get_server_pid()
    task = asyncio.ensure_future(conn.fetch("INSERT INTO item SELECT 1 FROM pg_sleep(5)"))
    await asyncio.sleep(0.05)
    kill(pid)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await task


async def timed_out(conn: Any, kill: Callable[[int], None]) -> None:
    del kill
    await conn.execute("INSERT INTO item VALUES (1)")
    with pytest.raises(TimeoutError):
        await conn.execute("SELECT pg_sleep(5)", timeout=0.3)


async def timed_out_in_the_first(conn: Any, kill: Callable[[int], None]) -> None:
    del kill
    with pytest.raises(TimeoutError):
        await conn.fetch("INSERT INTO item SELECT 1 FROM pg_sleep(5)", timeout=0.3)


async def committed_after_a_failure(conn: Any, kill: Callable[[int], None]) -> None:
    del kill
    await conn.execute("INSERT INTO item VALUES (1)")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await conn.execute("SELECT 1 / 0")
    assert await conn.execute("COMMIT") == "ROLLBACK"


@pytest.mark.parametrize("fold_begin", [True, False])
@pytest.mark.parametrize(
    "what", [killed, killed_in_the_first, timed_out, timed_out_in_the_first, committed_after_a_failure]
)
def test_lost_before_the_commit(
    tables: str, admin: psycopg.Connection[Any], what: Callable[..., Awaitable[None]], *, fold_begin: bool
) -> None:
    """A transaction that was lost on the way, its error ignored, is never told as saved."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await driver.begin(conn)
        await what(conn, lambda pid: admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]))
        with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresError)):
            await driver.commit(conn)

    lent(tables, work, options={"fold_begin": fold_begin})
    assert admin.execute("SELECT count(*) FROM item").fetchone() == (0,)


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_ended_by_hand(tables: str, end: str) -> None:
    """A transaction that its user ended by SQL is over, also where the connection is closed afterwards."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await driver.begin(conn)
        await conn.execute("SELECT 1")
        await conn.execute(end)
        conn.terminate()
        await driver.commit(conn)

    lent(tables, work)


def test_errors_have_kinds(tables: str) -> None:
    """A deadlock or a serialization failure can be tried again, a refused connect can't; only the driver's count."""
    driver = AsyncpgDriver(tables)
    assert driver.is_retryable(asyncpg.DeadlockDetectedError("x"))
    assert driver.is_retryable(asyncpg.SerializationError("x"))
    assert not driver.is_retryable(asyncpg.UniqueViolationError("x"))
    assert not driver.is_retryable(SimpleNamespace(sqlstate="40001"))  # type: ignore[arg-type]
    assert not driver.is_retryable(KeyError(1213))
    for refused in (
        asyncpg.InvalidPasswordError("x"),
        asyncpg.InvalidCatalogNameError("x"),
        asyncpg.UndefinedObjectError("x"),
        asyncpg.InvalidParameterValueError("x"),
        asyncpg.CantChangeRuntimeParamError("x"),
        ValueError("x"),
    ):
        assert driver.failure_kind(refused) == "refused"
    for away in (
        OSError("x"),
        TimeoutError(),
        asyncpg.TooManyConnectionsError("x"),
        asyncpg.CannotConnectNowError("x"),
    ):
        assert driver.failure_kind(away) == "away"
