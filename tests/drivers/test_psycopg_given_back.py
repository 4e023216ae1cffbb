"""psycopg: a borrowing has an object of its own, which refuses once it is given back."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from rigs import RIGS

from poolkit.drivers._psycopg_connection import AsyncPooledConnection, PooledConnection
from poolkit.errors import LeaseError, Returned

PLACE = Returned("default", "GET /orders")
KINDS = ["psycopg", "psycopg-async"]


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tables: str) -> Iterator[Any]:
    kind = RIGS[request.param].kind
    made = RIGS[request.param](kind(tables), lambda **more: kind(tables, **more))
    made.request = request
    yield made
    made.close_all()


def lent(rig: Any) -> Any:
    """A connection as a pool lends it."""
    conn = rig.open()
    rig.driver.settled(conn)
    rig.driver.on_user_close(conn, lambda _conn: True)
    return conn


def renewed(rig: Any, conn: Any) -> Any:
    """What the next borrower gets."""
    fresh = rig.driver.renew(conn, PLACE)
    rig._opened[rig._opened.index(conn)] = fresh
    return fresh


# Each makes something from a connection, and returns a use of it after the connection was given back.
def _cursor(rig: Any, conn: Any) -> Callable[[], object]:
    cursor = conn.cursor()
    return lambda: rig.run(cursor.execute("SELECT 1"))


def _many(rig: Any, conn: Any) -> Callable[[], object]:
    cursor = conn.cursor()
    return lambda: rig.run(cursor.executemany("INSERT INTO item VALUES (%s)", [[1]]))


def _named(rig: Any, conn: Any) -> Callable[[], object]:
    cursor = conn.cursor("named")
    rig.request.addfinalizer(lambda: rig.run(cursor.close()))
    return lambda: rig.run(cursor.execute("SELECT 1"))


def _held(rig: Any, conn: Any) -> Callable[[], object]:
    cursor = conn.cursor("held", withhold=True)
    rig.run(cursor.execute("SELECT generate_series(1, 3)"))
    rig.request.addfinalizer(lambda: rig.run(cursor.close()))
    return lambda: rig.run(cursor.fetchone())


def _stream(rig: Any, conn: Any) -> Callable[[], object]:
    rows = conn.cursor().stream("SELECT generate_series(1, 3)")
    return lambda: rig.run(rows.__anext__() if hasattr(rows, "__anext__") else next(rows))


def _copy(rig: Any, conn: Any) -> Callable[[], object]:
    copying = conn.cursor().copy("COPY item FROM STDIN")
    return lambda: rig.run(copying.__aenter__() if hasattr(copying, "__aenter__") else copying.__enter__())


def _ended_copy(rig: Any, conn: Any) -> Callable[[], object]:
    entered = conn.cursor().copy("COPY item TO STDOUT")
    asynchronous = hasattr(entered, "__aenter__")
    copy = rig.run(entered.__aenter__()) if asynchronous else entered.__enter__()
    while rig.run(copy.read()):
        pass
    rig.run(entered.__aexit__(None, None, None) if asynchronous else entered.__exit__(None, None, None))
    return lambda: rig.run(copy.write(b"1\n"))


def _transaction(rig: Any, conn: Any) -> Callable[[], object]:
    block = conn.transaction()
    return lambda: rig.run(block.__aenter__() if hasattr(block, "__aenter__") else block.__enter__())


def _pipeline(rig: Any, conn: Any) -> Callable[[], object]:
    block = conn.pipeline()
    return lambda: rig.run(block.__aenter__() if hasattr(block, "__aenter__") else block.__enter__())


def _notifies(rig: Any, conn: Any) -> Callable[[], object]:
    notes = conn.notifies(timeout=0)
    return lambda: rig.run(notes.__anext__() if hasattr(notes, "__anext__") else next(notes))


MADE = [_cursor, _many, _named, _held, _stream, _copy, _ended_copy, _transaction, _pipeline, _notifies]

USES: dict[str, Callable[[Any], object]] = {
    "execute": lambda conn: conn.execute("SELECT 1"),
    "cursor": lambda conn: conn.cursor("x", withhold=True),
    "a cursor class": psycopg.ClientCursor,
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "cancel": lambda conn: conn.cancel(),
    "enter": lambda conn: conn.__enter__() if hasattr(type(conn), "__enter__") else conn.__aenter__(),
    "pgconn": lambda conn: conn.pgconn,
    "info": lambda conn: conn.info,
    "fileno": lambda conn: conn.fileno(),
    "autocommit": lambda conn: conn.autocommit,
    "set autocommit": lambda conn: setattr(conn, "autocommit", False),
    "set row_factory": lambda conn: setattr(conn, "row_factory", None),
    "adapters": lambda conn: conn.adapters,
    "add_notice_handler": lambda conn: conn.add_notice_handler(print),
    "prepare_threshold": lambda conn: conn.prepare_threshold,
}


@pytest.mark.parametrize("use", USES)
def test_the_connection_refuses(rig: Any, use: str) -> None:
    """What was given back refuses every use, and names the place; the session goes on for the next borrower."""
    conn = lent(rig)
    pid = conn.info.backend_pid
    fresh = renewed(rig, conn)
    assert type(fresh) in (PooledConnection, AsyncPooledConnection)
    assert isinstance(conn, type(fresh))
    with pytest.raises(LeaseError, match="given back by GET /orders"):
        rig.run(USES[use](conn))
    assert rig.value(fresh, "SELECT pg_backend_pid()") == pid
    assert rig.driver.clean(fresh)


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__[1:])
def test_what_was_made_from_it_refuses(rig: Any, make: Callable[..., Callable[[], object]]) -> None:
    """A cursor, a stream, a COPY, a block or a generator made in an earlier borrowing refuses as well."""
    conn = lent(rig)
    use = make(rig, conn)
    fresh = renewed(rig, conn)
    with pytest.raises(LeaseError, match="given back by GET /orders"):
        use()
    assert rig.value(fresh, "SELECT count(*) FROM item") == 0


def test_ends_do_not_break(rig: Any) -> None:
    """What only asks or ends goes on: repr, closed, close twice, leaving a block, closing a cursor."""
    conn = lent(rig)
    cursor, named = conn.cursor(), conn.cursor("named")
    renewed(rig, conn)
    assert "given back by GET /orders" in repr(conn).replace(" at ", " by ")
    assert conn.closed
    assert not conn.broken
    for _ in range(2):
        rig.run(conn.close())
        rig.run(cursor.close())
        rig.run(named.close())
    leaving = getattr(conn, "__aexit__", None) or conn.__exit__
    rig.run(leaving(None, None, None))
    assert len({conn, cursor, named}) == 3


def test_rows_that_were_received_stay_readable(rig: Any) -> None:
    """A cursor's rows are in the client: to read them needs no session."""
    conn = lent(rig)
    cursor = rig.run(conn.execute("SELECT generate_series(1, 3)"))
    renewed(rig, conn)
    assert rig.run(cursor.fetchall()) == [(1,), (2,), (3,)]


