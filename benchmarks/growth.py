"""How each cost grows: with the connections that lie idle, with those who wait, with the number of pools and threads.

Connections cost nothing here (see stand_ins), and the process is pinned to one CPU where the system can do that: what
is measured is the pools' own work. Every configuration is built first; then all are measured in turn, a few
milliseconds each. One borrowing is `with pool.acquire(): pass`, or what the library has for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.growth_async import AsyncGrowth
from benchmarks.growth_sync import SyncGrowth
from benchmarks.report import Column, Report, Table, Target, arguments
from poolkit.bench.measuring import pinned

DECADES = (1, 10, 100, 1000)
IDLE = (*DECADES, 10000)
GROWTHS = ("idle", "pools", "waiters", "looks", "housekeeping", "threads")
World = SyncGrowth | AsyncGrowth


def made(report: Report, key: str, title: str, steps: Sequence[int], column: Column, **more: Any) -> Table:
    """Begin a table whose columns are the steps of one growth; `column` has what is common to all."""
    columns = [replace(column, key=str(step), heading=f"{step:,}") for step in steps]
    return report.table(title, *columns, key=f"growth-{key}", **more)


US = Column("", "", 2, "us", "less")
MS = Column("", "", 3, "ms", "less")
SHARE = Column("", "", 3, "%", "less")
COUNT = Column("", "", 0, "threads", "less")


def of_idle(report: Report, world: World, name: str, rounds: int) -> None:
    """What a borrowing costs with so many idle connections in the pool."""
    title = f"One borrowing, {name}, by connections that lie idle"
    table = made(report, f"idle-{name}", title, IDLE, US)
    world.by_idle(table, rounds)
    times(report, table, "10,000 idle connections in a pool", "one")


def of_pools(report: Report, world: World, name: str, rounds: int) -> None:
    """What a borrowing costs with so many pools in the process."""
    title = f"One borrowing, {name}, by number of pools"
    table = made(report, f"pools-{name}", title, DECADES, US, note="10 idle connections in each")
    world.by_pools(table, rounds)
    times(report, table, "1,000 pools", "a single pool")


def times(report: Report, table: Table, big: str, small: str) -> None:
    """Set each step in relation to the first of the same round, and judge poolkit's last."""
    first, *_, last = (column.key for column in table.columns)
    columns = [replace(column, unit="x") for column in table.columns]
    relative = report.table(f"{table.title}: times that of {small}", *columns, key=f"{table.key}-times")
    for name, cells in table.rows.items():
        for step, samples in cells.items():
            for one, base in zip(samples, cells[first], strict=False):
                relative.add(name, **{step: one / base})
        if table.role(name) == "ours":
            text = f"{big}, {table.title.split(', ')[1]}: a borrowing costs at most 1.2 times that of {small} ({name})"
            relative.targets.append(Target(text, name, last, at_most=1.2))


def of_waiters(report: Report, world: World, name: str, rounds: int) -> None:
    """What a hand-off costs with so many in the queue."""
    title = f"One hand-off, {name}, by how many wait"
    world.by_waiters(made(report, f"waiters-{name}", title, DECADES, US, note="one connection for all"), rounds)


def of_looks(report: Report, world: World, name: str, rounds: int) -> None:
    """What a snapshot and a visit of the housekeeper cost, with so many idle connections."""
    title = f"One snapshot of stats, {name}, by connections that lie idle"
    world.stats(made(report, f"stats-{name}", title, IDLE, US), rounds)
    title = f"One visit of the housekeeper, {name}, by connections that lie idle"
    world.sweep(made(report, f"sweep-{name}", title, IDLE, MS), rounds)


def of_housekeeping(report: Report, world: World, name: str, rounds: int, seconds: float) -> None:
    """What pools take that nobody uses."""
    title = f"Housekeeping, {name}, by number of pools"
    note = f"CPU time of a process that does nothing else for {seconds:g} s; 10 idle connections in each pool"
    text = f"{DECADES[-1]:,} pools with 10 idle connections each, {name}: housekeeping under 1 % of a core"
    target = Target(text, "poolkit", str(DECADES[-1]), at_most=1.0)
    table = made(report, f"housekeeping-{name}", title, DECADES, SHARE, note=note, targets=[target])
    world.housekeeping(table, max(1, rounds // 4), seconds)


def of_threads(report: Report, world: SyncGrowth, rounds: int) -> None:
    """What only threads have: others that sleep, and those that a pool starts."""
    title = "One borrowing, threads, by threads that sleep"
    world.by_threads(made(report, "sleepers", title, DECADES, US), rounds)
    title = "Threads started, by number of pools"
    target = Target("no thread per pool", "poolkit", str(DECADES[-1]), at_most=1)
    world.threads(made(report, "threads", title, DECADES, COUNT, note="a second later", targets=[target]))


def measure(report: Report, only: str, rounds: int, seconds: float) -> None:
    """Fill the tables of those growths that are asked for."""
    threads = SyncGrowth(DECADES, IDLE)
    for world, name in ((threads, "threads"), (AsyncGrowth(DECADES, IDLE), "asyncio")):
        for growth, grow in (("idle", of_idle), ("pools", of_pools), ("waiters", of_waiters), ("looks", of_looks)):
            if only in ("", growth):
                grow(report, world, name, rounds)
        if only in ("", "housekeeping"):
            of_housekeeping(report, world, name, rounds, seconds)
    if only in ("", "threads"):
        of_threads(report, threads, rounds)


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("growth", "How each cost changes with what there is of it.", rounds=9)
    parser.add_argument("--only", default="", choices=GROWTHS, help="one of the growths")
    options = parser.parse_args(argv)
    rounds = 3 if options.quick else options.rounds
    seconds = 1.5 if options.quick else 4.0
    report = Report("growth")
    with pinned():
        measure(report, options.only, rounds, seconds)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
