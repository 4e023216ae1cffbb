"""Whose a connection to MySQL is: its borrower's until the return, one thread's at a time, and nobody's after it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from mysql_kinds import run
from rigs import MYSQL, Rig

from poolkit.errors import LeaseError, Returned
from poolkit.threads import Pool

pytestmark = pytest.mark.parametrize("rig_name", MYSQL, indirect=True)
PLACE = Returned("default", "GET /orders")
REFUSED = r"given back by GET /orders"


def give_back(rig: Rig, conn: Any) -> Any:
    """End a borrowing as a pool does, and begin the next; returns the object that is lent then."""
    if hasattr(rig.driver, "renew"):
        new = rig.driver.renew(conn, PLACE)
        rig._opened = [new if opened is conn else opened for opened in rig._opened]
        return new
    rig.driver.retire(conn, PLACE)
    rig.driver.lend(conn)
    return conn


def items(rig: Rig, conn: Any) -> list[int]:
    return [row[0] for row in rig.rows(conn, "SELECT id FROM item ORDER BY id")]


# -- after the return -------------------------------------------------------------------------------------------------

USES: dict[str, Callable[[Any], object]] = {
    "cursor": lambda conn: run(conn, "SELECT 1"),
    "query": lambda conn: conn.query("SELECT 1"),
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "begin": lambda conn: conn.begin(),
    "ping": lambda conn: conn.ping(),
    "select_db": lambda conn: conn.select_db("mysql"),
    "autocommit": lambda conn: conn.autocommit(False),
    "set_character_set": lambda conn: conn.set_character_set("latin1"),
    "with": lambda conn: conn.__enter__(),
}


@pytest.mark.parametrize("use", list(USES))
def test_a_kept_connection(rig: Rig, use: str) -> None:
    """A connection kept beyond its return refuses; PyMySQL's also while the next borrower works, mysqlclient's idle."""
    conn = rig.open()
    if hasattr(rig.driver, "renew"):
        new = give_back(rig, conn)
        assert rig.value(new, "SELECT 1") == 1
    else:
        rig.driver.retire(conn, PLACE)
    with pytest.raises(LeaseError, match=REFUSED):
        USES[use](conn)
    if not hasattr(rig.driver, "renew"):
        rig.driver.lend(conn)
        assert rig.value(conn, "SELECT 1") == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_kept_cursor(rig: Rig, *, streaming: bool) -> None:
    """A cursor made in an earlier borrowing refuses, also while the next borrower works; its close does nothing."""
    conn = rig.open()
    cursor = conn.cursor(rig.streaming) if streaming else conn.cursor()
    cursor.execute("SELECT 1")
    assert list(cursor.fetchall()) == [(1,)]
    new = give_back(rig, conn)
    with pytest.raises(LeaseError, match=REFUSED):
        cursor.execute("INSERT INTO item VALUES (66)")
    cursor.close()
    del cursor
    gc.collect()
    assert items(rig, new) == []


def test_what_may_be_done_with_an_ended_one(rig: Rig) -> None:
    """To show it, to ask whether it is open, to close it again and to collect it disturbs nobody."""
    conn = rig.open()
    new = give_back(rig, conn)
    if new is conn:
        pytest.skip("the object is the next borrower's")
    assert "GET /orders" in repr(conn)
    assert not conn.open
    conn.close()
    conn.__exit__(None, None, None)
    with pytest.raises(LeaseError, match=REFUSED):
        conn.cursorclass = None
    with pytest.raises(LeaseError, match=REFUSED):
        del conn.cursorclass
    del conn
    gc.collect()
    assert rig.value(new, "SELECT 1") == 1


def test_rows_left_unread_are_not_taken_for_the_last(rig: Rig) -> None:
    """Who goes on reading rows after the return gets an error, never what looks like their end."""
    with Pool(rig.driver, max_size=1) as pool:
        with pool.acquire() as conn:
            cursor = rig.stream(conn, "SELECT seq FROM seq_1_to_5")
        with pytest.raises((LeaseError, rig.errors)):
            cursor.fetchone()
        with pool.acquire() as other:
            assert rig.value(other, "SELECT 7") == 7


def test_a_transaction_is_handed_over_whole(rig: Rig) -> None:
    """An object renewed in the middle of something is reset like any other."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    new = give_back(rig, conn)
    assert not rig.clean(new)
    rig.reset(new, full=False)
    assert rig.clean(new)
    assert items(rig, new) == []


def test_through_the_pool(rig: Rig) -> None:
    """The pool's borrower keeps nothing that works, and its error names the place of the return."""
    with Pool(rig.driver, max_size=1) as pool:
        with pool.acquire() as kept:
            cursor = kept.cursor()
        with pytest.raises(LeaseError, match="test_through_the_pool"):
            run(kept, "SELECT 1")
        with pool.acquire() as conn:
            with pytest.raises(LeaseError, match="test_through_the_pool"):
                cursor.execute("SELECT 1")
            assert rig.value(conn, "SELECT 1") == 1
        assert pool.stats().opened == 1


