"""asyncpg: BEGIN rides with the first statement; every way to the server is inside, and costs what it should."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import Rig

from poolkit.drivers._relay import begin_text
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.errors import CommitFailed, ConfigError

pytestmark = pytest.mark.parametrize("rig_name", ["asyncpg"], indirect=True)

INSERT = "INSERT INTO item VALUES (1)"
Way = Callable[[Any], Awaitable[object]]
Counted = tuple[Rig, Callable[[Callable[[], Any]], int]]


async def execute(conn: Any) -> None:
    assert await conn.execute(INSERT) == "INSERT 0 1"


async def execute_two(conn: Any) -> None:
    assert await conn.execute(f"SELECT 1; {INSERT};") == "INSERT 0 1"


async def execute_after_comment(conn: Any) -> None:
    assert await conn.execute(f"-- a comment\n{INSERT}") == "INSERT 0 1"


async def with_parameter(conn: Any) -> None:
    assert await conn.execute("INSERT INTO item VALUES ($1)", 1) == "INSERT 0 1"


async def many(conn: Any) -> None:
    await conn.executemany("INSERT INTO item VALUES ($1)", [(1,), (2,)])


async def fetch_many(conn: Any) -> None:
    rows = await conn.fetchmany("INSERT INTO item VALUES ($1) RETURNING id", [(1,), (2,)])
    assert [row["id"] for row in rows] == [1, 2]


async def fetch(conn: Any) -> None:
    assert [row["id"] for row in await conn.fetch(f"{INSERT} RETURNING id")] == [1]


async def fetch_row(conn: Any) -> None:
    assert (await conn.fetchrow(f"{INSERT} RETURNING id"))["id"] == 1


async def fetch_value(conn: Any) -> None:
    assert await conn.fetchval(f"{INSERT} RETURNING id") == 1


async def prepared(conn: Any) -> None:
    statement = await conn.prepare(f"{INSERT} RETURNING id")
    assert await statement.fetchval() == 1


async def explained(conn: Any) -> None:
    statement = await conn.prepare(INSERT)
    await statement.explain(analyze=True)  # in a savepoint of its own, which it rolls back
    await conn.execute(INSERT)


async def cursor(conn: Any) -> None:
    found = [row["id"] async for row in conn.cursor(f"WITH made AS ({INSERT} RETURNING id) SELECT id FROM made")]
    assert found == [1]


async def cursor_by_hand(conn: Any) -> None:
    opened = await conn.cursor(f"{INSERT} RETURNING id")
    assert (await opened.fetchrow())["id"] == 1


async def copy_in(conn: Any) -> None:
    await conn.copy_to_table("item", source=io.BytesIO(b"1\n"))


async def copy_records(conn: Any) -> None:
    await conn.copy_records_to_table("item", records=[(1,)])


async def copy_out(conn: Any) -> None:
    await conn.copy_from_query(f"{INSERT} RETURNING id", output=io.BytesIO())


async def savepoint(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute(INSERT)


async def undone_savepoint(conn: Any) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with conn.transaction():
            await conn.execute("INSERT INTO item VALUES (7)")
            raise ZeroDivisionError
    await conn.execute(INSERT)


async def types(conn: Any) -> None:
    await conn.set_type_codec("int4", encoder=str, decoder=int, schema="pg_catalog")
    await conn.reset_type_codec("int4", schema="pg_catalog")
    await conn.execute(INSERT)


async def listening(conn: Any) -> None:
    def hear(*_: object) -> None:
        """Nothing is said."""

    await conn.add_listener("news", hear)
    await conn.execute(INSERT)
    await conn.remove_listener("news", hear)


async def by_hand(conn: Any) -> None:
    await conn.execute("BEGIN")  # a warning, as in any open transaction
    await conn.execute(INSERT)


async def refused_by_asyncpg(conn: Any) -> None:
    with pytest.raises(asyncpg.DataError):
        await conn.execute("INSERT INTO item VALUES ($1)", "one")
    assert conn.is_in_transaction()
    await conn.execute(INSERT)


async def miscounted(conn: Any) -> None:
    with pytest.raises(asyncpg.InterfaceError):
        await conn.fetch("INSERT INTO item VALUES ($1)")
    assert conn.is_in_transaction()
    await conn.execute(INSERT)


async def already_late(conn: Any) -> None:
    with pytest.raises(TimeoutError):
        await conn.fetch(INSERT, timeout=-1)
    assert conn.is_in_transaction()
    await conn.execute(INSERT)


WAYS = {  # and how many round trips each saves, once its statements are in asyncpg's cache; None: it depends
    execute: 1, execute_two: 1, execute_after_comment: 0, with_parameter: 1, many: 0, fetch_many: 0,
    fetch: 1, fetch_row: 1, fetch_value: 1, prepared: 1, explained: 1, cursor: 1, cursor_by_hand: 0, copy_in: None,
    copy_records: None, copy_out: None, savepoint: 1, undone_savepoint: 1, types: 1, listening: 1, by_hand: 1,
    refused_by_asyncpg: None, miscounted: None, already_late: None,
}  # fmt: skip


def items(admin: psycopg.Connection[Any]) -> list[int]:
    """What is committed, seen from outside."""
    return [row[0] for row in admin.execute("SELECT id FROM item ORDER BY id")]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_inside(rig: Rig, admin: psycopg.Connection[Any], way: Way) -> None:
    """Whatever comes first in a transaction is undone by its rollback, unseen before its commit, and kept by it."""
    conn = rig.open()
    for _ in range(2):  # the second time the statement is in asyncpg's cache, and goes another way
        for end, kept in ((rig.rollback, []), (rig.commit, [1])):
            rig.begin(conn)
            assert conn.is_in_transaction()
            rig.run(way(conn))
            assert rig.in_transaction(conn)
            assert items(admin) == []
            end(conn)
            assert not rig.in_transaction(conn)
            assert items(admin)[:1] == kept
            rig.reset(conn, full=False)
            assert rig.clean(conn)
        admin.execute("DELETE FROM item")
    assert rig.alive(conn)


def test_what_each_way_costs(counted: Counted) -> None:
    """Folding never costs more than BEGIN by itself, and a round trip less where it can."""
    rig, trips = counted
    kinds = [rig.driver, type(rig.driver)(rig.driver._source, options={"fold_begin": False})]
    conns = [rig.open(), rig.open()]

    def unit(number: int, way: Way) -> None:
        rig.driver, conn = kinds[number], conns[number]
        rig.begin(conn)
        rig.run(way(conn))
        rig.rollback(conn)
        rig.reset(conn, full=False)

    for way, saved in WAYS.items():
        for number in (0, 1):
            unit(number, way)
        cost = [trips(lambda number=number, way=way: unit(number, way)) for number in (0, 1)]
        assert saved is None or cost[1] - cost[0] == saved, (way, cost)


def test_statements_and_one(counted: Counted) -> None:
    """Through the pool: none costs nothing, n cost n + 1."""
    rig, trips = counted
    pool = rig.make_pool(rig.driver)

    def unit(statements: int) -> None:
        rig.transaction(pool, lambda conn: rig.do(conn, *["SELECT 1"] * statements))

    unit(1)
    assert [trips(lambda n=n: unit(n)) for n in (0, 1, 2)] == [0, 2, 3]
    assert rig.run(pool.close())


@pytest.mark.parametrize("fold_begin", [True, False])
def test_option(counted: Counted, *, fold_begin: bool) -> None:
    """`fold_begin=False` has `begin` send BEGIN at once."""
    rig, trips = counted
    rig.driver = type(rig.driver)(rig.driver._source, options={"fold_begin": fold_begin})
    conn = rig.open()
    assert trips(lambda: rig.begin(conn)) == (0 if fold_begin else 1)
    assert rig.in_transaction(conn)
    assert not rig.clean(conn)
    rig.rollback(conn)
    assert rig.clean(conn)


def test_option_is_checked(rig: Rig) -> None:
    """Anything but True and False is refused."""
    with pytest.raises(ConfigError, match="fold_begin must be True or False, not 'no'"):
        rig.again(options={"fold_begin": "no"})


@pytest.mark.parametrize("way", [way for way in WAYS if way not in (by_hand, already_late)])
def test_where_begin_fails_nothing_runs(rig: Rig, admin: psycopg.Connection[Any], way: Way) -> None:
    """The error is the statement's, and whoever goes on all the same is not outside of a transaction either."""
    conn = rig.open()
    for _ in range(2):
        right, rig.driver._begin = rig.driver._begin, begin_text({"isolation": "imaginary"})
        rig.begin(conn)
        rig.driver._begin = right
        for _ in range(2):
            with pytest.raises(asyncpg.PostgresSyntaxError):
                rig.run(way(conn))
            assert items(admin) == []
        rig.rollback(conn)
        rig.reset(conn, full=False)
        assert rig.clean(conn)
        rig.begin(conn)  # the same connection, as if nothing had been
        rig.run(way(conn))
        rig.rollback(conn)
        rig.reset(conn, full=False)
        assert items(admin) == []


