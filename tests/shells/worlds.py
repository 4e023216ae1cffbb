"""Two worlds with one face: a case written once runs for `Pool` in threads and for `AsyncPool` in a loop.

`world.do(call, ...)` makes a call and awaits what it returns, if that has to be awaited; `world.inside(manager)` is
`with` or `async with`; `world.borrow(pool)` begins to acquire in a thread or task of its own and comes back once that
one has a lease or an error, or waits in line. Time is a clock turned by hand in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from poolkit import AsyncPool, Pool, PoolError
from poolkit.testing import FakeAsyncDriver, FakeConnection, FakeDriver, FakeServer, ManualLoop, ManualRuntime

PATIENCE = 10.0  # seconds of real time for a thread to get somewhere; reached only by a fault


class Borrower:
    """Somebody who asked for a lease."""

    lease: Any = None
    error: BaseException | None = None
    where: Any = None  # the thread or the task

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    @property
    def done(self) -> bool:
        return self.lease is not None or self.error is not None

    @property
    def number(self) -> int:
        """Which connection it has: the first one opened is 1."""
        return self.lease.resource.number


class World:
    """What both worlds share."""

    kind: str
    pool_type: type
    driver_type: type

    def __init__(self) -> None:
        self.runtime = ManualRuntime()
        self.clock = self.runtime.clock
        self.server = FakeServer()
        self.events: list[Any] = []

    def driver(self, server: FakeServer | None = None) -> Any:
        return self.driver_type(server or self.server)

    def pool(self, driver: Any = None, **settings: Any) -> Any:
        """Make a pool over a driver for this world's server."""
        return self.pool_type(driver or self.driver(), runtime=self.runtime, **settings)

    def acquire(self, pool: Any, timeout: float | None = None) -> Any:
        return self.do(pool.acquire, timeout)

    def release(self, *leases: Any) -> None:
        for lease in leases:
            self.do(lease.release)

    def use_once(self, pool: Any) -> FakeConnection:
        """Borrow and give back."""
        lease = self.acquire(pool)
        resource = lease.resource
        self.release(lease)
        return resource

    def crowd(self, pool: Any, count: int, timeout: float | None = None) -> list[Borrower]:
        return [self.borrow(pool, timeout) for _ in range(count)]


class ThreadWorld(World):
    """`Pool`, threads, and connects that run when told to."""

    kind = "threads"
    pool_type = Pool
    driver_type = FakeDriver

    def do(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    @contextlib.contextmanager
    def inside(self, manager: Any) -> Iterator[Any]:
        with manager as resource:
            yield resource

    def borrow(self, pool: Pool[Any], timeout: float | None = None) -> Borrower:
        borrower = Borrower(pool)

        def life() -> None:
            try:
                borrower.lease = pool.acquire(timeout)
            except BaseException as error:  # noqa: BLE001
                borrower.error = error

        borrower.where = threading.Thread(target=life, daemon=True)
        borrower.where.start()
        self._until(lambda: borrower.done or _in_line(pool, borrower.where.ident))
        return borrower

    def settle(self, *borrowers: Borrower) -> None:
        """Let those who were woken finish."""
        for borrower in borrowers:
            self._until(lambda borrower=borrower: borrower.done)

    def settle_if_woken(self, borrower: Borrower) -> None:
        """Let one finish that has its slot or its error; one still in line goes on waiting."""
        pool = borrower.pool
        self._until(lambda: borrower.done or _in_line(pool, borrower.where.ident))

    def nested(self, pool: Pool[Any], timeout: float = 5.0) -> BaseException | None:
        """Ask again inside a block, in the same thread; return the error."""
        with pool.acquire():
            try:
                pool.acquire(timeout)
            except PoolError as error:
                return error
        return None

    def advance(self, seconds: float) -> None:
        self.runtime.advance(seconds)

    def hold_opens(self) -> None:
        self.runtime.hold = True

    def let_open(self, *, all_from_now: bool = True) -> int:
        """Let the connects under way come to their end; returns how many there were."""
        self.runtime.hold = not all_from_now
        return self.runtime.run_pending()

    @property
    def under_way(self) -> int:
        return len(self.runtime.pending)

    def end(self) -> None:
        self.let_open()

    def _until(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > end:
                raise AssertionError("a thread got stuck")
            time.sleep(0.0005)


class LoopWorld(World):
    """`AsyncPool`, tasks, and a loop whose time jumps."""

    kind = "asyncio"
    pool_type = AsyncPool
    driver_type = FakeAsyncDriver

    def __init__(self) -> None:
        super().__init__()
        self.loop = ManualLoop(self.clock)
        self.gate: asyncio.Event | None = None
        self.under_way = 0

    def driver(self, server: FakeServer | None = None) -> FakeAsyncDriver:
        return FakeAsyncDriver(server or self.server, self._on_open)

    async def _on_open(self) -> None:
        gate = self.gate
        if gate is not None:
            self.under_way += 1
            await gate.wait()
            self.under_way -= 1

    def do(self, call: Callable[..., Any], *arguments: Any) -> Any:
        async def work() -> Any:
            result = call(*arguments)
            if inspect.isawaitable(result):
                result = await result
            await _turns()
            return result

        return self.loop.run(work())

    @contextlib.contextmanager
    def inside(self, manager: Any) -> Iterator[Any]:
        resource = self.do(manager.__aenter__)
        try:
            yield resource
        except BaseException as error:
            self.do(manager.__aexit__, type(error), error, error.__traceback__)
            raise
        self.do(manager.__aexit__, None, None, None)

    def borrow(self, pool: AsyncPool[Any], timeout: float | None = None) -> Borrower:
        borrower = Borrower(pool)

        async def life() -> None:
            try:
                borrower.lease = await pool.acquire(timeout)
            except BaseException as error:  # noqa: BLE001
                borrower.error = error

        borrower.where = self.loop.create_task(life())
        self.do(_turns)
        return borrower

    def settle(self, *borrowers: Borrower) -> None:
        for borrower in borrowers:
            self.loop.run(asyncio.wait([borrower.where], timeout=PATIENCE))
            assert borrower.where.done(), "a task got stuck"

    def settle_if_woken(self, borrower: Borrower) -> None:
        self.do(_turns)

    def nested(self, pool: AsyncPool[Any], timeout: float = 5.0) -> BaseException | None:
        async def work() -> BaseException | None:
            async with pool.acquire():
                try:
                    await pool.acquire(timeout)
                except PoolError as error:
                    return error
            return None

        return self.do(work)

    def advance(self, seconds: float) -> None:
        self.do(asyncio.sleep, seconds)

    def hold_opens(self) -> None:
        self.gate = asyncio.Event()

    def let_open(self, *, all_from_now: bool = True) -> int:
        if self.gate is None:
            return 0
        count = self.under_way
        gate, self.gate = self.gate, None if all_from_now else asyncio.Event()
        self.do(gate.set)
        return count

    def end(self) -> None:
        self.let_open()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run(asyncio.wait(tasks))
        self.loop.close()


def _in_line(pool: Pool[Any], ident: int | None) -> bool:
    return any(waiter.holder == ident for waiter in list(pool._state.waiters))


async def _turns() -> None:
    """Let the loop go round until what was set going has come to rest or to a wait."""
    for _ in range(12):
        await asyncio.sleep(0)
