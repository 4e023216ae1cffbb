"""BEGIN rides with the first statement: every way to the server is inside the transaction, and costs what it should."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from fold_ways import SAVED, WAYS, Alike, Sent, cancelled_first, made
from psycopg import pq
from rigs import Rig

from poolkit.errors import ConfigError
from poolkit.testing import FaultProxy

KINDS = ["psycopg", pytest.param("psycopg-async", marks=pytest.mark.slow)]  # the same steps, waited for otherwise
Way = Callable[[Any], Awaitable[None]]
Counted = tuple[Rig, Callable[[Callable[[], Any]], int]]

pytestmark = pytest.mark.parametrize("rig_name", KINDS, indirect=True)


def items(admin: psycopg.Connection[Any]) -> list[int]:
    """What is committed, seen from outside."""
    return [row[0] for row in admin.execute("SELECT id FROM item ORDER BY id")]


def go(rig: Rig, way: Way, conn: Any) -> None:
    """Take one of the ways, which are written once: for asyncio."""
    rig.run(_finish(rig, way(Alike.of(conn))))


def _finish(rig: Rig, steps: Any) -> Any:
    if hasattr(rig, "runner"):
        return steps
    try:  # nothing in it ever waits: the connection is a sync one
        steps.send(None)
    except StopIteration:
        return None
    raise AssertionError("a sync connection was awaited")


def status(conn: Any) -> pq.TransactionStatus:
    return pq.TransactionStatus(conn.pgconn.transaction_status)


def test_every_way_is_inside(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """Whatever comes first in a transaction is undone by its rollback, unseen before its commit, and kept by it."""
    conn = rig.open()
    for way in WAYS:
        for end, kept in ((rig.rollback, []), (rig.commit, [1])):
            rig.begin(conn)
            go(rig, way, conn)
            assert status(conn) == pq.TransactionStatus.INTRANS, way
            assert items(admin) == [], way
            end(conn)
            assert items(admin)[:1] == kept, way
            rig.reset(conn, full=False)
            assert rig.clean(conn), way
        admin.execute("DELETE FROM item")
    assert rig.alive(conn)


def test_what_each_way_costs(counted: Counted) -> None:
    """Folding never costs more than BEGIN by itself, one round trip less where it can, two less where it prepares."""
    rig, trips = counted
    folding = rig.open()
    rig.driver = type(rig.driver)(rig.driver._source, options={"fold_begin": False})
    plain = rig.open()

    def unit(conn: Any, way: Way) -> None:
        rig.begin(conn)
        go(rig, way, conn)
        rig.rollback(conn)
        rig.reset(conn, full=False)

    for way in WAYS:
        if way is not cancelled_first:  # libpq's cancel keeps the GIL, which the proxy needs
            cost = [trips(lambda conn=conn, way=way: unit(conn, way)) for conn in (folding, plain)]
            assert cost[1] - cost[0] == SAVED[way], (way, cost)


def test_statements_and_one(counted: Counted) -> None:
    """Through the pool: none costs nothing, n cost n + 1."""
    rig, trips = counted
    pool = rig.make_pool(rig.driver)

    def unit(statements: int) -> None:
        rig.transaction(pool, lambda conn: rig.do(conn, *["SELECT 1"] * statements))

    unit(1)
    assert [trips(lambda n=n: unit(n)) for n in (0, 1, 2)] == [0, 2, 3]
    assert rig.run(pool.close())


def test_prepared_statements(counted: Counted) -> None:
    """A statement that is prepared on its way costs no round trip for that, and serves the next transactions."""
    rig, trips = counted
    conn = rig.open()

    def unit() -> None:
        rig.begin(conn)
        cursor = rig.run(conn.execute("SELECT %s::int + 1", [1]))
        assert rig.run(cursor.fetchall()) == [(2,)]
        rig.commit(conn)

    assert [trips(unit) for _ in range(9)] == [2] * 9
    assert list(conn._prepared._names.values()) == [b"_pg3_0"]


def test_option(counted: Counted) -> None:
    """`fold_begin=False` has `begin` send BEGIN at once."""
    for fold_begin in (True, False):
        _begin_and_roll_back(*counted, fold_begin=fold_begin)


def _begin_and_roll_back(rig: Rig, trips: Callable[[Callable[[], Any]], int], *, fold_begin: bool) -> None:
    rig.driver = type(rig.driver)(rig.driver._source, options={"fold_begin": fold_begin})
    conn = rig.open()
    assert trips(lambda: rig.begin(conn)) == (0 if fold_begin else 1)
    assert rig.in_transaction(conn)
    assert not rig.clean(conn)
    assert (status(conn) == pq.TransactionStatus.IDLE) == fold_begin
    rig.rollback(conn)
    assert rig.clean(conn)


def test_option_is_checked(rig: Rig) -> None:
    """Anything but True and False is refused."""
    with pytest.raises(ConfigError, match="fold_begin must be True or False, not 'no'"):
        rig.again(options={"fold_begin": "no"})


def test_by_hand(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """What is sent through libpq by hand passes by: as the first statement it is outside, unless folding is off."""
    for fold_begin, kept in ((False, []), (True, [1])):
        rig.driver = rig.again(options={"fold_begin": fold_begin})
        conn = rig.open()
        rig.begin(conn)
        conn.pgconn.exec_(b"INSERT INTO item VALUES (1)")
        rig.rollback(conn)
        assert items(admin) == kept


def test_by_hand_after_a_statement(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """After any statement through psycopg, what is sent by hand is inside."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "SELECT 1")
    conn.pgconn.exec_(b"INSERT INTO item VALUES (1)")
    rig.rollback(conn)
    assert items(admin) == []


