"""How often each asks the server and waits for the answer: counted by a proxy in between, so exact on any machine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from poolkit.bench import async_peers, sync_peers
from poolkit.bench.peers import AsyncPeer, Peer, Settings, installed
from poolkit.bench.report import Column, Report, Target
from poolkit.bench.sampling import fill, sampled
from poolkit.testing import FaultProxy

__all__ = ["count", "countable", "run"]

WARM = 8  # operations before the count: whoever prepares statements has prepared them then
TIMES = 5
COLUMNS = (
    Column("borrow", "borrow and return", 1, "round trips", "less"),
    Column("autocommit", "one statement", 1, "round trips", "less"),
    Column("transaction", "the same in a transaction", 1, "round trips", "less"),
)


def countable(url: str) -> str:
    """Say why round trips can't be counted for a URL; empty where they can."""
    parts = urlsplit(url)
    if not parts.scheme.startswith(("postgres", "mysql", "mariadb")):
        return f"round trips: {parts.scheme} has no network"
    if parse_qs(parts.query).get("sslmode", [""])[-1] in ("verify-ca", "verify-full"):
        return "round trips: the server's certificate is checked, and a proxy that counts stands in between"
    return ""


def count(peer: Peer | AsyncPeer, proxy: FaultProxy, settings: Settings, *, uses: bool) -> float:
    """Count the round trips of one operation, or of borrowing and returning alone."""
    if isinstance(peer, AsyncPeer):
        return asyncio.run(_count_async(peer, proxy, settings, uses=uses))
    with peer.opened(settings) as bench:
        turn: Callable[[], object] = bench.work if uses else lambda: bench.loop(1)
        for _ in range(WARM):
            turn()
        before = proxy.round_trips
        for _ in range(TIMES):
            turn()
        return (proxy.round_trips - before) / TIMES


async def _count_async(peer: AsyncPeer, proxy: FaultProxy, settings: Settings, *, uses: bool) -> float:
    async with peer.opened(settings) as bench:
        turn: Callable[[], Coroutine[Any, Any, object]] = bench.work if uses else lambda: bench.loop(1)
        for _ in range(WARM):
            await turn()
        before = proxy.round_trips
        for _ in range(TIMES):
            await turn()
        return (proxy.round_trips - before) / TIMES


def run(report: Report, url: str, drivers: Sequence[str], server: str = "") -> None:
    """Count for everything that is installed for these drivers. Nothing where `countable` says why not.

    `server` goes into the titles, where there are several in one report.
    """
    if countable(url):
        return
    worlds: tuple[tuple[str, Sequence[Peer | AsyncPeer]], ...] = (
        ("threads", sync_peers.SYNC),
        ("asyncio", async_peers.ASYNC),
    )
    with FaultProxy(url) as proxy:
        through = through_proxy(url, proxy)
        for world, peers in worlds:
            rows = [peer for peer in peers if peer.driver in drivers and installed(peer)]
            if not rows:
                continue
            names = [world, server] if server else [world]
            table = report.table(
                f"round trips, {', '.join(names)}", *COLUMNS,
                key="-".join(["round-trips", *names]).lower(), headline="transaction",
                baseline=next((peer.name for peer in rows if peer.name.startswith("poolkit")), None),
                targets=targets(rows), note="counted by a proxy between client and server",
            )  # fmt: skip
            for column in COLUMNS:
                settings = Settings(through, transaction=column.key == "transaction")
                counting = functools.partial(count, proxy=proxy, settings=settings, uses=column.key != "borrow")
                fill(table, column.key, sampled(rows, 1, counting))


def through_proxy(url: str, proxy: FaultProxy) -> str:
    """The URL through the proxy. What was encrypted stays so: only a server of this machine is spoken to in clear."""
    parts = urlsplit(url)
    if not parts.scheme.startswith("postgres"):
        return proxy.url(url)
    here = parts.hostname in (None, "localhost", "127.0.0.1", "::1")
    if not here and "sslmode" not in parse_qs(parts.query):
        url += f"{'&' if parts.query else '?'}sslmode=prefer"  # libpq's own default, which asyncpg knows as well
    return proxy.url(url)


def targets(peers: Sequence[Peer | AsyncPeer]) -> list[Target]:
    """One for a statement, two for a transaction whose BEGIN rides with it (psycopg, asyncpg), three of the others'."""
    found = []
    for name, driver in ((peer.name, peer.driver) for peer in peers if peer.name.startswith("poolkit")):
        most = 2 if driver in {"psycopg", "asyncpg"} else 3
        found.append(_exactly(name, "borrow", 0))
        found.append(_exactly(name, "autocommit", 1))
        found.append(_exactly(name, "transaction", most))
    return found


def _exactly(row: str, column: str, trips: int) -> Target:
    what = {"borrow": "borrow and return", "autocommit": "one statement", "transaction": "in a transaction"}[column]
    return Target(
        f"{row}, {what}: {trips} round trip{'' if trips == 1 else 's'}", row, column, at_most=trips, at_least=trips
    )
