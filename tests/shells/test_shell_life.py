"""The life of connections: opened, kept warm, checked, replaced, closed. For both shells."""

from __future__ import annotations

import pytest

from poolkit import ConfigError, PoolClosed
from poolkit.testing.fakes import FakeError


def test_min_size_is_kept_warm(world):
    """After the first use the pool fills up to min_size, and refills when one is lost."""
    pool = world.pool(min_size=3, max_size=5)
    world.use_once(pool)
    world.advance(1)
    assert pool.stats().idle == 3
    lease = world.acquire(pool)
    world.do(lease.discard)
    world.advance(1)
    assert pool.stats().size == 3


def test_warm_opens_min_size_and_at_least_one(world):
    """A worker warms its pools before the first request."""
    pool = world.pool(min_size=2)
    assert world.do(pool.warm)
    assert pool.stats().idle == 2
    single = world.pool()
    assert world.do(single.warm)
    assert single.stats().idle == 1


def test_warm_never_raises_for_an_absent_server(world, caplog):
    """A start must not fail because the database is still booting."""
    world.server.down = True
    pool = world.pool()
    assert not world.do(pool.warm, 0.01)
    assert "not warm yet" in caplog.text


def test_max_lifetime_replaces_a_resource_at_take(world):
    """An idle connection past its age is closed, and not lent."""
    pool = world.pool(max_lifetime=10, lifetime_jitter=0)
    first = world.use_once(pool)
    world.clock.advance(10)
    assert world.use_once(pool) is not first
    assert first.closed
    assert pool.stats().closed_by_reason == {"lifetime": 1}


def test_max_lifetime_replaces_a_resource_at_return(world):
    """A busy connection is replaced as well: it ends when it comes back."""
    pool = world.pool(max_lifetime=10, lifetime_jitter=0)
    lease = world.acquire(pool)
    conn = lease.resource
    world.clock.advance(10)
    assert not conn.closed
    world.release(lease)
    assert conn.closed


def test_lifetimes_have_jitter(world):
    """Connections opened together do not all die together (here: half of the 10 %)."""
    pool = world.pool(max_lifetime=100, lifetime_jitter=0.1)
    first = world.use_once(pool)
    world.clock.advance(94.9)
    assert world.use_once(pool) is first
    world.clock.advance(0.2)
    assert world.use_once(pool) is not first


def test_idle_timeout_shrinks_to_min_size(world):
    """What nobody used for long is closed, down to min_size."""
    pool = world.pool(max_size=4, min_size=1, idle_timeout=60)
    world.release(*[world.acquire(pool) for _ in range(4)])
    world.advance(59)
    assert pool.stats().idle == 4
    world.advance(2)
    assert pool.stats().idle == 1
    assert pool.stats().closed_by_reason == {"idle": 3}


def test_max_uses_retires_a_resource(world):
    """A connection is replaced after so many borrowings."""
    pool = world.pool(max_uses=2)
    first = world.use_once(pool)
    assert world.use_once(pool) is first
    assert first.closed
    assert world.use_once(pool) is not first


def test_a_dead_idle_resource_is_never_lent(world):
    """Liveness: what the server closed meanwhile is replaced without the borrower noticing."""
    pool = world.pool(max_size=3)
    world.release(*[world.acquire(pool) for _ in range(3)])
    world.server.kill()
    assert world.use_once(pool).number == 4
    assert pool.stats().closed_by_reason == {"dead": 3}


def test_liveness_costs_no_round_trip_inside_the_window(world):
    """A recently used connection is looked at, not asked."""
    pool = world.pool(check_after=30)
    conn = world.use_once(pool)
    world.clock.advance(29)
    world.use_once(pool)
    assert conn.pings == 0


def test_past_check_after_a_resource_is_asked(world):
    """One that lay idle for long gets one round trip before it is lent."""
    pool = world.pool(check_after=30)
    conn = world.use_once(pool)
    world.clock.advance(31)
    assert world.use_once(pool) is conn
    assert conn.pings == 1


