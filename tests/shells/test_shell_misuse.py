"""What can't work is refused when the pool is made, in one sentence that says what to do."""

from __future__ import annotations

import pytest

from poolkit import AsyncPool, ConfigError, Pool, PoolConfig
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
