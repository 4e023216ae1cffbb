"""Hooks of a pool's settings run, or are refused: none is skipped, and an error of one says which it was."""

from __future__ import annotations

import functools

import pytest

from poolkit import ConfigError, ConnectRejected, PoolError
from poolkit.testing.fakes import FakeError

HOOKS = ("configure", "setup", "ping", "on_close")


async def awaited(_connection):
    """Would have to be awaited."""


class Awaited:
    async def __call__(self, connection):
        """Likewise."""


def wrapped(connection):
    return awaited(connection)


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("function", [awaited, functools.partial(awaited), Awaited(), f"{__name__}.awaited"])
def test_threads_refuse_a_coroutine_function(threads, name, function):
    """Nothing would await it: each connection would be lent without what it was to do. Said when the pool is made."""
    with pytest.raises(ConfigError, match=rf"^pool '\w+': {name}: .* is a coroutine function.*plain function"):
        threads.pool(**{name: function})


@pytest.mark.filterwarnings("error")
def test_threads_refuse_a_coroutine_that_a_function_returns(threads, caplog):
    """It shows only when it is called: the connect fails, or the borrowing, and such a connection is not lent."""
    pool = threads.pool(configure=wrapped)
    with pytest.raises(ConnectRejected, match="configure returned a coroutine"):
        threads.acquire(pool)
    assert threads.server.open_now == 0
    pool = threads.pool(setup=wrapped)
    with pytest.raises(ConfigError, match="setup returned a coroutine"):
        threads.acquire(pool)
    assert pool.stats().out == 0
    pool = threads.pool(on_close=wrapped, ping=wrapped, check_after=1.0)
    threads.use_once(pool)
    threads.clock.advance(2.0)
    assert threads.use_once(pool).number > 1, "what was not asked counts as dead"
    threads.do(pool.close)
    assert "on_close returned a coroutine" in caplog.text


def both(connection):
    """Return what the connection's own method returns: in asyncio that is awaited."""
    return connection.execute("both")


def test_one_plain_function_serves_both_kinds_of_pool(world):
    """What an app with `def` and `async def` endpoints writes."""
    pool = world.pool(configure=both)
    world.use_once(pool)
    assert world.server.log == ["1:both"]


def failing(_connection):
    raise FakeError("no such extension")


def test_an_error_of_configure_says_where_it_comes_from(world):
    """Else it reads as if the server had refused the connection."""
    pool = world.pool(configure=failing)
    for _ in range(2):
        with pytest.raises(PoolError) as caught:
            world.acquire(pool, 0.01)
        assert str(caught.value).count(f"FakeError: no such extension (raised in configure: {__name__}.failing)") == 1


def test_an_error_that_is_raised_again_and_again_does_not_grow(world):
    """One object, raised for each connect, gets its note once."""
    error = FakeError("always the same")

    def again(_connection):
        raise error

    with pytest.raises(PoolError):
        world.acquire(world.pool(configure=again), 0.01)
    assert len(error.__notes__) == 1