def test_what_does_not_answer_the_ping_is_replaced(world):
    """A half-open connection (alive to its socket, dead to a question) is closed and another is opened."""
    pool = world.pool(check_after=30)
    conn = world.use_once(pool)
    conn.mute = True
    world.clock.advance(31)
    assert world.use_once(pool) is not conn
    assert conn.closed


def test_what_came_back_a_moment_ago_is_not_looked_at(world):
    """Where a look costs a system call, the driver names a time in which it would tell next to nothing."""
    driver = world.driver()
    driver.alive_bypass = 0.5
    pool = world.pool(driver)
    conn = world.use_once(pool)
    conn.killed = True
    world.clock.advance(0.4)
    assert world.use_once(pool) is conn
    world.clock.advance(0.6)
    assert world.use_once(pool) is not conn


def test_who_wants_every_connection_asked_gets_that(world):
    """The driver's time is no longer than `check_after`: 0 asks after any idleness at all."""
    driver = world.driver()
    driver.alive_bypass = 0.5
    pool = world.pool(driver, check_after=0.0)
    conn = world.use_once(pool)
    conn.mute = True
    world.clock.advance(0.1)
    assert world.use_once(pool) is not conn


def test_check_after_none_never_asks(world):
    """None: never a round trip."""
    pool = world.pool(check_after=None)
    conn = world.use_once(pool)
    world.clock.advance(500)
    world.use_once(pool)
    assert conn.pings == 0


def test_a_dead_resource_handed_over_is_not_given_to_the_waiter(world):
    """Its borrower may not have noticed that the server went away: the waiter must not find out for him."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    waiter = world.borrow(pool)
    lease.resource.deaf = True  # reads as clean, but its peer is gone
    world.release(lease)
    world.settle(waiter)
    assert waiter.number == 2


def test_a_clean_resource_costs_no_reset(world):
    """What the driver's own state shows as clean goes back as it is."""
    pool = world.pool()
    with world.inside(pool.acquire()) as conn:
        conn.execute("select")
    assert world.server.log == ["1:select"]


def test_a_dirty_resource_is_reset_on_return(world):
    """The next borrower never sees what the last one left behind."""
    pool = world.pool()
    with world.inside(pool.acquire()) as conn:
        conn.execute("dirty")
    assert world.server.log[-1] == "1:reset"
    assert not conn.dirty


def test_reset_full_always_resets(world):
    """`full` asks for a whole new session each time."""
    pool = world.pool(reset="full")
    world.use_once(pool)
    assert world.server.log == ["1:full reset"]


def test_reset_off_leaves_everything(world):
    """`off` is for resources that need none."""
    pool = world.pool(reset="off")
    with world.inside(pool.acquire()) as conn:
        conn.execute("dirty")
    assert conn.dirty


def test_a_resource_that_can_not_be_reset_is_closed(world, caplog):
    """As new, or not at all."""
    pool = world.pool()
    lease = world.acquire(pool)
    lease.resource.execute("dirty")
    world.server.fail_reset = True
    world.release(lease)
    assert world.server.connections[0].closed
    assert pool.stats().size == 0
    assert "could not be made as new" in caplog.text


def test_a_broken_resource_is_closed_and_not_reset(world):
    """An error that ended the session ends the connection: there is nothing to reset."""
    pool = world.pool()
    conn = world.use_once(pool)

    def work():
        world.server.kill()
        conn.execute("select")

    with pytest.raises(FakeError), world.inside(pool.acquire()):
        work()
    assert conn.closed
    assert pool.stats().closed_by_reason == {"broken": 1}


# -- the pool as a whole ----------------------------------------------------------------------------------------------


def test_drain_replaces_everything_while_service_goes_on(world):
    """Idle ones go now, borrowed ones when they come back, opens under way when they arrive."""
    pool = world.pool(max_size=3)
    out, idle = world.acquire(pool), world.acquire(pool)
    world.release(idle)
    world.do(pool.drain)
    assert world.server.connections[1].closed
    assert not out.resource.closed
    conn = out.resource
    world.release(out)
    assert conn.closed
    assert world.use_once(pool).number == 3


