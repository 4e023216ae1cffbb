"""One face for the pools and drivers that are put through real faults: threads with psycopg, asyncio with both."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import asyncpg
import psycopg

from poolkit import AsyncPool, Pool, PoolError
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver

PATIENCE = 12.0  # reached only by a fault


class Attempt(NamedTuple):
    """One operation: when it was begun and ended, when it had its connection, and what came of it."""

    began: float
    got: float | None
    ended: float
    value: Any
    error: Exception | None

    @property
    def waited(self) -> float:
        """How long it took to have a connection, or to be refused one."""
        return (self.ended if self.got is None else self.got) - self.began


class Rig:
    """Threads and psycopg. Everything is called synchronously, from as many threads as the test likes."""

    name = "threads"
    errors: tuple[type[Exception], ...] = (psycopg.Error, PoolError)
    read_only: type[Exception] = psycopg.errors.ReadOnlySqlTransaction
    driver: Any = PsycopgDriver
    pool_type: Any = Pool

    def __init__(self) -> None:
        self._pools: list[Any] = []

    def make(self, source, **settings):
        """Make a pool over a URL, or over a callable that returns one."""
        pool = self.do(self._pool, source, settings)
        self._pools.append(pool)
        return pool

    def _pool(self, source, settings):
        config = settings.pop("config", None)
        return self.pool_type(self.driver(source, config=config), config, **settings)

    def do(self, call, *arguments, **named):
        return call(*arguments, **named)

    def attempt(self, pool, query="SELECT 1", *, timeout=None, in_transaction=False):
        """Borrow, run a query, give back; a failure is an answer as well."""
        began, got, value, error = time.monotonic(), [], None, None
        try:
            value = self._use(pool, query, timeout, in_transaction, got)
        except self.errors as caught:
            error = caught
        return Attempt(began, got[0] if got else None, time.monotonic(), value, error)

    def _use(self, pool, query, timeout, in_transaction, got):
        with (pool.transaction if in_transaction else pool.acquire)(timeout) as conn:
            got.append(time.monotonic())
            cursor = conn.execute(query)
            return cursor.fetchone()[0] if cursor.description else None

    def value(self, pool, query="SELECT 1", **settings):
        """The answer to a query; raises where that fails."""
        attempt = self.attempt(pool, query, **settings)
        if attempt.error is not None:
            raise attempt.error
        return attempt.value

    def fill(self, pool, count):
        """Leave so many connections idle."""
        leases = [self.do(pool.acquire, PATIENCE) for _ in range(count)]
        for lease in leases:
            self.do(lease.release)
        assert self.do(pool.stats).idle == count

    def stats(self, pool):
        return self.do(pool.stats)

    def drain(self, pool):
        self.do(pool.drain)

    def close(self):
        for pool in self._pools:
            self.do(pool.close, 1)


class _AsyncRig(Rig):
    """The same for asyncio: a loop in a thread of its own, in which all is done."""

    pool_type = AsyncPool

    def __init__(self):
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rig")
        self._thread.start()

    def do(self, call, *arguments, **named):
        async def work():
            result = call(*arguments, **named)
            return await result if hasattr(result, "__await__") else result

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(PATIENCE)

    def _use(self, pool, query, timeout, in_transaction, got):
        async def work():
            async with (pool.transaction if in_transaction else pool.acquire)(timeout) as conn:
                got.append(time.monotonic())
                return await self._ask(conn, query)

        return self.do(work)

    async def _ask(self, conn, query):
        cursor = await conn.execute(query)
        return (await cursor.fetchone())[0] if cursor.description else None

    def close(self):
        super().close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


class AsyncPsycopgRig(_AsyncRig):
    name = "asyncio"
    driver = AsyncPsycopgDriver


class AsyncpgRig(_AsyncRig):
    name = "asyncpg"
    errors = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, PoolError)
    read_only = asyncpg.ReadOnlySQLTransactionError
    driver = AsyncpgDriver

    async def _ask(self, conn, query):
        returns = "RETURNING" in query or query.startswith(("SELECT", "SHOW"))
        return await (conn.fetchval(query) if returns else conn.execute(query))


RIGS = {rig.name: rig for rig in (Rig, AsyncPsycopgRig, AsyncpgRig)}


class Crowd:
    """Workers that do the same thing again and again, and keep a log of all of it."""

    def __init__(self, work, count=8, pause=0.04):
        self.log: list[Attempt] = []
        self._work, self._pause = work, pause
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._live) for _ in range(count)]

    def _live(self):
        while not self._over.is_set():
            self.log.append(self._work())
            self._over.wait(self._pause)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def wait_for(self, happened, patience=PATIENCE):
        """Wait until something can be said of the log; returns whether it came to that."""
        return until(lambda: happened(self.log), patience)

    def first_success(self, since):
        """When the first operation begun after `since` succeeded; waits for it."""
        found: list[float] = []

        def look(log):
            found[:] = [one.ended for one in log[:] if one.error is None and one.began >= since]
            return found

        assert self.wait_for(look), "nobody got on"
        return min(found)

    @property
    def failed(self):
        return [one for one in self.log if one.error is not None]


def until(happened, patience=PATIENCE):
    end = time.monotonic() + patience
    while not (there := happened()) and time.monotonic() < end:
        time.sleep(0.002)
    return there


@contextlib.contextmanager
def aside(work, *arguments):
    """Something that is done beside, whose result is asked for within the block."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(work, *arguments)
