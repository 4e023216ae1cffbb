"""Everything at once: many borrowers, a failing server, drains, resizes and a close in the middle of it.

The model knows every rule; this looks for what only real threads and real tasks can do to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
import time

import pytest

from poolkit import AsyncPool, CommitFailed, LeaseError, Pool, PoolError, PoolStats
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer
from poolkit.testing.fakes import FakeError

RUNS = [pytest.param(6.0, id="6 s", marks=pytest.mark.slow), pytest.param(0.5, id="0.5 s")]
EXPECTED = (PoolError, FakeError, CommitFailed, KeyError)
SETTINGS = {
    "max_size": 4,
    "min_size": 1,
    "timeout": 0.02,
    "max_lifetime": 0.05,
    "idle_timeout": 0.02,
    "max_uses": 30,
    "check_after": 0.001,
    "target_delay": 0.002,
    "max_waiting": 20,
}


class Borrowed:
    """Who has which connection now: one connection, one borrower."""

    def __init__(self) -> None:
        self.by_number: dict[int, object] = {}
        self.twice: list[int] = []

    @contextlib.contextmanager
    def by(self, conn, who):
        if self.by_number.setdefault(conn.number, who) is not who:
            self.twice.append(conn.number)
        try:
            yield
        finally:
            del self.by_number[conn.number]


def disturb(pool, server, luck):
    """One of the things that happen to a pool."""
    what = luck.random()
    if what < 0.3:
        server.down = not server.down
    elif what < 0.5:
        server.kill()
    elif what < 0.7:
        pool.drain()
    elif what < 0.9:
        pool.resize(luck.randint(1, 6))
    else:
        server.fail_reset = not server.fail_reset


def calm(pool, server):
    server.down = server.fail_reset = False
    pool.resize(4)


class Crowd:
    """Twelve threads that borrow in every way there is, until it is over."""

    def __init__(self, pool: Pool, end: float) -> None:
        self.pool, self.end = pool, end
        self.borrowed = Borrowed()
        self.served = [0] * 12
        self.surprises: list[BaseException] = []
        self.threads = [threading.Thread(target=self.life, args=(number,)) for number in range(12)]
        for thread in self.threads:
            thread.start()

    def life(self, number: int) -> None:
        luck = random.Random(number)
        while time.monotonic() < self.end and not self.surprises:
            try:
                self.one(number, luck)
                self.served[number] += 1
            except EXPECTED:
                time.sleep(0.0005)
            except BaseException as error:  # noqa: BLE001
                self.surprises.append(error)

    def one(self, number: int, luck: random.Random) -> None:
        kind = luck.random()
        if kind < 0.4:
            with self.pool.transaction() as conn, self.borrowed.by(conn, number):
                conn.execute("bad" if luck.random() < 0.1 else "insert")
                time.sleep(luck.random() * 0.001)
        elif kind < 0.8:
            with self.pool.acquire() as conn, self.borrowed.by(conn, number):
                conn.execute("dirty")
                if luck.random() < 0.1:
                    raise KeyError
        else:
            lease = self.pool.acquire(0.005)
            with self.borrowed.by(lease.resource, number):
                time.sleep(luck.random() * 0.001)
            luck.choice([lease.release, lease.discard])()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self.threads)
        assert self.surprises == []
        assert self.borrowed.twice == []
        assert min(self.served) > 0


@pytest.mark.parametrize("seconds", RUNS)
def test_threads(seconds):
    """No connection has two borrowers, no place is lost, everybody gets on, and a closed pool is empty."""
    server = FakeServer()
    pool = Pool(FakeDriver(server), **SETTINGS)
    end = time.monotonic() + seconds
    crowd = Crowd(pool, end)
    luck = random.Random(99)
    while time.monotonic() < end:
        time.sleep(0.01)
        disturb(pool, server, luck)
    crowd.join()
    calm(pool, server)
    assert pool.stats().out == 0
    assert any(pool.warm(5) or time.sleep(0.2) for _ in range(20))
    assert pool.close(10)
    assert server.open_now == 0
    assert pool.stats().size == 0


@pytest.mark.parametrize("seconds", RUNS)
def test_tasks(seconds):
    """The same in asyncio, with cancellations everywhere."""

    async def main():
        server = FakeServer()
        pool = AsyncPool(FakeAsyncDriver(server, _short_wait), **SETTINGS)
        borrowed = Borrowed()
        end = time.monotonic() + seconds
        served = 0
        luck = random.Random(1)

        async def one(me):
            if luck.random() < 0.5:
                async with pool.transaction() as conn:
                    with borrowed.by(conn, me):
                        conn.execute("bad" if luck.random() < 0.1 else "insert")
                        await asyncio.sleep(luck.random() * 0.001)
            else:
                async with pool.acquire() as conn:
                    with borrowed.by(conn, me):
                        conn.execute("dirty")
                        await asyncio.sleep(0)

        async def life():
            nonlocal served
            while time.monotonic() < end:
                try:
                    await one(object())
                    served += 1
                except EXPECTED:
                    await asyncio.sleep(0.0005)

        tasks = {asyncio.create_task(life()) for _ in range(30)}
        while time.monotonic() < end:
            await asyncio.sleep(0.002)
            if luck.random() < 0.2:
                disturb(pool, server, luck)
            victim = luck.choice(list(tasks))
            victim.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await victim
            tasks.remove(victim)
            tasks.add(asyncio.create_task(life()))
        await asyncio.gather(*tasks)
        calm(pool, server)
        assert borrowed.twice == []
        assert served > 0
        while not await pool.warm(5):  # noqa: ASYNC110  the breaker opens and closes by the clock
            await asyncio.sleep(0.2)
        assert await pool.close(10)
        assert server.open_now == 0
        assert pool.stats().size == pool.stats().out == 0

    asyncio.run(main())


async def _short_wait():
    await asyncio.sleep(0.001)


def test_close_under_load():
    """Closing while everybody borrows: each is served or refused, and nothing stays open."""
    for _ in range(5):
        server = FakeServer()
        pool = Pool(FakeDriver(server), max_size=3, timeout=5)
        surprises = []

        def life(pool=pool, surprises=surprises):
            try:
                while True:
                    with pool.transaction() as conn:
                        conn.execute("insert")
            except (PoolError, LeaseError):
                pass
            except BaseException as error:  # noqa: BLE001
                surprises.append(error)

        threads = [threading.Thread(target=life) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        assert pool.close(10)
        for thread in threads:
            thread.join(10)
        assert surprises == []
        assert server.open_now == 0


def test_nothing_is_lost_between_two_threads_that_hand_over():
    """Ten thousand hand-overs with timeouts that fire at the same moment: no lease is lost, none is given twice."""
    pool = Pool(FakeDriver(), max_size=1, timeout=0.0005)
    got = [0, 0, 0]

    def life(number):
        for _ in range(1500):
            try:
                with pool.acquire():
                    got[number] += 1
                    time.sleep(0)
            except PoolError:
                pass

    threads = [threading.Thread(target=life, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stats = pool.stats()
    assert stats.out == 0
    assert stats.size == stats.idle == 1
    assert stats.acquired >= sum(got)
    assert pool.close()


class Rush:
    """Threads that do nothing but take and give back, while the interpreter changes between them as often as it can."""

    def __init__(self, pool: Pool, count: int, end: float) -> None:
        self.pool, self.end = pool, end
        self.served = [0] * count
        self.forgotten = 0
        self.faults: list[object] = []
        self.threads = [threading.Thread(target=self.life, args=(number,)) for number in range(count)]
        for thread in self.threads:
            thread.start()

    def life(self, number: int) -> None:
        luck = random.Random(number)
        try:
            while time.monotonic() < self.end and not self.faults:
                if luck.random() < 0.01:
                    self.forget()
                else:
                    self.one(number)
                self.served[number] += 1
        except BaseException as error:  # noqa: BLE001
            self.faults.append(error)

    def one(self, number: int) -> None:
        with self.pool.acquire() as conn:
            if conn.__dict__.setdefault("user", number) != number:
                self.faults.append(f"{conn} has two borrowers")
            conn.execute("select")  # raises where it was closed
            if conn.__dict__.pop("user") != number:
                self.faults.append(f"{conn} had two borrowers")

    def forget(self) -> None:
        lease = self.pool.acquire()
        lease.resource.execute("select")  # while it is held: a sweep may come at any moment after that
        del lease
        self.forgotten += 1

    def join(self) -> None:
        for thread in self.threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self.threads), "somebody got stuck"
        assert self.faults == []


def settled(pool: Pool) -> PoolStats:
    """Sweep until nobody has anything: a thread of the pool's own may still be opening, or hold what it has opened."""
    deadline = time.monotonic() + 10
    while True:
        pool.sweep()
        stats = pool.stats()
        if not stats.out + stats.opening or time.monotonic() > deadline:
            return stats
        time.sleep(0.001)


