"""Sync connections from a loop: the wait never takes a thread, and no connection is closed under a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from poolkit import AcquireTimeout, AsyncUnitOfWork, Pool, Registry
from poolkit.bridge import acquire_from_loop, use_in_thread
from poolkit.testing.fakes import FakeConnection, FakeDriver, FakeServer


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest_asyncio.fixture
async def registry() -> AsyncIterator[Registry]:
    """Threads to do I/O in."""
    registry = Registry({})
    yield registry
    await registry.aclose()


def make_pool(server: FakeServer, **settings: Any) -> Pool[FakeConnection]:
    return Pool(FakeDriver(server), **{"max_size": 1, "timeout": 5, **settings})


@pytest.mark.asyncio
async def test_a_waiter_is_served_by_whoever_gives_back(server: FakeServer, registry: Registry) -> None:
    """First come, first served, and the one who gives back may be in any thread."""
    pool = make_pool(server)
    first = await acquire_from_loop(pool, registry.in_thread)
    order: list[int] = []

    async def wait(number: int) -> None:
        lease = await acquire_from_loop(pool, registry.in_thread)
        order.append(number)
        threading.Thread(target=lease.release).start()

    waiting = [asyncio.create_task(wait(number)) for number in range(5)]
    await asyncio.sleep(0)
    threading.Thread(target=first.release).start()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]
    assert server.opened == 1
    pool.close()


@pytest.mark.asyncio
async def test_the_wait_is_bounded(server: FakeServer, registry: Registry) -> None:
    """Nobody waits for longer than `timeout`, and the line is empty afterwards."""
    pool = make_pool(server, timeout=0.05)
    lease = await acquire_from_loop(pool, registry.in_thread)
    with pytest.raises(AcquireTimeout):
        await acquire_from_loop(pool, registry.in_thread)
    assert pool.stats().waiting == 0
    lease.release()
    pool.close()


@pytest.mark.parametrize("given_back", [False, True])
@pytest.mark.asyncio
async def test_a_cancelled_waiter_loses_nothing(given_back: bool, server: FakeServer, registry: Registry) -> None:  # noqa: FBT001
    """Cancelled in line, or in the moment it was served: the connection goes to the next."""
    pool = make_pool(server)
    lease = await acquire_from_loop(pool, registry.in_thread)
    waiting = asyncio.create_task(acquire_from_loop(pool, registry.in_thread))
    await asyncio.sleep(0)
    if given_back:
        lease.release()  # it is served now, and will know in the loop's next turn
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not given_back:
        lease.release()
    assert (pool.stats().out, pool.stats().waiting) == (0, 0)
    pool.close()


@pytest.mark.asyncio
async def test_no_thread_waits(server: FakeServer, registry: Registry) -> None:
    """A hundred in line take no thread: whoever has the connection can always go on."""
    pool = make_pool(server)
    lease = await acquire_from_loop(pool, registry.in_thread)
    threads = threading.active_count()
    waiting = [asyncio.create_task(acquire_from_loop(pool, registry.in_thread)) for _ in range(100)]
    await asyncio.sleep(0)
    assert pool.stats().waiting == 100
    assert threading.active_count() <= threads
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    lease.release()
    pool.close()


class SlowDriver(FakeDriver):
    """Begins and pings when told to, and notices a close in the middle of that."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.entered = threading.Event()
        self.go = threading.Event()
        self.closed_in_use = False

    def _hang(self, resource: FakeConnection) -> None:
        self.entered.set()
        assert self.go.wait(5)
        self.closed_in_use |= resource.closed

    def begin(self, resource: FakeConnection) -> None:
        self._hang(resource)
        super().begin(resource)

    def ping(self, resource: FakeConnection, timeout: float) -> bool:
        self._hang(resource)
        return super().ping(resource, timeout)


async def cancelled_in_thread(work: asyncio.Task[Any], driver: SlowDriver) -> None:
    while not driver.entered.is_set():  # noqa: ASYNC110  a thread sets it
        await asyncio.sleep(0.001)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    driver.go.set()


async def comes_back(pool: Pool[Any]) -> bool:
    deadline = time.monotonic() + 5
    while pool.stats().out and time.monotonic() < deadline:  # noqa: ASYNC110  a thread gives it back
        await asyncio.sleep(0.001)
    return pool.stats().out == 0


