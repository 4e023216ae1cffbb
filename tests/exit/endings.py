"""Programs that end in the middle of something. Each is a function; `python endings.py NAME [URL]` runs one.

What a program leaves behind is kept in `left`, as a module of a real program would keep it. A program writes the time
at which it had nothing more to do ("done"), and one that forked also the time at which its child was gone ("gone").
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from poolkit import AcquireTimeout, AsyncPool, AsyncUnitOfWork, Pool, PoolClosed, Registry, UnitOfWork
from poolkit.testing import FakeAsyncDriver, FakeConnection, FakeDriver

left: list[Any] = []


def say(what: str) -> None:
    os.write(1, f"{what} {time.monotonic()}\n".encode())  # in one piece, past every buffer: a child has this pipe too


def never() -> None:
    threading.Event().wait()


async def never_async() -> None:
    await asyncio.get_running_loop().create_future()


def make(source: Any, **settings: Any) -> Pool[Any]:
    left.append(pool := Pool(source, **settings))
    return pool


def make_async(source: Any, **settings: Any) -> AsyncPool[Any]:
    left.append(pool := AsyncPool(source, **settings))
    return pool


def in_daemon(work: Callable[[], object]) -> None:
    """Run in a thread that is no reason to stay, and wait until it got to where it stays.

    Who waits for a connection is told at the end that the pool is closed, if there is time for that.
    """

    def told() -> None:
        with contextlib.suppress(PoolClosed):
            work()

    threading.Thread(target=told, daemon=True).start()
    time.sleep(0.05)


# -- threads, fakes ------------------------------------------------------------------------------------------------


def nothing() -> None:
    """What any program takes."""


def idle() -> None:
    """Connections are idle, and a housekeeper keeps three of them."""
    make(FakeDriver(), min_size=3).warm()


def leased() -> None:
    """The main thread and another hold connections; one is held by a generator that never went on."""
    pool = make(FakeDriver())

    def hold() -> Iterator[None]:
        with pool.acquire():
            yield

    left.append(pool.acquire())
    left.append(generator := hold())
    next(generator)
    in_daemon(lambda: (left.append(pool.acquire()), never()))


def waiting() -> None:
    """The pool is at its limit, and others wait in line for minutes."""
    pool = make(FakeDriver(), max_size=1, timeout=600)
    left.append(pool.acquire())
    for _ in range(3):
        in_daemon(pool.acquire)


def opening() -> None:
    """The server doesn't answer, and one who asked waits for it."""
    in_daemon(make(FakeDriver(on_open=never)).acquire)


def outage() -> None:
    """The server is away, and the next attempt is due later."""
    driver = FakeDriver()
    driver.server.down = True
    with contextlib.suppress(AcquireTimeout):
        make(driver, min_size=2).acquire(0.05)


def leaves_inside() -> None:
    """The program is left by `sys.exit` inside two blocks."""
    with make(FakeDriver()).acquire(), make(FakeDriver()).transaction() as connection:
        connection.execute("statement")
        say("done")
        sys.exit(3)


def late_user() -> None:
    """The program's own farewell still takes a connection, where no thread can be started any more."""
    pool = make(FakeDriver())

    def farewell() -> None:
        with pool.transaction() as connection:
            connection.execute("farewell")
        assert connection.server.log[-1].endswith("commit")
        say("done")

    atexit.register(farewell)


def closing() -> None:
    """A thread waits in `close` for a lease that never comes back."""
    pool = make(FakeDriver())
    lease = pool.acquire()
    left.append(lease)
    in_daemon(lambda: pool.close(600))


def dropped() -> None:
    """Nobody has the pool any more, only the housekeeper's thread, which was about to visit it."""
    Pool(FakeDriver(), min_size=1).warm()


def forked() -> None:
    """A child that inherited all of it ends as any program does, and so does its parent."""
    pool = make(FakeDriver(), min_size=2)
    pool.warm()
    left.append(pool.acquire())
    left.append(unit := UnitOfWork(fake_registry(pool)))
    unit.get().execute("statement")
    in_daemon(lambda: (left.append(pool.acquire()), never()))
    fork(lambda: left.append(pool.acquire()))


