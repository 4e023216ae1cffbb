"""Many want few: throughput, waits, fairness and processor time; with a server, and over what costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.report import Report, Target, arguments
from benchmarks.stand_in_peers import DRIVERS, async_stand_ins, stand_ins
from poolkit.bench import contention
from poolkit.bench.contention import COLUMNS, Crowd
from poolkit.bench.measuring import pinned
from poolkit.bench.peers import AsyncPeer, Peer, Settings
from poolkit.bench.sampling import Plan
from poolkit.testing.postgres import LocalPostgres

SIZE, THREADS, TASKS = 8, 32, 200


def fakes(report: Report, plan: Plan) -> None:
    """Without a server: the pools' own work where nobody holds anything, and the waiting where all hold 1 ms."""
    threads, tasks = Crowd("threads", THREADS, 1.4), Crowd("tasks", TASKS, 1.15)
    crowds: tuple[tuple[Crowd, Sequence[Peer | AsyncPeer]], ...] = ((threads, stand_ins()), (tasks, async_stand_ins()))
    for crowd, peers in crowds:
        for hold, said in ((0.0, "nobody holds"), (0.001, "1 ms each")):
            table = report.table(
                f"{crowd.workers} {crowd.who} on {SIZE} stand-ins on one processor, {said}",
                *[column for column in COLUMNS if column.key != "ideal"],
                key=f"contention-{crowd.who}-fakes-{'hold' if hold else 'none'}", baseline="poolkit", headline="rate",
                targets=targets(crowd, hold),
            )  # fmt: skip
            with pinned():
                contention.measure(table, peers, Settings("", SIZE, hold=hold), crowd, plan)


def targets(crowd: Crowd, hold: float) -> list[Target]:
    """Twice as much as psycopg_pool, and fair; where connections are held, the waits as well."""
    fair = Target("poolkit: fairness at least 0.95", "poolkit", "fairness", at_least=0.95)
    if hold:
        bound = f"poolkit: p99 at most {crowd.most:g} times p50"
        return [Target(bound, "poolkit", "spread", at_most=crowd.most), fair]
    twice = "poolkit: at least twice psycopg_pool's rate"
    return [Target(twice, "poolkit", "rate", at_least=2, how="ratio", of="psycopg_pool"), fair]


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("contention", "Many want few.", rounds=3)
    parser.add_argument("--only", choices=("fakes", "server"), help="one half of it")
    options = parser.parse_args(argv)
    plan = Plan.quick() if options.quick else Plan(contentions=options.rounds)
    report = Report("contention")
    if options.only != "server":
        fakes(report, plan)
    if options.only != "fakes":
        with LocalPostgres() as postgres:
            contention.run(report, postgres.dsn, DRIVERS, plan, size=SIZE)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
