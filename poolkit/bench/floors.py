"""What no pool in Python goes below: the standard library's own ways to keep things and hand them out, without care."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from poolkit.bench.peers import AsyncBench, AsyncPeer, Bench, Peer, Settings, getting, lending, lending_async

__all__ = ["ASYNC", "LOCK_AND_DEQUE", "SYNC"]

LOCK_AND_DEQUE = "floor: Lock and deque"


class _Thing:
    """What is kept."""


def _nothing(_: object) -> None:
    """Use it."""


def _peer(name: str, make: Callable[[int], Bench]) -> Peer:
    @contextmanager
    def opened(settings: Settings) -> Iterator[Bench]:
        yield make(settings.size)

    return Peer(f"floor: {name}", "", opened, blocks=False)


def _locked(make_lock: Callable[[], Any]) -> Callable[[int], Bench]:
    def make(size: int) -> Bench:
        lock, things = make_lock(), deque(_Thing() for _ in range(size))

        class Borrowing:
            __slots__ = ("thing",)

            def __enter__(self) -> _Thing:
                with lock:
                    self.thing = things.pop()
                return self.thing

            def __exit__(self, *_: object) -> None:
                with lock:
                    things.append(self.thing)

        bench = lending(Borrowing, _nothing)

        def loop(times: int) -> None:  # the lock and the deque alone, without an object for each borrowing
            for _ in range(times):
                with lock:
                    thing = things.pop()
                with lock:
                    things.append(thing)

        return bench._replace(loop=loop)

    return make


def _borrowings(size: int) -> Bench:
    things = deque(_Thing() for _ in range(size))

    class Borrowing:
        __slots__ = ("thing",)

        def __enter__(self) -> _Thing:
            self.thing = things.pop()
            return self.thing

        def __exit__(self, *_: object) -> None:
            things.append(self.thing)

    return lending(Borrowing, _nothing)


def _simple_queue(size: int) -> Bench:
    things: queue.SimpleQueue[_Thing] = queue.SimpleQueue()
    for _ in range(size):
        things.put(_Thing())
    return getting(things.get, things.put, _nothing)


def _lifo_queue(size: int) -> Bench:
    things: queue.LifoQueue[_Thing] = queue.LifoQueue()
    for _ in range(size):
        things.put(_Thing())
    return getting(things.get, things.put, _nothing)


def _thread_local(_: int) -> Bench:
    here = threading.local()

    def get() -> _Thing:
        try:
            thing: _Thing = here.thing
        except AttributeError:
            thing = here.thing = _Thing()
        return thing

    return getting(get, _nothing, _nothing)


SYNC = (
    _peer("SimpleQueue", _simple_queue),
    _peer("thread-local", _thread_local),
    _peer("deque behind a class with __enter__", _borrowings),
    _peer("Lock and deque", _locked(threading.Lock)),
    _peer("RLock and deque", _locked(threading.RLock)),
    _peer("LifoQueue", _lifo_queue),
)


# asyncio


async def _nothing_async(_: object) -> None:
    """Use it."""


def _async_peer(name: str, make: Callable[[int], AsyncBench]) -> AsyncPeer:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[AsyncBench]:
        yield make(settings.size)

    return AsyncPeer(f"floor: {name}", "", opened, blocks=False)


def _async_borrowings(size: int) -> AsyncBench:
    things = deque(_Thing() for _ in range(size))

    class Borrowing(AbstractAsyncContextManager[_Thing]):
        __slots__ = ("thing",)

        async def __aenter__(self) -> _Thing:
            self.thing = things.pop()
            return self.thing

        async def __aexit__(self, *_: object) -> None:
            things.append(self.thing)

    return lending_async(Borrowing, _nothing_async)


def _async_lifo_queue(size: int) -> AsyncBench:
    things: asyncio.LifoQueue[_Thing] = asyncio.LifoQueue()
    for _ in range(size):
        things.put_nowait(_Thing())

    @asynccontextmanager
    async def borrow() -> AsyncIterator[_Thing]:
        thing = await things.get()
        try:
            yield thing
        finally:
            things.put_nowait(thing)

    async def loop(times: int) -> None:
        for _ in range(times):
            things.put_nowait(await things.get())

    return lending_async(borrow, _nothing_async)._replace(loop=loop)


ASYNC = (
    _async_peer("LifoQueue", _async_lifo_queue),
    _async_peer("deque behind a class with __aenter__", _async_borrowings),
)
