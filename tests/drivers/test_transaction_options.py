"""Options of a transaction on a real PostgreSQL: sent with each BEGIN, quoted, and forgotten with the borrowing."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
from rigs import Rig, Undo, _AsyncRig

from poolkit import AsyncUnitOfWork, ConfigError, Registry, UnitOfWork, async_unit_of_work, unit_of_work
from poolkit.nesting import AsyncSavepoint, Savepoint

WAYS = ["psycopg", "psycopg in asyncio", "asyncpg", "psycopg, BEGIN alone", "asyncpg, BEGIN alone", "psycopg2"]
TENANT = "SELECT current_setting('app.tenant', true)"
AWKWARD = 'it\'s a "tenant" \\ with; -- \n/* é */ $1 %s'


class Way:
    """A unit of work on one driver, behind one spelling."""

    def __init__(self, dsn: str, name: str) -> None:
        self.is_async = name not in ("psycopg", "psycopg2") and not name.startswith("psycopg,")
        self.is_asyncpg = name.startswith("asyncpg")
        self.is_psycopg2 = name == "psycopg2"
        library = name.partition(",")[0].partition(" ")[0]
        url = dsn.replace("postgresql://", f"postgresql+{library}://")
        options = {"fold_begin": False} if "alone" in name else {}
        self.registry = Registry({"default": {"url": url, "max_size": 1, "options": options}})

    def unit(self) -> Any:
        return (AsyncUnitOfWork if self.is_async else UnitOfWork)(self.registry, "GET /")

    async def awaited(self, result: Any) -> Any:
        return await result if inspect.isawaitable(result) else result

    async def value(self, conn: Any, query: str, *args: Any) -> Any:
        if self.is_asyncpg:
            return await conn.fetchval(query, *args)
        cursor = await self.execute(conn, query.replace("$1::text", "%s"), args or None)
        row = await self.awaited(cursor.fetchone())
        return row[0]

    async def execute(self, conn: Any, text: str, args: Any = None) -> Any:
        if not self.is_psycopg2:
            return await self.awaited(conn.execute(text, args))
        cursor = conn.cursor()
        cursor.execute(text, args)
        return cursor

    async def run(self, conn: Any, text: str) -> None:
        if self.is_asyncpg:
            await conn.execute(text)
        else:
            await self.execute(conn, text)


@pytest.fixture(params=WAYS)
async def way(request: pytest.FixtureRequest, pg_dsn: str) -> AsyncIterator[Way]:
    way = Way(pg_dsn, request.param)
    yield way
    await way.registry.aclose()


@pytest.mark.parametrize("first", ["text", "parameters", "prepared", "script", "many"])
async def test_settings_hold_from_the_first_statement_to_the_end(way: Way, first: str) -> None:
    """Whatever the first statement is sent as; and the next borrower of the session does not have them."""
    for _ in range(3):
        unit = way.unit()
        conn = await way.awaited(unit.get(settings={"app.tenant": "acme", "work_mem": "7MB"}))
        if first == "text":
            await way.run(conn, "SELECT 1")
        elif first == "parameters":
            assert await way.value(conn, "SELECT $1::text || current_setting('app.tenant')", "of ") == "of acme"
        elif first == "prepared" and way.is_psycopg2:
            await way.run(conn, "PREPARE p AS SELECT 1")
        elif first == "prepared" and not way.is_asyncpg:
            await way.awaited(conn.execute("SELECT %s::text", ("x",), prepare=True))
        elif first == "prepared":
            await (await conn.prepare("SELECT 1")).fetchval()
        elif first == "script":
            await way.run(conn, "CREATE TEMP TABLE t1 (x text) ON COMMIT DROP; INSERT INTO t1 VALUES ('x')")
        elif way.is_asyncpg:
            await conn.executemany("SELECT $1::text", [("a",), ("b",)])
        else:
            await way.awaited(conn.cursor().executemany("SELECT %s::text", [("a",), ("b",)]))
        assert await way.value(conn, TENANT) == "acme"
        assert await way.value(conn, "SHOW work_mem") == "7MB"
        await way.awaited(unit.finish())
        unit = way.unit()
        conn = await way.awaited(unit.get())
        assert await way.value(conn, TENANT) in ("", None)
        assert await way.value(conn, "SHOW work_mem") != "7MB"
        await way.awaited(unit.finish())


@pytest.mark.parametrize("conforming", ["on", "off"])
async def test_values_are_quoted(way: Way, conforming: str) -> None:
    """A value is data, whatever is in it and however the server reads backslashes."""
    unit = way.unit()
    conn = await way.awaited(unit.get())
    await way.run(conn, f"ALTER ROLE CURRENT_USER SET standard_conforming_strings = {conforming}")
    await way.awaited(unit.finish())
    await way.registry.aclose()
    try:
        unit = way.unit()
        conn = await way.awaited(unit.get(settings={"app.tenant": AWKWARD}))
        assert await way.value(conn, TENANT) == AWKWARD
        await way.awaited(unit.finish())
    finally:
        unit = way.unit()
        await way.run(await way.awaited(unit.get()), "ALTER ROLE CURRENT_USER RESET standard_conforming_strings")
        await way.awaited(unit.finish())


async def test_the_modes_of_a_transaction(way: Way) -> None:
    """Isolation level, read-only and deferrable are those of this transaction, and of no other."""
    modes = "SELECT concat_ws(',', current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_setting('transaction_deferrable'))"  # noqa: E501
    unit = way.unit()
    conn = await way.awaited(unit.get(isolation_level="serializable", read_only=True, deferrable=True))
    assert await way.value(conn, modes) == "serializable,on,on"
    await way.awaited(unit.finish())
    unit = way.unit()
    conn = await way.awaited(unit.get())
    assert await way.value(conn, modes) == "read committed,off,off"
    await way.awaited(unit.finish())


async def test_a_wrong_value_fails_the_first_statement_and_nothing_runs(way: Way) -> None:
    """No statement of the work runs without the settings that it asked for; the session serves the next one."""
    unit = way.unit()
    with pytest.raises((psycopg.Error, asyncpg.PostgresError, psycopg2.Error)):
        await way.run(await way.awaited(unit.get(settings={"statement_timeout": "soon"})), "CREATE TABLE never (x int)")
    await way.awaited(unit.close())
    unit = way.unit()
    assert await way.value(await way.awaited(unit.get()), "SELECT to_regclass('never')::text") is None
    await way.awaited(unit.finish())


async def test_each_later_transaction_of_the_unit_has_them(way: Way) -> None:
    """After `restart`, and after the work's own commit and rollback, the tenant is the same."""
    unit = way.unit()
    conn = await way.awaited(unit.get(settings={"app.tenant": "acme"}, isolation_level="repeatable read"))
    assert await way.value(conn, TENANT) == "acme"
    await way.awaited(unit.restart())
    assert await way.value(conn, TENANT) == "acme"
    if not way.is_asyncpg:
        for end in (conn.commit, conn.rollback):
            await way.awaited(end())
            assert await way.value(conn, "SHOW transaction_isolation") == "repeatable read"
            assert await way.value(conn, TENANT) == "acme"
        await way.awaited(conn.commit())
        if way.is_psycopg2:  # by SQL, which psycopg2 does not notice
            await way.run(conn, "SELECT 1")
            await way.run(conn, "COMMIT")
            assert await way.value(conn, TENANT) == "acme"
        elif psycopg.Pipeline.is_supported():
            context = conn.pipeline()
            await way.awaited(context.__aenter__() if way.is_async else context.__enter__())
            cursor = await way.awaited(conn.execute(TENANT))
            assert (await way.awaited(cursor.fetchone()))[0] == "acme"
            await way.awaited((context.__aexit__ if way.is_async else context.__exit__)(None, None, None))
    await way.awaited(unit.finish())
    unit = way.unit()
    assert await way.value(await way.awaited(unit.get()), TENANT) in ("", None)
    await way.awaited(unit.finish())