def fork(in_child: Callable[[], object]) -> None:
    """Fork; the child goes on to the end of the program and the parent sees that it ended well."""
    child = os.fork()
    if child == 0:
        in_child()
        return
    _, status = os.waitpid(child, 0)
    say("gone")
    assert os.waitstatus_to_exitcode(status) == 0, status


def fake_registry(pool: Any) -> Registry:
    """Make a registry whose pool is a fake's."""
    registry = Registry({"default": {"url": "sqlite:///never"}})
    left.append(registry)
    if isinstance(pool, Pool):
        registry._pools["default"] = pool
    else:
        registry._async_pools[asyncio.get_running_loop()] = {"default": pool}
    return registry


def unit() -> None:
    """A unit of work was begun and never ended."""
    left.append(unit := UnitOfWork(fake_registry(make(FakeDriver()))))
    unit.get().execute("statement")


# -- asyncio, fakes ------------------------------------------------------------------------------------------------


def run(main: Callable[[], Any]) -> None:
    asyncio.run(main(), debug=False)  # in debug mode asyncio would complain of a slow machine


def async_idle() -> None:
    """Connections are idle and timers are set when the loop ends."""

    async def main() -> None:
        await make_async(FakeAsyncDriver(), min_size=3).warm()

    run(main)


def async_leased() -> None:
    """The main task and another hold connections; a third waits in line."""

    async def main() -> None:
        pool = make_async(FakeAsyncDriver(), max_size=2)
        left.append(await pool.acquire())

        async def hold() -> None:
            async with pool.acquire():
                await never_async()

        left.extend([asyncio.create_task(hold()), asyncio.create_task(hold())])
        await asyncio.sleep(0.01)

    run(main)


def async_opening() -> None:
    """The server doesn't answer, and one who asked waits for it."""

    async def main() -> None:
        pool = make_async(FakeAsyncDriver(on_open=never_async))
        left.append(asyncio.ensure_future(pool.acquire()))
        await asyncio.sleep(0.01)

    run(main)


def async_outage() -> None:
    """The server is away, and the next attempt is due later."""

    async def main() -> None:
        driver = FakeAsyncDriver()
        driver.server.down = True
        with contextlib.suppress(AcquireTimeout):
            await make_async(driver, min_size=2).acquire(0.05)

    run(main)


def async_unit() -> None:
    """Units were begun and never ended: one of the loop's connections, one of a thread's."""

    async def main() -> None:
        left.append(unit := AsyncUnitOfWork(fake_registry(make_async(FakeAsyncDriver()))))
        (await unit.get()).execute("statement")
        left.append(unit := AsyncUnitOfWork(fake_registry(make(FakeDriver()))))
        (await unit.get_sync()).execute("statement")

    run(main)


def async_thread() -> None:
    """A loop's unit begins a transaction of a sync connection in a thread, and the server does not answer."""
    driver = FakeDriver()
    driver.begin = lambda _conn: never()  # type: ignore[method-assign]

    async def main() -> None:
        unit = AsyncUnitOfWork(fake_registry(make(driver)))
        left.append(asyncio.ensure_future(unit.get_sync()))
        await asyncio.sleep(0.05)

    run(main)


def async_two_loops() -> None:
    """A second loop went on with the pool of the first."""
    pool = make_async(FakeAsyncDriver())

    async def main() -> None:
        left.append(await pool.acquire())

    run(main)
    run(main)


def async_closing() -> None:
    """The loop ends while connections are closing, and a server says nothing to that."""

    class Silent(FakeAsyncDriver):
        async def close(self, connection: FakeConnection) -> None:
            await never_async()

    async def main() -> None:
        pool = make_async(Silent())
        async with pool.acquire(), pool.acquire():
            pass
        pool.drain()
        await asyncio.sleep(0.01)

    run(main)


