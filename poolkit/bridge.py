"""From asyncio into a thread pool: wait for a connection of a `Pool` without blocking a thread.

Sync endpoints of an async framework run in a limited number of threads. If each of them waited for a connection in its
thread, the threads would all be taken by those who wait, and those who hold a connection could not finish. So the
wait is done in the loop, and a thread is taken only by who has its connection already.

What the others wait for is the time between two holders: COMMIT, the way to the next one, and its BEGIN. Where the
driver can (`FromLoop`), all of that is done in the loop: a thread is asleep when it is needed, and wakes only after
whoever has the interpreter lets go of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast

from poolkit.aio import this_task
from poolkit.driver import FromLoop, Transactional, TransactionOp, TransactionOptions
from poolkit.state import Slot, Waiter
from poolkit.threads import Lease, Pool

__all__ = [
    "InThread",
    "acquire_from_loop",
    "begin_from_loop",
    "returns_at_once",
    "transact",
    "use_in_thread",
    "works_in_loop",
]

R = TypeVar("R")
T = TypeVar("T")


class InThread(Protocol):
    """Runs a call in a thread; `Registry.in_thread` is one."""

    def __call__(self, work: Callable[..., T], /, *arguments: Any) -> Coroutine[Any, Any, T]:
        """Call `work` with the arguments, in a thread."""


class _LoopWaiter(Waiter[R]):
    """A waiter in a loop, woken from whatever thread gave the connection back."""

    __slots__ = ("_loop", "_pool", "future")

    def __init__(self, pool: Pool[R]) -> None:
        super().__init__(this_task())
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._set()
            return
        try:
            self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # the loop was closed under its waiter: nobody is there to take it
            self._pool.withdraw(self)

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


async def acquire_from_loop(pool: Pool[R], in_thread: InThread, timeout: float | None = None) -> Lease[R]:
    """Borrow from a thread pool while a loop runs. Raises what `Pool.acquire` raises; safe to cancel."""
    asked = pool._clock()
    deadline = asked + pool._seconds(timeout, pool.config.timeout)
    lease: Lease[R] | None = None
    task = this_task()
    while lease is None:
        slot = pool.take_live()
        if slot is None:
            slot = pool.claim(await _wait(pool, deadline - pool._clock()))
        slot.holder = task
        lease = await _prepared(pool, slot, in_thread, deadline)
    slot = lease._live()
    slot.holder = task  # a `ping` in a thread had another
    if pool._traced:
        pool._trace(slot, asked, depth=1)
    return lease


async def _prepared(pool: Pool[R], slot: Slot[R], in_thread: InThread, deadline: float) -> Lease[R] | None:
    """Lease a slot once it is fit for its borrower; None where it turned out not to be."""
    lease: Lease[R] = Lease()
    lease._pool = pool
    lease._slot = slot
    if pool.is_prepared(slot):
        if pool._prepares:
            pool._prepare(slot)
        return lease

    def prepare(_resource: R) -> bool:
        fit = pool.prepare(slot, deadline)
        if not fit:
            lease._slot = None  # here, and not where the answer is awaited: that may be cancelled
        return fit

    return lease if await use_in_thread(in_thread, lease, prepare) else None


async def _wait(pool: Pool[R], timeout: float) -> Waiter[R]:
    waiter: _LoopWaiter[R] = _LoopWaiter(pool)
    pool.enqueue(waiter)
    if not waiter.done:
        timer = asyncio.get_running_loop().call_later(max(0.0, timeout), pool.time_out, waiter)
        try:
            await waiter.future
        except BaseException:
            pool.withdraw(waiter)
            raise
        finally:
            timer.cancel()
    return waiter


async def use_in_thread(in_thread: InThread, lease: Lease[R], work: Callable[[R], T]) -> T:
    """Run `work` on the leased resource in a thread.

    A cancelled caller leaves at once and has lost the lease: it is given back when the thread is through with it, since
    nobody may close a connection that another thread is using. Where `work` raises, the lease is discarded.
    """
    return await _see_through(in_thread, lease, in_thread(_use, lease, work))


def _use(lease: Lease[R], work: Callable[[R], T]) -> T:
    """Hold the lease as long as the thread works: the loop may end meanwhile, and forget everything."""
    return work(lease.resource)


async def begin_from_loop(
    in_thread: InThread, lease: Lease[R], driver: Transactional[R], options: TransactionOptions | None = None
) -> None:
    """Begin a transaction on the leased resource. Cancelled or failed, the lease is lost, as with `use_in_thread`."""
    await _see_through(in_thread, lease, transact(in_thread, driver, "begin", lease, options))


async def transact(
    in_thread: InThread,
    driver: Transactional[R],
    op: TransactionOp,
    lease: Lease[R],
    options: TransactionOptions | None = None,
) -> None:
    """Begin, commit or roll back: in this loop if the driver can, else in a thread. `options` are those of a BEGIN."""
    if options is not None:
        begin: Any = driver.begin
        await in_thread(_use, lease, lambda resource: begin(resource, options))
    elif not (works_in_loop(driver) and await cast("FromLoop[R]", driver).from_loop(op, lease.resource)):
        await in_thread(_use, lease, getattr(driver, op))


def works_in_loop(driver: object) -> bool:
    """Whether a driver is `FromLoop`. Remembered for its class: to ask takes 10 us."""
    kind = type(driver)
    if kind not in _known:
        _known[kind] = issubclass(kind, FromLoop)
    return _known[kind]


_known: dict[type, bool] = {}


def returns_at_once(lease: Lease[Any]) -> bool:
    """Whether giving the resource back waits for no I/O, so that it can be done in a loop."""
    pool = lease._pool
    return not pool._resets or pool.resets_without_wait or pool._clean(lease.resource)


async def _see_through(in_thread: InThread, lease: Lease[Any], work: Coroutine[Any, Any, T]) -> T:
    using = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(using)
    except asyncio.CancelledError:
        task = asyncio.ensure_future(_give_back_after(using, in_thread, lease))
        _kept.add(task)
        task.add_done_callback(_kept.discard)
        raise
    except BaseException:
        lease.discard("broken")
        raise


_kept: set[asyncio.Future[None]] = set()  # a loop holds its tasks weakly


async def _give_back_after(using: asyncio.Future[Any], in_thread: InThread, lease: Lease[Any]) -> None:
    await asyncio.wait([using])
    # cancelled: the loop is being torn down, and the thread may be using it still
    if not using.cancelled() and lease._slot is not None:
        await in_thread(lease.release, using.exception())
