"""What a pool costs in memory: its own objects, and the process with real connections in it.

The first table counts bytes of Python objects (tracemalloc) over connections that cost nothing: what is allocated for
the connections themselves is left out, so the rest is the pool's. The second opens real connections in a process of
its own for each library, and divides what that process grew by (USS: the pages that are nobody else's).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import memory_real, stand_ins
from benchmarks.report import Column, Report, Table, arguments, interleaved
from benchmarks.stand_ins import ASYNC, SYNC, AsyncStandIn, Line, StandIn, there
from poolkit.testing.postgres import LocalPostgres

POOLS = 20
IDLE = 1000
REAL = 100
OBJECTS = (
    Column("idle", "B per idle connection", 0, "B", "less"),
    Column("empty", "B per empty pool", 0, "B", "less"),
    Column("threads", "threads per pool", 1, "threads", "less"),
)
PROCESS = (
    Column("uss", "KiB per connection", 1, "KiB", "less"),
    Column("over", "KiB more than bare", 1, "KiB", "less"),
)


def objects() -> int:
    """Bytes of all Python objects made since tracing began, less those of the connections."""
    gc.collect()
    not_ours = (tracemalloc.Filter(False, stand_ins.__file__), tracemalloc.Filter(False, tracemalloc.__file__))
    taken = tracemalloc.take_snapshot().filter_traces(not_ours)
    return sum(trace.size for trace in taken.traces)


class Count:
    """What was there before, and what came in between."""

    def __init__(self) -> None:
        self.samples: dict[str, float] = {}
        self._threads = threading.active_count()
        self._bytes = objects()

    def pools_made(self) -> None:
        """The empty pools are there."""
        now = objects()
        self.samples["empty"] = (now - self._bytes) / POOLS
        self.samples["threads"] = (threading.active_count() - self._threads) / POOLS
        self._bytes = now

    def filled(self) -> None:
        """One of them has all its connections, and all of them lie idle."""
        self.samples["idle"] = (objects() - self._bytes) / IDLE


def count(stand_in: StandIn) -> dict[str, float]:
    """Count a library's objects."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(stand_in.opened(Line(), 1))  # what it imports and builds once is not a pool's
        counted = Count()
        borrows = [stack.enter_context(stand_in.opened(Line(), IDLE)) for _ in range(POOLS)]
        counted.pools_made()
        with contextlib.ExitStack() as held:
            for _ in range(IDLE):
                held.enter_context(borrows[0]())
        del held
        counted.filled()
    return counted.samples


async def count_async(stand_in: AsyncStandIn) -> dict[str, float]:
    """Count the objects of one for asyncio."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(stand_in.opened(Line(), 1))
        counted = Count()
        borrows = [await stack.enter_async_context(stand_in.opened(Line(), IDLE)) for _ in range(POOLS)]
        counted.pools_made()
        async with contextlib.AsyncExitStack() as held:
            for _ in range(IDLE):
                await held.enter_async_context(borrows[0]())
        del held
        await asyncio.sleep(0)  # the tasks that opened them are done, and go
        counted.filled()
    return counted.samples


def counted(stand_in: StandIn | AsyncStandIn) -> dict[str, float]:
    """Count either kind, traced from its first allocation on."""
    tracemalloc.start()
    try:
        return count(stand_in) if isinstance(stand_in, StandIn) else asyncio.run(count_async(stand_in))
    finally:
        tracemalloc.stop()


def count_all(table: Table, candidates: Sequence[StandIn | AsyncStandIn], rounds: int) -> None:
    """Count each that is installed, but for the ideal one, which is no pool."""
    chosen = [stand_in for stand_in in candidates if stand_in.name != "ideal" and there(stand_in.needs)]
    for _, stand_in in interleaved(chosen, rounds):
        table.add(stand_in.name, **counted(stand_in))


def grown(name: str, dsn: str) -> float:
    """Bytes that a process of its own grew by for each real connection."""
    command = [sys.executable, "-m", memory_real.__name__, name, dsn, str(REAL)]
    root = str(Path(__file__).resolve().parent.parent)
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=root)
    bytes_each: float = json.loads(said.stdout)
    return bytes_each


def weigh_all(table: Table, rounds: int, weigh: Callable[[str, str], float] = grown) -> None:
    """Weigh each library's process, and set it in relation to the bare connections of the same driver and round."""
    chosen = [name for name, way in memory_real.WAYS.items() if there(way.needs)]
    found: dict[int, dict[str, float]] = {}
    with LocalPostgres(max_connections=REAL + 10) as postgres:
        for number, name in interleaved(chosen, rounds):
            found.setdefault(number, {})[name] = weigh(name, postgres.dsn) / 1024
    for weights in found.values():
        for name in chosen:
            bare = weights[memory_real.WAYS[name].bare]
            table.add(name, uss=weights[name], over=weights[name] - bare)


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("memory", "What a pool costs in memory.", rounds=3)
    options = parser.parse_args(argv)
    rounds = 1 if options.quick else options.rounds
    report = Report("memory")
    about = f"{POOLS} empty pools, then {IDLE:,} idle connections in one of them; connections' own objects left out"
    for world, candidates in (("threads", SYNC), ("asyncio", ASYNC)):
        table = report.table(f"The pool's own objects, {world}", *OBJECTS, note=about, key=f"memory-objects-{world}")
        count_all(table, candidates, rounds)
    real = report.table(
        "A process with real connections",
        *PROCESS,
        note=f"growth from 1 to {REAL + 1} of them",
        key="memory-process",
        roles={way.bare: "floor" for way in memory_real.WAYS.values()},
    )
    weigh_all(real, rounds)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
