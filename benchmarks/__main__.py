"""`python3 run.py bench [SUITE ...] [--quick] ...`: run suites, all of them unless some are named.

With `--report DIR` a page is made of what they measure, or of JSON files that they wrote before: see `collect`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from benchmarks import collect

SUITES = (
    "micro", "query", "round_trips", "contention",
    "recovery", "overload", "fastapi_threads", "requests", "burst", "memory", "growth",
)  # fmt: skip
BY_NAME = ("against", "resets")  # they have arguments of their own


def main(argv: Sequence[str]) -> int:
    """Run the suites that are named first, each with the arguments that follow; return the exit status."""
    if "--report" in argv:
        where = argv.index("--report")
        return collect.main([*argv[where + 1 : where + 2], *argv[:where], *argv[where + 2 :]], SUITES)
    named = []
    rest = list(argv)
    while rest and not rest[0].startswith("-"):
        named.append(rest.pop(0))
    if named and named[0] in BY_NAME:  # what follows are its own arguments
        return int(importlib.import_module(f"benchmarks.{named[0]}").main([*named[1:], *rest]))
    unknown = [name for name in named if name not in SUITES]
    if unknown:
        sys.stderr.write(f"bench: no suite {unknown[0]!r}; there are {', '.join((*SUITES, *BY_NAME))}\n")
        return 2
    if not named and {"-h", "--help"} & set(rest):
        sys.stdout.write(f"python3 run.py bench [SUITE ...] [options]\n\nsuites: {', '.join((*SUITES, *BY_NAME))}\n")
        sys.stdout.write("Each says with --help which options it takes; --quick is common to all.\n")
        sys.stdout.write(
            "--report DIR [SUITE ... | FILE.json ...]: make a page of what they measure, or have measured\n"
        )
        return 0
    if len(named) != 1 and "--json" in rest:
        sys.stderr.write("bench: --json is for one suite; name it\n")
        return 2
    status = 0
    for name in named or SUITES:
        status |= importlib.import_module(f"benchmarks.{name}").main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
