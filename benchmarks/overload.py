"""Three times more requests than the pool can serve, for every pool alike, in real time.

Requests come as a Poisson process that does not slow down because the server does; each wants a connection for 20 ms
(`pg_sleep`) from a pool of 4, so 200 a second is all there is. A client goes away after 2 seconds, and what is done for
it after that is nobody's gain: its request goes on without it, as in a server that does not watch its sockets.

Compared are a plain queue in which everyone waits up to 30 seconds, a bounded one (`max_waiting`), and `target_delay`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from benchmarks.peers import Settings, _psycopg_pool_async, _sqlalchemy_async
from benchmarks.report import Column, Report, Table, arguments, interleaved
from poolkit import AsyncPool
from poolkit.testing.postgres import LocalPostgres

SLOTS = 4
SERVICE = 0.02
CAPACITY = SLOTS / SERVICE
PATIENCE = 2.0
TARGET = 0.05
TIMEOUT = 30.0
LINE = int(CAPACITY * TARGET)  # as many as are worked off in the target

Work = Callable[[float], Coroutine[Any, Any, None]]


class Policy(NamedTuple):
    """A pool with its way of treating a crowd, and the package it needs."""

    name: str
    opened: Callable[[Settings], AbstractAsyncContextManager[Work]]
    needs: str = "poolkit"


def _poolkit(**options: Any) -> Callable[[Settings], AbstractAsyncContextManager[Work]]:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[Work]:
        pool: AsyncPool[Any] = AsyncPool(settings.dsn, max_size=settings.size, timeout=settings.timeout, **options)

        async def work(hold: float) -> None:
            async with pool.acquire() as conn:
                await conn.execute(f"SELECT pg_sleep({hold})")

        try:
            yield work
        finally:
            await pool.close(1)

    return opened


@asynccontextmanager
async def _bounded_psycopg_pool(settings: Settings) -> AsyncIterator[Work]:
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    pool = AsyncConnectionPool(
        settings.dsn,
        min_size=settings.size,
        max_size=settings.size,
        timeout=settings.timeout,
        max_waiting=LINE,
        open=False,
    )
    await pool.open(wait=True)

    async def work(hold: float) -> None:
        async with pool.connection() as conn:
            await conn.execute(f"SELECT pg_sleep({hold})")

    try:
        yield work
    finally:
        await pool.close(1)


POLICIES = (
    Policy("poolkit, plain queue", _poolkit()),
    Policy("poolkit, max_waiting", _poolkit(max_waiting=LINE)),
    Policy("poolkit, target_delay", _poolkit(target_delay=TARGET)),
    Policy("psycopg_pool, plain queue", _psycopg_pool_async(check=False), "psycopg_pool"),
    Policy("psycopg_pool, max_waiting", _bounded_psycopg_pool, "psycopg_pool"),
    Policy("SQLAlchemy, plain queue", _sqlalchemy_async(pre_ping=False), "sqlalchemy"),
)


class Crowd:
    """Those who ask, and what came of it."""

    def __init__(self, work: Work, seconds: float, load: float, seed: int) -> None:
        self._work = work
        self._seconds = seconds
        self._rate = load * CAPACITY
        self._luck = random.Random(seed)  # noqa: S311  a benchmark is to be repeated, not to be guessed
        self.asked = self.late = self.good = 0
        self.served: list[float] = []
        self.refused: list[float] = []

    async def arrive(self) -> None:
        """Send requests for so many seconds, and go away with all that are not done then."""
        began = due = time.monotonic()
        requests = []
        while due < began + self._seconds:
            requests.append(asyncio.create_task(self._request(due)))
            due += self._luck.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)

    async def _request(self, due: float) -> None:
        self.asked += 1
        try:
            await self._work(SERVICE)
        except Exception:  # noqa: BLE001  each library has its own way to say no, and each counts
            self.refused.append(time.monotonic() - due)
            return
        took = time.monotonic() - due
        self.served.append(took)
        self.good += took <= PATIENCE
        self.late += took > PATIENCE

    def samples(self) -> dict[str, float]:
        """What is shown; what there was none of is left out."""
        found = {
            "asked": self.asked,
            "goodput": 100 * self.good / (CAPACITY * self._seconds),
            "served": len(self.served),
            "p50": quantile(self.served, 0.5) * 1000,
            "p99": quantile(self.served, 0.99) * 1000,
            "late": self.late,
            "refused": len(self.refused),
            "told": quantile(self.refused, 0.99) * 1000,
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies; nan of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else math.nan


async def run(policy: Policy, dsn: str, seconds: float, load: float, seed: int) -> Crowd:
    """Let a crowd loose on one pool, warm before."""
    async with policy.opened(Settings(dsn, SLOTS, TIMEOUT)) as work:
        await asyncio.gather(*(work(SERVICE) for _ in range(SLOTS)))
        crowd = Crowd(work, seconds, load, seed)
        await crowd.arrive()
    return crowd


def table_of(report: Report, seconds: float, load: float) -> Table:
    """Begin the table."""
    return report.table(
        f"{load:g} times what {SLOTS} connections can serve, for {seconds:g} s",
        Column("asked", "asked"), Column("goodput", "goodput %"), Column("served", "served"),
        Column("p50", "p50 ms"), Column("p99", "p99 ms"), Column("late", "too late"),
        Column("refused", "refused"), Column("told", "p99 ms of the refused"),
        note=f"{SERVICE * 1000:.0f} ms each; clients leave after {PATIENCE:g} s; target_delay {TARGET * 1000:.0f} ms; "
        f"max_waiting {LINE}; goodput: served in time, of what can be",
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("overload", "Three times more requests than can be served, policies side by side.", rounds=1)
    parser.add_argument("--seconds", type=float, help="how long each is measured (20; with --quick 5)")
    parser.add_argument("--load", type=float, default=3.0, help="times the capacity (3)")
    parser.add_argument("--only", metavar="TEXT", default="", help="only the policies with this in their name")
    options = parser.parse_args(argv)
    policies = [p for p in POLICIES if options.only in p.name and importlib.util.find_spec(p.needs)]
    if not policies:
        parser.error(f"no policy has {options.only!r} in its name")
    seconds = options.seconds or (5.0 if options.quick else 20.0)
    rounds = 1 if options.quick else options.rounds
    for name in ("poolkit", "psycopg", "psycopg.pool", "sqlalchemy", "asyncio"):  # what they report is counted here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    report = Report("overload")
    table = table_of(report, seconds, options.load)
    with LocalPostgres(max_connections=50) as postgres:
        for number, policy in interleaved(policies, rounds):
            crowd = asyncio.run(run(policy, postgres.dsn, seconds, options.load, number))
            table.add(policy.name, **crowd.samples())
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
