"""A borrowing has an object of its own, connections are set up by the user's hooks, refused connects are no outages."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

from poolkit import ConfigError, ConnectRejected, LeaseError, PoolError
from poolkit.testing import FakeConnection
from poolkit.testing.fakes import FakeError

# -- whose connection it is ---------------------------------------------------------------------------------------


class Own(FakeConnection):
    """An object that can be given up for another one."""

    returned = None

    def execute(self, statement):
        if self.returned is not None:
            raise self.returned.error()
        super().execute(statement)


def renewing(world):
    """A driver that renews its objects, and counts how often."""
    driver = world.driver()
    driver.renewed = []

    def renew(old, returned):
        new = Own(old.server, old.number)
        new.__dict__.update(old.__dict__)
        old.returned = returned
        driver.renewed.append(returned)
        return new

    connect = driver.server.connect

    def own():
        connection = connect()
        connection.__class__ = Own
        driver.server.connections.clear()  # the test's own list would be a reference
        return connection

    driver.server.connect = own
    driver.renew = renew
    return driver


def test_an_object_kept_beyond_the_return_is_refused(world):
    """Also while the next borrower works on the same session."""
    pool = world.pool(renewing(world), max_size=1)
    with world.inside(pool.acquire()) as kept:
        kept.execute("mine")
    with world.inside(pool.acquire()) as conn:
        assert conn is not kept
        with pytest.raises(LeaseError, match="given back"):
            kept.execute("late")
        conn.execute("next")
    assert world.server.log == ["1:mine", "1:next"]


def test_the_error_names_the_place_of_the_return(world):
    """The label of the work where there is one, else the line of the borrower's code."""
    pool = world.pool(renewing(world))
    lease = world.acquire(pool)
    lease.label("GET /orders")
    kept = lease.resource
    world.release(lease)
    with pytest.raises(LeaseError, match="by GET /orders"):
        kept.execute("late")
    with world.inside(pool.acquire()) as kept:
        pass
    with pytest.raises(LeaseError, match=r"given back at .+\.py:\d+ in "):
        kept.execute("late")


@pytest.mark.skipif(not hasattr(sys, "getrefcount"), reason="references are not counted here")
def test_an_object_that_nothing_refers_to_is_not_renewed(world):
    """Renewing takes a microsecond; where nobody has kept the object there is nothing to guard against."""
    driver = renewing(world)
    pool = world.pool(driver)
    for _ in range(3):
        lease = world.acquire(pool)
        lease.resource.execute("x")
        world.release(lease)
    assert driver.renewed == []
    lease = world.acquire(pool)
    kept = lease.resource
    world.release(lease)
    assert len(driver.renewed) == 1
    del kept


def test_the_old_object_is_not_kept_alive(world):
    """What the borrower drops is gone."""
    pool = world.pool(renewing(world))
    lease = world.acquire(pool)
    kept = lease.resource
    world.release(lease)
    gone = weakref.ref(kept)
    del kept
    gc.collect()
    assert gone() is None


def test_a_dirty_object_is_renewed_before_its_reset(world):
    """Nobody's late statement can come between the return and the reset."""
    pool = world.pool(renewing(world))
    lease = world.acquire(pool)
    kept = lease.resource
    kept.execute("dirty")
    world.release(lease)
    with pytest.raises(LeaseError):
        kept.execute("late")
    assert not world.acquire(pool).resource.dirty


def test_a_driver_that_fails_to_renew_loses_the_connection(world, caplog):
    """What can't be parted from its borrower is not lent again."""
    driver = renewing(world)

    def renew(_old, _returned):
        raise RuntimeError("broken")

    driver.renew = renew
    pool = world.pool(driver)
    with world.inside(pool.acquire()) as kept:
        kept.execute("mine")
    assert pool.stats().closed_by_reason == {"broken": 1}
    assert "parted" in caplog.text


def test_objects_that_cant_be_renewed_are_told_of_both_ends(world):
    """`lend` at each checkout, `retire` at each return, with the place of the return."""
    driver = world.driver()
    told = []
    driver.lend = lambda connection: told.append(("lend", connection.number))
    driver.retire = lambda connection, returned: told.append(("retire", connection.number, str(returned)))
    pool = world.pool(driver)
    for _ in range(2):
        lease = world.acquire(pool)
        lease.label("work")
        world.release(lease)
    assert told == [("lend", 1), ("retire", 1, "work")] * 2


# -- hooks --------------------------------------------------------------------------------------------------------


def hook(world, work):
    """A hook as the pool's world wants it."""
    if world.kind == "threads":
        return work

    async def awaited(connection):
        return work(connection)

    return awaited


def test_configure_sets_up_each_new_connection_once(world):
    """Before anybody gets it; what it leaves is noted by the driver as the state of rest."""
    driver = world.driver()
    settled = []
    driver.settled = lambda connection: settled.append(connection.number)
    pool = world.pool(driver, configure=hook(world, lambda connection: connection.execute("configure")))
    for _ in range(2):
        with world.inside(pool.acquire()) as conn:
            conn.execute("work")
    assert world.server.log == ["1:configure", "1:work", "1:work"]
    assert settled == [1]


def test_an_error_in_configure_fails_the_connect(world):
    """The connection is closed, and who waits gets the error as the cause of its own."""

    def fail(_connection):
        raise FakeError("no such extension")

    pool = world.pool(configure=hook(world, fail))
    with pytest.raises(PoolError) as caught:
        world.acquire(pool, 0.01)
    assert "no such extension" in str(caught.value.__cause__)
    assert world.server.open_now == 0


