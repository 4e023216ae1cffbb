"""How often each asks the server and waits for the answer, counted: the same on every machine.

There is always a PostgreSQL; a MariaDB is measured as well where its programs are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.report import Report, arguments
from benchmarks.stand_in_peers import DRIVERS
from poolkit.bench import round_trips
from poolkit.testing.mariadb import LocalMariadb, MariadbNotFound
from poolkit.testing.postgres import LocalPostgres


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    options = arguments("round_trips", "Round trips, counted by a proxy.", rounds=1).parse_args(argv)
    report = Report("round_trips")
    with LocalPostgres() as postgres:
        round_trips.run(report, postgres.dsn, DRIVERS)
    try:
        with LocalMariadb() as mariadb:
            round_trips.run(report, mariadb.dsn, ("pymysql",), "MariaDB")
    except MariadbNotFound as absent:
        sys.stderr.write(f"round_trips: without MariaDB; {absent}\n")
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