@pytest.mark.parametrize(
    "seconds", [pytest.param(2.0, id="2 s", marks=pytest.mark.slow), pytest.param(0.15, id="0.15 s")]
)
@pytest.mark.parametrize("order", ["lifo", "fifo"])
@pytest.mark.parametrize("count", [2, 8])
def test_taking_without_the_lock_in_a_rush(count, order, seconds, caplog):
    """Sweeps, drains, resizes and searches for what is lost come in between: no connection has two borrowers."""
    server = FakeServer()
    pool = Pool(FakeDriver(server), max_size=3, timeout=20, order=order, check_after=None)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        rush = Rush(pool, count, time.monotonic() + seconds)
        luck = random.Random(count)
        while time.monotonic() < rush.end and not rush.faults:
            luck.choice([pool.sweep, pool.sweep, pool.drain, pool.stats, lambda: pool.resize(luck.randint(2, 4))])()
            time.sleep(0.0005)
        rush.join()
    finally:
        sys.setswitchinterval(before)
    stats = settled(pool)
    assert (stats.out, stats.opening, stats.waiting) == (0, 0, 0)
    assert stats.acquired >= sum(rush.served)
    assert stats.closed_by_reason.get("lost", 0) == rush.forgotten
    assert min(rush.served) > 0
    assert pool.close(10)
    assert server.open_now == 0
