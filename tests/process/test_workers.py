"""Workers: as many threads as are wanted, up to a limit; all of them daemons, which nobody has to wait for."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from poolkit import AsyncPool, Pool, Registry, workers
from poolkit.testing import FakeAsyncDriver, FakeDriver, ManualRuntime
from poolkit.workers import Workers


@pytest.fixture
def pool_of_two():
    made = Workers(2, "test-workers")
    yield made
    made.stop()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "test-workers"]


def gone():
    end = time.monotonic() + 10
    while threads():
        assert time.monotonic() < end
        time.sleep(0.002)
    return True


def test_results_and_errors_are_the_callers(pool_of_two):
    """What the call returns or raises comes out of the future, and the threads are daemons."""
    assert pool_of_two.submit(divmod, 7, 2).result(10) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        pool_of_two.submit(divmod, 7, 0).result(10)
    assert threads()
    assert all(thread.daemon for thread in threads())


def test_no_more_than_the_limit(pool_of_two):
    """Two run, the third waits in line; an idle thread is used before another is started."""
    go = threading.Event()
    futures = [pool_of_two.submit(go.wait, 10) for _ in range(5)]
    assert len(threads()) == 2
    assert not pool_of_two.settle(0.01)
    go.set()
    assert all(future.result(10) for future in futures)
    assert pool_of_two.settle(10)
    pool_of_two.submit(int).result(10)
    assert len(threads()) == 2


def test_a_cancelled_call_is_not_made(pool_of_two):
    """What was cancelled in line is passed over."""
    go = threading.Event()
    busy = [pool_of_two.submit(go.wait, 10) for _ in range(2)]
    late = pool_of_two.submit(pytest.fail, "was called")
    assert late.cancel()
    go.set()
    assert all(future.result(10) for future in busy)
    assert pool_of_two.settle(10)


def test_stop_lets_what_was_submitted_finish(pool_of_two):
    """Nothing is dropped, and no thread is left."""
    go = threading.Event()
    futures = [pool_of_two.submit(go.wait, 10) for _ in range(4)]
    pool_of_two.stop()
    go.set()
    assert all(future.result(10) for future in futures)
    assert gone()


def test_idle_threads_leave(pool_of_two, monkeypatch):
    """After a while with nothing to do; the next call starts another."""
    monkeypatch.setattr(workers, "LINGER", 0.01)
    pool_of_two.submit(int).result(10)
    assert gone()
    assert pool_of_two.submit(int).result(10) == 0


def test_where_no_thread_can_be_started(pool_of_two, monkeypatch):
    """The caller is told, and nothing is left in line."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool_of_two.submit(int)
    assert pool_of_two.settle(0)
    assert pool_of_two.submit(int).result(10) == 0


def test_a_registry_takes_its_time_once():
    """Pools of threads and of the loop, each with a connection out: one `close_timeout` for all of them together."""
    registry = Registry({name: {"url": "sqlite:///:memory:"} for name in ("a", "b", "c")})
    for name in ("a", "b"):
        registry._pools[name] = Pool(FakeDriver(), close_timeout=0.3)
    leases = [registry.pool(name).acquire() for name in ("a", "b")]

    async def main() -> float:
        pool = AsyncPool(FakeAsyncDriver(), close_timeout=0.3)
        registry._async_pools[asyncio.get_running_loop()] = {"c": pool}
        leases.append(await pool.acquire())
        hold = asyncio.ensure_future(asyncio.sleep(5))
        began = asyncio.get_running_loop().time()
        await asyncio.create_task(registry.aclose())
        hold.cancel()
        return asyncio.get_running_loop().time() - began

    assert 0.29 <= asyncio.run(main()) < 0.55
    for lease in leases[:2]:
        lease.release()


def test_a_close_that_blocks_holds_up_no_visit():
    """What a sweep dooms is closed elsewhere: the housekeeper goes on to the next pool."""
    runtime = ManualRuntime()
    driver = FakeDriver()
    pool = Pool(driver, runtime=runtime, idle_timeout=10)
    pool.acquire().release()
    closed = []
    driver.close = closed.append
    runtime.hold = True
    runtime.advance(11)
    pool.sweep()
    assert pool.stats().size == 0
    assert closed == []
    runtime.hold = False
    runtime.run_pending()
    assert len(closed) == 1