MODE = {"isolation_level": "serializable", "read_only": True, "deferrable": True}


def test_modes_go_along(rig: Rig) -> None:
    """Isolation level, READ ONLY and DEFERRABLE are said in the BEGIN that rides, and to asyncpg's own object."""
    rig.driver = rig.again(options=MODE)
    conn = rig.open()
    for ask in (lambda: conn.fetchval("SELECT current_setting('transaction_isolation')"), lambda: _by_text(conn)):
        rig.begin(conn)
        assert rig.run(ask()) in {"serializable", "SELECT 1"}
        found = [
            rig.run(conn.fetchval(f"SHOW transaction_{name}")) for name in ("isolation", "read_only", "deferrable")
        ]
        assert found == ["serializable", "on", "on"]
        rig.run(_nested(conn, "serializable"))
        with pytest.raises(asyncpg.InterfaceError, match="different isolation level"):
            rig.run(_nested(conn, "read_committed"))
        rig.commit(conn)


async def _by_text(conn: Any) -> Any:
    return await conn.execute("SELECT 1")


async def _nested(conn: Any, level: str) -> None:
    async with conn.transaction(isolation=level):
        await conn.fetchval("SELECT 1")


@pytest.mark.parametrize(
    "query",
    ["SELECT nothing_of_the_kind", "SELEKT 1", "SELECT 1 / 0", "INSERT INTO item VALUES (1), (1)", "COMMIT; SELECT x"],
)
def test_errors_are_the_same(rig: Rig, query: str) -> None:
    """The class, the words and the position of an error do not tell that BEGIN went along."""
    told = []
    for fold_begin in (True, False):
        rig.driver = rig.again(options={"fold_begin": fold_begin})
        conn = rig.open()
        for send in (conn.execute, conn.fetch):
            rig.begin(conn)
            with pytest.raises(asyncpg.PostgresError) as raised:
                rig.run(send(query))
            told.append((type(raised.value), str(raised.value), raised.value.position, raised.value.sqlstate))
            rig.rollback(conn)
            assert not conn.is_in_transaction()
    assert told[:2] == told[2:]


