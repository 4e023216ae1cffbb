"""How often each asks the server and waits for the answer, counted: the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.report import Report, arguments
from benchmarks.stand_in_peers import DRIVERS
from poolkit.bench import round_trips
from poolkit.bench.sampling import Plan
from poolkit.testing.postgres import LocalPostgres


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    options = arguments("round_trips", "Round trips, counted by a proxy.", rounds=1).parse_args(argv)
    report = Report("round_trips")
    with LocalPostgres() as postgres:
        round_trips.run(report, postgres.dsn, DRIVERS, Plan(rounds=options.rounds))
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
