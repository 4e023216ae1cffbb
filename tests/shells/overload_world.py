"""Overload in virtual time: an open loop of arrivals, a pool that can serve a third of them, and clients that give up.

Arrivals are a Poisson process: they do not slow down because the server does, as users do not. A client goes away after
its patience, and what is worked on for it after that (or still waits for it) is nobody's gain: its request goes on
without it, as it does in a server that does not watch its sockets.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import NamedTuple

from poolkit import AsyncPool, PoolError
from poolkit.testing import FakeAsyncDriver, ManualClock, ManualLoop

SLOTS = 4
SERVICE = 0.02  # on average
CAPACITY = SLOTS / SERVICE
PATIENCE = 2.0
TARGET = 0.05

# name, and what the pool is told
POLICIES = {
    "plain queue": {},
    "max_waiting": {"max_waiting": int(CAPACITY * TARGET)},
    "target_delay": {"target_delay": TARGET},
}


class Outcome(NamedTuple):
    """What one policy made of it; times in seconds, rates as shares of the capacity."""

    policy: str
    asked: int
    goodput: float
    served: int
    p50: float  # from asking to the end of the work, of those who were served
    p99: float
    late: int  # served when their client had gone
    refused: int
    p99_refused: float  # how long the refused were kept waiting for that
    hints: tuple[float, ...]  # the Retry-After of the refusals


class Runtime:
    def __init__(self, clock: ManualClock, seed: int) -> None:
        self.clock = clock
        self.random = random.Random(seed).random


class Crowd:
    """One run of one policy."""

    def __init__(self, policy: str, *, seconds: float, load: float, seed: int, **settings: object) -> None:
        self.policy = policy
        self.seconds = seconds
        self.rate = load * CAPACITY
        self.luck = random.Random(seed)
        self.clock = ManualClock()
        options = {"max_size": SLOTS, "timeout": 30.0, **POLICIES[policy], **settings}
        self.linger = 0.0  # how long those are waited for who are in line at the end
        self.pool = AsyncPool(FakeAsyncDriver(), runtime=Runtime(self.clock, seed), **options)
        self.asked = self.good = self.late = 0
        self.served: list[float] = []
        self.refused: list[float] = []
        self.hints: list[float] = []

    def run(self) -> Outcome:
        loop = ManualLoop(self.clock)
        try:
            loop.run(self._arrive())
        finally:
            loop.close()
        return Outcome(
            policy=self.policy,
            asked=self.asked,
            goodput=self.good / (CAPACITY * self.seconds),
            served=len(self.served),
            p50=quantile(self.served, 0.5),
            p99=quantile(self.served, 0.99),
            late=self.late,
            refused=len(self.refused),
            p99_refused=quantile(self.refused, 0.99),
            hints=tuple(self.hints),
        )

    async def _arrive(self) -> None:
        end = self.clock() + self.seconds
        requests = []
        while self.clock() < end:
            work = SERVICE * (0.5 + self.luck.random())
            requests.append(asyncio.get_running_loop().create_task(self._request(work, end)))
            await asyncio.sleep(self.luck.expovariate(self.rate))
        await asyncio.sleep(self.linger)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await self.pool.close()

    async def _request(self, work: float, end: float) -> None:
        asked = self.clock()
        self.asked += 1
        try:
            async with self.pool.acquire():
                await asyncio.sleep(work)
        except PoolError as error:
            self.refused.append(self.clock() - asked)
            self.hints.append(error.retry_after or 0.0)
            return
        took = self.clock() - asked
        self.served.append(took)
        in_time = took <= PATIENCE
        self.late += not in_time
        self.good += in_time and self.clock() <= end


def quantile(values: list[float], share: float) -> float:
    """The value below which that share lies; nan of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else math.nan


def table(outcomes: list[Outcome]) -> str:
    """Lay the policies out side by side."""
    names = "asked", "goodput", "served", "p50 ms", "p99 ms", "late", "refused", "p99 of the refused"
    lines = [f"{'policy':<14}" + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in names)]
    lines += [
        f"{o.policy:<14}{o.asked:>9}{o.goodput:>9.0%}{o.served:>9}{o.p50 * 1000:>9.0f}{o.p99 * 1000:>9.0f}{o.late:>9}"
        f"{o.refused:>9}{o.p99_refused * 1000:>20.0f}"
        for o in outcomes
    ]
    return "\n".join(lines)
