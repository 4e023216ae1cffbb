"""Closing an async pool while the end of a transaction is under way: it waits for that, and for nothing more."""

from __future__ import annotations

import asyncio

from poolkit import AsyncPool
from poolkit.testing import FakeAsyncDriver


async def test_close_sees_the_end_of_the_last_task():
    """Whichever of the pool's tasks ends last, be it a transaction's end, `close` comes back with it."""
    pool = AsyncPool(FakeAsyncDriver(), max_size=1)
    closing = []
    async with pool.transaction() as conn:
        conn.dirty = True  # a reset inside the end: the connection is closed before the end is over
        closing.append(asyncio.ensure_future(pool.close(timeout=5)))
        await asyncio.sleep(0)
    async with asyncio.timeout(1):
        assert await closing[0]
