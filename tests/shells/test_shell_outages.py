"""Outages, readiness, and what a pool shows of itself. For both shells."""

from __future__ import annotations

import logging
import re

from poolkit import AcquireTimeout, OpenFailed
from poolkit.testing.fakes import FakeError


def test_a_short_outage_is_waited_through(world):
    """The server restarts within a fraction of a second: the request waits and is served."""
    pool = world.pool()
    world.server.down = True
    waiter = world.borrow(pool)
    world.advance(0.06)
    world.server.down = False
    world.advance(0.12)
    world.settle(waiter)
    assert waiter.number == 1


def test_a_long_outage_is_refused_with_the_drivers_error(world):
    """After five failures in a row the waiters are told, with the cause, and when to come back."""
    pool = world.pool()
    world.server.down = True
    waiters = world.crowd(pool, 3)
    world.advance(2)
    world.settle(*waiters)
    for waiter in waiters:
        assert isinstance(waiter.error, OpenFailed)
        assert isinstance(waiter.error.__cause__, FakeError)
        assert "the fake server is down" in str(waiter.error)
    assert "FakeError" in pool.stats().outage


def test_while_the_breaker_is_open_newcomers_are_refused_at_once(world):
    """No request waits for a server that is known to be away, but for the one that probes."""
    pool = world.pool()
    world.server.down = True
    first = world.borrow(pool)
    world.advance(2)
    world.settle(first)
    probe = world.borrow(pool)
    if not probe.done:
        world.settle(probe)
    refused = world.borrow(pool)
    assert isinstance(refused.error, OpenFailed)
    assert 0 < refused.error.retry_after <= 0.9
    assert refused.error.waited == 0


def test_the_pool_heals_by_itself(world):
    """The first request after the server is back, and the backoff over, is served; the breaker closes."""
    pool = world.pool()
    world.server.down = True
    world.settle(*[world.borrow(pool)] if world.kind == "none" else [])
    waiter = world.borrow(pool)
    world.advance(3)
    world.settle(waiter)
    world.server.down = False
    world.advance(1)
    assert world.use_once(pool).number == 1
    assert pool.stats().outage is None


def test_min_size_comes_back_after_an_outage_by_itself(world):
    """Nobody has to ask: the pool goes on trying to be warm."""
    pool = world.pool(min_size=2)
    assert world.do(pool.warm)
    world.server.down = True
    world.server.kill()
    waiter = world.borrow(pool)
    world.advance(3)
    world.settle(waiter)
    world.server.down = False
    world.advance(2)
    world.advance(1)
    assert pool.stats().idle == 2


def test_attempts_during_an_outage_are_few(world):
    """One at a time with growing pauses: about two a second, not a storm."""
    pool = world.pool(min_size=3, max_size=10)
    attempts = []
    driver = pool._driver
    connect = driver.server.connect
    driver.server.connect = lambda: (attempts.append(world.clock()), connect())
    world.server.down = True
    waiters = world.crowd(pool, 10)
    first_wave = len(attempts)
    assert first_wave <= 10
    world.advance(10)
    world.settle(*waiters)
    assert 16 <= len(attempts) - first_wave <= 32


def test_a_waiter_with_a_holder_in_sight_waits_on_during_an_outage(world):
    """As long as a connection is out it may come back."""
    pool = world.pool(max_size=2)
    lease = world.acquire(pool)
    world.server.down = True
    waiter = world.borrow(pool)
    world.advance(5)
    assert not waiter.done
    world.release(lease)
    world.settle(waiter)
    assert waiter.number == 1


def test_ready_needs_no_free_resource(world):
    """A busy pool is ready: readiness must not itself wait for a connection."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    assert world.do(pool.ready)
    world.release(lease)
    assert world.do(pool.ready)
    assert pool.stats().idle == 1


def test_ready_opens_where_there_is_nothing(world):
    """An unused pool says whether it could serve."""
    pool = world.pool()
    assert world.do(pool.ready)
    assert pool.stats().idle == 1


def test_ready_is_false_while_the_server_is_away(world):
    """Idle corpses don't count."""
    pool = world.pool()
    world.use_once(pool)
    world.server.kill()
    world.server.down = True
    assert not world.do(pool.ready, 0.01)
    assert world.server.open_now == 0


def test_ready_is_false_when_closed(world):
    """A closed pool serves nobody."""
    pool = world.pool()
    world.do(pool.close)
    assert not world.do(pool.ready)


# -- seeing -----------------------------------------------------------------------------------------------------------


def test_a_leak_is_reported_once_with_both_stacks(world, caplog):
    """Held longer than leak_after: one warning with where it was taken and where its holder is now."""
    pool = world.pool(leak_after=5)
    lease = world.acquire(pool)
    world.advance(6)
    world.advance(6)
    reports = [record for record in caplog.records if "leak_after" in record.message]
    assert len(reports) == 1
    assert reports[0].levelno == logging.WARNING
    assert "taken at" in reports[0].message
    assert "worlds.py" in reports[0].message or "test_shell_life.py" in reports[0].message
    assert pool.stats().leaked == 1
    world.release(lease)


def test_a_stack_reaches_the_caller_behind_a_deep_library(world):
    """An ORM has its thirty calls between view and connection: the view is what is looked for, and not poolkit."""
    pool = world.pool(leak_after=5)

    def library(depth):
        return library(depth - 1) if depth else world.acquire(pool)

    lease = library(30)
    (holder,) = pool.holders()
    assert "in test_a_stack_reaches_the_caller_behind_a_deep_library" in holder.stack
    assert not re.search(r"poolkit/(threads|aio|shell|bridge)\.py", holder.stack)
    world.release(lease)


def test_no_report_without_leak_after(world, caplog):
    """Nobody asked, nobody is told."""
    pool = world.pool()
    lease = world.acquire(pool)
    world.advance(1000)
    assert not caplog.records
    world.release(lease)


def test_holders_lists_who_has_what(world):
    """Label, age, transaction, and the stack where leak_after has it taken."""
    pool = world.pool(leak_after=100)
    lease = world.acquire(pool)
    lease.label("GET /slow")
    world.clock.advance(3)
    (holder,) = pool.holders()
    assert (holder.label, holder.age, holder.in_transaction) == ("GET /slow", 3, False)
    assert "acquire" in holder.stack
    world.release(lease)
    assert pool.holders() == []


def test_holders_survive_a_driver_that_can_not_say(world):
    """A borrower may have closed its connection: the report about all must not fail for that."""
    driver = world.driver()
    pool = world.pool(driver, max_size=1)
    lease = world.acquire(pool)
    driver.in_transaction = _raise
    assert [holder.in_transaction for holder in pool.holders()] == [None]
    waiter = world.borrow(pool, 0.01)
    world.settle(waiter)
    assert isinstance(waiter.error, AcquireTimeout)
    world.release(lease)


def _raise(_conn):
    raise ValueError("closed")


def test_repr_tells_the_sizes(world):
    """For logs and debuggers."""
    pool = world.pool(name="shop", max_size=7)
    lease = world.acquire(pool)
    assert repr(pool) == f"<{world.pool_type.__name__} 'shop': 1 out, 0 idle, max 7>"
    world.release(lease)
