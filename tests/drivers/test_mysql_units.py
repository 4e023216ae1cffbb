"""Units of work on MySQL: options of one transaction, who ends it by hand, and what a failed statement said."""

from __future__ import annotations

from typing import Any

import pytest
from rigs import MYSQL, Rig

from poolkit.driver import TransactionOptions
from poolkit.errors import ConfigError

pytestmark = pytest.mark.parametrize("rig_name", MYSQL, indirect=True)


def locks_what_it_reads(rig: Rig, conn: Any, other: Any) -> bool:
    """Whether a plain SELECT keeps others from writing, which only the level SERIALIZABLE does."""
    rig.do(conn, "SELECT id FROM item WHERE id = 1")
    try:
        rig.do(other, "SELECT id FROM item WHERE id = 1 FOR UPDATE NOWAIT")
    except rig.errors:
        return True
    return False


def test_options_of_a_transaction(rig: Rig) -> None:
    """A level and read-only hold for the unit, also after a commit in the middle, and for nothing after it."""
    conn, other = rig.open(), rig.open()
    rig.do(conn, "INSERT INTO item VALUES (1)")
    rig.driver.begin(conn, TransactionOptions.of(isolation_level="serializable"))
    for _ in range(2):
        assert locks_what_it_reads(rig, conn, other)
        conn.commit()
    rig.commit(conn)
    rig.driver.begin(conn, TransactionOptions.of(read_only=True))
    with pytest.raises(rig.errors) as caught:
        rig.do(conn, "INSERT INTO item VALUES (2)")
    assert caught.value.args[0] == 1792
    rig.rollback(conn)
    assert rig.clean(conn)
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (2)")
    conn.commit()
    assert not locks_what_it_reads(rig, conn, other)
    rig.commit(conn)
    assert rig.clean(conn)


def test_options_that_mysql_has_not(rig: Rig) -> None:
    """What can't be done for one transaction is refused, with all that is wrong."""
    rig.driver.check_options(TransactionOptions.of(read_only=True, isolation_level="read committed"))
    with pytest.raises(ConfigError, match=r"(?s)deferrable.*settings can't be for one transaction"):
        rig.driver.check_options(TransactionOptions.of(deferrable=True, settings={"a": 1}))


def test_who_ends_a_unit_by_hand(rig: Rig) -> None:
    """The connection's own commit() and rollback() tell of themselves; the driver's forget that, and tell nothing."""
    conn = rig.open()
    told: list[str] = []
    for end in (rig.commit, rig.rollback, lambda conn: rig.reset(conn, full=False)):
        rig.begin(conn)
        rig.driver.on_explicit_end(conn, told.append)
        rig.do(conn, "INSERT INTO item VALUES (1)", "DELETE FROM item")
        conn.commit()
        conn.rollback()
        end(conn)
        conn.commit()
        assert told == ["commit", "rollback"]
        told.clear()


def test_what_a_failed_statement_said(rig: Rig) -> None:
    """The server's own words for the last statement of the unit that failed."""
    conn = rig.open()
    rig.begin(conn)
    assert rig.statement_error(conn) == ""
    with pytest.raises(rig.errors):
        rig.do(conn, "SELECT nothing FROM item")
    assert "Unknown column 'nothing'" in rig.statement_error(conn)
    rig.rollback(conn)
    rig.begin(conn)
    assert rig.statement_error(conn) == ""


def test_timed_out_before_the_commit(rig: Rig) -> None:
    """A statement that took too long has closed the connection: who ignores its error is told at the commit."""
    rig.driver = rig.again(options={"read_timeout": 0.2})  # mysqlclient makes a second of it
    conn, other = rig.open(), rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    with pytest.raises(rig.errors):
        rig.do(conn, "SELECT sleep(3)")
    assert rig.aborted(conn)
    with pytest.raises(rig.errors, match=r"nothing was saved|rolled back"):
        rig.commit(conn)
    assert rig.value(other, "SELECT count(*) FROM item") == 0