def test_setup_is_called_for_each_borrower(world):
    """Its error is the borrower's, and the connection is closed."""
    calls = []
    pool = world.pool(setup=hook(world, lambda connection: calls.append(connection.number)))
    world.use_once(pool)
    world.use_once(pool)
    assert calls == [1, 1]

    def fail(_connection):
        raise KeyError("no tenant")

    pool = world.pool(setup=hook(world, fail))
    with pytest.raises(KeyError, match="no tenant"):
        world.acquire(pool)
    assert pool.stats().out == 0
    assert pool.stats().closed_by_reason == {"broken": 1}


@pytest.mark.parametrize("answer", [False, FakeError("no")])
def test_ping_takes_the_place_of_the_drivers_own(world, answer):
    """A no or an error replaces the connection; asked only after `check_after`."""
    asked = []

    def ping(connection):
        asked.append(connection.number)
        if isinstance(answer, Exception):
            raise answer
        return answer

    pool = world.pool(ping=hook(world, ping), check_after=1.0)
    world.use_once(pool)
    assert world.use_once(pool).number == 1
    assert asked == []
    world.clock.advance(2.0)
    assert world.use_once(pool).number == 2
    assert asked == [1]
    assert world.server.connections[0].pings == 0


def test_on_close_is_called_before_the_connection_is_closed(world, caplog):
    """What it raises is logged, and the connection is closed all the same."""
    seen = []

    def farewell(connection):
        seen.append(connection.closed)
        raise ValueError("farewell")

    pool = world.pool(on_close=hook(world, farewell))
    world.use_once(pool)
    world.do(pool.close)
    assert seen == [False]
    assert world.server.open_now == 0
    assert "farewell" in caplog.text


def test_on_close_is_not_called_where_nobody_would_answer(world):
    """A connection whose peer is gone is closed without it: what it asks would wait for an answer."""
    seen = []
    pool = world.pool(on_close=hook(world, lambda connection: seen.append(connection.number)))
    world.use_once(pool)
    world.server.kill()
    assert world.use_once(pool).number == 2
    world.do(pool.close)
    assert seen == [2]


def shout(connection):
    """Found by its dotted path."""
    connection.execute("shout")


def test_a_hook_may_be_a_dotted_path(threads):
    """Settings files name things; a name that leads nowhere is a ConfigError that says so."""
    pool = threads.pool(configure=f"{__name__}.shout")
    threads.use_once(pool)
    assert threads.server.log == ["1:shout"]
    for path in ("nowhere.at_all", f"{__name__}.nothing", f"{__name__}.sys.maxsize"):
        with pytest.raises(ConfigError, match="configure"):
            threads.pool(configure=path)
    with pytest.raises(ConfigError, match="dotted path"):
        threads.pool(configure=3)


# -- refused for good ---------------------------------------------------------------------------------------------


def refusing(world, **settings):
    """A pool whose server refuses each connect for good, until `server.down` is False."""
    driver = world.driver()
    driver.failure_kind = lambda error: "refused" if isinstance(error, FakeError) else "away"
    world.server.down = True
    return world.pool(driver, **settings), driver


def test_a_refused_connect_is_told_at_once(world):
    """No eight attempts, no wait: what is wrong will be wrong in a second, too. There is no Retry-After."""
    pool, _ = refusing(world, on_outage="wait")
    began = world.clock()
    with pytest.raises(ConnectRejected, match="Check the URL") as caught:
        world.acquire(pool)
    assert world.clock() == began
    assert caught.value.retry_after is None
    assert isinstance(caught.value.__cause__, FakeError)
    assert pool.stats().open_failures == 1


def test_a_refused_server_is_asked_seldom(world):
    """Others get the same error for 5 s; then one tries again, and after that one in 30 s."""
    pool, _ = refusing(world)
    for pause, attempts in ((0, 1), (4.9, 1), (0.2, 2), (5.1, 2), (24, 2), (1, 3)):
        world.clock.advance(pause)
        with pytest.raises(ConnectRejected):
            world.acquire(pool)
        assert pool.stats().open_failures == attempts


def test_what_was_mended_serves_again(world):
    """The first success ends it, as after an outage."""
    pool, _ = refusing(world)
    with pytest.raises(ConnectRejected):
        world.acquire(pool)
    world.server.down = False
    world.clock.advance(5.1)
    assert world.acquire(pool).resource.number == 1
    assert pool.stats().outage is None


def test_a_url_from_a_callable_is_asked_again_at_once(world):
    """Secrets rotate: the second attempt has the new one."""
    pool, driver = refusing(world)
    driver.rotates = True
    tries = []
    connect = world.server.connect

    def second_time():
        tries.append(1)
        world.server.down = len(tries) < 2
        return connect()

    world.server.connect = second_time
    assert world.acquire(pool).resource.number == 1
    assert pool.stats().open_failures == 0


def test_who_can_wait_for_a_connection_in_use_waits(world):
    """A refused connect beside connections that work refuses nobody."""
    pool, _ = refusing(world, max_size=2)
    world.server.down = False
    lease = world.acquire(pool)
    world.server.down = True
    waiter = world.borrow(pool)
    world.release(lease)
    world.settle(waiter)
    assert waiter.number == 1
