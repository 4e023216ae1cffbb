"""Borrowing and returning, waiting in line and being refused: the same for threads and asyncio."""

from __future__ import annotations

import pytest

from poolkit import AcquireTimeout, LeaseError, NestedAcquire, Overloaded
from poolkit.testing.fakes import FakeError


def test_nothing_is_opened_before_the_first_acquire(world):
    """Making a pool costs nothing and needs no server."""
    world.server.down = True
    world.pool()
    assert world.server.opened == 0


def test_a_returned_resource_is_lent_again(world):
    """One connection serves one borrower after the other."""
    pool = world.pool()
    first = world.use_once(pool)
    assert world.use_once(pool) is first
    assert world.server.opened == 1
    assert pool.stats().acquired == 2


def test_with_gives_the_drivers_own_object(world):
    """No proxy stands between the borrower and the connection."""
    pool = world.pool()
    with world.inside(pool.acquire()) as conn:
        assert conn is world.server.connections[0]
        assert pool.stats().out == 1
    assert pool.stats().idle == 1


def test_an_error_in_the_block_passes_unchanged(world):
    """The user's errors are the user's."""
    pool = world.pool()
    with pytest.raises(KeyError, match="mine"), world.inside(pool.acquire()):
        raise KeyError("mine")
    assert pool.stats().idle == 1


@pytest.mark.parametrize(("order", "expected"), [("lifo", 2), ("fifo", 1)])
def test_order_decides_which_idle_one_is_next(world, order, expected):
    """The most recently returned (lifo), or each in turn (fifo)."""
    pool = world.pool(order=order)
    first, second = world.acquire(pool), world.acquire(pool)
    world.release(first, second)
    assert world.use_once(pool).number == expected


def test_a_returned_resource_goes_to_who_waits(world):
    """Hand-off: the oldest waiter has the resource before anyone else can see it."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    waiter = world.borrow(pool)
    assert not waiter.done
    world.release(lease)
    assert pool.stats().idle == 0
    assert pool.stats().out == 1
    world.settle(waiter)
    assert waiter.number == 1
    assert world.server.opened == 1


def test_first_come_first_served(world):
    """Nobody overtakes, however many wait."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    waiters = world.crowd(pool, 5)
    for waiter in waiters:
        world.release(lease)
        world.settle(waiter)
        assert [w.done for w in waiters].count(True) == 1 + waiters.index(waiter)
        lease = waiter.lease


def test_growth_is_parallel_and_bounded(world):
    """100 at once on an empty pool of 10: ten connects are under way together, and never more."""
    pool = world.pool(max_size=10)
    world.hold_opens()
    borrowers = world.crowd(pool, 100)
    assert world.under_way == 10
    assert pool.stats().opening == 10
    assert pool.stats().waiting == 100
    world.let_open()
    served = [borrower for borrower in borrowers if borrowers.index(borrower) < 10]
    world.settle(*served)
    for borrower in borrowers:
        world.settle(borrower)
        world.release(borrower.lease)
    assert world.server.opened == 10
    assert world.server.peak == 10
    assert pool.stats().acquired == 100


def test_a_waiter_takes_what_comes_first_a_returned_one(world):
    """Whoever waits for a slow connect gets the connection that is returned meanwhile."""
    pool = world.pool(max_size=2)
    lease = world.acquire(pool)
    world.hold_opens()
    waiter = world.borrow(pool)
    assert world.under_way == 1
    world.release(lease)
    world.settle(waiter)
    assert waiter.number == 1
    world.let_open()
    assert pool.stats().idle == 1  # the new one was not wasted


def test_a_waiter_takes_what_comes_first_a_new_one(world):
    """Whoever waits gets the new connection when nothing is returned."""
    pool = world.pool(max_size=2)
    world.acquire(pool)
    world.hold_opens()
    waiter = world.borrow(pool)
    world.let_open()
    world.settle(waiter)
    assert waiter.number == 2


def test_a_timeout_says_who_holds_what(world):
    """The error names the pool, the sizes, the holders and what to do."""
    pool = world.pool(max_size=1, name="shop")
    lease = world.acquire(pool)
    lease.label("GET /orders")
    waiter = world.borrow(pool, 0.01)
    world.settle(waiter)
    assert isinstance(waiter.error, AcquireTimeout)
    assert isinstance(waiter.error, TimeoutError)
    text = str(waiter.error)
    for part in ("'shop'", "1 of 1 are out", "held by GET /orders for", "max_size or timeout"):
        assert part in text
    assert [holder.label for holder in waiter.error.holders] == ["GET /orders"]
    assert waiter.error.waited >= 0
    assert pool.stats().timeouts == 1
    assert pool.stats().waiting == 0


def test_a_timeout_in_an_outage_names_the_outage(world):
    """Who waits in vain for a server that is away is not told to raise max_size."""
    pool = world.pool(max_size=1)
    world.server.down = True
    waiter = world.borrow(pool, 0.01)
    world.settle(waiter)
    assert isinstance(waiter.error, AcquireTimeout)
    assert "No connection can be opened: FakeError" in str(waiter.error)
    assert "max_size" not in str(waiter.error)


