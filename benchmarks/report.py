"""What the suites share: samples, tables of medians with their range, the conditions they were taken under, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

__all__ = ["Column", "Report", "Table", "arguments", "interleaved", "spread"]

T = TypeVar("T")
WIDE = 160  # columns, where nobody's terminal sets a limit
DISTRIBUTIONS = ("psycopg", "psycopg-pool", "asyncpg", "SQLAlchemy", "fastapi", "uvicorn", "anyio")


@dataclass(frozen=True)
class Column:
    """One thing that was measured: its key in the JSON, its heading, how many digits are worth showing."""

    key: str
    heading: str
    digits: int = 0


@dataclass
class Table:
    """Rows by name; each cell holds all the samples taken for it."""

    title: str
    columns: Sequence[Column]
    note: str = ""
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, row: str, **samples: float) -> None:
        """Take one more sample for each of these columns."""
        cells = self.rows.setdefault(row, {column.key: [] for column in self.columns})
        for key, value in samples.items():
            cells[key].append(value)

    def drawn(self) -> RichTable:
        """The table for a screen."""
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
            drawing.add_row(name, *(spread(cells[column.key], column.digits) for column in self.columns))
        return drawing

    def plain(self) -> dict[str, Any]:
        """The table as data."""
        return {"title": self.title, "rows": {name: _summaries(cells) for name, cells in self.rows.items()}}


def spread(samples: Sequence[float], digits: int = 0) -> str:
    """Write samples as their median, with the range where there is one."""
    if not samples:
        return "-"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(samples), statistics.median(samples), max(samples)))
    return middle if low == high else f"{middle} ({low}-{high})"


def _summaries(cells: dict[str, list[float]]) -> dict[str, Any]:
    return {key: {"median": statistics.median(samples), "all": samples} for key, samples in cells.items() if samples}


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

    def table(self, title: str, *columns: Column, note: str = "") -> Table:
        """Begin a table."""
        table = Table(title, columns, note)
        self.tables.append(table)
        return table

    def finish(self, file: str | None, console: Console | None = None) -> None:
        """Show the tables, and write the JSON file if one was asked for."""
        self.conditions["load after"] = _load()
        console = console or Console(width=None if sys.stdout.isatty() else WIDE)
        said = ", ".join(f"{name} {version}" for name, version in self.conditions["versions"].items())
        console.print(
            f"{self.suite}: Python {self.conditions['python']}, {self.conditions['machine']}, "
            f"load {self.conditions['load before']} before, {self.conditions['load after']} after; {said}"
        )
        for table in self.tables:
            console.print(table.drawn())
        if file is not None:
            Path(file).write_text(json.dumps(self.plain(), indent=1) + "\n")

    def plain(self) -> dict[str, Any]:
        """The report as data."""
        tables = [table.plain() for table in self.tables]
        return {"suite": self.suite, "conditions": self.conditions, "tables": tables}


def _load() -> float:
    return round(os.getloadavg()[0], 2)


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


def interleaved(items: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Go through all items in each round, there and back again, so that a drift of the machine hits all alike."""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            yield number, item