def test_what_was_begun_before_a_drain_does_not_enter_after_it(world):
    """A connect with the old password or to the old host is not lent."""
    pool = world.pool(max_size=1)
    world.hold_opens()
    waiter = world.borrow(pool)
    world.do(pool.drain)
    world.let_open()
    world.settle(waiter)
    assert waiter.number == 2
    assert world.server.connections[0].closed


def test_resize_down_closes_the_surplus(world):
    """Idle ones at once, borrowed ones on return."""
    pool = world.pool(max_size=4)
    leases = [world.acquire(pool) for _ in range(4)]
    world.release(*leases[:2])
    world.do(pool.resize, 1)
    assert pool.stats().size == 2
    world.release(leases[2])
    assert pool.stats().size == 1
    world.release(leases[3])
    assert pool.stats().idle == 1


def test_resize_up_serves_those_who_wait(world):
    """Room that appears is used at once."""
    pool = world.pool(max_size=1)
    world.acquire(pool)
    waiter = world.borrow(pool)
    world.do(pool.resize, 2)
    world.settle(waiter)
    assert waiter.number == 2


def test_resize_checks_its_limits(world):
    """Limits that can't work are refused, and change nothing."""
    pool = world.pool(max_size=3)
    with pytest.raises(ConfigError, match="max_size"):
        world.do(pool.resize, 0)
    with pytest.raises(ConfigError, match="larger than"):
        world.do(pool.resize, 2, 3)
    assert pool.stats().max_size == 3


def test_a_pool_may_be_resized_before_its_first_use(world):
    """Settings code runs before the server, and before any loop."""
    pool = world.pool(min_size=1, max_size=2)
    pool.resize(5, 2)
    pool.drain()
    assert world.do(pool.warm)
    assert pool.stats().max_size == 5


def test_close_closes_everything_and_refuses_newcomers(world):
    """Closed means empty."""
    pool = world.pool(max_size=3)
    world.release(*[world.acquire(pool) for _ in range(3)])
    assert world.do(pool.close)
    assert world.server.open_now == 0
    assert pool.closed
    with pytest.raises(PoolClosed, match="is closed"):
        world.acquire(pool)


def test_close_twice(world):
    """The second time there is nothing to do."""
    pool = world.pool()
    world.use_once(pool)
    assert world.do(pool.close)
    assert world.do(pool.close)


def test_close_of_an_unused_pool(world):
    """Nothing was opened, nothing has to be closed, and nobody waits for that."""
    assert world.do(world.pool(min_size=2).close)


def test_close_sends_those_who_wait_away(world):
    """Nobody waits in a closed pool."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    waiters = world.crowd(pool, 3)
    world.do(pool.close, 0)
    world.settle(*waiters)
    assert all(isinstance(waiter.error, PoolClosed) for waiter in waiters)
    world.release(lease)


def test_what_is_out_at_close_is_closed_on_its_return(world):
    """close() says that it is not complete; the lease ends its connection."""
    pool = world.pool()
    lease = world.borrow(pool).lease
    conn = lease.resource
    assert not world.do(pool.close, 0)
    assert not conn.closed
    world.release(lease)
    assert conn.closed
    assert world.do(pool.close)


def test_close_with_opens_under_way(world):
    """A connect that ends after the close leaves nothing open."""
    pool = world.pool()
    world.hold_opens()
    waiter = world.borrow(pool)
    assert not world.do(pool.close, 0)
    world.settle(waiter)
    world.let_open()
    assert world.server.opened == 1
    assert world.server.open_now == 0
    assert world.do(pool.close)


def test_close_with_opens_under_way_that_fail(world):
    """A connect that fails after the close ends the close as well."""
    pool = world.pool()
    world.hold_opens()
    waiter = world.borrow(pool)
    assert not world.do(pool.close, 0)
    world.settle(waiter)
    world.server.down = True
    world.let_open()
    assert world.do(pool.close, 0)


def test_a_pool_is_a_context_manager(world):
    """`with Pool(...)` closes at the end."""
    with world.inside(world.pool()) as pool:
        world.use_once(pool)
    assert pool.closed
    assert world.server.open_now == 0