def test_a_swallowed_error_is_no_commit(rig: Rig) -> None:
    """The first statement fails and its error is ignored: the COMMIT says so."""
    conn = rig.open()
    rig.begin(conn)
    with pytest.raises(asyncpg.DivisionByZeroError):
        rig.run(conn.fetch("SELECT 1 / 0"))
    assert rig.aborted(conn)
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        rig.commit(conn)
    assert rig.clean(conn)
    pool = rig.make_pool(rig.driver)
    with pytest.raises(CommitFailed):
        rig.run(_ignored(pool))
    assert rig.run(pool.close())


async def _ignored(pool: Any) -> None:
    async with pool.transaction() as conn:
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            await conn.fetch("SELECT 1 / 0")


@pytest.mark.parametrize("first", ["SELECT pg_sleep(5)", "INSERT INTO item SELECT 1 FROM pg_sleep(5)"])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_first_statement_that_is_cut_short(rig: Rig, admin: psycopg.Connection[Any], first: str, how: str) -> None:
    """Cancelled or out of time: the transaction is rolled back, and the connection serves the next."""
    pool = rig.make_pool(rig.driver)

    async def unit(send: str) -> None:
        async with pool.transaction() as conn:
            await getattr(conn, send)(first, timeout=0.05 if how == "timeout" else None)

    async def main() -> None:
        for send in ("execute", "fetch"):
            task = asyncio.ensure_future(unit(send))
            if how == "cancel":
                await asyncio.sleep(0.05)
                task.cancel()
            with pytest.raises((asyncio.CancelledError, TimeoutError)):
                await task
        async with pool.transaction() as conn:
            assert await conn.fetchval("SELECT count(*) FROM item") == 0
            await conn.execute(INSERT)
        assert pool.stats().out == 0

    rig.run(main())
    assert items(admin) == [1]
    assert rig.run(pool.close())