def test_a_timeout_says_whether_the_holder_is_in_a_transaction(world):
    """An open transaction that nobody ends is what people look for."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    world.do(pool.transactional.begin, lease.resource)
    waiter = world.borrow(pool, 0.01)
    world.settle(waiter)
    assert "in a transaction" in str(waiter.error)
    assert waiter.error.holders[0].in_transaction is True


def test_who_timed_out_leaves_the_line(world):
    """A connection that is returned later goes to the next one, not to one who has left."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    gone = world.borrow(pool, 0.01)
    world.settle(gone)
    patient = world.borrow(pool)
    world.release(lease)
    world.settle(patient)
    assert patient.number == 1
    assert gone.lease is None


def test_max_waiting_bounds_the_queue(world):
    """The one too many is told at once, and the others wait on."""
    pool = world.pool(max_size=1, max_waiting=2)
    lease = world.acquire(pool)
    waiters = world.crowd(pool, 2)
    refused = world.borrow(pool)
    assert isinstance(refused.error, Overloaded)
    assert "max_waiting=2" in str(refused.error)
    assert pool.stats().overloaded == 1
    for waiter in waiters:
        world.release(lease)
        world.settle(waiter)
        lease = waiter.lease


def test_max_waiting_does_not_count_those_whose_connection_is_coming(world):
    """A burst on an empty pool is growth, not a queue."""
    pool = world.pool(max_size=3, max_waiting=0)
    world.hold_opens()
    borrowers = world.crowd(pool, 3)
    assert not any(borrower.error for borrower in borrowers)
    assert isinstance(world.borrow(pool).error, Overloaded)
    world.let_open()
    world.settle(*borrowers)


def test_codel_sheds_the_old_and_serves_the_fresh(world):
    """Under lasting overload those who waited longest are refused, so that the others are served in time."""
    pool = world.pool(max_size=1, target_delay=0.1, timeout=1000)
    lease = world.acquire(pool)
    waiters = world.crowd(pool, 3)
    served = []
    for _ in range(10):  # each holds it for a second, and three more come: the queue never drains
        world.advance(1.0)
        waiters += world.crowd(pool, 3)
        world.release(lease)
        for waiter in waiters:
            world.settle_if_woken(waiter)
        (winner,) = [waiter for waiter in waiters if waiter.lease is not None]
        served.append(winner)
        lease = winner.lease
        waiters = [waiter for waiter in waiters if not waiter.done]
    assert pool.stats().overloaded > 10
    assert len(served) == 10
    assert pool.stats().timeouts == 0
    world.release(lease)
    world.do(pool.close, 0)


def test_a_nested_acquire_that_can_never_end_is_refused(world):
    """A block that already holds every connection of the pool would wait for itself."""
    pool = world.pool(max_size=1)
    error = world.nested(pool)
    assert isinstance(error, NestedAcquire)
    assert "all 1 connections" in str(error)
    assert pool.stats().refused == 1


def test_a_nested_acquire_waits_where_others_hold_one_too(world):
    """What somebody else holds may come back: that is worth waiting for."""
    pool = world.pool(max_size=2)
    other = world.borrow(pool)
    assert isinstance(world.nested(pool, timeout=0.01), AcquireTimeout)
    world.release(other.lease)


def test_use_after_return_is_an_error(world):
    """A lease that was given back gives nothing any more, in any of its verbs."""
    pool = world.pool()
    lease = world.acquire(pool)
    world.release(lease)
    with pytest.raises(LeaseError, match="has ended"):
        _ = lease.resource
    for verb in (lease.release, lease.discard, lease.detach):
        with pytest.raises(LeaseError, match="has ended"):
            world.do(verb)
    with pytest.raises(LeaseError, match="has ended"):
        lease.label("late")
    assert pool.stats().idle == 1


def test_discard_closes_and_makes_room(world):
    """What the borrower does not trust is closed, and the next one gets a new one."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    waiter = world.borrow(pool)
    world.do(lease.discard, "smells")
    world.settle(waiter)
    assert waiter.number == 2
    assert world.server.connections[0].closed
    assert pool.stats().closed_by_reason == {"smells": 1}


def test_detach_hands_over_the_connection_for_good(world):
    """It leaves the pool open, and the pool may open another."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    mine = world.do(lease.detach)
    assert not mine.closed
    assert world.use_once(pool) is not mine
    assert world.do(pool.close)
    assert not mine.closed


def test_a_lease_may_be_ended_by_hand_inside_its_block(threads):
    """The block then has nothing left to give back."""
    pool = threads.pool()
    lease = pool.acquire()
    with lease:
        lease.discard()
    assert pool.stats().size == 0


def test_a_failing_begin_gives_the_place_back(world):
    """A transaction that can't be begun leaves no half-used connection."""
    pool = world.pool()
    conn = world.use_once(pool)
    conn.execute = _fail
    with pytest.raises(FakeError), world.inside(pool.transaction()):
        raise AssertionError("not reached")
    assert pool.stats().out == 0
    assert conn.closed


def _fail(_statement):
    raise FakeError("no")
