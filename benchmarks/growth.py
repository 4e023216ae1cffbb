"""How each cost grows: with the connections that lie idle, with those who wait, with the number of pools and threads.

Connections cost nothing here (see stand_ins), and the process is pinned to one CPU where the system can do that: what
is measured is the pools' own work. Every configuration is built first; then all are measured in turn, a few
milliseconds each. One borrowing is `with pool.acquire(): pass`, or what the library has for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.growth_async import AsyncGrowth
from benchmarks.growth_sync import SyncGrowth
from benchmarks.report import Column, Report, Table, arguments

DECADES = (1, 10, 100, 1000)
IDLE = (*DECADES, 10000)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Keep this process on one CPU, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def table(report: Report, title: str, steps: Sequence[int], digits: int, note: str = "") -> Table:
    """Begin a table whose columns are the steps of one growth."""
    columns = [Column(str(step), f"{step:,}", digits) for step in steps]
    return report.table(title, *columns, note=note)


Probe = tuple[Table, Callable[[Table, int], None]]


def probes(report: Report, world: SyncGrowth | AsyncGrowth, name: str, seconds: float) -> list[Probe]:
    """Begin a world's tables, each with what fills it."""
    borrowed = f"us for one borrowing, {name}"
    return [
        (table(report, f"{borrowed}, by connections that lie idle", IDLE, 2), world.by_idle),
        (
            table(report, f"{borrowed}, by number of pools", DECADES, 2, "10 idle connections in each"),
            world.by_pools,
        ),
        (
            table(report, f"us for one hand-off, {name}, by how many wait", DECADES, 1, "one connection for all"),
            world.by_waiters,
        ),
        (table(report, f"us for one snapshot of stats, {name}, by connections that lie idle", IDLE, 2), world.stats),
        (table(report, f"ms for one visit of the housekeeper, {name}, by connections", IDLE, 3), world.sweep),
        (
            table(
                report, f"% of a core for housekeeping, {name}, by number of pools", DECADES, 3,
                f"CPU time of a process that does nothing else for {seconds:g} s; 10 idle connections in each pool",
            ),
            lambda table, rounds: world.housekeeping(table, max(1, rounds // 4), seconds),
        ),
        *world.own(report, table),
    ]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("growth", "How each cost changes with what there is of it.", rounds=9)
    parser.add_argument("--only", metavar="TEXT", default="", help="only the tables with this in their title")
    options = parser.parse_args(argv)
    rounds = 3 if options.quick else options.rounds
    seconds = 1.5 if options.quick else 4.0
    report = Report("growth")
    began = time.monotonic()
    with pinned():
        for world, name in ((SyncGrowth(DECADES, IDLE), "threads"), (AsyncGrowth(DECADES, IDLE), "asyncio")):
            for empty, fill in probes(report, world, name, seconds):
                if options.only in empty.title:
                    fill(empty, rounds)
    report.tables = [filled for filled in report.tables if filled.rows]
    report.conditions["seconds"] = round(time.monotonic() - began, 1)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
