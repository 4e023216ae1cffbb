"""A reset is sent with the return and not waited for: the same for threads and asyncio."""

from __future__ import annotations

import asyncio
import threading

import pytest

from poolkit import AcquireTimeout
from poolkit.shell import RESET_LIMIT
from poolkit.testing import FakeAsyncDriver, FakeDriver


class Sending(FakeDriver):
    """Sends a reset, whose answer comes `takes` seconds later."""

    takes = 0.2

    def __init__(self, world):
        super().__init__(world.server)
        self.clock = world.clock
        self.answers = {}

    def send_reset(self, connection, *, full):
        connection.server.log.append(f"{connection.number}:sent")
        self.answers[connection] = self.clock() + self.takes
        return True

    def finish_reset(self, connection, timeout):
        wait = self.answers[connection] - self.clock()
        if wait > timeout:
            self.clock.advance(timeout)
            return False
        self.clock.advance(max(0.0, wait))
        self._reset(connection, full=False)
        return True


class Slow(FakeAsyncDriver):
    """The same for asyncio, where the pool makes the reset in a task."""

    takes = 0.2

    def __init__(self, world):
        super().__init__(world.server)

    async def reset(self, connection, *, full):
        connection.server.log.append(f"{connection.number}:sent")
        await asyncio.sleep(self.takes)
        self._reset(connection, full=full)


@pytest.fixture
def driver(world):
    return (Sending if world.kind == "threads" else Slow)(world)


def dirty(world, pool, *, keep=0):
    """Borrow and give back a connection that needs a reset; `keep` others stay out."""
    leases = [world.acquire(pool) for _ in range(keep + 1)]
    leases[-1].resource.execute("dirty")
    world.release(leases.pop())
    return leases


def test_the_borrower_does_not_wait_for_the_reset(world, driver):
    """The reset is under way when `release` is back, and no time has passed."""
    pool = world.pool(driver)
    lease = world.acquire(pool)
    lease.resource.execute("dirty")
    began = world.clock()
    world.release(lease)
    assert world.clock() == began
    stats = pool.stats()
    assert (stats.resetting, stats.out, stats.idle, stats.size) == (1, 0, 0, 1)
    assert world.server.log[-1] == "1:sent"


def test_a_clean_return_sends_nothing(world, driver):
    """Who left the session as it was leaves it to the next one at once."""
    pool = world.pool(driver)
    world.use_once(pool)
    assert world.server.log == []
    assert pool.stats().idle == 1


@pytest.mark.parametrize("takes", [0.2, 5.0])
def test_on_close_has_a_connection_that_works(world, driver, takes):
    """It is called when the reset has ended; where that has no answer the connection is closed without it."""

    async def farewell(connection):
        connection.execute("farewell")

    driver.takes = takes
    pool = world.pool(driver, on_close=farewell if world.kind == "asyncio" else lambda c: c.execute("farewell"))
    dirty(world, pool)
    world.do(pool.close)
    ended = [] if takes > RESET_LIMIT else ["1:reset", "1:farewell"]
    assert world.server.log == ["1:dirty", "1:sent", *ended]
    assert world.server.open_now == 0


def test_the_next_borrower_reads_the_answer_first(world, driver):
    """Nothing of its own is sent before the session is known to be as new."""
    pool = world.pool(driver, max_size=1)
    dirty(world, pool)
    began = world.clock()
    lease = world.acquire(pool)
    assert world.clock() - began == pytest.approx(driver.takes)
    lease.resource.execute("mine")
    assert world.server.log == ["1:dirty", "1:sent", "1:reset", "1:mine"]
    assert pool.stats().opened == 1


def test_an_idle_one_is_preferred(world, driver):
    """As long as there is an idle connection, nobody waits for a reset."""
    pool = world.pool(driver)
    world.release(*dirty(world, pool, keep=1))
    began = world.clock()
    lease = world.acquire(pool)
    assert lease.resource.number == 1
    assert world.clock() == began
    assert pool.stats().resetting == 1


def test_no_connection_is_opened_while_one_is_reset(world, driver):
    """A reset takes a round trip, a connect several."""
    pool = world.pool(driver, max_size=5)
    dirty(world, pool)
    world.acquire(pool)
    assert pool.stats().opened == 1


