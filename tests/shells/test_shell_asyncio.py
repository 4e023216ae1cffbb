"""What only asyncio can do to a pool: cancel anywhere, close the loop, come from another one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import weakref

import pytest
from aio_rig import Runtime, Slow, dirty_block, fully_usable, run, settled, transaction, turns

from poolkit import AcquireTimeout, AsyncPool, Pool, PoolError
from poolkit.bridge import acquire_from_loop
from poolkit.state import LEAST_PATIENCE
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer
from poolkit.testing.fakes import FakeError

OPERATIONS = ("alive", "clean", "is_broken", "reset", "ping", "close", "terminate", "open")


def test_an_open_outlives_its_caller():
    """A connect whose caller was cancelled is not wasted: it lies idle for the next one."""

    async def work():
        server = FakeServer()
        pool = AsyncPool(Slow(server))
        task = asyncio.create_task(dirty_block(pool))
        await turns(2)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await settled(pool)
        assert pool.stats().idle == 1
        assert server.opened == 1
        await pool.close()

    run(work())


def test_commit_is_never_cancelled():
    """Once begun, a COMMIT is carried out: its outcome would be unknown otherwise."""

    async def work():
        server = FakeServer()
        driver = Slow(server)
        pool = AsyncPool(driver)
        commit, gate = driver.commit, asyncio.Event()

        async def slow_commit(conn):
            began.set()
            await gate.wait()
            await commit(conn)

        driver.commit = slow_commit
        began = asyncio.Event()
        task = asyncio.create_task(transaction(pool))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await settled(pool)
        assert server.log[-1] == "1:commit"
        assert pool.stats().idle == 1
        await pool.close()

    run(work())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_driver_may_raise_anywhere(operation, caplog):
    """Whatever a driver raises wherever, no place is lost and nothing unfit is lent."""

    def raising(*_args, **_more):
        raise ValueError(operation)

    async def life(pool):
        with contextlib.suppress(KeyError, ValueError, PoolError):
            async with pool.acquire() as conn:
                conn.dirty = True
                raise KeyError

    def use(pool, driver):
        pool._alive, pool._clean, pool.is_broken = driver.alive, driver.clean, driver.is_broken
        pool._is_plain = driver.clean

    async def work():
        driver = FakeAsyncDriver()
        clock = asyncio.get_running_loop()._manual_clock
        pool = AsyncPool(driver, max_size=2, timeout=0.5, check_after=10, runtime=Runtime(clock))
        await life(pool)
        healthy = getattr(driver, operation)
        setattr(driver, operation, raising)
        use(pool, driver)
        for _ in range(4):
            await life(pool)
            clock.advance(11)
            pool.drain()
            await turns(10)
        setattr(driver, operation, healthy)
        use(pool, driver)
        await asyncio.sleep(5)
        assert pool.stats().out == 0
        await fully_usable(pool)
        await pool.close()

    run(work())


def test_a_pool_starts_afresh_when_its_loop_was_closed():
    """asyncio.run twice: the second loop gets connections of its own, and the first one's are let go."""
    server = FakeServer()
    pool = AsyncPool(FakeAsyncDriver(server))

    async def use():
        async with pool.acquire() as conn:
            return conn

    first, second = asyncio.run(use()), asyncio.run(use())
    assert first is not second
    assert first.closed
    assert server.open_now == 1
    asyncio.run(pool.close())
    assert server.open_now == 0


def test_a_lease_of_a_closed_loop_is_silent():
    """It can't be given back in a loop that is not there; ending it is no error."""
    pool = AsyncPool(FakeAsyncDriver())

    async def take():
        return await pool.acquire()

    lease = asyncio.run(take())
    asyncio.run(dirty_block(pool))
    assert lease.inherited
    asyncio.run(pool.close())


