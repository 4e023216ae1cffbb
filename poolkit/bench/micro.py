"""What taking a connection and giving it back costs, without a statement in between: microseconds for both together."""

from __future__ import annotations

from collections.abc import Sequence

from poolkit.bench import async_peers, floors, sync_peers
from poolkit.bench.measuring import pinned
from poolkit.bench.peers import AsyncPeer, Peer, Settings, installed
from poolkit.bench.report import Column, Report, Table, Target
from poolkit.bench.sampling import Plan, against, borrowed, fill, sampled

__all__ = ["measure", "run"]

US = Column("us", "us", 2, "us", "less")
TIMES = Column("times", "times poolkit", 2, "times", "less")


def measure(table: Table, peers: Sequence[Peer | AsyncPeer], settings: Settings, plan: Plan, baseline: str) -> None:
    """Fill a table with what borrowing and returning costs each, pinned to one CPU."""
    with pinned():
        samples = sampled(peers, plan.rounds, borrowed(settings, plan.seconds))
    fill(table, US.key, samples)
    for name, values in against(samples, baseline):
        for value in values:
            table.add(name, times=value)


def run(report: Report, url: str, drivers: Sequence[str], plan: Plan) -> None:
    """Measure all that is installed for these drivers, for threads and for asyncio."""
    note = "borrow and return, nothing in between; 'looks each time': without the millisecond in which nobody looks"
    worlds: tuple[tuple[str, Sequence[Peer | AsyncPeer], Sequence[Peer | AsyncPeer]], ...] = (
        ("threads", floors.SYNC, sync_peers.SYNC),
        ("asyncio", floors.ASYNC, async_peers.ASYNC),
    )
    for world, floor, peers in worlds:
        rows = [peer for peer in peers if peer.driver in drivers and installed(peer) and peer.name[:4] != "bare"]
        if not rows:
            continue
        baseline = next(peer.name for peer in rows if peer.name.startswith("poolkit"))
        table = report.table(
            f"borrow and return, {world}, real connections", US, TIMES, note=note, key=f"micro-{world}",
            baseline=baseline, targets=list(targets(world)),
        )  # fmt: skip
        measure(table, [*floor, *rows], Settings(url), plan, baseline)


def targets(world: str) -> list[Target]:
    """What the project aims at, for connections of psycopg and asyncpg."""
    if world == "threads":
        looks = "poolkit, psycopg, looks each time"
        return [
            _times("a quarter of psycopg_pool", "poolkit, psycopg", "psycopg_pool", 0.25),
            _times("a quarter of SQLAlchemy", "poolkit, psycopg", "SQLAlchemy raw_connection, psycopg", 0.25),
            _times("5 times a lock and a deque", "poolkit, psycopg", floors.LOCK_AND_DEQUE, 5),
            _times("dead ones noticed: 0.08 of psycopg_pool's check", looks, "psycopg_pool, check", 0.08),
        ]
    return [
        _times("0.15 of psycopg_pool", "poolkit, psycopg", "psycopg_pool", 0.15),
        _times("0.03 of asyncpg's pool", "poolkit, asyncpg", "asyncpg's pool", 0.03),
    ]


def _times(text: str, row: str, of: str, most: float) -> Target:
    return Target(f"{row}: at most {text}", row, US.key, at_most=most, how="ratio", of=of)
