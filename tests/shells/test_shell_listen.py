"""Listeners come and go while a pool is in use, and need not hear of every borrowing."""

from __future__ import annotations

from poolkit.events import Acquired, Closed, Opened, Released


def kinds(heard):
    """What was heard, in order."""
    return [type(event) for event in heard]


def test_a_listener_may_come_late_and_go_early(world):
    """It hears what happens meanwhile, also to a lease that was taken before it came."""
    heard = []
    pool = world.pool()
    lease = world.acquire(pool)
    pool.listen(heard.append)
    world.release(lease)
    world.release(world.acquire(pool))
    pool.unlisten(heard.append)
    world.release(world.acquire(pool))
    assert kinds(heard) == [Released, Acquired, Released]


def test_borrowings_may_be_left_out(world):
    """Who asks for rare events only is spared the others, and so is every borrower."""
    rare, every = [], []
    pool = world.pool()
    pool.listen(rare.append, borrowings=False)
    lease = world.acquire(pool)
    assert not pool._traced
    pool.listen(every.append)
    world.release(lease)
    assert world.do(lambda: pool.close(1))
    assert kinds(rare) == [Opened, Closed]
    assert kinds(every) == [Released, Closed]


def test_after_the_last_listener_a_return_is_short_again(world):
    """The short way back is taken as if nobody had ever listened."""
    pool = world.pool()
    short = pool._is_plain
    heard = []
    pool.listen(heard.append)
    assert pool._is_plain is not short
    pool.unlisten(heard.append)
    assert (pool._is_plain, pool._traced) == (short, False)