def test_another_open_loop_is_refused():
    """One pool, one loop: a second one at the same time gets a clear error, for borrowing and for closing."""
    pool = AsyncPool(FakeAsyncDriver())
    gate, ready = threading.Event(), threading.Event()

    async def hold():
        async with pool.acquire():
            ready.set()
            await asyncio.to_thread(gate.wait, 10)
        await pool.close()

    other = threading.Thread(target=asyncio.run, args=(hold(),))
    other.start()
    ready.wait(10)
    try:
        for call in (pool.acquire, pool.close, pool.ready):
            with pytest.raises(PoolError, match="one pool per loop"):
                asyncio.run(_await(call))
        for change in (pool.drain, pool.sweep, lambda: pool.resize(3)):
            with pytest.raises(PoolError, match="call this in it"):
                change()
        assert pool.stats().out == 1
    finally:
        gate.set()
        other.join(10)
    assert pool._driver.server.open_now == 0


async def _await(call):
    return await call()


def test_a_slow_ping_ends_with_the_timeout():
    """A question that nobody answers costs no more than the caller allowed, however many lie idle."""

    async def work():
        driver = FakeAsyncDriver()
        clock = asyncio.get_running_loop()._manual_clock
        pool = AsyncPool(driver, check_after=1, runtime=Runtime(clock), max_size=5)
        leases = [await pool.acquire() for _ in range(5)]
        for lease in leases:
            await lease.release()
        await asyncio.sleep(2)

        async def never(conn, timeout):
            await asyncio.sleep(3600)

        driver.ping = never
        began = clock()
        with pytest.raises(AcquireTimeout):
            await pool.acquire(0.5)
        assert clock() - began == pytest.approx(0.5)
        assert pool.stats().closed_by_reason == {"dead": 5}, "what lay idle as long is not asked one by one"
        assert pool.stats().timeouts == 1
        await pool.close()

    run(work())


def test_a_question_in_haste_says_nothing_about_the_others():
    """Who has less time than four connects take closes the one that did not answer, and no other."""

    async def work():
        driver = FakeAsyncDriver(on_open=lambda: asyncio.sleep(0.2))
        pool = AsyncPool(driver, check_after=1, runtime=Runtime(asyncio.get_running_loop()._manual_clock), max_size=5)
        for lease in [await pool.acquire() for _ in range(5)]:
            await lease.release()
        await asyncio.sleep(2)

        async def never(conn, timeout):
            await asyncio.sleep(3600)

        driver.ping = never
        with pytest.raises(AcquireTimeout):
            await pool.acquire(0.5)
        assert pool.stats().closed_by_reason == {"dead": 1}
        await pool.close()

    run(work())


def test_a_ping_takes_no_longer_than_a_connect():
    """Where the server is known to be quick, its silence is noticed in a second, and a new connection serves."""

    async def work():
        driver = FakeAsyncDriver()
        clock = asyncio.get_running_loop()._manual_clock
        pool = AsyncPool(driver, check_after=1, runtime=Runtime(clock))
        await (await pool.acquire()).release()
        await asyncio.sleep(2)

        async def never(conn, timeout):
            await asyncio.sleep(3600)

        driver.ping = never
        began = clock()
        async with pool.acquire(10) as conn:
            assert conn.number == 2
        assert clock() - began == pytest.approx(LEAST_PATIENCE)
        await pool.close()

    run(work())


def test_an_open_does_not_carry_its_callers_context():
    """What the pool opens for all has none of one request's context variables."""
    variable = contextvars.ContextVar("variable", default="nobody")
    seen = []

    async def work():
        pool = AsyncPool(FakeAsyncDriver(on_open=lambda: seen.append(variable.get())))
        variable.set("request 1")
        async with pool.acquire():
            pass
        await pool.close()

    asyncio.run(work())
    assert seen == ["nobody"]


def test_a_close_that_hangs_is_cut_short():
    """A server that does not answer a goodbye is not waited for beyond close_timeout."""

    async def work():
        driver = FakeAsyncDriver()

        async def never(conn):
            await asyncio.sleep(3600)

        driver.close = never
        pool = AsyncPool(driver, close_timeout=2)
        lease = await pool.acquire()
        lease.discard()
        await asyncio.sleep(3)
        assert driver.server.open_now == 0

    run(work())


