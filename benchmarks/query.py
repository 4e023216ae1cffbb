"""One SELECT 1 through each pool, over TCP and over a Unix socket, client and server on one processor.

What crosses from one processor to another takes several times as long as all else, and only chance says whether it
does.
Both are pinned, where the system can do that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.report import Report, arguments
from benchmarks.stand_in_peers import DRIVERS
from poolkit.bench import query
from poolkit.bench.sampling import Plan
from poolkit.testing.postgres import LocalPostgres


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("query", "One SELECT 1 through each pool.", rounds=7)
    parser.add_argument("--way", choices=("tcp", "unix"), help="only this way to the server")
    options = parser.parse_args(argv)
    plan = Plan.quick() if options.quick else Plan(rounds=options.rounds)
    report = Report("query")
    with LocalPostgres(jit=False) as postgres:
        ways = {"TCP": postgres.dsn, "Unix socket": postgres.socket_dsn}
        if options.way is not None:
            ways = {name: url for name, url in ways.items() if name.lower().startswith(options.way)}
        servers = [] if postgres.pid is None else [postgres.pid]  # what it starts later is pinned with it
        query.run(report, ways, DRIVERS, plan, servers)
        query.orders(report, next(iter(ways.values())), plan, servers)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
