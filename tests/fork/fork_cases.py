"""What happens to pools at a fork. Each case runs in a fresh interpreter: `python fork_cases.py NAME [DSN]`.

A fork in the test process itself would copy the test runner's threads and files. `in_child` forks, runs some work in
the child and brings its result, or its traceback, back to the parent.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import select
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from typing import Any

import poolkit
from poolkit import AcquireTimeout, AsyncPool, Pool, Registry, WrongProcess, fork, housekeeper
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer

PATIENCE = 20.0


def in_child(work: Callable[[], Any], *, leave: Callable[[int], Any] = os._exit) -> Any:
    """Fork; return what `work` returns in the child. `leave` is how the child ends."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = (True, work())
        except BaseException:  # noqa: BLE001  it is the parent's to raise
            result = (False, traceback.format_exc())
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(result, pipe)
        leave(0)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        if not select.select([pipe], [], [], PATIENCE)[0]:
            os.kill(pid, 9)
            raise AssertionError("the child hangs")
        good, result = pickle.load(pipe)
    status = os.waitpid(pid, 0)[1]
    assert good, result
    assert status == 0, status
    return result


def number_of(pool: Pool[Any]) -> int:
    with pool.acquire() as conn:
        return conn.number


def refused(call: Callable[[], Any], error: type[Exception] = WrongProcess) -> bool:
    try:
        call()
    except error:
        return True
    return False


# -- with fakes -------------------------------------------------------------------------------------------------------


def the_child_starts_empty() -> None:
    """The child opens a connection of its own; the parent's are neither used nor closed there."""
    server = FakeServer()
    pool = Pool(FakeDriver(server))
    pool.acquire().release()

    def child() -> Any:
        assert pool.stats().size == 0
        with pool.acquire() as conn:
            inherited = server.connections[0]
            return conn.number, inherited.closed, inherited.abandoned

    assert in_child(child) == (2, False, True)
    with pool.acquire() as conn:
        assert conn.number == 1
        assert not conn.abandoned


def a_lease_held_over_a_fork() -> None:
    """In the child it is dead: an error on every use, silence on leaving its block. The parent's goes on."""
    pool = Pool(FakeDriver())
    lease = pool.acquire()
    with pool.acquire() as mine:

        def child() -> None:
            for use in (lambda: lease.resource, lease.release, lease.discard, lease.detach, lambda: lease.label("x")):
                assert refused(use)
            assert lease.inherited
            assert pool.holders() == []

        in_child(child)
        assert not mine.closed
    lease.release()
    assert pool.stats().idle == 2