def test_isolation_and_mode_ride_along(rig: Rig) -> None:
    """The transaction has the isolation level and the mode of the connection."""
    rig.driver = rig.again(options={"isolation_level": "serializable", "read_only": True})
    conn = rig.open()
    rig.begin(conn)
    assert rig.value(conn, "SELECT current_setting('transaction_isolation')") == "serializable"
    assert rig.value(conn, "SHOW transaction_read_only") == "on"
    rig.commit(conn)
    rig.begin(conn)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        rig.do(conn, "INSERT INTO item VALUES (1)")
    assert rig.aborted(conn)
    rig.rollback(conn)


ERRORS = {
    "SELECT 1/0": psycopg.errors.DivisionByZero,
    "SELEC 1": psycopg.errors.SyntaxError,
    "SELECT": None,
    "SELECT FROM WHERE": psycopg.errors.SyntaxError,
    "SELECT $1": psycopg.errors.UndefinedParameter,
    "SELECT 1; SELECT 2; SELECT 1/0": psycopg.errors.DivisionByZero,
    "INSERT INTO item VALUES (1), (1)": psycopg.errors.UniqueViolation,
    "SELECT * FROM nowhere": psycopg.errors.UndefinedTable,
    "COPY item FROM STDIN": psycopg.ProgrammingError,
    "COPY item TO STDOUT": psycopg.ProgrammingError,
    "": None,
    ";": None,
    "-- nothing": None,
}


def test_errors_are_the_statements_own(rig: Rig) -> None:
    """Class, text, place and state afterwards are those of a statement whose BEGIN was sent before."""
    drivers = [rig.again(options={"fold_begin": fold_begin}) for fold_begin in (True, False)]
    for query, kind in ERRORS.items():
        seen = []
        for rig.driver in drivers:
            conn = rig.open()
            rig.begin(conn)
            seen.append(_outcome(rig, conn, query))
        assert seen[0] == seen[1]
        assert seen[0][0] is kind, query


def _outcome(rig: Rig, conn: Any, query: str) -> tuple[Any, ...]:
    try:
        rig.do(conn, query)
    except psycopg.Error as error:
        diag = error.diag
        told = (str(error), diag.sqlstate, diag.message_primary, diag.statement_position, diag.table_name)
        return type(error), told, status(conn), rig.aborted(conn), rig.is_broken(conn, error)
    return None, status(conn), rig.aborted(conn), rig.is_broken(conn, None)


@pytest.mark.parametrize("threshold", [0, 1])
def test_what_can_not_be_prepared(rig: Rig, threshold: int) -> None:
    """A statement that the server refuses to prepare is not taken for prepared; the next transaction is as ever."""
    rig.driver = rig.again(options={"prepare_threshold": threshold})
    conn = rig.open()
    rig.do(conn, "CREATE TEMP TABLE thing (id int)")
    for there in (True, True, False, False, True, True):
        rig.do(conn, "DROP TABLE IF EXISTS thing", *(["CREATE TEMP TABLE thing (id int)"] if there else []))
        rig.begin(conn)
        if there:
            assert rig.value(conn, "SELECT count(*) FROM thing") == 0
        else:
            with pytest.raises(psycopg.errors.UndefinedTable):
                rig.do(conn, "SELECT count(*) FROM thing")
            assert rig.aborted(conn)
        rig.run(conn.commit())
        rig.commit(conn)