async def test_the_works_own_commit_is_counted(way: Way) -> None:
    """Psycopg's `commit`, `rollback` and `with conn:` tell the unit; its own end does not."""
    if way.is_asyncpg:
        pytest.skip("asyncpg's connections have no commit()")
    unit = way.unit()
    conn = await way.awaited(unit.get())
    await way.run(conn, "SELECT 1")
    await way.awaited(conn.commit())
    await way.awaited(conn.rollback())
    if way.is_async:
        async with conn:
            await way.run(conn, "SELECT 1")
    else:
        with conn:
            conn.cursor().execute("SELECT 1")
    await way.awaited(unit.finish())
    assert way.registry.tally.explicit_ends == {"commit": 2, "rollback": 1}


async def test_a_nested_block_is_a_savepoint(way: Way) -> None:
    """What it wrote is gone, what was written before is saved; a failed statement in it aborts nothing else."""
    setup = way.unit()
    await way.run(
        await way.awaited(setup.get()), "CREATE TABLE IF NOT EXISTS nested_rows (word text); TRUNCATE nested_rows"
    )
    await way.awaited(setup.finish())
    unit = way.unit()
    conn = await way.awaited(unit.get())
    await way.run(conn, "INSERT INTO nested_rows VALUES ('order')")
    savepoint = AsyncSavepoint(unit) if way.is_async else Savepoint(unit)
    if isinstance(savepoint, AsyncSavepoint):
        await savepoint.begin()
    await way.run(conn, "INSERT INTO nested_rows VALUES ('points')")
    with pytest.raises((psycopg.Error, asyncpg.PostgresError, psycopg2.Error)) as caught:
        await way.run(conn, "SELECT 1/0")
    await way.awaited(savepoint.end(caught.value))
    await way.run(conn, "INSERT INTO nested_rows VALUES ('item')")
    await way.awaited(unit.finish())
    check = way.unit()
    words = "SELECT string_agg(word, ',' ORDER BY word) FROM nested_rows"
    assert await way.value(await way.awaited(check.get()), words) == "item,order"
    await way.awaited(check.finish())


