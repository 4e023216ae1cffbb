"""What the suites share: samples in tables, the conditions they were taken under, what is aimed at, and the JSON of it.

The JSON is made to be drawn by who knows nothing of the suite:

    {"format": 1, "suite": ..., "conditions": {...}, "tables": [{
        "key", "title", "note",
        "columns": [{"key", "heading", "unit", "better": "less" | "more" | "", "digits"}],
        "headline": the column that answers the table's question,
        "baseline": the row that ratios are taken against, or null,
        "roles": {row: "ours" | "floor" | "peer"},
        "rows": {row: {column: {"median", "low", "q1", "q3", "high", "all": [every sample, in the order taken]}}},
        "targets": [{"text", "row", "column", "how": "value" | "ratio" | "difference", "of": row or null,
                     "at_most" or "at_least", "value", "reached": true | false | null (not measured)}]}]}

The samples of all rows of a column belong together by their place: the third of each was taken in the third round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from poolkit.bench.figures import overhead, quartiles, ratio

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

__all__ = ["Better", "Column", "Report", "Role", "Table", "Target", "arguments", "spread"]

Better = Literal["less", "more", ""]
Role = Literal["ours", "floor", "peer"]
FORMAT = 1
WIDE = 160  # columns, where nobody's terminal sets a limit
DISTRIBUTIONS = (
    "poolkit", "psycopg", "psycopg-pool", "asyncpg", "psycopg2-binary", "SQLAlchemy", "DBUtils", "uvloop",
    "fastapi", "uvicorn", "anyio",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One thing that was measured: its key in the JSON, its heading, how many digits are worth showing.

    `unit` is that of the samples ("us", "ms", "ops/s", "%"); `better` says whether less or more of it is, if either.
    """

    key: str
    heading: str
    digits: int = 0
    unit: str = ""
    better: Better = ""

    def plain(self) -> dict[str, Any]:
        """The column as data."""
        return {
            "key": self.key,
            "heading": self.heading,
            "unit": self.unit,
            "better": self.better,
            "digits": self.digits,
        }


