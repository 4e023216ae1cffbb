"""What is compared: a pool or a floor, opened with the same settings, and what is done with it.

A `Peer` for threads and an `AsyncPeer` for asyncio open something that lends, and give a `Bench`: a loop that borrows
and returns without doing anything, one operation with the statement, and the same telling how long it waited.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, NamedTuple

__all__ = [
    "AsyncBench",
    "AsyncPeer",
    "Bench",
    "Peer",
    "Settings",
    "getting",
    "holding",
    "holding_async",
    "installed",
    "lending",
    "lending_async",
    "with_scheme",
]


class Settings(NamedTuple):
    """What each is given: where to, how many connections, and what an operation does while it has one.

    `hold`: seconds for which the client itself keeps the connection, after the statement.
    """

    url: str
    size: int = 1
    timeout: float = 60.0
    transaction: bool = False
    statement: str = "SELECT 1"
    hold: float = 0.0


class Bench(NamedTuple):
    """Something open: `loop(n)` borrows n times, `work()` uses it once, `timed()` too and tells the seconds waited."""

    loop: Callable[[int], object]
    work: Callable[[], object]
    timed: Callable[[], float]


class AsyncBench(NamedTuple):
    """The same, awaited."""

    loop: Callable[[int], Coroutine[Any, Any, object]]
    work: Callable[[], Coroutine[Any, Any, object]]
    timed: Callable[[], Coroutine[Any, Any, float]]


class Peer(NamedTuple):
    """One row, for threads.

    `driver` is the library the connections are of, `needs` the packages to import. `checks`: a connection that died
    while idle is noticed before it is handed out. `blocks`: who finds all in use waits, so it can be contended for.
    `name` holds the word poolkit where it is, and begins with "floor" or "bare" where it is no pool.
    """

    name: str
    driver: str
    opened: Callable[[Settings], AbstractContextManager[Bench]]
    needs: tuple[str, ...] = ()
    checks: bool = False
    blocks: bool = True


class AsyncPeer(NamedTuple):
    """One row, for asyncio; see `Peer`."""

    name: str
    driver: str
    opened: Callable[[Settings], AbstractAsyncContextManager[AsyncBench]]
    needs: tuple[str, ...] = ()
    checks: bool = False
    blocks: bool = True


def installed(peer: Peer | AsyncPeer) -> bool:
    """Whether all that a peer needs can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in peer.needs)


def with_scheme(url: str, scheme: str) -> str:
    """The same URL for another library."""
    return f"{scheme}:{url.partition(':')[2]}"


def lending(borrow: Callable[[], AbstractContextManager[Any]], run: Callable[[Any], object]) -> Bench:
    """Make a bench of something that lends by context managers."""

    def loop(times: int) -> None:
        for _ in range(times):
            with borrow():
                pass

    def work() -> None:
        with borrow() as connection:
            run(connection)

    def timed() -> float:
        began = time.perf_counter()
        with borrow() as connection:
            waited = time.perf_counter() - began
            run(connection)
        return waited

    return Bench(loop, work, timed)


def getting(get: Callable[[], Any], put: Callable[[Any], object], run: Callable[[Any], object]) -> Bench:
    """Make a bench of something with one call to take and one to give back."""

    def loop(times: int) -> None:
        for _ in range(times):
            put(get())

    def work() -> None:
        connection = get()
        try:
            run(connection)
        finally:
            put(connection)

    def timed() -> float:
        began = time.perf_counter()
        connection = get()
        try:
            waited = time.perf_counter() - began
            run(connection)
        finally:
            put(connection)
        return waited

    return Bench(loop, work, timed)


def lending_async(
    borrow: Callable[[], AbstractAsyncContextManager[Any]], run: Callable[[Any], Coroutine[Any, Any, object]]
) -> AsyncBench:
    """Make a bench of something that lends by asynchronous context managers."""

    async def loop(times: int) -> None:
        for _ in range(times):
            async with borrow():
                pass

    async def work() -> None:
        async with borrow() as connection:
            await run(connection)

    async def timed() -> float:
        began = time.perf_counter()
        async with borrow() as connection:
            waited = time.perf_counter() - began
            await run(connection)
        return waited

    return AsyncBench(loop, work, timed)


def holding(run: Callable[[Any], object], seconds: float) -> Callable[[Any], object]:
    """Use a connection, and keep it for so long."""
    if not seconds:
        return run

    def run_and_hold(connection: Any) -> None:
        run(connection)
        time.sleep(seconds)

    return run_and_hold


def holding_async(
    run: Callable[[Any], Coroutine[Any, Any, object]], seconds: float
) -> Callable[[Any], Coroutine[Any, Any, object]]:
    """The same for a coroutine."""
    if not seconds:
        return run

    async def run_and_hold(connection: Any) -> None:
        await run(connection)
        await asyncio.sleep(seconds)

    return run_and_hold
