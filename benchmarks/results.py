"""What a suite has written as JSON, read back for the page; the format is told in `poolkit.bench.report`.

A file that is no result of a suite, or of another format, gets one error that names it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poolkit.bench.report import FORMAT

__all__ = ["Cell", "Column", "Result", "ResultError", "Table", "Target", "load", "read"]

DISTRIBUTION = ("p50", "p99", "max")


class ResultError(ValueError):
    """A file is not what a suite writes."""


@dataclass(frozen=True)
class Column:
    """One thing that was measured."""

    key: str
    heading: str
    unit: str
    better: str
    digits: int


@dataclass(frozen=True)
class Cell:
    """All samples of one thing in one row, in the order taken; there is at least one."""

    samples: tuple[float, ...]
    low: float
    high: float

    @property
    def middle(self) -> float:
        """The median."""
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Target:
    """What was aimed at, and what came of it; `reached` is None where it was not measured."""

    text: str
    limit: str
    value: float | None
    reached: bool | None


@dataclass(frozen=True)
class Table:
    """Rows by name, each with its cells by the column's key; what was not measured is not there."""

    key: str
    title: str
    note: str
    columns: tuple[Column, ...]
    headline: str
    roles: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Cell]]
    targets: tuple[Target, ...]

    def of(self, key: str) -> dict[str, Cell]:
        """One column, by the row's name."""
        return {name: cells[key] for name, cells in self.rows.items() if key in cells}

    def column(self, key: str) -> Column:
        """Find a column. Raises `KeyError` where there is none of that name."""
        for column in self.columns:
            if column.key == key:
                return column
        raise KeyError(key)

    @property
    def steps(self) -> dict[str, int]:
        """The columns as numbers, where each is a step of a growth; else nothing."""
        if len(self.columns) < 2 or not all(column.key.isdigit() for column in self.columns):
            return {}
        return {column.key: int(column.key) for column in self.columns}

    @property
    def has_distribution(self) -> bool:
        """Whether it tells of p50, p99 and the longest."""
        return {*DISTRIBUTION} <= {column.key for column in self.columns}


@dataclass(frozen=True)
class Result:
    """One run of a suite."""

    suite: str
    conditions: Mapping[str, Any]
    tables: tuple[Table, ...]


def load(files: Sequence[Path]) -> list[Result]:
    """Read the files of several suites. Raises `ResultError`, naming the file that can't be read as one."""
    results: dict[str, Result] = {}
    for file in files:
        result = _load(file)
        if result.suite in results:
            raise ResultError(f"{file}: is the second result of the suite {result.suite}; give one file for each")
        results[result.suite] = result
    return list(results.values())


def _load(file: Path) -> Result:
    advice = "give the files that `bench SUITE --json FILE` wrote"
    try:
        return read(json.loads(file.read_text()))
    except OSError as error:
        raise ResultError(f"{file}: can't be read ({error.strerror}); {advice}") from error
    except json.JSONDecodeError as error:
        raise ResultError(f"{file}: is not JSON ({error}); {advice}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultError(f"{file}: is no result ({type(error).__name__}: {error}); {advice}") from error


def read(plain: Mapping[str, Any]) -> Result:
    """Make sense of one suite's JSON. Raises `ValueError`, `KeyError` or `TypeError` where there is none."""
    if plain["format"] != FORMAT:
        raise ValueError(f"format {plain['format']!r}, and this reads format {FORMAT}: measure again")
    return Result(str(plain["suite"]), dict(plain["conditions"]), tuple(_table(table) for table in plain["tables"]))


def _table(plain: Mapping[str, Any]) -> Table:
    return Table(
        key=str(plain["key"]),
        title=str(plain["title"]),
        note=str(plain["note"]),
        columns=tuple(
            Column(column["key"], column["heading"], column["unit"], column["better"], int(column["digits"]))
            for column in plain["columns"]
        ),
        headline=str(plain["headline"]),
        roles={str(name): str(role) for name, role in plain["roles"].items()},
        rows={str(name): _cells(cells) for name, cells in plain["rows"].items()},
        targets=tuple(_target(target) for target in plain["targets"]),
    )


def _cells(plain: Mapping[str, Any]) -> dict[str, Cell]:
    return {
        str(key): Cell(tuple(float(value) for value in cell["all"]), float(cell["q1"]), float(cell["q3"]))
        for key, cell in plain.items()
        if cell["all"]
    }


def _target(plain: Mapping[str, Any]) -> Target:
    bounds = [(sign, plain[name]) for name, sign in (("at_most", "\u2264"), ("at_least", "\u2265")) if name in plain]
    limits = [f"{sign} {bound:g}" for sign, bound in bounds]
    if len(bounds) == 2 and bounds[0][1] == bounds[1][1]:
        limits = [f"{bounds[0][1]:g}, exactly"]
    value = plain["value"]
    return Target(str(plain["text"]), " and ".join(limits), None if value is None else float(value), plain["reached"])
