"""What must not get slower unnoticed: only what no noise can reach fails here.

Round trips are counted, so they are exact. Times are never judged, only ratios of the least times, taken by turns in
one process on one CPU: they stay within a tenth on a machine with twice the work it can do, where medians double.
Their limits are twice what was measured, and a ratio has to be beyond in three attempts.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from time import perf_counter
from typing import Any

import pytest

from benchmarks.stand_ins import ASYNC, SYNC, Borrow, Line
from poolkit import AsyncPool, Pool
from poolkit.bench.measuring import pinned, quiet
from poolkit.testing import FaultProxy

pytestmark = pytest.mark.slow

ATTEMPTS = 3
ROUNDS = 60
LOOPS = 500
# Measured: 2.7 times the floor on Python 3.12, 3.7 on 3.11. The floor is a lock and a deque in place, without a call:
# one more look-up or object of ours moves the ratio by a tenth of its room, a lock or a clock too many by a fourth.
MOST_FLOORS = 8.0
# The same for asyncio, where the floor is a deque behind an `async with`: measured 4.1 on 3.12, 6.0 on 3.11.
MOST_ASYNC_FLOORS = 12.0
# Measured: 0.26 on 3.12. At twice that the project's own target (a quarter) is missed by far, on any machine: both
# sides are Python code and change together.
MOST_OF_PSYCOPG_POOL = 0.6
# psycopg's BEGIN rides with the first statement.
TRIPS = {"borrow": 0, "autocommit": 1, "transaction": 2}

Timed = Callable[[], float]


def _ratio(own: Timed, other: Timed) -> float:
    """The least of one by the least of the other, taken by turns: what disturbs only ever makes longer."""
    samples: tuple[list[float], list[float]] = ([], [])
    with pinned(), quiet():
        for number in range(ROUNDS):
            for which in (0, 1) if number % 2 else (1, 0):
                samples[which].append((own, other)[which]())
    return min(samples[0]) / min(samples[1])


def _at_most(limit: float, measure: Callable[[], float]) -> None:
    """Hold a ratio under a limit: in one attempt of three, for what disturbs all three is not noise."""
    found = []
    for _ in range(ATTEMPTS):
        found.append(measure())
        if found[-1] <= limit:
            return
    pytest.fail(f"{ATTEMPTS} times in a row above {limit}: {', '.join(f'{ratio:.2f}' for ratio in found)}")


def _borrowing(borrow: Borrow) -> Timed:
    def timed() -> float:
        began = perf_counter()
        for _ in range(LOOPS):
            with borrow():
                pass
        return perf_counter() - began

    timed()  # its connection is open after that
    return timed


def _lock_and_deque() -> float:
    lock, things = threading.Lock(), deque([object()])
    began = perf_counter()
    for _ in range(LOOPS):
        with lock:
            thing = things.pop()
        with lock:
            things.append(thing)
    return perf_counter() - began


class _AsyncFloor:
    def __init__(self) -> None:
        self._things = deque([object()])

    async def __aenter__(self) -> object:
        self._thing = self._things.pop()
        return self._thing

    async def __aexit__(self, *_: object) -> None:
        self._things.append(self._thing)


async def _borrowing_async(borrow: Callable[[], Any]) -> float:
    began = perf_counter()
    for _ in range(LOOPS):
        async with borrow():
            pass
    return perf_counter() - began


@contextmanager
def _opened(name: str) -> Iterator[Timed]:
    """A pool for threads over a connection that costs nothing."""
    stand_in = next(stand_in for stand_in in SYNC if stand_in.name == name)
    with stand_in.opened(Line(), 1) as borrow:
        yield _borrowing(borrow)


def _ratio_to_the_async_floor() -> float:
    """The same for asyncio: both sides in one loop, each turn one run of it."""
    stand_in = next(stand_in for stand_in in ASYNC if stand_in.name == "poolkit")
    floor = _AsyncFloor()
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        borrow = runner.run(stack.enter_async_context(stand_in.opened(Line(), 1)))
        try:
            runner.run(_borrowing_async(borrow))  # its connection is open after that
            return _ratio(
                lambda: runner.run(_borrowing_async(borrow)), lambda: runner.run(_borrowing_async(lambda: floor))
            )
        finally:
            runner.run(stack.aclose())


def test_a_borrowing_costs_little_more_than_a_lock_and_a_deque() -> None:
    """Whatever a pool cares for, taking and returning an idle connection stays near the floor of Python itself."""
    with _opened("poolkit") as own:
        _at_most(MOST_FLOORS, lambda: _ratio(own, _lock_and_deque))


def test_an_async_borrowing_costs_little_more_than_a_deque() -> None:
    """The same for asyncio."""
    _at_most(MOST_ASYNC_FLOORS, _ratio_to_the_async_floor)


def test_a_borrowing_costs_far_less_than_psycopg_pools() -> None:
    """Against the pool that most would use instead, where it is installed."""
    pytest.importorskip("psycopg_pool", reason="psycopg_pool is not installed")
    with _opened("poolkit") as own, _opened("psycopg_pool") as other:
        _at_most(MOST_OF_PSYCOPG_POOL, lambda: _ratio(own, other))


def test_the_guard_sees_what_is_too_slow() -> None:
    """A ratio above its limit fails, three times over: the guard itself is no test that can't fail."""
    slow, quick = iter([3.0] * ROUNDS * ATTEMPTS), iter([1.0] * ROUNDS * ATTEMPTS)
    with pytest.raises(pytest.fail.Exception, match=r"3 times in a row above 2\.9: 3\.00, 3\.00, 3\.00"):
        _at_most(2.9, lambda: _ratio(lambda: next(slow), lambda: next(quick)))


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "trips"), TRIPS.items())
def test_round_trips_of_threads(pg_dsn: str, what: str, trips: int) -> None:
    """With everything on, liveness and reset, a statement costs the round trips that it must, and not one more."""
    with FaultProxy(pg_dsn) as proxy, Pool(proxy.url(pg_dsn), max_size=1) as pool:

        def turn() -> None:
            with pool.transaction() if what == "transaction" else pool.acquire() as connection:
                if what != "borrow":
                    connection.execute("SELECT 1")

        turn()
        before = proxy.round_trips
        turn()
        assert proxy.round_trips - before == trips


ASYNC_CASES = [
    (scheme, what, trips) for scheme in ("postgresql", "postgresql+asyncpg") for what, trips in TRIPS.items()
]


@pytest.mark.parametrize(("scheme", "what", "trips"), ASYNC_CASES)
async def test_round_trips_of_tasks(pg_dsn: str, scheme: str, what: str, trips: int) -> None:
    """The same for asyncio, with either driver."""
    with FaultProxy(pg_dsn) as proxy:
        url = proxy.url(pg_dsn).replace("postgresql", scheme, 1)
        async with AsyncPool(url, max_size=1) as pool:

            async def turn() -> None:
                async with pool.transaction() if what == "transaction" else pool.acquire() as connection:
                    if what != "borrow":
                        await connection.execute("SELECT 1")

            turns: list[Coroutine[Any, Any, None]] = [turn() for _ in range(3)]
            for warming in turns[:2]:
                await warming
            before = proxy.round_trips
            await turns[2]
            assert proxy.round_trips - before == trips
