"""The pools over connections that cost nothing (see stand_ins), as the suites of `poolkit.bench` take them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from benchmarks.stand_ins import ASYNC, SYNC, AsyncStandIn, Line, StandIn, there
from poolkit.bench.peers import AsyncBench, AsyncPeer, Bench, Peer, Settings, lending, lending_async

__all__ = ["DRIVERS", "async_stand_ins", "stand_ins"]

DRIVERS = ("psycopg", "psycopg2", "asyncpg")


def stand_ins() -> list[Peer]:
    """Those for threads whose libraries are installed, without the ideal, which is a floor of other suites."""
    return [_peer(one) for one in SYNC if one.name != "ideal" and there(one.needs)]


def async_stand_ins() -> list[AsyncPeer]:
    """Those for asyncio."""
    return [_async_peer(one) for one in ASYNC if one.name != "ideal" and there(one.needs)]


def _peer(stand_in: StandIn) -> Peer:
    @contextmanager
    def opened(settings: Settings) -> Iterator[Bench]:
        hold = settings.hold

        def use(_: object) -> None:
            if hold:
                time.sleep(hold)

        with stand_in.opened(Line(), settings.size) as borrow:
            yield lending(borrow, use)

    return Peer(stand_in.name, "", opened)


def _async_peer(stand_in: AsyncStandIn) -> AsyncPeer:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[AsyncBench]:
        hold = settings.hold

        async def use(_: object) -> None:
            # At least one turn of the loop: where nobody ever waits for anything, the first task would do it all.
            await asyncio.sleep(hold)

        async with stand_in.opened(Line(), settings.size) as borrow:
            yield lending_async(borrow, use)

    return AsyncPeer(stand_in.name, "", opened)