async def test_blocks_and_pools_take_them_alike(way: Way) -> None:
    """`pool.transaction(settings=...)` and a unit's `get` send the same."""
    given = {"settings": {"app.tenant": "acme"}}
    if way.is_async:
        async with way.registry.async_pool().transaction(**given) as conn:
            assert await way.value(conn, TENANT) == "acme"
        async with async_unit_of_work(way.registry) as unit:
            assert await way.value(await unit.get(**given), TENANT) == "acme"
    else:
        with way.registry.pool().transaction(**given) as conn:
            assert await way.value(conn, TENANT) == "acme"
        with unit_of_work(way.registry) as unit:
            assert await way.value(unit.get(**given), TENANT) == "acme"


# -- every driver: what it can do, and what it refuses -----------------------------------------------------------------

CAN: dict[str, dict[str, Any]] = {
    "isolation level": {"isolation_level": "serializable"},
    "another isolation level": {"isolation_level": "repeatable read"},
    "read only": {"read_only": True},
    "deferrable": {"deferrable": True},
    "settings": {"settings": {"app.tenant": "acme"}},
}
REFUSED = {
    "mysql": {"deferrable": "deferrable is PostgreSQL's", "settings": "settings can't be for one transaction"},
    "sqlite": {
        "another isolation level": "SQLite's transactions are serializable",
        "deferrable": "deferrable is PostgreSQL's",
        "settings": "settings can't be for one transaction in SQLite",
    },
}


@pytest.mark.parametrize("option", CAN)
def test_an_option_is_refused_in_one_sentence_or_holds_for_its_transactions(rig: Rig, option: str) -> None:
    """Before anything is lent; it holds to the end of the borrowing, also after a commit in the middle, no longer."""
    pool = rig.make_pool(rig.driver)
    refusals: dict[str, str] = {} if rig.postgres else REFUSED["mysql" if rig.mysql else "sqlite"]
    if option in refusals:
        with pytest.raises(ConfigError, match=refusals[option]):
            pool.transaction(**CAN[option])
        assert pool.stats().opened == 0
    else:
        check_held(rig, pool, option)
    rig.run(pool.close())


def check_held(rig: Rig, pool: Any, option: str) -> None:
    for end in ("commits", "fails"):
        with contextlib.suppress(Undo):
            borrowed(rig, pool.transaction(**CAN[option]), lambda conn, end=end: work_with(rig, conn, option, end))
        borrowed(rig, pool.transaction(), lambda conn: rig.do(conn, "DELETE FROM item"))
        borrowed(rig, pool.acquire(), lambda conn: rig.do(conn, "DELETE FROM item"))
        assert pool.stats().opened == 1


def work_with(rig: Rig, conn: Any, option: str, end: str) -> None:
    for _ in range(2):
        if option == "read only":
            refused = rig.run(captured(rig, conn, "INSERT INTO item VALUES (1)"))
            assert re.search(r"(?i)read.?only", str(refused))
            if rig.postgres and not rig.commits_midway:
                raise Undo
        elif rig.postgres:
            what = {"deferrable": "transaction_deferrable", "settings": "app.tenant"}.get(
                option, "transaction_isolation"
            )
            value = rig.value(conn, f"SELECT current_setting('{what}')")
            assert value in ("on", "acme", CAN[option].get("isolation_level"))
        if rig.commits_midway:
            rig.run(conn.rollback() if option == "read only" else conn.commit())
    if end == "fails":
        raise Undo


def captured(rig: Rig, conn: Any, statement: str) -> Exception:
    with pytest.raises((rig.errors, *rig.refusals)) as caught:
        rig.do(conn, statement)
    return caught.value


def borrowed(rig: Rig, borrowing: Any, work: Any) -> None:
    """Do it in a `with` or an `async with`."""
    is_async = isinstance(rig, _AsyncRig)
    conn = rig.run((borrowing.__aenter__ if is_async else borrowing.__enter__)())
    leave = borrowing.__aexit__ if is_async else borrowing.__exit__
    try:
        work(conn)
    except BaseException as error:
        rig.run(leave(type(error), error, None))
        raise
    rig.run(leave(None, None, None))
