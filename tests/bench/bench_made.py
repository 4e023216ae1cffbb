"""Results made by hand, as a suite would write them."""

from __future__ import annotations

from typing import Any

from benchmarks.report import Column, Report, Table, Target
from benchmarks.results import Result, read

US = Column("us", "us", 2, "us", "less")


def report(suite: str = "micro") -> Report:
    """An empty report, of conditions that don't change."""
    made = Report(suite)
    made.conditions = {
        "python": "3.12.1", "machine": "Linux", "load before": 0.5, "load after": 0.7, "versions": {"psycopg": "3.3"},
    }  # fmt: skip
    return made


def table_of(rows: dict[str, tuple[float, ...]], *, better: str = "less", **more: Any) -> tuple[Report, Table]:
    """A report with one table of one column."""
    made = report()
    kind: Any = better
    table = made.table("borrow and return", Column("us", "us", 2, "us", kind), key="micro-threads", **more)
    for name, samples in rows.items():
        for sample in samples:
            table.add(name, us=sample)
    return made, table


def result_of(made: Report) -> Result:
    """What the page reads of it."""
    return read(made.plain())


def growth() -> Report:
    """A table whose columns are steps."""
    made = report("growth")
    table = made.table("One borrowing, threads", *(Column(str(n), f"{n:,}", 2, "us", "less") for n in (1, 10, 1000)))
    table.key = "growth-idle-threads"
    table.add("poolkit", **{"1": 1.0, "10": 1.1, "1000": 1.2})
    table.add("psycopg_pool", **{"1": 4.0, "10": 5.0})
    return made


def waits() -> Report:
    """A table with a distribution; the one who starves others looks best in the middle."""
    made = report("contention")
    table = made.table(
        "32 threads", *(Column(key, key, 1, "ms", "less") for key in ("p50", "p99", "max")),
        targets=[Target("p99 at most 9 ms", "poolkit", "p99", at_most=9.0)],
    )  # fmt: skip
    table.add("queue.LifoQueue", p50=0.0, p99=0.1, max=3006.0)
    table.add("poolkit", p50=6.8, p99=8.5, max=12.0)
    return made
