"""One `SELECT 1` through each pool, as what it takes more than the same on a connection that nobody pools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from poolkit import Pool
from poolkit.bench import async_peers, sync_peers
from poolkit.bench.measuring import calibrated, interleaved, per_call, pinned, quiet
from poolkit.bench.peers import AsyncPeer, Peer, Settings, installed
from poolkit.bench.report import Column, Report, Table, Target
from poolkit.bench.sampling import Plan, Samples, fill, sampled, used

__all__ = ["orders", "run"]

COLUMNS = (
    Column("autocommit", "us", 1, "us", "less"),
    Column("autocommit_over", "more than bare", 1, "us", "less"),
    Column("transaction", "us in a transaction", 1, "us", "less"),
    Column("transaction_over", "more than bare", 1, "us", "less"),
)
IDLE = (1, 4, 8)


def run(
    report: Report, urls: Mapping[str, str], drivers: Sequence[str], plan: Plan, servers: Iterable[int] = ()
) -> None:
    """Measure each way to the server, by its name; `servers` are processes to pin with this one: then it is exact."""
    worlds: tuple[tuple[str, Sequence[Peer | AsyncPeer], float], ...] = (
        ("threads", sync_peers.SYNC, 3.0),
        ("asyncio", async_peers.ASYNC, 4.0),
    )
    with pinned(servers):
        for way, url in urls.items():
            for world, peers, most in worlds:
                rows = [peer for peer in peers if peer.driver in drivers and installed(peer)]
                if not rows:
                    continue
                table = report.table(
                    f"SELECT 1, {world}, {way}", *COLUMNS, key=f"query-{world}-{way.split()[0].lower()}",
                    headline="transaction_over", baseline=rows[0].name, targets=list(targets(rows, most)),
                    note="more than bare: against the bare connection of the same driver, round by round",
                )  # fmt: skip
                measure(table, rows, url, plan)


def measure(table: Table, peers: Sequence[Peer | AsyncPeer], url: str, plan: Plan) -> None:
    """Fill a table, with and without a transaction."""
    for kind in ("autocommit", "transaction"):
        settings = Settings(url, transaction=kind == "transaction")
        samples = sampled(peers, plan.rounds, used(settings, plan.seconds))
        fill(table, kind, samples)
        for name, values in beyond_bare(peers, samples):
            for value in values:
                table.add(name, **{f"{kind}_over": value})


def beyond_bare(peers: Sequence[Peer | AsyncPeer], samples: Samples[float]) -> Iterator[tuple[str, list[float]]]:
    """By how much each exceeds the bare connection of its own driver, round by round."""
    bare = {peer.driver: samples.taken.get(peer.name, []) for peer in peers if peer.name.startswith("bare")}
    for peer in peers:
        own = samples.taken.get(peer.name, [])
        yield peer.name, [a - b for a, b in zip(own, bare.get(peer.driver, []), strict=False)]


def targets(peers: Sequence[Peer | AsyncPeer], most: float) -> Iterator[Target]:
    """A pool of ours is to cost so many microseconds more than the bare connection."""
    for peer in peers:
        if peer.name.startswith("poolkit") and peer.driver != "sqlite":
            text = f"{peer.name}: a transaction at most {most:g} us more than bare"
            yield Target(text, peer.name, "transaction_over", at_most=most)


# which connection comes next


def orders(report: Report, url: str, plan: Plan, servers: Iterable[int] = (), most: int = IDLE[-1]) -> None:
    """Last in first out against first in first out, with so many idle: whose memory and processor caches are warm."""
    steps = [number for number in IDLE if number <= most]
    columns = [Column(str(number), f"{number} idle", 1, "us", "less") for number in steps]
    table = report.table(
        "SELECT 1, which idle connection is taken", *columns, key="query-orders", headline=columns[-1].key,
        baseline="poolkit, lifo", note="one thread, autocommit",
    )  # fmt: skip
    with pinned(servers):
        for _, (order, idle) in interleaved([(o, i) for i in steps for o in ("lifo", "fifo")], plan.rounds):
            with quiet(), filled(url, order, idle) as pool:
                table.add(f"poolkit, {order}", **{str(idle): one(pool, plan.seconds)})


@contextmanager
def filled(url: str, order: Any, idle: int) -> Iterator[Pool[Any]]:
    """A pool with so many idle connections."""
    pool: Pool[Any] = Pool(url, max_size=idle, order=order)
    try:
        for lease in [pool.acquire() for _ in range(idle)]:
            lease.release()
        yield pool
    finally:
        pool.close(1)


def one(pool: Pool[Any], seconds: float) -> float:
    """Microseconds of a statement through the pool."""

    def loop(times: int) -> None:
        for _ in range(times):
            with pool.acquire() as connection:
                connection.execute("SELECT 1").fetchone()

    return per_call(loop, calibrated(loop, seconds))