@dataclass(frozen=True)
class Target:
    """What a row is to reach: `at_most` or `at_least`, of its value, its ratio to another row, or its difference."""

    text: str
    row: str
    column: str
    at_most: float | None = None
    at_least: float | None = None
    how: Literal["value", "ratio", "difference"] = "value"
    of: str | None = None

    def measured(self, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> float | None:
        """The figure that is to be judged, or None where a row of it was not measured.

        Ratio and difference are taken round by round, and their median counts.
        """
        own = rows.get(self.row, {}).get(self.column, ())
        if self.how == "value" or self.of is None:
            return statistics.median(own) if own else None
        other = rows.get(self.of, {}).get(self.column, ())
        rounds = min(len(own), len(other))
        if not rounds or (self.how == "ratio" and not all(other[:rounds])):
            return None
        compared = ratio if self.how == "ratio" else overhead
        return compared(own[:rounds], other[:rounds])

    def reached(self, value: float | None) -> bool | None:
        """Whether the figure is within the limits; None where there is none."""
        if value is None:
            return None
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    def plain(self, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
        """The target as data, judged by these rows."""
        value = self.measured(rows)
        limit = {"at_most": self.at_most, "at_least": self.at_least}
        return {
            "text": self.text,
            "row": self.row,
            "column": self.column,
            "how": self.how,
            "of": self.of,
            **{name: bound for name, bound in limit.items() if bound is not None},
            "value": value,
            "reached": self.reached(value),
        }


@dataclass
class Table:
    """Rows by name; each cell holds all the samples taken for it.

    `headline` is the column that answers the table's question (the first unless named), `baseline` the row that others
    are compared with. A row whose role is not in `roles` has the one that its name tells: see `role`.
    """

    title: str
    columns: Sequence[Column]
    note: str = ""
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    key: str = ""
    headline: str = ""
    baseline: str | None = None
    roles: dict[str, Role] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def add(self, row: str, **samples: float) -> None:
        """Take one more sample for each of these columns."""
        cells = self.rows.setdefault(row, {column.key: [] for column in self.columns})
        for key, value in samples.items():
            cells[key].append(value)

    def role(self, row: str) -> Role:
        """Whose row it is: poolkit's own, a floor that no pool goes below, or another library's."""
        if row in self.roles:
            return self.roles[row]
        if re.search(r"\bpoolkit\b", row):
            return "ours"
        return "floor" if re.match(r"floor\b|bare\b|ideal\b", row) else "peer"

    def drawn(self) -> RichTable:
        """The table for a screen."""
        from rich import box  # noqa: PLC0415 - what measures needs no library; what draws does
        from rich.table import Table as RichTable  # noqa: PLC0415

        drawing = RichTable(
            title=self.title,
            caption=self.note or None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        drawing.add_column("", no_wrap=True)
        for column in self.columns:
            drawing.add_column(column.heading, justify="right")
        for name, cells in self.rows.items():
            style = "bold" if self.role(name) == "ours" else None
            drawing.add_row(name, *(spread(cells[column.key], column.digits) for column in self.columns), style=style)
        return drawing

    def plain(self) -> dict[str, Any]:
        """The table as data."""
        return {
            "key": self.key or re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-"),
            "title": self.title,
            "note": self.note,
            "columns": [column.plain() for column in self.columns],
            "headline": self.headline or (self.columns[0].key if self.columns else ""),
            "baseline": self.baseline if self.baseline in self.rows else None,
            "roles": {name: self.role(name) for name in self.rows},
            "rows": {name: _summaries(cells) for name, cells in self.rows.items()},
            "targets": [target.plain(self.rows) for target in self.targets],
        }


def spread(samples: Sequence[float], digits: int = 0) -> str:
    """Write samples as their median, with the range where there is one."""
    if not samples:
        return "-"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(samples), statistics.median(samples), max(samples)))
    return middle if low == high else f"{middle} ({low}-{high})"


def _summaries(cells: dict[str, list[float]]) -> dict[str, Any]:
    return {key: _summary(samples) for key, samples in cells.items() if samples}


def _summary(samples: list[float]) -> dict[str, Any]:
    lower, upper = quartiles(samples)
    return {
        "median": statistics.median(samples),
        "low": min(samples),
        "q1": lower,
        "q3": upper,
        "high": max(samples),
        "all": samples,
    }


class Report:
    """The tables of one run of a suite, and the state of the machine before and after."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.tables: list[Table] = []
        self.conditions: dict[str, Any] = {
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "load before": _load(),
            "versions": dict(_versions()),
        }

    def table(self, title: str, *columns: Column, note: str = "", **more: Any) -> Table:
        """Begin a table; `more` are the other fields of `Table`."""
        table = Table(title, columns, note, **more)
        self.tables.append(table)
        return table

    def finish(self, file: str | None, console: Console | None = None) -> None:
        """Show the tables, and write the JSON file if one was asked for."""
        from rich.console import Console  # noqa: PLC0415

        self.conditions["load after"] = _load()
        console = console or Console(width=None if sys.stdout.isatty() else WIDE)
        said = ", ".join(f"{name} {version}" for name, version in self.conditions["versions"].items())
        console.print(
            f"{self.suite}: Python {self.conditions['python']}, {self.conditions['machine']}, "
            f"load {self.conditions['load before']} before, {self.conditions['load after']} after; {said}",
            highlight=False,
        )
        for table in self.tables:
            console.print(table.drawn())
            for line in judged(table):
                console.print(line, highlight=False, markup=False)
        if file is not None:
            Path(file).write_text(json.dumps(self.plain(), indent=1) + "\n")

    def plain(self) -> dict[str, Any]:
        """The report as data."""
        tables = [table.plain() for table in self.tables]
        return {"format": FORMAT, "suite": self.suite, "conditions": self.conditions, "tables": tables}


def judged(table: Table) -> Iterator[str]:
    """Say of each target that was measured what came out."""
    for target in table.targets:
        value = target.measured(table.rows)
        if value is not None:
            yield f"  {'reached' if target.reached(value) else 'NOT reached'}: {target.text}; it is {value:.3g}"


def _load() -> float:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def _versions() -> Iterator[tuple[str, str]]:
    for name in DISTRIBUTIONS:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def arguments(suite: str, about: str, *, rounds: int) -> argparse.ArgumentParser:
    """Make the parser of a suite's command line, with the options common to all."""
    parser = argparse.ArgumentParser(prog=f"run.py bench {suite}", description=about)
    parser.add_argument("--quick", action="store_true", help="once through, and less of it")
    parser.add_argument("--rounds", type=_positive, default=rounds, help=f"how often each is measured ({rounds})")
    parser.add_argument("--json", metavar="FILE", help="write every sample to this file")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