def test_close_waits_for_what_is_out():
    """close() returns when the last lease came back."""

    async def work():
        pool = AsyncPool(FakeAsyncDriver())
        lease = await asyncio.create_task(_acquire(pool))
        closing = asyncio.create_task(pool.close(3600))
        await turns(5)
        assert not closing.done()
        await lease.release()
        assert await closing
        assert pool._driver.server.open_now == 0

    run(work())


async def _acquire(pool):
    return await pool.acquire()


def test_close_does_not_wait_for_the_closers_own_leases():
    """Waiting for oneself would only waste the time."""

    async def work():
        pool = AsyncPool(FakeAsyncDriver())
        async with pool.acquire():
            assert not await pool.close(3600)
        await settled(pool)
        assert pool._driver.server.open_now == 0

    run(work())


def test_a_cancelled_close_may_be_called_again():
    """The pool is closed at once; only the waiting was cancelled."""

    async def work():
        pool = AsyncPool(FakeAsyncDriver())
        lease = await asyncio.create_task(_acquire(pool))
        closing = asyncio.create_task(pool.close(3600))
        await turns(5)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert pool.closed
        await lease.release()
        assert await pool.close()

    run(work())


def test_a_pool_that_is_dropped_is_collected():
    """Neither timers nor fork hooks keep a pool alive."""

    async def work():
        pool = AsyncPool(FakeAsyncDriver())
        async with pool.acquire():
            pass
        await turns(5)  # the task that opened it ends
        gone = weakref.ref(pool)
        del pool
        gc.collect()
        assert gone() is None

    run(work())


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")
def test_eager_tasks():
    """A task may run before create_task returns; connects and hand-overs don't mind."""

    async def work():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        pool = AsyncPool(FakeAsyncDriver(), max_size=2)
        await asyncio.gather(*(dirty_block(pool) for _ in range(20)), *(transaction(pool) for _ in range(20)))
        assert pool.stats().acquired == 40
        assert await pool.close()
        assert pool._driver.server.open_now == 0

    run(work())


def test_a_connection_borrowed_from_a_loop_names_its_task():
    """A thread pool's connection that a loop borrowed is not listed under the thread that had it before."""

    async def work():
        pool = Pool(FakeDriver(), leak_after=60)
        with pool.acquire():
            pass
        asyncio.current_task().set_name("GET /")
        lease = await acquire_from_loop(pool, asyncio.to_thread)
        assert [holder.label for holder in pool.holders()] == ["task GET /"]
        closing = asyncio.create_task(asyncio.to_thread(pool.close, 30))
        while not pool.closed:  # noqa: ASYNC110  another thread closes it
            await asyncio.sleep(0.001)
        lease.release()
        assert await closing

    asyncio.run(work())


def test_the_end_of_the_loop_cancels_what_is_under_way():
    """asyncio.run cancels the pool's tasks as well; that is no fault and leaves no warning."""

    async def work(pool):
        tasks.append(asyncio.create_task(_acquire(pool)))
        await turns(1)

    tasks = []
    pool = AsyncPool(FakeAsyncDriver(on_open=lambda: asyncio.sleep(3600)))
    asyncio.run(work(pool))
    assert pool._driver.server.opened == 0


def test_an_error_of_the_user_is_not_a_timeout():
    """A TimeoutError raised by a driver's ping is the driver's, not the pool's."""

    async def work():
        driver = FakeAsyncDriver()
        clock = asyncio.get_running_loop()._manual_clock
        pool = AsyncPool(driver, check_after=1, runtime=Runtime(clock))
        await (await pool.acquire()).release()
        await asyncio.sleep(2)

        async def ping(conn, timeout):
            raise TimeoutError("mine")

        driver.ping = ping
        with pytest.raises(TimeoutError, match="mine"):
            await pool.acquire()
        assert pool.stats().out == 0
        await pool.close()

    run(work())


def test_the_cause_of_a_timeout_in_an_outage():
    """A timeout during an outage says what the last attempt failed with."""

    async def work():
        server = FakeServer(down=True)
        pool = AsyncPool(FakeAsyncDriver(server))
        with pytest.raises(AcquireTimeout) as caught:
            await pool.acquire(0.01)
        assert isinstance(caught.value.__cause__, FakeError)
        await pool.close()

    run(work())