def test_too_many_parameters(rig: Rig) -> None:
    """What libpq refuses to send fails alone: the transaction has begun and goes on."""
    conn = rig.open()
    rig.begin(conn)

    async def many(conn: Any) -> None:
        await made(conn, "RawCursor").execute("SELECT 1", [1] * 70_000)

    with pytest.raises(psycopg.OperationalError, match="number of parameters") as raised:
        go(rig, many, conn)
    assert not rig.is_broken(conn, raised.value)
    assert status(conn) == pq.TransactionStatus.INTRANS
    assert rig.value(conn, "SELECT 1") == 1
    rig.commit(conn)


def test_large_parameters(rig: Rig) -> None:
    """A statement that does not fit into the socket's buffer, and an answer that doesn't either."""
    conn = rig.open()
    rig.begin(conn)
    text = "x" * 5_000_000
    cursor = rig.run(conn.execute("SELECT %s::text, %s::text", [text, text]))
    assert rig.run(cursor.fetchone()) == (text, text)
    rig.commit(conn)


def test_before_anything_was_sent(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """A statement that psycopg itself refuses leaves the promise as it was: what follows is a savepoint within."""
    conn = rig.open()
    rig.begin(conn)
    with pytest.raises(psycopg.ProgrammingError, match="placeholder"):
        rig.run(conn.execute("SELECT %s", []))
    cursor = conn.cursor()
    rig.run(cursor.close())
    with pytest.raises(psycopg.InterfaceError, match="cursor is closed"):
        rig.run(cursor.execute("SELECT 1"))
    assert conn._pipeline is None
    rig.savepoint(conn, "INSERT INTO item VALUES (1)", fail=False)
    rig.rollback(conn)
    assert items(admin) == []


def test_row_factory_that_fails(rig: Rig) -> None:
    """An error of the user's own in the middle of it leaves a transaction like any other."""
    conn = rig.open()
    rig.begin(conn)

    def rows(cursor: Any) -> Any:
        raise LookupError(cursor.description[0].name)

    with pytest.raises(LookupError, match="mine"):
        rig.run(conn.cursor(row_factory=rows).execute("SELECT 1 AS mine"))
    assert status(conn) == pq.TransactionStatus.INTRANS
    assert rig.value(conn, "SELECT 2") == 2
    rig.commit(conn)


def test_commit_midway(counted: Counted, admin: psycopg.Connection[Any]) -> None:
    """After a commit of the user's own a new transaction begins, and BEGIN rides with its first statement as well."""
    rig, trips = counted
    conn = rig.open()
    rig.begin(conn)
    assert trips(lambda: rig.run(conn.commit())) == 0
    rig.do(conn, "INSERT INTO item VALUES (1)")
    rig.run(conn.commit())
    assert trips(lambda: rig.do(conn, "INSERT INTO item VALUES (2)")) == 1
    assert items(admin) == [1]
    rig.rollback(conn)
    assert items(admin) == [1]


def test_nothing_changes_in_autocommit(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """Outside a unit a statement stands alone, and `transaction()` commits by itself, as psycopg documents."""
    conn = rig.open()
    rig.do(conn, "INSERT INTO item VALUES (1)")
    assert items(admin) == [1]
    rig.savepoint(conn, "INSERT INTO item VALUES (2)", fail=False)
    assert items(admin) == [1, 2]
    rig.run(conn.set_autocommit(False))
    rig.savepoint(conn, "INSERT INTO item VALUES (3)", fail=False)
    assert items(admin) == [1, 2, 3]
    rig.do(conn, "INSERT INTO item VALUES (4)")
    rig.run(conn.rollback())
    assert items(admin) == [1, 2, 3]


def test_mode_can_not_be_changed_inside(rig: Rig) -> None:
    """What psycopg refuses inside a transaction it refuses from `begin` on."""
    conn = rig.open()
    changes = (
        lambda: conn.set_autocommit(True),
        lambda: conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE),
        lambda: conn.set_read_only(True),
        lambda: conn.tpc_begin("mine"),
    )
    for change in changes:
        rig.begin(conn)
        assert conn.autocommit is False
        with pytest.raises(psycopg.ProgrammingError, match="INTRANS"):
            rig.run(change())
        rig.rollback(conn)
    assert rig.clean(conn)


def test_reset_takes_the_promise_back(counted: Counted) -> None:
    """A connection that comes back with nothing but a promise costs nothing, and a full reset one round trip."""
    rig, trips = counted
    conn = rig.open()
    for full, cost in ((False, 0), (True, 1)):
        rig.begin(conn)
        assert trips(lambda full=full: rig.reset(conn, full=full)) == cost
        assert rig.clean(conn)


def test_begin_on_a_closed_connection(rig: Rig) -> None:
    """What libpq knows to be closed is found by `begin`."""
    conn = rig.open()
    rig.hang_up(conn)
    with pytest.raises(psycopg.OperationalError, match="closed") as raised:
        rig.begin(conn)
    assert rig.is_broken(conn, raised.value)


def test_killed_before_the_first_statement(rig: Rig, kill: Callable[[int], None]) -> None:
    """The server's reason is what the statement raises, as BEGIN would have; the connection counts as broken."""
    for query in ("SELECT 1", "SELECT 1; SELECT 2"):
        conn = rig.open()
        rig.begin(conn)
        kill(conn.info.backend_pid)
        with pytest.raises(psycopg.errors.AdminShutdown) as raised:
            rig.do(conn, query)
        assert rig.is_broken(conn, raised.value)
        with pytest.raises(psycopg.OperationalError) as raised:
            rig.do(conn, "SELECT 2")


def test_cut_off_in_the_first_statement(counted: Counted, proxy: FaultProxy) -> None:
    """A line that is cut while BEGIN and the statement are on their way."""
    rig, _ = counted
    conn = rig.open()
    rig.begin(conn)
    proxy.cut("rst")
    with pytest.raises(psycopg.OperationalError) as raised:
        rig.do(conn, "SELECT 1")
    assert rig.is_broken(conn, raised.value)


def test_statement_timeout(rig: Rig) -> None:
    """The server's limit strikes the statement, and the transaction is aborted."""
    conn = rig.open()
    rig.do(conn, "SET statement_timeout = 20")
    rig.begin(conn)
    with pytest.raises(psycopg.errors.QueryCanceled) as raised:
        rig.do(conn, "SELECT pg_sleep(5)")
    assert rig.aborted(conn)
    assert not rig.is_broken(conn, raised.value)
    rig.rollback(conn)
    assert rig.value(conn, "SELECT 1") == 1


async def _struck(conn: Any) -> None:
    async with asyncio.timeout(0.05):
        await conn.execute("SELECT pg_sleep(30)")


def test_interrupted(rig: Rig) -> None:
    """A Ctrl-C, or a task that is cancelled, stops the statement at the server and leaves an aborted transaction."""
    conn = rig.open()
    rig.begin(conn)
    if hasattr(rig, "runner"):
        with pytest.raises(TimeoutError):
            rig.run(_struck(conn))
    else:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                conn.execute("SELECT pg_sleep(30)")
        finally:
            signal.signal(signal.SIGALRM, before)
    assert rig.aborted(conn)
    assert not conn.lock.locked()
    rig.rollback(conn)
    assert rig.value(conn, "SELECT 1") == 1


def test_notices_and_notifications(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """What the server says beside its answers arrives."""
    conn = rig.open()
    noticed: list[Any] = []
    conn.add_notice_handler(lambda diag: noticed.append(diag.message_primary))
    heard = rig.listen(conn, "mine")
    rig.do(conn, "CREATE OR REPLACE FUNCTION pg_temp.say() RETURNS int LANGUAGE plpgsql AS"
                 " $$ BEGIN RAISE NOTICE 'hello'; RETURN 1; END $$")  # fmt: skip
    rig.begin(conn)
    admin.execute("NOTIFY mine, 'there'")
    rig.do(conn, "SELECT pg_temp.say()")
    assert noticed == ["hello"]
    assert heard() == ["there"]
    rig.commit(conn)


def test_what_is_sent(rig: Rig) -> None:
    """BEGIN and the statement leave together, with one end; so the count of round trips is not luck."""
    conn = rig.open()
    rig.begin(conn)
    with Sent(conn) as messages:
        rig.do(conn, "SELECT 1")
        rig.commit(conn)
    kinds = ["Parse", "Bind", "Describe", "Execute"]
    assert messages == [*kinds, *kinds, "Sync", "Query"]


def test_a_busy_connection_is_waited_for(rig: Rig) -> None:
    """`begin` holds the connection's lock, as it did when it spoke to the server."""
    conn = rig.open()
    waits = _async_begin_waits if hasattr(rig, "runner") else _begin_waits
    assert waits(rig, conn)
    rig.rollback(conn)


def _begin_waits(rig: Rig, conn: Any) -> bool:
    beginning = threading.Thread(target=rig.begin, args=(conn,))
    with conn.lock:
        beginning.start()
        beginning.join(0.05)
        waited = beginning.is_alive() and conn.autocommit
    beginning.join(10)
    return waited and not conn.autocommit


def _async_begin_waits(rig: Rig, conn: Any) -> bool:
    async def work() -> bool:
        async with conn.lock:
            beginning = asyncio.ensure_future(rig.driver.begin(conn))
            await asyncio.sleep(0)
            waited = not beginning.done() and conn.autocommit
        await beginning
        return waited and not conn.autocommit

    return bool(rig.run(work()))