def test_who_waits_gets_it_and_reads_the_answer(world, driver):
    """At saturation the reset is the one round trip that can't be hidden."""
    pool = world.pool(driver, max_size=1)
    lease = world.acquire(pool)
    waiter = world.borrow(pool)
    lease.resource.execute("dirty")
    world.release(lease)
    world.settle(waiter)
    assert waiter.number == 1
    assert not waiter.lease.resource.dirty


def test_a_failed_reset_is_not_noticed(world, driver, caplog):
    """The borrower gets another connection; the log says why the first one was closed."""
    pool = world.pool(driver)
    dirty(world, pool)
    world.server.fail_reset = True
    lease = world.acquire(pool)
    assert lease.resource.number == 2
    assert pool.stats().closed_by_reason == {"broken": 1}
    assert world.server.open_now == 1
    assert "could not be made as new" in caplog.text


def test_a_waiter_whose_reset_failed_is_served(world, driver):
    """It loses its place to nobody that came later, for the pool opens another at once."""
    pool = world.pool(driver, max_size=1)
    lease = world.acquire(pool)
    waiter = world.borrow(pool)
    lease.resource.execute("dirty")
    world.server.fail_reset = True
    world.release(lease)
    world.settle(waiter)
    assert waiter.number == 2


def test_a_reset_without_an_answer_costs_a_second(world, driver, caplog):
    """What has not answered by then is closed, and its borrower gets another."""
    driver.takes = 3600.0
    pool = world.pool(driver)
    dirty(world, pool)
    began = world.clock()
    assert world.acquire(pool).resource.number == 2
    assert world.clock() - began == pytest.approx(1.0)
    assert pool.stats().closed_by_reason == {"broken": 1}
    assert "no answer within 1 s" in caplog.text


def test_a_reset_nobody_waits_for_ends_by_itself(world, driver):
    """The housekeeping reads the answer."""
    pool = world.pool(driver)
    dirty(world, pool)
    world.advance(1.5)
    assert (pool.stats().resetting, pool.stats().idle) == (0, 1)
    assert not world.server.connections[0].dirty


def test_a_reset_nobody_waits_for_is_given_up_in_time(world, driver):
    """Without an answer the connection is closed, also where nobody asks for it."""
    driver.takes = 3600.0
    pool = world.pool(driver)
    dirty(world, pool)
    world.advance(2.5)
    assert pool.stats().size == world.server.open_now == 0


def test_a_borrower_without_the_time_leaves_the_reset_alone(world, driver):
    """Its own timeout says nothing about the connection: the next one gets that."""
    pool = world.pool(driver, max_size=1)
    dirty(world, pool)
    with pytest.raises(AcquireTimeout):
        world.acquire(pool, 0.1)
    assert pool.stats().closed_by_reason == {}
    assert world.acquire(pool).resource.number == 1
    assert not world.server.connections[0].dirty


@pytest.mark.parametrize("end", ["drain", "close"])
def test_a_pool_ends_in_the_middle_of_a_reset(world, driver, end, caplog):
    """The connection is closed like an idle one, and nothing is told: it was nobody's fault."""
    pool = world.pool(driver)
    dirty(world, pool)
    world.do(getattr(pool, end))
    world.advance(2.0)
    assert pool.stats().size == world.server.open_now == 0
    assert pool.stats().closed_by_reason == {"drained": 1}
    assert not caplog.records


def test_ready_reads_the_answer_too(world, driver):
    """A connection whose reset is under way can serve."""
    pool = world.pool(driver)
    dirty(world, pool)
    assert world.do(pool.ready)
    assert pool.stats().idle == 1


def test_full_resets_each_return(world, driver):
    """`reset="full"` is for those who trust no classifier; it is sent in the same way."""
    pool = world.pool(driver, reset="full", max_size=1)
    world.use_once(pool)
    assert pool.stats().resetting == 1
    assert not world.acquire(pool).resource.dirty
    assert world.server.log[0] == "1:sent"


class Stubborn(Slow):
    """Cancelled, its library asks the server to cancel, and waits for that answer too; closed, it ends at once."""

    def __init__(self, world):
        super().__init__(world)
        self.ends = asyncio.Event()
        self.cancelled = False

    async def reset(self, connection, *, full):
        try:
            await self.ends.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            await asyncio.sleep(5.0)
            raise
        raise ConnectionError

    def terminate(self, connection):
        super().terminate(connection)
        self.ends.set()


