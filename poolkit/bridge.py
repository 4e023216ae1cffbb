"""From asyncio into a thread pool: wait for a connection of a `Pool` without blocking a thread.

Sync endpoints of an async framework run in a limited number of threads. If each of them waited for a connection in its
thread, the threads would all be taken by those who wait, and those who hold a connection could not finish. So the
wait is done in the loop, and a thread is taken only by who has its connection already.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from poolkit.state import Slot, Waiter
from poolkit.threads import Lease, Pool

__all__ = ["acquire_from_loop"]

R = TypeVar("R")


class _LoopWaiter(Waiter[R]):
    """A waiter in a loop, woken from whatever thread gave the connection back."""

    __slots__ = ("_loop", "_pool", "future")

    def __init__(self, pool: Pool[R]) -> None:
        super().__init__()
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # the loop was closed under its waiter: nobody is there to take it
            self._pool.withdraw(self)

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


async def acquire_from_loop(pool: Pool[R], timeout: float | None = None) -> Lease[R]:
    """Borrow from a thread pool while a loop runs. Raises what `Pool.acquire` raises; safe to cancel."""
    slot = pool.take_live()
    if slot is not None:
        return await _checked(pool, slot, timeout)
    waiter: _LoopWaiter[R] = _LoopWaiter(pool)
    pool.enqueue(waiter)
    if not waiter.done:
        timer = waiter._loop.call_later(pool.config.timeout if timeout is None else timeout, pool.time_out, waiter)
        try:
            await waiter.future
        except BaseException:
            pool.withdraw(waiter)
            raise
        finally:
            timer.cancel()
    return Lease(pool, pool.claim(waiter))


async def _checked(pool: Pool[R], slot: Slot[R], timeout: float | None) -> Lease[R]:
    """Ask a connection that lay idle for long, in a thread: that is a round trip."""
    lease = Lease(pool, slot)
    if not pool.needs_ping(slot):
        return lease
    try:
        fit = await asyncio.to_thread(pool.ping, slot)
    except BaseException:
        lease.discard("dead")
        raise
    if fit:
        return lease
    lease.discard("dead")
    return await acquire_from_loop(pool, timeout)