def test_a_text_that_cannot_be_sent(rig: Rig) -> None:
    """The library refuses it before it is sent: the connection is as usable as before."""
    conn = rig.open()
    for send in (lambda: conn.query("SELECT '\ud800'"), lambda: run(conn, "SELECT '\ud800'")):
        with pytest.raises(UnicodeEncodeError):
            send()
        assert items(rig, conn) == []


def test_a_close_in_the_middle_of_a_reset(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset in a helper thread goes no further once another has closed the connection: the library is not entered."""
    if not getattr(rig.driver, "background_reset", False):
        pytest.skip("its reset is sent by the thread that gives it back")
    conn = rig.open()
    run(conn, "SET sql_mode = ''")
    restore = rig.driver._restore

    def closed_meanwhile(found: Any) -> None:
        restore(found)
        rig.driver.close(found)

    monkeypatch.setattr(rig.driver, "_restore", closed_meanwhile)
    monkeypatch.setattr("poolkit.drivers.mysqlclient._reset_connection", lambda _: pytest.fail("it was entered"))
    with pytest.raises(rig.errors):
        rig.driver.reset(conn, full=False)


# -- two threads ------------------------------------------------------------------------------------------------------


def while_busy(rig: Rig, conn: Any, work: Callable[[], None]) -> list[Any]:
    """Run work while another thread is in a statement; returns what that one found."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(rig.value(conn, "SELECT 41 + sleep(0.3)")))
    thread.start()
    end = time.monotonic() + 10
    while not conn._busy:
        assert time.monotonic() < end
    work()
    thread.join(10)
    return found


@pytest.mark.parametrize("use", [name for name in USES if name != "with"])
def test_two_threads_at_once(rig: Rig, use: str) -> None:
    """A second thread in the same connection at the same moment is refused, and the first one's answer is its own."""
    conn = rig.open()

    def second() -> None:
        with pytest.raises(rig.errors, match="one thread at a time"):
            USES[use](conn)

    assert while_busy(rig, conn, second) == [41]
    assert rig.value(conn, "SELECT 1") == 1
    assert rig.clean(conn)


def test_closing_under_another_thread(rig: Rig) -> None:
    """Nor may a second thread close it."""
    conn = rig.open()

    def second() -> None:
        with pytest.raises(rig.errors, match="one thread at a time"):
            conn.close()

    assert while_busy(rig, conn, second) == [41]


# -- closed by its borrower -------------------------------------------------------------------------------------------


def test_close_after_reading(rig: Rig) -> None:
    """A unit that has only read may be closed in the middle: nothing is lost, so there is nothing to tell."""
    with Pool(rig.driver, max_size=1) as pool:
        with pool.transaction() as conn:
            rig.do(conn, "SELECT id FROM item", "WITH a AS (SELECT 1) SELECT * FROM a")
            conn.close()
        with pool.transaction() as conn:
            rig.do(conn, "INSERT INTO item VALUES (1)")
            conn.commit()
            rig.do(conn, "SELECT id FROM item")
            conn.close()
        assert pool.stats().opened == 1
    assert items(rig, rig.open()) == [1]


def test_with_closes_nothing(rig: Rig) -> None:
    """`with conn:` ends a transaction of one's own as closing would, and leaves a unit's and the connection alone."""
    with Pool(rig.driver, max_size=1) as pool:
        with pool.acquire() as conn, conn:
            conn.begin()
            rig.do(conn, "INSERT INTO item VALUES (1)")
        with pool.transaction() as conn:
            with conn:
                rig.do(conn, "INSERT INTO item VALUES (2)")
            rig.do(conn, "INSERT INTO item VALUES (3)")
        assert pool.stats().opened == 1
    assert items(rig, rig.open()) == [2, 3]


def test_with_that_ends_in_an_error(rig: Rig) -> None:
    """An error that leaves `with conn:` in a unit and is caught outside of it has doomed the unit."""
    conn = rig.open()
    rig.begin(conn)

    def work() -> None:
        with conn:
            rig.do(conn, "INSERT INTO item VALUES (1)")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert rig.aborted(conn)
    with pytest.raises(rig.errors, match="an error left"):
        rig.commit(conn)
    assert items(rig, conn) == []


def test_no_new_session_in_the_old_object(rig: Rig, kill: Callable[[int], None]) -> None:
    """A lost connection is not connected again behind its unit's back: what was written is told as lost."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    kill(rig.value(conn, "SELECT connection_id()"))
    with pytest.raises((rig.errors, TypeError)):
        conn.ping(True)
    if hasattr(conn, "connect"):
        with pytest.raises(rig.errors, match="not connected again"):
            conn.connect()
    with pytest.raises(rig.errors):
        rig.commit(conn)
    assert items(rig, rig.open()) == []