def test_a_reset_without_an_answer_is_hung_up_on(loop_world):
    """It is not cancelled: that would have the borrower wait for one more answer of a server that is silent."""
    driver = Stubborn(loop_world)
    pool = loop_world.pool(driver, max_size=1)
    dirty(loop_world, pool)
    began = loop_world.clock()
    assert loop_world.acquire(pool).resource.number == 2
    assert loop_world.clock() - began == pytest.approx(1.0)
    loop_world.advance(1.0)
    assert not driver.cancelled


def test_a_reset_that_does_not_notice_is_cancelled(loop_world):
    """A driver that goes on after its connection was closed holds up neither the borrower nor the end of the pool."""
    driver = Stubborn(loop_world)
    driver.ends.set = lambda: None
    pool = loop_world.pool(driver, max_size=1)
    dirty(loop_world, pool)
    began = loop_world.clock()
    assert loop_world.acquire(pool).resource.number == 2
    assert loop_world.clock() - began == pytest.approx(1.0)
    loop_world.advance(0.2)
    assert driver.cancelled


def test_a_cancelled_borrower_leaves_the_reset_to_the_next(loop_world):
    """The task that was handed the connection is gone; the reset goes on, and the next one waits for it."""
    driver = Slow(loop_world)
    pool = loop_world.pool(driver, max_size=1)
    dirty(loop_world, pool)
    borrower = loop_world.borrow(pool)
    borrower.where.cancel()
    loop_world.settle(borrower)
    assert pool.stats().resetting == 1
    assert loop_world.acquire(pool).resource.number == 1
    assert not loop_world.server.connections[0].dirty


# -- by a helper thread -----------------------------------------------------------------------------------------------


class Helped(FakeDriver):
    """A library that can't send without waiting."""

    background_reset = True

    def __init__(self, server):
        super().__init__(server)
        self.gate = threading.Event()
        self.gate.set()
        self.threads = []

    def reset(self, connection, *, full):
        self.threads.append(threading.current_thread())
        assert self.gate.wait(10)
        self._reset(connection, full=full)


def in_threads(threads):
    """Have the pool's helpers run in threads of their own."""
    started = []

    def spawn(work):
        started.append(threading.Thread(target=work, daemon=True))
        started[-1].start()

    threads.runtime.spawn = spawn
    return started


def test_a_helper_thread_resets_where_the_library_waits(threads):
    """The borrower is gone before the reset is done, and the next one finds the session as new."""
    driver = Helped(threads.server)
    pool = threads.pool(driver, max_size=1)
    threads.use_once(pool)
    in_threads(threads)
    driver.gate.clear()
    dirty(threads, pool)
    assert pool.stats().resetting == 1
    got = []
    borrower = threading.Thread(target=lambda: got.append(pool.acquire()), daemon=True)
    borrower.start()
    driver.gate.set()
    borrower.join(10)
    assert got[0].resource.number == 1
    assert not got[0].resource.dirty
    assert driver.threads[0] is not threading.current_thread()


def test_a_helper_thread_that_hangs_costs_a_second(threads):
    """The borrower gets another connection, and the one in the helper's hands is closed."""
    driver = Helped(threads.server)
    pool = threads.pool(driver)
    threads.use_once(pool)
    helpers = in_threads(threads)
    driver.gate.clear()
    dirty(threads, pool)
    threads.clock.advance(2.0)
    borrower = threads.borrow(pool)
    threads.settle(borrower)
    assert borrower.number == 2
    driver.gate.set()
    for helper in helpers:
        helper.join(10)
    assert pool.stats().closed_by_reason == {"broken": 1}


def test_a_helper_thread_that_fails_is_told_of_once(threads, caplog):
    """What can't be reset is closed when the helper finds out."""
    driver = Helped(threads.server)
    pool = threads.pool(driver)
    threads.server.fail_reset = True
    dirty(threads, pool)
    assert pool.stats().resetting + pool.stats().idle <= 1
    threads.advance(1.0)
    assert pool.stats().size == 0
    assert [record for record in caplog.records if "could not be made as new" in record.message]
