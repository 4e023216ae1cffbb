"""Greenlets and pools. Each case runs in a fresh interpreter: `python life_gevent_cases.py NAME URL`.

What is imported before gevent patches the process, and what after, is the matter of the cases.
"""

# ruff: noqa: E402  the order of the imports is what is tried here

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

CASE, URL = sys.argv[1:]
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
if CASE == "poolkit_was_imported_first":
    import poolkit  # noqa: F401
if CASE == "psycopg_was_imported_first":
    import psycopg

from gevent import monkey

monkey.patch_all()

import gevent
import psycopg

from poolkit import AcquireTimeout, Pool, surroundings


def sleep_in(pool: Pool[Any], seconds: float) -> None:
    with pool.transaction() as conn:
        conn.execute("SELECT pg_sleep(%s)", (seconds,))


def all_at_once(*calls: Callable[[], object]) -> float:
    """Run them as greenlets; return the seconds. Raises what one raised."""
    began = time.monotonic()
    greenlets = [gevent.spawn(call) for call in calls]
    gevent.joinall(greenlets, timeout=20, raise_error=True)
    assert all(greenlet.successful() for greenlet in greenlets)
    return time.monotonic() - began


def balanced(pool: Pool[Any]) -> None:
    """Nobody has anything, nobody waits, and the next one is served."""
    stats = pool.stats()
    assert (stats.out, stats.waiting, stats.opening) == (0, 0, 0), stats
    with pool.transaction() as conn:
        assert conn.execute("SELECT 7").fetchone() == (7,)
    stats = pool.stats()
    assert stats.opened - sum(stats.closed_by_reason.values()) == stats.size - stats.opening, stats


def waits_together(pool_of: Callable[..., Pool[Any]]) -> None:
    """Five greenlets wait for the database at once; five who share one connection wait in line; the loop goes on."""
    pool = pool_of(max_size=5)
    ticks = []

    def tick() -> None:
        for _ in range(10):
            ticks.append(1)
            gevent.sleep(0.01)

    assert all_at_once(*[lambda: sleep_in(pool, 0.3)] * 5, tick) < 0.9
    assert len(ticks) == 10
    one = pool_of(max_size=1)
    assert 0.25 <= all_at_once(*[lambda: sleep_in(one, 0.05)] * 5) < 1.5
    balanced(pool)
    balanced(one)


def everything_is_patched_in_time() -> None:
    """Threads, bells, the housekeeper and psycopg's waiting are greenlets' own; a killed session is seen at once."""
    waits_together(lambda **settings: Pool(URL, **settings))
    pool = Pool(URL, min_size=2)
    pool.acquire().release()
    end = time.monotonic() + 10
    while pool.stats().idle < 2:  # the housekeeper fills it up
        assert time.monotonic() < end
        gevent.sleep(0.05)
    with psycopg.connect(URL, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                      " WHERE application_name LIKE 'poolkit:%' AND pid <> pg_backend_pid()"
                      " AND datname = current_database()")  # fmt: skip
    gevent.sleep(0.2)
    balanced(pool)
    assert pool.close()
    assert not surroundings._said


def greenlets_are_killed() -> None:
    """GreenletExit and gevent.Timeout, in line, in a statement, between two, in COMMIT's way: the books balance."""
    pool = Pool(URL, max_size=1)
    lease = pool.acquire()
    waiting = gevent.spawn(pool.acquire)
    gevent.sleep(0.05)
    waiting.kill()
    with gevent.Timeout(0.05, False):
        pool.acquire()
    try:
        pool.acquire(0.05)
    except AcquireTimeout:
        pass
    else:
        raise AssertionError
    assert pool.stats().waiting == 0
    lease.release()
    balanced(pool)

    def between() -> None:
        with pool.transaction() as conn:
            conn.execute("SELECT 1")
            gevent.sleep(20)

    for work in (lambda: sleep_in(pool, 20), between):
        greenlet = gevent.spawn(work)
        gevent.sleep(0.1)
        greenlet.kill()
        balanced(pool)
        with gevent.Timeout(0.1, False):
            work()
        balanced(pool)
    for delay in range(40):  # at whatever point it is by then
        greenlet = gevent.spawn(sleep_in, pool, 0)
        gevent.sleep(delay / 10_000)
        greenlet.kill()
        balanced(pool)


def poolkit_was_imported_first() -> None:
    """That alone does no harm."""
    waits_together(lambda **settings: Pool(URL, **settings))
    assert not surroundings._said


def psycopg_was_imported_first() -> None:
    """Then each waits alone, nothing is lost, and a warning says so."""
    pool = Pool(URL, max_size=5)
    assert [text for text in surroundings._said if "after psycopg was imported" in text]
    assert all_at_once(*[lambda: sleep_in(pool, 0.1)] * 5) > 0.45
    balanced(pool)


if __name__ == "__main__":
    globals()[CASE]()
