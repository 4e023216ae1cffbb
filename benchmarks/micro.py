"""What taking a connection and giving it back costs: over connections that cost nothing, and over real ones.

The first two tables are the pools' own work alone; see stand_ins. The others are those of `poolkit bench URL micro`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.report import Report, Target, arguments
from benchmarks.stand_in_peers import DRIVERS, async_stand_ins, stand_ins
from poolkit.bench import floors, micro
from poolkit.bench.peers import Settings
from poolkit.bench.sampling import Plan
from poolkit.testing.postgres import LocalPostgres


def fakes(report: Report, plan: Plan) -> None:
    """Measure without a server."""
    settings = Settings("")
    for world, least, peers in (
        ("threads", floors.SYNC, stand_ins()),
        ("asyncio", floors.ASYNC, async_stand_ins()),
    ):
        table = report.table(
            f"borrow and return, {world}, connections that cost nothing", micro.US, micro.TIMES,
            key=f"micro-{world}-fakes", baseline="poolkit", targets=targets(world),
        )  # fmt: skip
        micro.measure(table, [*least, *peers], settings, plan, "poolkit")


def targets(world: str) -> list[Target]:
    """What the project aims at."""
    if world == "asyncio":
        return [_times("0.15 of psycopg_pool", "psycopg_pool", 0.15)]
    return [
        _times("a quarter of psycopg_pool", "psycopg_pool", 0.25),
        _times("a quarter of SQLAlchemy", "SQLAlchemy", 0.25),
        _times("5 times a lock and a deque", floors.LOCK_AND_DEQUE, 5),
    ]


def _times(text: str, of: str, most: float) -> Target:
    return Target(f"poolkit: at most {text}", "poolkit", "us", at_most=most, how="ratio", of=of)


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("micro", "What taking a connection and giving it back costs.", rounds=9)
    options = parser.parse_args(argv)
    plan = Plan.quick() if options.quick else Plan(rounds=options.rounds)
    report = Report("micro")
    fakes(report, plan)
    with LocalPostgres() as postgres:
        micro.run(report, postgres.dsn, DRIVERS, plan)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
