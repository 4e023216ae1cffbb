"""For the tests of what only asyncio can do: a loop whose time jumps, a driver that takes many turns, and borrowers."""

from __future__ import annotations

import asyncio

from poolkit.testing import FakeAsyncDriver, ManualClock, ManualLoop


class Slow(FakeAsyncDriver):
    """Every operation that may do I/O goes round the loop a few times: so many moments to be cancelled in."""

    async def open(self, timeout):
        await turns(2)
        return await super().open(timeout)

    async def close(self, connection):
        await turns(2)
        await super().close(connection)

    async def ping(self, connection, timeout):
        await turns(2)
        return await super().ping(connection, timeout)

    async def reset(self, connection, *, full):
        await turns(2)
        await super().reset(connection, full=full)

    async def begin(self, connection):
        await turns(2)
        await super().begin(connection)

    async def commit(self, connection):
        await turns(2)
        await super().commit(connection)

    async def rollback(self, connection):
        await turns(2)
        await super().rollback(connection)


class Runtime:
    """Surroundings on the loop's own clock."""

    def __init__(self, clock):
        self.clock = clock

    def random(self):
        return 0.5


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def run(work):
    """Run on a manual loop, so that timeouts cost nothing."""
    loop = ManualLoop(ManualClock())
    try:
        return loop.run(work)
    finally:
        loop.close()


async def settled(pool):
    """Let the pool's own tasks end."""
    while pool._tasks:  # noqa: ASYNC110  nothing tells when the last one has ended
        await asyncio.sleep(0)


async def fully_usable(pool):
    leases = [await pool.acquire(1) for _ in range(pool.config.max_size)]
    for lease in leases:
        await lease.release()


async def dirty_block(pool):
    async with pool.acquire() as conn:
        await turns(1)
        conn.execute("dirty")


async def transaction(pool):
    async with pool.transaction() as conn:
        await turns(1)
        conn.execute("insert")
