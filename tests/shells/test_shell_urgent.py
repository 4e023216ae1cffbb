"""The lane that overload can't take, waiting through outages, and servers that were demoted. For both shells."""

from __future__ import annotations

import pytest

from poolkit import NestedAcquire, OpenFailed, Overloaded
from poolkit.testing.fakes import FakeError


def urgently(world, pool, timeout=None):
    """Begin to acquire urgently, in a thread or task of its own."""
    pool.acquire, plain = (lambda timeout=None: plain(timeout, urgent=True)), pool.acquire
    try:
        return world.borrow(pool, timeout)
    finally:
        pool.acquire = plain


def test_the_urgent_stand_before_the_others(world):
    """Probes and administration do not wait behind the crowd; among themselves they are served in order."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    crowd = world.crowd(pool, 3)
    first, second = urgently(world, pool), urgently(world, pool)
    world.release(lease)
    world.settle(first)
    assert not second.done
    world.release(first.lease)
    world.settle(second)
    world.release(second.lease)
    for waiter in crowd:
        world.settle(waiter)
        world.release(waiter.lease)


def test_the_reserve_is_for_the_urgent(world):
    """A pool that is stuck altogether still has a connection for them, and it is gone afterwards."""
    pool = world.pool(max_size=1, reserved=1)
    stuck = world.acquire(pool)
    waiter = world.borrow(pool)
    probe = urgently(world, pool)
    world.settle(probe)
    assert world.server.open_now == 2
    world.release(probe.lease)
    world.advance(0)
    assert world.server.open_now == 1
    assert not waiter.done, "the reserve is nobody else's"
    world.release(stuck)
    world.settle(waiter)
    world.release(waiter.lease)


def test_without_a_reserve_max_size_holds_for_the_urgent_too(world):
    """They are the next in line, no more."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    probe = urgently(world, pool)
    assert not probe.done
    assert world.server.peak == 1
    world.release(lease)
    world.settle(probe)


def test_max_waiting_does_not_count_the_urgent(world):
    """They are neither refused for the length of the queue nor a part of it."""
    pool = world.pool(max_size=1, max_waiting=1)
    lease = world.acquire(pool)
    probes = [urgently(world, pool) for _ in range(2)]
    waiter = world.borrow(pool)
    assert not any(one.done for one in (*probes, waiter))
    assert isinstance(world.borrow(pool).error, Overloaded)
    late = urgently(world, pool)
    assert not late.done
    world.release(lease)
    for one in (*probes, late, waiter):
        world.settle(one)
        world.release(one.lease)


def test_an_urgent_transaction(world):
    """`transaction` takes the same arguments."""
    pool = world.pool(max_size=1, reserved=1)
    lease = world.acquire(pool)
    with world.inside(pool.transaction(urgent=True)) as conn:
        conn.execute("look")
    assert world.server.log == ["2:begin", "2:look", "2:commit"]
    world.release(lease)


def test_where_it_is_configured_everyone_waits_through_an_outage(world):
    """A worker has time: it is served when the server is back, whatever the number of failures."""
    pool = world.pool(on_outage="wait", timeout=60)
    world.server.down = True
    early = world.borrow(pool)
    world.advance(10)
    late = world.borrow(pool)
    assert not any(waiter.done for waiter in (early, late))
    world.server.down = False
    world.advance(1)
    world.settle(early, late)
    assert {early.number, late.number} == {1, 2}


def test_waiting_through_an_outage_ends_with_the_timeout(world):
    """And the error names the outage."""
    pool = world.pool(on_outage="wait", timeout=0.2)
    world.server.down = True
    waiter = world.borrow(pool)
    world.advance(0.3)
    world.settle(waiter)
    assert not isinstance(waiter.error, OpenFailed)
    assert "the fake server is down" in str(waiter.error)


def test_a_demoted_server_costs_all_its_connections(world, caplog):
    """One refused write, and everything is opened anew: the host list is gone through again."""
    pool = world.pool(max_size=3)
    idle, busy, writer = (world.acquire(pool) for _ in range(3))
    world.release(idle)
    world.server.read_only = True
    with pytest.raises(FakeError):
        writer.resource.execute("write")
    world.do(writer.release, FakeError("read-only"))
    world.advance(0)
    assert pool.stats().closed_by_reason == {"demoted": 1, "drained": 1}
    world.server.read_only = False
    world.release(busy)
    assert world.use_once(pool).number == 4
    assert "takes no writes any more" in caplog.text


def test_a_server_that_stays_read_only_is_not_stormed(world, caplog):
    """Only what was refused a write is replaced, within the second after all of it was."""
    pool = world.pool(max_size=2)
    world.server.read_only = True
    for _ in range(5):
        lease = world.acquire(pool)
        world.do(lease.release, FakeError("read-only"))
    assert caplog.text.count("takes no writes any more") == 1
    assert pool.stats().generation == 1
    world.advance(1.5)
    world.do(world.acquire(pool).release, FakeError("read-only"))
    assert pool.stats().generation == 2


def test_an_urgent_borrower_with_a_reserve_is_not_nested(world):
    """It holds everything there is for all, and there is one more for it."""
    pool = world.pool(max_size=1, reserved=1)
    assert isinstance(world.nested(pool), NestedAcquire)
    with world.inside(pool.acquire()), world.inside(pool.acquire(urgent=True)) as second:
        assert second.number >= 2