def async_cancelled() -> None:
    """What the end of the loop cancels breaks a connection, and its goodbye is not through when the loop is closed."""

    class Fragile(FakeAsyncDriver):
        def is_broken(self, connection: FakeConnection, error: BaseException | None) -> bool:
            return error is not None

        async def open(self, timeout: float) -> FakeConnection:
            return Complaining(self.server, 1)

        async def close(self, connection: FakeConnection) -> None:
            await asyncio.sleep(0.1)
            connection.close()

    async def main() -> None:
        pool = make_async(Fragile())

        async def hold() -> None:
            async with pool.acquire():
                await never_async()

        left.append(asyncio.create_task(hold()))
        await asyncio.sleep(0.01)

    run(main)


class Complaining(FakeConnection):
    """Complains, as those of real drivers do, where nobody closed it."""

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)


def async_forked() -> None:
    """A child is forked while a loop runs, and ends without going back to it."""

    async def main() -> None:
        pool = make_async(FakeAsyncDriver(), min_size=1)
        left.append(await pool.acquire())
        fork(lambda: (say("done"), sys.exit()))

    with contextlib.suppress(SystemExit):
        run(main)


# -- real servers --------------------------------------------------------------------------------------------------


def postgres(url: str) -> None:
    """Connections idle and leased, one in a transaction, one of a unit, one in a thread that runs a statement."""
    pool = make(url, min_size=2)
    pool.warm()
    left.append(pool.acquire())
    left.append(block := pool.transaction())
    block.__enter__().execute("SELECT 1")
    left.append(registry := Registry({"default": {"url": url}}))
    left.append(unit := UnitOfWork(registry))
    unit.get().execute("SELECT 1")
    in_daemon(lambda: (left.append(lease := pool.acquire()), lease.resource.execute("SELECT pg_sleep(60)")))


def postgres_forked(url: str) -> None:
    """A child uses a pool of its own and leaves its parent's connections alone; both just end."""
    pool = make(url, min_size=1)
    lease = pool.acquire()
    left.append(lease)
    left.append(unit := UnitOfWork(Registry({"default": {"url": url}})))
    unit.get().execute("SELECT 1")

    def child() -> None:
        with pool.acquire() as connection:
            connection.execute("SELECT 1")
        left.append(pool.acquire())

    fork(child)
    if not lease.inherited:
        lease.resource.execute("SELECT 1")


def postgres_async(url: str) -> None:
    """The same in a loop: idle, leased, a transaction, a unit of each kind, a task that runs a statement."""

    async def main() -> None:
        pool = make_async(url, min_size=2)
        await pool.warm()
        left.append(await pool.acquire())
        left.append(block := pool.transaction())
        await (await block.__aenter__()).execute("SELECT 1")
        left.append(registry := Registry({"default": {"url": url}}))
        left.append(unit := AsyncUnitOfWork(registry))
        await (await unit.get()).execute("SELECT 1")
        if "asyncpg" not in url:
            left.append(unit := AsyncUnitOfWork(registry))
            (await unit.get_sync()).execute("SELECT 1")

        async def query() -> None:
            async with pool.acquire() as connection:
                await connection.execute("SELECT pg_sleep(60)")

        left.append(asyncio.create_task(query()))
        await asyncio.sleep(0.1)

    run(main)


def silent(url: str) -> None:
    """The server takes the connection and says nothing."""
    in_daemon(make(url, open_timeout=60).acquire)


def silent_async(url: str) -> None:
    """The server takes the connection and says nothing."""

    async def main() -> None:
        pool = make_async(url, open_timeout=60)
        left.append(asyncio.ensure_future(pool.acquire()))
        await asyncio.sleep(0.1)

    run(main)


def sqlite(url: str) -> None:
    """A transaction that has written is open, and its thread has ended."""
    pool = make(url)
    left.append(unit := UnitOfWork(Registry({"default": {"url": url}})))
    unit.get().execute("CREATE TABLE IF NOT EXISTS fruit (name TEXT)")
    thread = threading.Thread(target=lambda: left.append(pool.acquire()))
    thread.start()
    thread.join()


def http(url: str) -> None:
    """Sessions of several threads are open, and one of them waits for an answer that doesn't come."""
    left.append(registry := Registry({"default": {"url": url}}))
    assert registry.client("default").get().get("/").ok
    in_daemon(lambda: registry.client("default").get().get("/silent"))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    say("done")