def test_a_dead_server_is_met_by_the_first_statement(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """A transaction that was promised on a connection whose server has gone fails at its first statement."""
    conn = rig.open()
    pid = conn.get_server_pid()
    rig.begin(conn)
    admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises((*rig.ending, asyncpg.PostgresConnectionError)) as raised:
        rig.run(_until_it_fails(conn))
    assert rig.is_broken(conn, raised.value)
    assert not rig.in_transaction(conn)


async def _until_it_fails(conn: Any) -> None:
    for _ in range(500):  # the news is on its way
        await conn.execute("SELECT 1")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("used", [True, False])
def test_a_connection_closed_in_the_middle(rig: Rig, *, used: bool) -> None:
    """What was begun can't be committed any more, and a promise that nobody used needs no commit."""
    conn = rig.open()
    rig.begin(conn)
    if used:
        rig.run(conn.execute(INSERT))
    conn.terminate()
    assert not rig.in_transaction(conn)
    assert not conn.is_in_transaction()
    if used:
        with pytest.raises(asyncpg.InterfaceError, match="closed before the COMMIT"):
            rig.commit(conn)
    else:
        rig.commit(conn)
    rig.rollback(conn)
    assert rig.is_broken(conn, None)


# -- a twin ------------------------------------------------------------------------------------------------------------


async def savepoint_of_one(conn: Any) -> Any:
    async with conn.transaction():
        return await conn.fetchval("SELECT 2")


async def copy_out_of_one(conn: Any) -> bytes:
    target = io.BytesIO()
    await conn.copy_from_query("SELECT 3", output=target)
    return target.getvalue()


async def rows_of_cursor(conn: Any) -> list[int]:
    return [row[0] async for row in conn.cursor("SELECT generate_series(1, 3)")]


STEPS = {
    "insert": lambda conn: conn.execute("INSERT INTO item VALUES (default_id())"),
    "value": lambda conn: conn.fetchval("SELECT 1"),
    "wrong": lambda conn: conn.fetchval("SELECT 1 / 0"),
    "wrong text": lambda conn: conn.execute("SELECT 1 / 0"),
    "bad argument": lambda conn: conn.fetchval("SELECT $1::int", "x"),
    "commit by hand": lambda conn: conn.execute("COMMIT"),
    "begin by hand": lambda conn: conn.execute("BEGIN"),
    "nested": savepoint_of_one,
    "copy": copy_out_of_one,
    "cursor": rows_of_cursor,
}


@settings(max_examples=25, deadline=None, database=None)
@given(units=st.lists(st.tuples(st.lists(st.sampled_from(sorted(STEPS)), max_size=4), st.booleans()), max_size=3))
def _twins_agree(rig: Rig, conns: list[Any], drivers: list[AsyncpgDriver], units: Any) -> None:
    seen: list[list[object]] = [[], []]
    for log, conn, driver in zip(seen, conns, drivers, strict=True):
        for steps, keep in units:
            rig.run(driver.begin(conn))
            for step in steps:
                log.append(rig.run(_outcome(STEPS[step](conn))))
                log.append(conn.is_in_transaction())
            log.append(rig.run(_outcome((driver.commit if keep else driver.rollback)(conn))))
            rig.run(driver.reset(conn, full=False))
            log.append((conn.is_in_transaction(), driver.clean(conn)))
    assert seen[0] == seen[1]


async def _outcome(work: Awaitable[object]) -> object:
    try:
        return await work
    except Exception as error:  # noqa: BLE001  whatever it is, the twin has to raise it too
        return type(error), str(error)


def test_twins_can_not_be_told_apart(rig: Rig) -> None:
    """Whatever is done in whatever order, results, errors and states are those of a connection that does not fold."""
    drivers = [rig.again(options={"fold_begin": fold_begin}) for fold_begin in (True, False)]
    conns = []
    for driver in drivers:
        rig.driver = driver
        conns.append(rig.open())
    _twins_agree(rig, conns, drivers)