@pytest.mark.asyncio
async def test_cancelled_while_a_thread_pings(server: FakeServer, registry: Registry) -> None:
    """The ping is finished, then the connection is given back: closing it under the thread could crash it."""
    driver = SlowDriver(server)
    pool = Pool(driver, max_size=1, check_after=0)
    pool.acquire().release()
    work = asyncio.create_task(acquire_from_loop(pool, registry.in_thread))
    await cancelled_in_thread(work, driver)
    assert await comes_back(pool)
    assert not driver.closed_in_use
    assert (pool.stats().idle, server.opened) == (1, 1)
    pool.close()


@pytest.mark.asyncio
async def test_cancelled_while_a_thread_begins(
    server: FakeServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for BEGIN: the transaction it made is undone, and the unit holds nothing."""
    driver = SlowDriver(server)
    pool = Pool(driver, max_size=1)
    monkeypatch.setattr(registry, "pool", lambda _name: pool)
    monkeypatch.setattr(registry, "shares", lambda _name: False)
    unit = AsyncUnitOfWork(registry)
    await cancelled_in_thread(asyncio.create_task(unit.get_sync()), driver)
    assert await comes_back(pool)
    assert not driver.closed_in_use
    assert not unit.used
    assert not any(connection.in_transaction for connection in server.connections)
    await unit.close()
    pool.close()


@pytest.mark.asyncio
async def test_a_unit_that_ends_while_a_task_waits_leaks_nothing(
    server: FakeServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrives after the end has no transaction, and is given back by `close`."""
    pool = make_pool(server)
    monkeypatch.setattr(registry, "pool", lambda _name: pool)
    monkeypatch.setattr(registry, "shares", lambda _name: False)
    lease = pool.acquire()
    unit = AsyncUnitOfWork(registry)
    waiting = asyncio.create_task(unit.get_sync())
    await asyncio.sleep(0.01)
    await unit.finish()
    lease.release()
    connection = await waiting
    assert not connection.in_transaction
    assert pool.stats().out == 1
    await unit.close()
    assert pool.stats().out == 0
    pool.close()


@pytest.mark.asyncio
async def test_an_error_in_the_thread_discards(server: FakeServer, registry: Registry) -> None:
    """A BEGIN that fails leaves a connection nobody should get."""
    pool = make_pool(server)
    lease = await acquire_from_loop(pool, registry.in_thread)

    def fail(_connection: object) -> None:
        raise OSError

    with pytest.raises(OSError):
        await use_in_thread(registry.in_thread, lease, fail)
    assert pool.stats().size == 0
    pool.close()


@pytest.mark.asyncio
async def test_a_loop_that_is_closed_under_a_waiter(server: FakeServer) -> None:
    """A waiter whose loop is gone can't be woken: its connection goes on to the next."""
    pool = make_pool(server)
    lease = pool.acquire()
    registry = Registry({})

    def run() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(acquire_from_loop(pool, registry.in_thread))
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False  # type: ignore[attr-defined]  it is what this test is about
        kept.append(task)
        loop.close()

    kept: list[Any] = []
    await asyncio.to_thread(run)
    assert pool.stats().waiting == 1
    lease.release()
    with pool.acquire(timeout=1):
        pass
    assert pool.stats().out == 0
    pool.close()


def test_pools_of_closed_loops_are_let_go(pg_dsn: str, recwarn: pytest.WarningsRecorder) -> None:
    """A loop per call, as tests make them, must not leave a connection behind for each."""
    registry = Registry({"default": {"url": pg_dsn, "options": {"application_name": "closed loops"}}})

    async def use() -> None:
        pool = registry.async_pool()
        await (await pool.acquire()).release()

    for _ in range(3):
        asyncio.run(use())
    assert len(list(registry.live_pools())) == 1
    assert _sessions(registry, use) == 1
    assert not recwarn.list


def _sessions(registry: Registry, use: Callable[[], Any]) -> int:
    async def count() -> int:
        await use()
        async with registry.async_pool().acquire() as conn:
            cursor = await conn.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'closed loops'")
            (number,) = await cursor.fetchone()
        await registry.aclose()
        return int(number)

    return asyncio.run(count())