def test_garbage_does_nothing(rig: Any) -> None:
    """Collecting what was given back neither warns nor touches the session."""
    conn = lent(rig)
    fresh = renewed(rig, conn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del conn
        gc.collect()
    assert rig.value(fresh, "SELECT 1") == 1


def test_handlers_follow(rig: Any, admin: psycopg.Connection[Any]) -> None:
    """Notices and notifications reach the handlers of whoever has the session now."""
    conn = lent(rig)
    fresh = conn
    for _ in range(3):
        fresh = renewed(rig, fresh)
    notices: list[str] = []
    fresh.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    heard = rig.listen(fresh, "mine")
    rig.do(fresh, "DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    admin.execute("NOTIFY mine, 'x'")
    rig.do(fresh, "SELECT 1")
    assert notices == ["hello"]
    assert heard() == ["x"]


def test_a_statement_under_way_is_hung_up_on(tables: str) -> None:
    """A thread that still runs a statement as its connection is given back doesn't share it with the next borrower."""
    driver = RIGS["psycopg"].kind(tables)
    conn = driver.open(10)
    driver.settled(conn)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            conn.execute("SELECT pg_sleep(60)")
        except (psycopg.Error, LeaseError) as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while conn.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
        pass
    fresh = driver.renew(conn, PLACE)
    thread.join(10)
    assert not thread.is_alive()
    assert failed
    assert not driver.clean(fresh)
    driver.close(fresh)


# -- with and close ---------------------------------------------------------------------------------------------------


def left(rig: Any, conn: Any, error: BaseException | None = None) -> None:
    """Leave `with conn:`."""
    leaving = conn.__aexit__ if hasattr(conn, "__aexit__") else conn.__exit__
    rig.run(leaving(None if error is None else type(error), error, None))


@pytest.mark.parametrize("error", [None, KeyError("x")])
def test_with_ends_the_transaction(rig: Any, error: BaseException | None) -> None:
    """`with conn:` of a borrowed connection commits or rolls back, and closes nothing."""
    conn = lent(rig)
    rig.run(rig.driver.begin(conn))
    rig.do(conn, "INSERT INTO item VALUES (1)")
    left(rig, conn, error)
    assert not conn.closed
    assert not rig.driver.closed_by_user(conn)
    rig.run(rig.driver.commit(conn))
    assert rig.value(conn, "SELECT count(*) FROM item") == (error is None)
    assert rig.driver.clean(conn)


# -- in a pool --------------------------------------------------------------------------------------------------------


def test_in_a_pool(rig: Any) -> None:
    """A connection kept beyond its return is refused, also while the next borrower has it."""
    pool = rig.make_pool(rig.driver)
    kept: list[Any] = []
    rig.transaction(pool, kept.append)

    def work(conn: Any) -> None:
        assert conn is not kept[0]
        with pytest.raises(LeaseError, match="given back"):
            rig.do(kept[0], "INSERT INTO item VALUES (1)")
        rig.do(conn, "INSERT INTO item VALUES (2)")

    rig.transaction(pool, work)
    assert pool.stats().opened == 1
    with suppress(LeaseError):
        rig.do(kept[0], "SELECT 1")
    rig.run(pool.close())
    assert rig.value(rig.open(), "SELECT sum(id) FROM item") == 2
