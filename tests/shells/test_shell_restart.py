"""The server is restarted, killed or stopped for a while under real load: the pool heals by itself."""

from __future__ import annotations

import asyncio
import threading
import time

import psycopg
import pytest

from poolkit import AsyncPool, Pool, PoolError

pytestmark = pytest.mark.slow
ERRORS = (psycopg.Error, PoolError)


@pytest.fixture(params=["restarted", "killed", "away for a second"])
def trouble(request, private_pg):
    """What happens to the server."""

    def cause():
        if request.param == "killed":
            private_pg.kill()
        else:
            private_pg.stop("immediate")
        if request.param == "away for a second":
            time.sleep(1)
        private_pg.start()

    return cause


def test_threads_go_on_after_trouble(trouble, private_pg):
    """Only what was under way fails; a second later everybody is served, each by a live connection."""
    pool = Pool(private_pg.dsn, max_size=4, timeout=5)
    log, over = [], threading.Event()

    def life():
        while not over.is_set():
            try:
                with pool.transaction() as conn:
                    conn.execute("select pg_sleep(0.001)")
                log.append((time.monotonic(), None))
            except ERRORS as error:
                log.append((time.monotonic(), error))
                time.sleep(0.005)

    threads = [threading.Thread(target=life) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    trouble()
    up = time.monotonic()
    time.sleep(2)
    over.set()
    for thread in threads:
        thread.join(20)
    _check(log, up)
    assert pool.stats().out == 0
    assert pool.close()


def test_tasks_go_on_after_trouble(trouble, private_pg):
    """The same in asyncio."""
    log = []

    async def main():
        pool = AsyncPool(private_pg.dsn, max_size=4, timeout=5)
        over = asyncio.Event()

        async def life():
            while not over.is_set():
                try:
                    async with pool.transaction() as conn:
                        await conn.execute("select pg_sleep(0.001)")
                    log.append((time.monotonic(), None))
                except ERRORS as error:
                    log.append((time.monotonic(), error))
                    await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(life()) for _ in range(8)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(trouble)
        up = time.monotonic()
        await asyncio.sleep(2)
        over.set()
        await asyncio.gather(*tasks)
        assert pool.stats().out == 0
        assert await pool.close()
        return up

    _check(log, asyncio.run(main()))


def _check(log, up):
    assert any(error is None for moment, error in log if moment < up), "it never worked"
    late = [error for moment, error in log if moment > up + 1]
    assert late, "nobody got on"
    assert not any(late), next(error for error in late if error)
