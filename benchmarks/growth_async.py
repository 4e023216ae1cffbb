"""The costs of pools for asyncio, as the suite `growth` asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.growth_sync import EACH, HANDOFFS, LOOPS, SETTLE, repeat
from benchmarks.report import Table, interleaved
from benchmarks.stand_ins import ASYNC, AsyncBorrow, AsyncLineDriver, AsyncStandIn, Line, there
from poolkit import AsyncPool
from poolkit.bench.measuring import quiet

__all__ = ["AsyncGrowth"]

PEERS = ("poolkit", "psycopg_pool", "asyncpg")
FAIR = ("poolkit", "psycopg_pool")


async def borrow_often(borrows: Sequence[AsyncBorrow]) -> float:
    """Seconds for one borrowing; all of the pools in turn."""
    turns = max(1, LOOPS // len(borrows))
    began = time.perf_counter()
    for _ in range(turns):
        for borrow in borrows:
            async with borrow():
                pass
    return (time.perf_counter() - began) / (turns * len(borrows))


async def filled(borrow: AsyncBorrow, number: int) -> AsyncBorrow:
    """Have so many connections open, all of them idle."""
    async with contextlib.AsyncExitStack() as held:
        for _ in range(number):
            await held.enter_async_context(borrow())
    return borrow


async def hand_over(borrow: AsyncBorrow, waiting: int) -> float:
    """Seconds for one hand-off of the only connection, with so many in the queue all the time."""
    turns = max(4, HANDOFFS // (waiting + 1))

    async def one() -> None:
        for _ in range(turns):
            async with borrow():
                pass

    async with borrow():
        tasks = [asyncio.create_task(one()) for _ in range(waiting + 1)]
        await asyncio.sleep(0.01)
        began = time.perf_counter()
    await asyncio.gather(*tasks)
    return (time.perf_counter() - began) / (turns * (waiting + 1))


class AsyncGrowth:
    """The probes; each fills one table in a loop of its own."""

    def __init__(self, decades: Sequence[int], idle: Sequence[int]) -> None:
        self._decades = decades
        self._idle = idle
        self._peers = [peer for peer in ASYNC if peer.name in PEERS and there(peer.needs)]

    def by_idle(self, table: Table, rounds: int) -> None:
        """One borrowing, with so many connections idle in the pool."""
        asyncio.run(self._by_idle(table, rounds))

    async def _by_idle(self, table: Table, rounds: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            borrows: dict[tuple[str, int], Sequence[AsyncBorrow]] = {}
            for peer in self._peers:
                for number in self._idle:
                    borrow = await stack.enter_async_context(peer.opened(Line(), number))
                    borrows[peer.name, number] = [await filled(borrow, number)]
            await self._measure(table, borrows, rounds)

    def by_pools(self, table: Table, rounds: int) -> None:
        """One borrowing from one of so many pools, and from all of them in turn."""
        asyncio.run(self._by_pools(table, rounds))

    async def _by_pools(self, table: Table, rounds: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            borrows: dict[tuple[str, int], Sequence[AsyncBorrow]] = {}
            for peer in self._peers:
                for number in self._decades:
                    pools = await self._pools(stack, peer, number)
                    borrows[f"{peer.name}, one of them", number] = pools[:1]
                    borrows[f"{peer.name}, all in turn", number] = pools
            await self._measure(table, borrows, rounds)

    def by_waiters(self, table: Table, rounds: int) -> None:
        """One hand-off to the first of so many."""
        asyncio.run(self._by_waiters(table, rounds))

    async def _by_waiters(self, table: Table, rounds: int) -> None:
        for peer in self._peers:
            if peer.name in FAIR:
                async with peer.opened(Line(), 1) as borrow:
                    for _, number in interleaved(self._decades, rounds):
                        table.add(peer.name, **{str(number): await hand_over(borrow, number) * 1e6})

    def stats(self, table: Table, rounds: int) -> None:
        """One snapshot of a pool with so many idle connections."""
        asyncio.run(self._of_poolkit(table, rounds, lambda pool: repeat(pool.stats, 200) * 1e6))

    def sweep(self, table: Table, rounds: int) -> None:
        """One visit to a pool with so many idle connections."""
        asyncio.run(self._of_poolkit(table, rounds, lambda pool: repeat(pool.sweep, 3) * 1e3))

    def housekeeping(self, table: Table, rounds: int, seconds: float) -> None:
        """The share of a core that so many pools take while nobody uses them."""
        for _ in range(rounds):
            for peer in self._peers:
                for number in self._decades:
                    share = asyncio.run(self._idling(peer, number, seconds))
                    table.add(peer.name, **{str(number): 100 * share})

    async def _idling(self, peer: AsyncStandIn, number: int, seconds: float) -> float:
        async with contextlib.AsyncExitStack() as stack:
            await self._pools(stack, peer, number)
            gc.collect()
            await asyncio.sleep(SETTLE)
            used, began = time.process_time(), time.perf_counter()
            await asyncio.sleep(seconds)
            return (time.process_time() - used) / (time.perf_counter() - began)

    async def _pools(self, stack: contextlib.AsyncExitStack, peer: AsyncStandIn, number: int) -> list[AsyncBorrow]:
        return [await filled(await stack.enter_async_context(peer.opened(Line(), EACH)), EACH) for _ in range(number)]

    async def _measure(self, table: Table, borrows: dict[tuple[str, int], Sequence[AsyncBorrow]], rounds: int) -> None:
        with quiet():
            for _, (name, number) in interleaved(list(borrows), rounds):
                table.add(name, **{str(number): await borrow_often(borrows[name, number]) * 1e6})

    async def _of_poolkit(self, table: Table, rounds: int, measure: Callable[[AsyncPool[Any]], float]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            pools: dict[int, AsyncPool[Any]] = {}
            for number in self._idle:
                pools[number] = await stack.enter_async_context(AsyncPool(AsyncLineDriver(Line()), max_size=number))
                await filled(functools.partial(pools[number].acquire, 60), number)
            with quiet():
                for _, number in interleaved(self._idle, rounds):
                    table.add("poolkit", **{str(number): measure(pools[number])})
