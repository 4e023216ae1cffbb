"""`pool.transaction()`: begun, committed on success, rolled back on error, returned. For both shells."""

from __future__ import annotations

import pytest

from poolkit import CommitFailed, LeaseError
from poolkit.testing.fakes import FakeError


class Plain:
    """A driver without transactions: what a pool of sockets has."""

    def __init__(self, driver):
        self._driver = driver
        for name in ("defaults", "open", "close", "alive", "ping", "clean", "reset", "is_broken", "abandon"):
            setattr(self, name, getattr(driver, name))
        self.terminate = getattr(driver, "terminate", driver.close)


def test_success_commits(world):
    """begin, the work, commit; then the connection is back."""
    pool = world.pool()
    with world.inside(pool.transaction()) as conn:
        conn.execute("insert")
    assert world.server.log == ["1:begin", "1:insert", "1:commit"]
    assert pool.stats().idle == 1


def test_an_error_rolls_back_and_passes(world):
    """The user's error reaches the user, and nothing is saved."""
    pool = world.pool()
    with pytest.raises(KeyError), world.inside(pool.transaction()):
        raise KeyError
    assert world.server.log == ["1:begin", "1:rollback"]
    assert pool.stats().idle == 1


def test_a_failing_commit_is_the_drivers_own_error(world):
    """Handlers written for the driver go on working, and the connection is fit again."""
    pool = world.pool()
    world.server.fail_commit = True
    with pytest.raises(FakeError, match="refuses the commit"), world.inside(pool.transaction()):
        pass
    assert pool.stats().out == 0


def test_an_aborted_transaction_is_never_committed(world):
    """A swallowed error had ended the transaction: COMMIT would silently be a ROLLBACK."""
    pool = world.pool()

    def work(conn):
        with pytest.raises(FakeError):
            conn.execute("bad")

    with pytest.raises(CommitFailed, match="nothing was saved"), world.inside(pool.transaction()) as conn:
        work(conn)
    assert world.server.log[-1] == "1:rollback"
    assert pool.stats().idle == 1


def test_a_failing_rollback_does_not_hide_the_error(world):
    """What led to the rollback matters more; the connection is not lent again."""
    pool = world.pool()

    def work(conn):
        conn.execute("insert")
        world.server.kill()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), world.inside(pool.transaction()) as conn:
        work(conn)
    assert pool.stats().size == 0


def test_a_driver_without_transactions_says_so(world):
    """`transaction()` of a pool that has none is an error that names the way out."""
    pool = world.pool(Plain(world.driver()))
    with pytest.raises(LeaseError, match=r"has no transactions; use acquire\(\)"):
        pool.transaction()


def test_transactions_do_not_count_as_dirty(world):
    """A finished transaction costs no reset."""
    pool = world.pool()
    for _ in range(3):
        with world.inside(pool.transaction()):
            pass
    assert not any("reset" in line for line in world.server.log)
    assert world.server.opened == 1
