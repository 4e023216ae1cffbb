"""What can't work is refused when the pool is made, in one sentence that says what to do."""

from __future__ import annotations

import pytest

from poolkit import AsyncPool, ConfigError, Pool, PoolClosed, PoolConfig, PoolError, Registry
from poolkit.testing import FakeAsyncDriver, FakeDriver


@pytest.mark.parametrize("kind", [Pool, AsyncPool])
@pytest.mark.parametrize("source", [None, 5, b"postgresql://host/db", object(), ["postgresql://host/db"]])
def test_what_is_no_driver_is_refused(kind, source):
    """A URL, a callable or a driver: nothing else can be pooled."""
    with pytest.raises(ConfigError, match="expected a URL, a callable that returns one, or a driver, not "):
        kind(source)


def test_a_driver_for_asyncio_is_refused_by_pool():
    """Its coroutines would never be awaited."""
    with pytest.raises(ConfigError, match="FakeAsyncDriver is a driver for asyncio: use AsyncPool"):
        Pool(FakeAsyncDriver())


def test_a_driver_for_threads_is_refused_by_async_pool():
    """It would block the loop, and has nothing to await."""
    with pytest.raises(ConfigError, match="FakeDriver is a driver for threads: use Pool"):
        AsyncPool(FakeDriver())


def test_a_mapping_is_no_config():
    """Settings in a mapping go as keywords."""
    with pytest.raises(ConfigError, match="config must be a PoolConfig, not dict; settings go as keywords"):
        Pool(FakeDriver(), {"max_size": 3})


def test_config_and_keywords_are_not_mixed():
    """One of them would be ignored."""
    with pytest.raises(ConfigError, match=r"not both \(here also: max_size\)"):
        Pool(FakeDriver(), PoolConfig(), max_size=3)


def test_what_the_user_sets_goes_before_what_suits_the_driver():
    """In whatever name the user knows it by."""
    driver = FakeDriver()
    driver.defaults = {"max_size": 1, "check_after": None}
    assert Pool(driver).config.max_size == 1
    config = Pool(driver, pool_size=3, max_overflow=2, pre_ping=True).config
    assert (config.max_size, config.check_after) == (5, 0.0)


@pytest.mark.parametrize("timeout", [float("nan"), "5", b"5", True, [1], object()])
def test_a_timeout_that_is_no_time_is_refused(world, timeout):
    """By every call that takes one, in one sentence; nobody waits, and nothing is closed or lost."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    shown = "nan" if isinstance(timeout, float) else type(timeout).__name__
    for call in (lambda: world.acquire(pool, timeout), lambda: world.do(pool.close, timeout)):
        with pytest.raises(ConfigError, match=f"timeout must be a number of seconds or None, not {shown}"):
            call()
    world.release(lease)
    assert (pool.stats().waiting, pool.stats().idle, pool.closed) == (0, 1, False)


@pytest.mark.parametrize("timeout", [float("inf"), 10**400, 1e300])
def test_a_timeout_for_ever_is_one(world, timeout):
    """What no timer could take is as long as anybody waits."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    waiting = world.borrow(pool, timeout)
    world.release(lease)
    world.settle(waiting)
    world.release(waiting.lease)


def test_no_event_loop_of_asyncio():
    """Under trio, or in no loop at all, an AsyncPool says what it needs, before it opens anything."""
    pool = AsyncPool(FakeAsyncDriver())
    for coroutine in (pool.acquire().__aenter__(), pool.acquire()._lease()):
        with pytest.raises(PoolError, match=r"a running event loop of asyncio, and there is none here \(trio's"):
            coroutine.send(None)
    with pytest.raises(PoolError, match="a running event loop of asyncio"):
        Registry({"default": {"url": "postgresql://h/db"}}).async_pool()


def test_no_limit_is_no_setting():
    """SQLAlchemy's way to say that there is no limit gets an answer that names the way out."""
    with pytest.raises(ConfigError, match="There is no pool without a limit: set max_size"):
        Pool(FakeDriver(), pool_size=5, max_overflow=-1)


def test_a_pool_that_was_closed_at_the_end_of_the_process_says_so():
    """An atexit handler that comes too late is told why, and what to do."""
    pool = Pool(FakeDriver())
    pool.at_exit()
    with pytest.raises(
        PoolClosed, match="because the process ends: an atexit handler that needs it must be registered"
    ):
        pool.acquire()
