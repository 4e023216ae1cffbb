"""Fairness under load: many borrowers on few connections are served alike, in threads and in tasks.

A queue.Queue design lets whoever returns a connection take it again at once, and most of the others get nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from poolkit import AsyncPool, Pool
from poolkit.testing import FakeAsyncDriver, FakeDriver

# (seconds, how much more the best served may get): the long run is the claim, the short one must hold on any machine
RUNS = [
    pytest.param(5.0, 1.2, id="5 s", marks=pytest.mark.slow),
    pytest.param(0.6, 2.0, id="0.6 s"),
]


@pytest.mark.parametrize(("seconds", "ratio"), RUNS)
def test_threads_are_served_alike(seconds, ratio):
    """30 threads on 3 connections: each is served, the most and the least within the ratio."""
    pool = Pool(FakeDriver(), max_size=3, timeout=30)
    served = [0] * 30
    start = threading.Barrier(31)

    def work(number):
        start.wait()
        while time.monotonic() < end:
            with pool.acquire():
                time.sleep(0.0005)  # the work: it lets the others run
            served[number] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(30)]
    end = time.monotonic() + seconds + 60
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    start.wait()
    for thread in threads:
        thread.join()
    assert pool.close()
    assert min(served) > 0
    assert max(served) <= ratio * min(served) + 2
    assert pool._driver.server.peak == 3


@pytest.mark.parametrize(("seconds", "ratio"), RUNS)
def test_tasks_are_served_alike(seconds, ratio):
    """200 tasks on 8 connections: each is served, the most and the least within the ratio."""

    async def main():
        pool = AsyncPool(FakeAsyncDriver(), max_size=8, timeout=30)
        served = [0] * 200
        end = time.monotonic() + seconds

        async def work(number):
            while time.monotonic() < end:
                async with pool.acquire():
                    await asyncio.sleep(0.0005)
                served[number] += 1

        await asyncio.gather(*(work(number) for number in range(200)))
        assert await pool.close()
        return served

    served = asyncio.run(main())
    assert min(served) > 0
    assert max(served) <= ratio * min(served) + 2
