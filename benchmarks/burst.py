"""Everybody at once on an empty pool: how long until all are served, against the best that is possible.

So many threads, or tasks, ask in the same moment. A connect takes 30 ms and each holds its connection for 5 ms, so a
pool of 10 that opens all it may at once needs 30 + 5 * ceil(n / 10) ms. `ideal` is a bare queue of ten places, which
says how much of the rest is the machine's.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence

from benchmarks.report import Column, Report, Table, Target, arguments, interleaved
from benchmarks.stand_ins import ASYNC, SYNC, AsyncBorrow, AsyncStandIn, Borrow, Line, StandIn, there

SIZE = 10
CONNECT = 0.03
HOLD = 0.005
CROWDS = (100, 10)
COLUMNS = (
    Column("total", "until all are served, ms", 1, "ms", "less"),
    Column("ratio", "times ideal", 2, "x", "less"),
    Column("opened", "opened"),
)


def least(crowd: int) -> float:
    """Seconds in which that many can be served at best."""
    return CONNECT + HOLD * math.ceil(crowd / SIZE)


def rush(borrow: Borrow, crowd: int) -> float:
    """Let threads loose in one moment; return the seconds until the last has what it came for."""
    start = threading.Barrier(crowd + 1)
    done: list[float] = []

    def one() -> None:
        start.wait()
        with borrow():
            time.sleep(HOLD)
        done.append(time.perf_counter())

    threads = [threading.Thread(target=one, name=f"bench-{number}") for number in range(crowd)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()  # before the barrier: who is let go first may be done before we come round again
    start.wait()
    for thread in threads:
        thread.join()
    if len(done) != crowd:
        raise RuntimeError(f"{crowd - len(done)} of {crowd} threads got no connection")
    return max(done) - began


async def rush_async(borrow: AsyncBorrow, crowd: int) -> float:
    """Let tasks loose in one moment; return the seconds until the last has what it came for."""

    async def one() -> None:
        async with borrow():
            await asyncio.sleep(HOLD)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(crowd)))
    return time.perf_counter() - began


def measured(stand_in: StandIn, crowd: int) -> tuple[float, int]:
    """Rush at a new pool; return the seconds, and how many connections it opened."""
    line = Line(CONNECT)
    with stand_in.opened(line, SIZE) as borrow:
        took = rush(borrow, crowd)
    return took, line.opened


async def measured_async(stand_in: AsyncStandIn, crowd: int) -> tuple[float, int]:
    """Rush at a new pool of tasks; return the seconds, and how many connections it opened."""
    line = Line(CONNECT)
    async with stand_in.opened(line, SIZE) as borrow:
        took = await rush_async(borrow, crowd)
    return took, line.opened


def one_sample(stand_in: StandIn | AsyncStandIn, crowd: int) -> tuple[float, int]:
    """Measure either kind."""
    if isinstance(stand_in, StandIn):
        return measured(stand_in, crowd)
    return asyncio.run(measured_async(stand_in, crowd))


def fill(table: Table, stand_ins: Sequence[StandIn | AsyncStandIn], crowd: int, rounds: int) -> None:
    """Measure each in turn, and set each sample in relation to the ideal of the same round."""
    for stand_in in stand_ins:
        table.add(stand_in.name)  # the rows in this order, whichever is measured first
    taken: dict[int, dict[str, float]] = {}
    for number, stand_in in interleaved(stand_ins, rounds):
        took, opened = one_sample(stand_in, crowd)
        taken.setdefault(number, {})[stand_in.name] = took
        table.add(stand_in.name, total=took * 1000, opened=opened)
    for times in taken.values():
        for name, took in times.items():
            table.add(name, ratio=took / times["ideal"])


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("burst", "Everybody at once on an empty pool.", rounds=7)
    options = parser.parse_args(argv)
    rounds = 2 if options.quick else options.rounds
    report = Report("burst")
    worlds: tuple[tuple[str, Sequence[StandIn | AsyncStandIn]], ...] = (("threads", SYNC), ("tasks", ASYNC))
    for crowd in CROWDS:
        for world, stand_ins in worlds:
            table = report.table(
                f"{crowd} {world} at once on an empty pool of {SIZE}",
                *COLUMNS,
                note=f"connect {CONNECT * 1000:.0f} ms, hold {HOLD * 1000:.0f} ms: "
                f"{least(crowd) * 1000:.0f} ms at best",
                key=f"burst-{world}-{crowd}",
                baseline="ideal",
                targets=[Target(f"{crowd} {world} at once: at most 1.1 times ideal", "poolkit", "ratio", at_most=1.1)],
            )
            fill(table, [stand_in for stand_in in stand_ins if there(stand_in.needs)], crowd, rounds)
    report.finish(options.json)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