def a_block_left_in_the_child() -> None:
    """Leaving `with pool.acquire()` and `with pool.transaction()` in the child says nothing to the server."""
    server = FakeServer()
    pool = Pool(FakeDriver(server))

    def fork_inside(manager: Any) -> int:
        pid = 0
        with manager as conn:
            conn.execute("work")
            pid = os.fork()
            if pid == 0:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return pid

    for manager in (pool.acquire(), pool.transaction()):
        before = list(server.log)
        pid = fork_inside(manager)
        if pid == 0:
            new = server.log[len(before) :]
            os._exit(0 if not any("commit" in line or "rollback" in line or "reset" in line for line in new) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert server.log == ["1:work", "1:begin", "1:work", "1:commit"]


def the_lock_is_held_by_another_thread() -> None:
    """A thread that does not exist in the child may have held the pool's lock: the child has a new one."""
    registry = Registry({"default": {"url": "sqlite:///:memory:"}})
    pool = registry.pool()
    held, go = threading.Event(), threading.Event()
    locks = [pool._lock, registry._lock, housekeeper.shared()._lock, sys.modules["poolkit.registry"]._making.lock]

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        held.set()
        go.wait(PATIENCE)
        for lock in reversed(locks):
            lock.release()

    threading.Thread(target=hold, daemon=True).start()
    held.wait(PATIENCE)

    def child() -> int:
        with pool.acquire() as conn:
            conn.execute("select 1")
        assert registry.pool() is pool
        fresh = Pool(FakeDriver())
        fresh.acquire().release()
        os.environ["DATABASE_URL"] = "sqlite:///:memory:"
        with poolkit.unit_of_work() as uow:
            return uow.get().execute("select 2").fetchone()[0]

    assert in_child(child) == 2
    go.set()


def others_wait_while_one_forks() -> None:
    """Those who wait in the parent are not in the child, and are served in the parent."""
    pool = Pool(FakeDriver(), max_size=1)
    lease = pool.acquire()
    got: list[int] = []

    def wait() -> None:
        with pool.acquire() as conn:
            got.append(conn.number)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    while pool.stats().waiting < 3:
        time.sleep(0.001)
    assert in_child(lambda: pool.stats().waiting) == 0
    lease.release()
    for thread in threads:
        thread.join(PATIENCE)
    assert got == [1, 1, 1]


def an_open_is_under_way() -> None:
    """A connect begun in the parent ends in the parent; the child makes its own."""
    gate, begun = threading.Event(), threading.Event()
    server = FakeServer()

    def on_open() -> None:
        begun.set()
        gate.wait(PATIENCE)

    driver = FakeDriver(server, on_open)
    pool = Pool(driver)
    thread = threading.Thread(target=lambda: pool.acquire().release())
    thread.start()
    begun.wait(PATIENCE)

    def child() -> int:
        driver.on_open = None
        assert pool.stats().opening == 0
        with pool.acquire() as conn:
            return conn.number

    assert in_child(child) == 1  # the child's first; the parent's copy of the server knows nothing of it
    gate.set()
    thread.join(PATIENCE)
    assert pool.stats().idle == 1


def the_housekeeper_restarts() -> None:
    """Its thread does not exist in the child: it is started there on first use, and keeps the pool warm."""
    pool = Pool(FakeDriver(), min_size=2)
    pool.acquire().release()
    keeper = housekeeper.shared()
    first = keeper._thread
    assert first is not None

    def child() -> bool:
        assert keeper._thread is None
        pool.acquire().release()
        second = keeper._thread
        end = time.monotonic() + PATIENCE
        while pool.stats().idle < 2 and time.monotonic() < end:
            time.sleep(0.01)
        return second is not first and second.is_alive() and pool.stats().idle == 2

    assert in_child(child)
    assert first.is_alive()


def an_outage_heals_in_the_child() -> None:
    """A retry ordered in the parent is no excuse: the child orders its own."""
    server = FakeServer()
    pool = Pool(FakeDriver(server), timeout=PATIENCE)
    server.down = True
    threading.Thread(target=lambda: refused(lambda: pool.acquire(0.1), AcquireTimeout)).start()
    while not pool.stats().open_failures:
        time.sleep(0.001)

    def child() -> int:
        threading.Timer(0.1, lambda: setattr(server, "down", False)).start()
        with pool.acquire() as conn:
            return conn.number

    assert in_child(child) == 1


def closed_stays_closed() -> None:
    """A pool that was closed in the parent is closed in the child."""
    pool = Pool(FakeDriver())
    pool.close()
    apool = AsyncPool(FakeAsyncDriver())
    asyncio.run(apool.close())

    def child() -> bool:
        return pool.closed and apool.closed

    assert in_child(child)


def a_driver_that_can_not_let_go() -> None:
    """An error in one resource's abandon leaves no other resource, and no other pool, with what is the parent's."""
    drivers = [FakeDriver() for _ in range(5)]
    pools = [Pool(driver) for driver in drivers]
    for pool in pools:
        for lease in [pool.acquire(), pool.acquire()]:
            lease.release()

    def broken(_conn: object) -> None:
        raise ValueError("can't")

    for driver in drivers[::2]:
        driver.abandon = broken  # type: ignore[method-assign]

    def child() -> list[int]:
        return [pool.acquire().resource.number for pool in pools]

    assert in_child(child) == [3] * 5


def a_unit_left_in_the_child() -> None:
    """A unit forked in its middle ends in the parent: in the child nothing is committed, and no hook runs."""
    registry = _registry_of_fakes()
    server = registry.pool()._driver.server
    ran: list[str] = []
    uow = poolkit.UnitOfWork(registry)
    uow.get()
    uow.on_commit(lambda: ran.append("commit"))
    uow.on_rollback(lambda: ran.append("rollback"))

    def child() -> Any:
        assert refused(lambda: uow.get().execute("x"))
        uow.finish()
        uow.close()
        return ran, server.log

    assert in_child(child) == ([], ["1:begin"])
    uow.finish()
    assert server.log == ["1:begin", "1:commit"]
    assert ran == ["commit"]


def _registry_of_fakes() -> Registry:
    registry = Registry({"default": {"url": "sqlite:///:memory:"}})
    registry._pools["default"] = Pool(FakeDriver())
    return registry


def the_child_ends_by_itself() -> None:
    """A child that ends normally, finalizers and all, closes what it opened and nothing of its parent's."""
    server = FakeServer()
    pool = Pool(FakeDriver(server))
    kept = pool.acquire()
    pool.acquire().release()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        own = pool.acquire()
        mine = own.resource
        own.release()
        gc.collect()
        fork._at_exit()
        closed = [conn.number for conn in server.connections if conn.closed]
        os.write(write, repr((mine.number, closed)).encode())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(read, 100) == b"(3, [3])"
    kept.release()


def a_grandchild() -> None:
    """A fork of a fork starts empty as well."""
    pool = Pool(FakeDriver())
    pool.acquire().release()

    def child() -> int:
        pool.acquire().release()
        return in_child(lambda: number_of(pool))

    assert in_child(child) == 3


def a_multiprocessing_child() -> None:
    """The fork of multiprocessing is a fork."""
    pool = Pool(FakeDriver())
    pool.acquire().release()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work() -> None:
        with pool.acquire() as conn:
            queue.put(conn.number)

    process = context.Process(target=work)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert queue.get() == 2


def an_async_pool() -> None:
    """The child has no loop and no connection; its own loop gets new ones, and the parent's loop goes on."""
    server = FakeServer()
    pool = AsyncPool(FakeAsyncDriver(server))

    async def use() -> int:
        async with pool.acquire() as conn:
            return conn.number

    async def main() -> None:
        lease = await pool.acquire()
        await (await pool.acquire()).release()

        def child() -> Any:
            asyncio.events._set_running_loop(None)  # as the interpreter itself does, sooner or later
            assert refused(lambda: lease.resource)
            number = asyncio.run(use())
            return number, [conn.closed for conn in server.connections[:2]]

        assert in_child(child) == (3, [False, False])
        await lease.release()
        assert await use() in {1, 2}
        assert await pool.close()

    asyncio.run(main())
    assert server.open_now == 0


def an_async_pool_at_work() -> None:
    """A connect under way, one who waits and a transaction: each goes on in the parent, and none in the child."""
    server = FakeServer()
    gate: list[Any] = []

    async def on_open() -> None:
        if gate:
            await gate[0].wait()

    pool = AsyncPool(FakeAsyncDriver(server, on_open), max_size=2)

    async def borrow() -> Any:
        return await pool.acquire()

    async def main() -> None:
        async with pool.transaction() as conn:
            conn.execute("work")
            gate.append(asyncio.Event())
            opening, waiting = (asyncio.ensure_future(borrow()) for _ in range(2))
            await asyncio.sleep(0.01)
            assert (pool.stats().opening, pool.stats().waiting) == (1, 2)

            def child() -> Any:
                asyncio.events._set_running_loop(None)
                gate.clear()
                stats = pool.stats()

                async def use() -> int:
                    async with pool.transaction() as own:
                        return own.number

                number = asyncio.run(use())
                return stats.size, stats.waiting, number > 1, [line for line in server.log if line.startswith("1:")]

            assert in_child(child) == (0, 0, True, ["1:begin", "1:work"])
            gate[0].set()
            first = await opening
        second = await waiting
        assert {first.resource.number, second.resource.number} == {1, 2}
        await first.release()
        await second.release()
        assert await pool.close()
        assert server.log[:3] == ["1:begin", "1:work", "1:commit"]

    asyncio.run(main())


def a_registry() -> None:
    """Its thread pools start empty, its clients afresh, and its loops' pools are gone."""
    registry = Registry({"default": {"url": "sqlite:///:memory:"}})
    fake = AsyncPool(FakeAsyncDriver())

    async def main() -> None:
        registry._async_pools[asyncio.get_running_loop()] = {"default": fake}
        await (await fake.acquire()).release()

        def child() -> int:
            return len(list(registry.live_pools()))

        registry.pool()
        assert in_child(child) == 1
        assert len(list(registry.live_pools())) == 2
        await fake.close()

    asyncio.run(main())


def uwsgi_forks_without_telling() -> None:
    """Under uWSGI: it runs no register_at_fork hook; its own is chained, also when somebody else sets it after us."""
    calls: list[str] = []
    uwsgi = types.ModuleType("uwsgi")
    uwsgi.post_fork_hook = lambda: calls.append("theirs")  # type: ignore[attr-defined]
    sys.modules["uwsgi"] = uwsgi
    pool = Pool(FakeDriver())
    pool.acquire().release()
    Pool(FakeDriver())
    uwsgi.post_fork_hook()
    assert calls == ["theirs"]
    assert pool.stats().size == 0
    assert pool.acquire().resource.number == 2
    uwsgi.post_fork_hook = lambda: calls.append("decorators")  # type: ignore[attr-defined]
    Pool(FakeDriver())
    uwsgi.post_fork_hook()
    assert calls == ["theirs", "decorators"]
    assert pool.stats().size == 0


CASES = [
    the_child_starts_empty,
    a_lease_held_over_a_fork,
    a_block_left_in_the_child,
    the_lock_is_held_by_another_thread,
    others_wait_while_one_forks,
    an_open_is_under_way,
    the_housekeeper_restarts,
    an_outage_heals_in_the_child,
    closed_stays_closed,
    a_driver_that_can_not_let_go,
    a_unit_left_in_the_child,
    the_child_ends_by_itself,
    a_grandchild,
    a_multiprocessing_child,
    an_async_pool,
    an_async_pool_at_work,
    a_registry,
    uwsgi_forks_without_telling,
]

if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
