"""What MySQL sessions keep from one borrower to the next, and what a reset does about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from rigs import MYSQL, Rig

pytestmark = pytest.mark.parametrize("rig_name", MYSQL, indirect=True)


def items(rig: Rig, conn: Any) -> list[int]:
    return [row[0] for row in rig.rows(conn, "SELECT id FROM item ORDER BY id")]


def test_autocommit_turned_off(rig: Rig) -> None:
    """A borrower who turns autocommit off leaves a transaction behind him, and a reset undoes both."""
    conn = rig.open()
    conn.autocommit(False)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    assert rig.in_transaction(conn)
    assert not rig.clean(conn)
    rig.reset(conn, full=False)
    assert rig.clean(conn)
    assert conn.get_autocommit()
    assert items(rig, conn) == []
    rig.do(conn, "SET autocommit = 0", "INSERT INTO item VALUES (1)")
    rig.commit(conn)
    assert rig.clean(conn)
    assert items(rig, conn) == [1]


def test_attributes_are_put_back(rig: Rig) -> None:
    """A borrower's cursor class and character set are noticed, and put back by a reset."""
    conn = rig.open()
    own = type("Own", (conn.cursorclass,), {})
    for change in (lambda: setattr(conn, "cursorclass", own), lambda: conn.set_character_set("latin1")):
        change()
        assert not rig.clean(conn)
        rig.reset(conn, full=False)
        assert rig.clean(conn)
    assert rig.value(conn, "SELECT @@character_set_client") == "utf8mb4"
    assert conn.cursorclass is not own


def test_full_reset(rig: Rig) -> None:
    """A full reset leaves no variable, lock, temporary table or other database, and keeps what the options say."""
    said = {"isolation_level": "read committed", "init_command": "SET @mark = 5", "sql_mode": "ANSI_QUOTES,TRADITIONAL"}
    rig.driver = rig.again(options={**said, "collation": "utf8mb4_unicode_ci"})
    conn, other = rig.open(), rig.open()
    questions = (
        "@mark", "@other", "@@wait_timeout", "@@autocommit", "@@collation_connection", "@@character_set_results",
        "@@tx_isolation", "@@sql_mode", "database()",
    )  # fmt: skip
    new = [rig.value(conn, f"SELECT {question}") for question in questions]
    assert new[0] == 5
    assert new[4] == "utf8mb4_unicode_ci"
    assert new[6] == "READ-COMMITTED"
    assert "ANSI_QUOTES" in new[7]
    rig.do(
        conn,
        "SET @mark = 6, @other = 7, SESSION wait_timeout = 99, sql_mode = '', autocommit = 0",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "CREATE TEMPORARY TABLE mine (id integer)",
        "SELECT get_lock('mine', 0)",
        "USE information_schema",
    )
    rig.reset(conn, full=True)
    assert rig.clean(conn)
    assert [rig.value(conn, f"SELECT {question}") for question in questions] == new
    assert rig.value(other, "SELECT is_free_lock('mine')") == 1
    with pytest.raises(rig.errors):
        rig.do(conn, "SELECT * FROM mine")
    rig.do(conn, "LOCK TABLES item WRITE")
    rig.reset(conn, full=True)
    assert items(rig, other) == []


def test_full_reset_of_a_dead_connection(rig: Rig, kill: Callable[[int], None]) -> None:
    """A full reset of a connection that is gone raises; a call that MySQL's library has for it ends the process."""
    conn = rig.open()
    kill(rig.value(conn, "SELECT connection_id()"))
    end = time.monotonic() + 15
    while rig.alive(conn):
        assert time.monotonic() < end
    with pytest.raises(rig.errors):
        rig.reset(conn, full=True)


def test_resets_on_the_wire(counted: tuple[Rig, Callable[[Callable[[], Any]], int]]) -> None:
    """Rolling back what is open costs one round trip; a full reset one too, or three where the library waits."""
    rig, trips = counted
    together = hasattr(rig.driver, "send_reset")
    conn = rig.open()
    rig.begin(conn)
    assert trips(lambda: rig.reset(conn, full=False)) == 1
    assert trips(lambda: rig.reset(conn, full=True)) == (1 if together else 3)
    assert trips(lambda: rig.reset(conn, full=False)) == 0


def test_rows_left_unread(rig: Rig) -> None:
    """A connection that comes back with rows still on their way is not lent again; one whose rows were read is."""
    conn = rig.open()
    cursor = rig.stream(conn, "SELECT seq FROM seq_1_to_5")
    assert not rig.clean(conn)
    with pytest.raises(rig.errors):
        rig.reset(conn, full=False)
    rig.driver.close(conn)
    del cursor  # collected without another look at the connection
    other = rig.open()
    rig.stream(other, "SELECT seq FROM seq_1_to_5", rows=9)
    assert not rig.clean(other)
    rig.reset(other, full=False)
    assert rig.clean(other)
