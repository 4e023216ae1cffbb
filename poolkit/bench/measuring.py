"""How samples are taken: pinned to one CPU, by turns, without the garbage collector, with loops long enough to time."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar

__all__ = ["calibrated", "calibrated_async", "interleaved", "per_call", "per_call_async", "pinned", "quiet"]

T = TypeVar("T")
Clock = Callable[[], float]
LONG_ENOUGH = 0.01  # seconds for one sample: ten thousand times what the clock can tell apart, ten times a time slice
MOST = 1 << 20
WARM_UP = 8  # turns: who prepares statements has done so by then


def interleaved(items: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Go through all items in each round, there and back again, so that a drift of the machine hits all alike."""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            yield number, item


@contextlib.contextmanager
def pinned(others: Iterable[int] = ()) -> Iterator[bool]:
    """Keep this process, and others by their ids, on one CPU; say whether the system can.

    A round trip between two CPUs includes a wake-up that takes several times as long as everything else; which of the
    two a run gets is chance. What the others start later inherits it. One that has gone meanwhile is left out.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    before: dict[int, set[int]] = {}
    one = {max(os.sched_getaffinity(0))}
    for process in (0, *others):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            before[process] = os.sched_getaffinity(process)
            os.sched_setaffinity(process, one)
    try:
        yield True
    finally:
        for process, cpus in before.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process, cpus)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection in between: it would charge one for what another has left behind."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def per_call(loop: Callable[[int], object], times: int, clock: Clock = time.perf_counter) -> float:
    """Microseconds for one of so many turns of a loop. Call it within `quiet`."""
    began = clock()
    loop(times)
    return (clock() - began) / times * 1e6


async def per_call_async(
    loop: Callable[[int], Coroutine[Any, Any, object]], times: int, clock: Clock = time.perf_counter
) -> float:
    """The same for a loop that is awaited."""
    began = clock()
    await loop(times)
    return (clock() - began) / times * 1e6


def calibrated(loop: Callable[[int], object], seconds: float = LONG_ENOUGH, clock: Clock = time.perf_counter) -> int:
    """Find how many turns take so long, once what happens in the first ones only has happened: a connect, say."""
    loop(WARM_UP)
    times = 1
    while True:
        took = per_call(loop, times, clock) * times / 1e6
        if took >= seconds or times >= MOST:
            return times
        times = enough(times, took, seconds)


async def calibrated_async(
    loop: Callable[[int], Coroutine[Any, Any, object]], seconds: float = LONG_ENOUGH, clock: Clock = time.perf_counter
) -> int:
    """The same for a loop that is awaited."""
    await loop(WARM_UP)
    times = 1
    while True:
        took = await per_call_async(loop, times, clock) * times / 1e6
        if took >= seconds or times >= MOST:
            return times
        times = enough(times, took, seconds)


def enough(times: int, took: float, wanted: float) -> int:
    """How many turns to try next: what the last try promises and a tenth, at most ten times as many."""
    promised = int(times * wanted / took * 1.1) + 1 if took > 0 else MOST
    return min(MOST, max(times + 1, min(promised, times * 10)))
