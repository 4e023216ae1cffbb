"""Drivers whose every operation takes time and remembers being cut short, and what has to hold when all is over."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import Future

import pytest

from poolkit import AsyncPool, AsyncUnitOfWork, Pool, Registry, registry
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer
from poolkit.testing.schedules import await_points

NEVER_CUT = {"commit", "rollback", "reset", "close", "used after it was cut off"}


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


class SlowDriver(FakeAsyncDriver):
    """Every operation comes to an await before and after the server has done it.

    One that is cut off in between leaves its connection `half`: nobody may use that again. `cut` lists what was.
    """

    def __init__(self, server=None, on_open=None):
        super().__init__(server, on_open)
        self.cut = []

    async def _through(self, name, work, connection=None):
        try:
            await turns(1)
            result = await work
            await turns(1)
        except BaseException as error:
            work.close()
            if not isinstance(error, Exception):
                self.cut.append(name)
                if connection is not None:
                    connection.half = True
            raise
        return result

    async def open(self, *timeout):
        return await self._through("open", super().open(*timeout))

    async def close(self, connection):
        await self._through("close", super().close(connection), connection)

    async def ping(self, connection, *timeout):
        return await self._through("ping", super().ping(connection, *timeout), connection)

    async def reset(self, connection, *, full):
        if hasattr(connection, "half"):
            self.cut.append("used after it was cut off")
        await self._through("reset", super().reset(connection, full=full), connection)

    async def begin(self, connection):
        await self._through("begin", super().begin(connection), connection)

    async def commit(self, connection):
        await self._through("commit", super().commit(connection), connection)

    async def rollback(self, connection):
        await self._through("rollback", super().rollback(connection), connection)


class LoopDriver(FakeDriver):
    """A driver for threads that begins and ends from a loop as well, in a few turns of it."""

    async def from_loop(self, op, connection):
        await turns(1)
        getattr(self, op)(connection)
        await turns(1)
        return True


class LoopRuntime:
    """Surroundings for a thread pool in a scheduled loop: its threads are turns of the loop."""

    def __init__(self, cut):
        self.clock = cut.clock
        self.random = cut.random

    def spawn(self, work):
        asyncio.get_running_loop().call_soon(work)

    def call_later(self, delay, work):
        asyncio.get_running_loop().call_later(delay, work)

    def watch(self, pool):
        pass

    def unwatch(self, pool):
        pass


class InLoop(Registry):
    """A registry without threads: what it would do in one is done in the scheduled loop, a turn later."""

    async def in_thread(self, work, *arguments):
        return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)


class AtOnce:
    """Stands for the workers that close a registry: they run what they are given."""

    def __init__(self, limit, name):
        pass

    def submit(self, work, *arguments):
        future = Future()
        future.set_result(work(*arguments))
        return future

    def stop(self):
        pass


class Rig:
    """An async pool and a thread pool over a server each, in a registry, for one run of a scenario."""

    def __init__(self, cut, *, sync_driver=FakeDriver, **settings):
        settings = {"max_size": 1, "check_after": 50, **settings}
        self.cut = cut
        self.server, self.sync_server = FakeServer(), FakeServer()
        self.driver = SlowDriver(self.server)
        self.pool = AsyncPool(self.driver, runtime=cut, **settings)
        self._sync_driver, self._settings = sync_driver, settings

    @functools.cached_property
    def sync_pool(self):
        return Pool(self._sync_driver(self.sync_server), runtime=LoopRuntime(self.cut), **self._settings)

    @functools.cached_property
    def registry(self):
        registry = InLoop({"default": {"url": "postgresql://nowhere/never"}})
        registry._pools["default"] = self.sync_pool
        registry._async_pools[asyncio.get_running_loop()] = {"default": self.pool}
        return registry

    def unit(self):
        return AsyncUnitOfWork(self.registry, "GET /")

    async def use(self, count=1):
        """Borrow so many at once, and give them back: they lie idle then."""
        leases = [await self.pool.acquire() for _ in range(count)]
        for lease in leases:
            await lease.release()

    async def settled(self):
        """Let what goes on without its caller come to its end."""
        async with asyncio.timeout(100):
            while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110  nothing tells when the last one has ended
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)

    async def check(self):
        """What holds when all is over, wherever somebody was cancelled."""
        await self.settled()
        for pool, server in self._used():
            check_books(pool)
            assert server.open_now == pool.stats().size, "a connection was forgotten open"
            for connection in server.connections:
                if not connection.closed:
                    assert not connection.in_transaction, "a transaction was left open"
                    assert not connection.dirty, "a connection lies idle as its borrower left it"
                    assert not hasattr(connection, "half"), "a connection lies idle that was cut off in mid operation"
        assert not NEVER_CUT & set(self.driver.cut), f"cut short: {self.driver.cut}"
        await self._usable()
        await self.close()

    def _used(self):
        yield self.pool, self.server
        if "sync_pool" in self.__dict__:
            yield self.sync_pool, self.sync_server

    async def _usable(self):
        if self.pool.closed:
            return
        leases = [await self.pool.acquire(5) for _ in range(self.pool.config.max_size)]
        for lease in leases:
            lease.resource.execute("select")
            await lease.release()

    async def close(self):
        assert await self.pool.close(5)
        if "sync_pool" in self.__dict__:
            assert self.sync_pool.close(0)
        await self.settled()
        assert self.server.open_now == self.sync_server.open_now == 0


def check_books(pool):
    """Check that nobody has or waits for anything, and that the numbers agree."""
    stats, state = pool.stats(), pool._state
    assert (stats.out, stats.opening, stats.waiting) == (0, 0, 0)
    assert stats.size == stats.idle == len(state.slots) <= stats.max_size
    assert set(state.idle) == state.slots
    assert all(slot.status == "idle" for slot in state.slots)
    assert stats.opened - sum(stats.closed_by_reason.values()) == stats.size
    assert state.orders() is None, "something was decided and not carried out"
    assert not state.urgent
    assert not getattr(pool, "_tasks", None), "a task of the pool is left"


@contextlib.contextmanager
def closing_at_once():
    """Let registries close their thread pools in the loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "Workers", AtOnce)
        yield


def every_point(scenarios):
    """One case for each point of each scenario; a scenario that fails by itself is one case, which says why."""
    cases = []
    for name, scenario in scenarios.items():
        try:
            points = await_points(scenario)
        except Exception:  # noqa: BLE001
            points = [-1]  # never reached: it runs through, and fails as it did
        cases += [pytest.param(scenario, point, id=f"{name}: {point}") for point in points]
    return cases
