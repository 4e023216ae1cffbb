"""From a table to what a reader sees: one question, its answer in a sentence, and the marks of one plot. Pure.

A table whose columns are numbers tells of a growth and becomes lines; the column it calls its headline becomes bars,
sorted, best first; and p50, p99 and the longest wait become ranges beside them. Ratios are to poolkit's best row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.results import DISTRIBUTION, Column, Result, Table

__all__ = ["Chart", "Mark", "Series", "charts_of", "figure", "shown", "times"]

OTHERS = "peer"
MANY = 12  # rows
# What each table answers: the first pattern that is found in "suite/key" of a table, or in "suite/:headline".
QUESTIONS: tuple[tuple[str, str], ...] = (
    (r"^micro/", "What does taking a connection cost? {title}"),
    (r"^query/query-orders", "Which of the idle connections is the best to take?"),
    (r"^query/query-(\w+)-(\w+)", r"What does a pool add to a transaction of one statement? \1, \2"),
    (r"^round_trips/", "How often is the server asked? {title}"),
    (r"^contention/.*:fairness$", "Is everybody served alike? {title}"),
    (r"^contention/", "How much is got done? {title}"),
    (r"^requests/.*called", "What does a request cost without a server? {title}"),
    (r"^requests/", "How many requests a second? {title}"),
    (r"^burst/.*threads-100", "A hundred threads meet an empty pool: when has everyone been served?"),
    (r"^burst/.*tasks-100", "The same with a hundred asyncio tasks?"),
    (r"^burst/.*threads-10$", "And only as many as the pool may open: does it open them all at once?"),
    (r"^burst/.*tasks-10$", "The same with ten tasks?"),
    (r"^memory/memory-objects-threads", "What does a pool for threads add to each idle connection?"),
    (r"^memory/memory-objects-asyncio", "And one for asyncio?"),
    (r"^memory/memory-process", "What does a process grow by for each real connection?"),
    (r"^growth/growth-idle-(\w+)$", r"Does a big pool cost more? One borrowing, \1"),
    (r"^growth/growth-pools-(\w+)$", r"Do many pools cost more? One borrowing, \1"),
    (r"^growth/growth-waiters-(\w+)$", r"Does a long queue cost more? One hand-off, \1"),
    (r"^growth/growth-stats-(\w+)$", r"May one look as often as one likes? A snapshot of stats, \1"),
    (r"^growth/growth-sweep-(\w+)$", r"How long is one visit of the housekeeper? A pool for \1"),
    (r"^growth/growth-housekeeping-(\w+)$", r"What do pools take that nobody uses? Pools for \1"),
    (r"^growth/growth-sleepers", "Do other threads of the process cost anything?"),
    (r"^growth/growth-threads", "How many threads do pools start?"),
)
SKIPPED = re.compile(r"^growth/growth-.*-times$")  # they are there to be judged; the plot of the figures is enough


@dataclass(frozen=True)
class Mark:
    """One row of bars or ranges: where its mark is, how far it spreads, and what is written beside it."""

    name: str
    role: str
    middle: float
    low: float
    high: float
    label: str
    longest: float | None = None


@dataclass(frozen=True)
class Series:
    """One line of a growth: its points, each with its spread."""

    name: str
    role: str
    points: tuple[tuple[float, float, float, float], ...]  # step, middle, low, high


@dataclass(frozen=True)
class Chart:
    """What is drawn for one table, and what is said about it."""

    key: str
    question: str
    answer: str
    kind: Literal["bars", "ranges", "lines"]
    axis: str
    table: Table
    marks: tuple[Mark, ...] = ()
    series: tuple[Series, ...] = ()

    @property
    def broad(self) -> bool:
        """Whether it has so many rows that it gets all of the page's width."""
        return len(self.marks) > MANY

    @property
    def alt(self) -> str:
        """The plot in words, with its numbers."""
        if self.kind == "lines":
            said = (f"{one.name} from {figure(one.points[0][1])} to {figure(one.points[-1][1])}" for one in self.series)
        else:
            said = (f"{mark.name} {mark.label}" for mark in self.marks)
        return f"{self.question} {self.axis}: {'; '.join(said)}."


def figure(value: float, digits: int | None = None) -> str:
    """Write a number with as many digits as it is worth: `digits` after the point, or three that count."""
    if digits is not None:
        return f"{value:,.{digits}f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def times(ratio: float) -> str:
    """Write a ratio: hundredths where they tell something, tenths above ten."""
    return f"{ratio:,.2f}" if ratio < 10 else f"{ratio:,.1f}" if ratio < 100 else f"{ratio:,.0f}"


def shown(unit: str) -> str:
    """Write a unit as it is printed."""
    return "\N{MICRO SIGN}s" if unit == "us" else unit


def charts_of(results: Sequence[Result]) -> Iterator[tuple[Result, list[Chart]]]:
    """Each result with its charts; a table in which nothing was measured has none."""
    for result in results:
        yield result, [chart for table in result.tables for chart in _charts(result.suite, table)]


def _charts(suite: str, table: Table) -> Iterator[Chart]:
    if SKIPPED.search(f"{suite}/{table.key}") or not any(table.rows.values()):
        return
    question = _question(suite, table)
    table = replace(table, key=_key(suite, table))
    if table.steps:
        yield _lines(table, question)
        return
    column = table.column(table.headline)
    if table.of(column.key):
        yield _bars(table, column, question)
    if table.has_distribution and table.of("p50"):
        yield _ranges(table)


def _key(suite: str, table: Table) -> str:
    """Name a chart, its files and its place in the page: letters, digits and dashes, and its suite in front."""
    named = re.sub(r"[^a-z0-9]+", "-", f"{suite}-{table.key}".lower()).strip("-")
    prefix = re.sub(r"[^a-z0-9]+", "-", suite.lower())
    return named.removeprefix(f"{prefix}-") if named.startswith(f"{prefix}-{prefix}-") else named


def _question(suite: str, table: Table) -> str:
    for pattern, question in QUESTIONS:
        found = re.search(pattern, f"{suite}/{table.key}") or re.search(pattern, f"{suite}/:{table.headline}")
        if found:
            return found.expand(question).replace("{title}", _title(table))
    return _title(table)


def _title(table: Table) -> str:
    return table.title[:1].upper() + table.title[1:]


def _bars(table: Table, column: Column, question: str) -> Chart:
    cells = table.of(column.key)
    ours = _best_of_ours(table, column)
    marks = [
        Mark(
            name, table.roles.get(name, OTHERS), cell.middle, cell.low, cell.high,
            _label(cell.middle, column, ours if name != ours[0] else None),
        )
        for name, cell in cells.items()
    ]  # fmt: skip
    marks.sort(key=lambda mark: mark.middle, reverse=column.better == "more")
    return Chart(table.key, question, _verdict(marks, column, ours), "bars", _axis(column), table, tuple(marks))


def _best_of_ours(table: Table, column: Column) -> tuple[str, float]:
    found = [(name, cell.middle) for name, cell in table.of(column.key).items() if table.roles.get(name) == "ours"]
    best = max if column.better == "more" else min
    return best(found, key=lambda row: row[1]) if found else ("", 0.0)


def _label(value: float, column: Column, ours: tuple[str, float] | None) -> str:
    unit = f" {shown(column.unit)}" if column.unit and column.unit != "x" else ""
    said = f"{figure(value, column.digits)}{unit}"
    return f"{said} · {times(value / ours[1])}\N{MULTIPLICATION SIGN}" if ours and ours[1] > 0 else said


def _axis(column: Column) -> str:
    good = {"less": "less is better", "more": "more is better"}.get(column.better, "")
    unit = f" ({shown(column.unit)})" if column.unit and column.unit not in column.heading.split() else ""
    return ", ".join(filter(None, (shown(column.heading) + unit, good)))


def _verdict(marks: Sequence[Mark], column: Column, ours: tuple[str, float]) -> str:
    """Say how ours does: its figure, the best other one and the worst."""
    name, value = ours
    others = [mark for mark in marks if mark.role == "peer"]
    if not name:
        return ""
    said = f"{name}: {_label(value, column, None)}"
    if not others or value <= 0:
        return f"{said}."
    first, last = others[0], others[-1]
    between = f"; {first.name} {times(first.middle / value)} times that"
    beyond = f", {last.name} {times(last.middle / value)} times" if last is not first else ""
    return f"{said}{between}{beyond}."


def _ranges(table: Table) -> Chart:
    """Half of all wait up to the mark, all but a hundredth up to the end of the line, one up to the dot."""
    middle, tail, longest = (table.of(key) for key in DISTRIBUTION)
    column = table.column("p50")
    marks = [
        Mark(
            name, table.roles.get(name, OTHERS), middle[name].middle, middle[name].middle, tail[name].middle,
            " · ".join(_wait(cells[name].middle) for cells in (middle, tail, longest)),
            longest[name].middle,
        )
        for name in middle
        if name in tail and name in longest
    ]  # fmt: skip
    marks.sort(key=lambda mark: (mark.longest or 0.0, mark.high))
    unit = shown(column.unit or "ms")
    worst = marks[-1]
    ours = next((mark for mark in marks if mark.role == "ours"), None)
    answer = f"{worst.name}: one waited for {figure(worst.longest or 0)} {unit}." if worst is not ours else ""
    if ours is not None:
        answer = f"{ours.name}: nobody waited longer than {figure(ours.longest or 0)} {unit}. {answer}".strip()
    title = f"Who starves? {_title(table)}"
    axis = f"p50 · p99 · longest, {unit}; less is better"
    return Chart(f"{table.key}-waits", title, answer, "ranges", axis, table, tuple(marks))


def _wait(value: float) -> str:
    return "<0.01" if value < 0.01 else figure(value)


def _lines(table: Table, question: str) -> Chart:
    steps = table.steps
    series = []
    for name, cells in table.rows.items():
        points = tuple(
            (float(step), cells[key].middle, cells[key].low, cells[key].high)
            for key, step in steps.items()
            if key in cells
        )
        if points:
            series.append(Series(name, table.roles.get(name, OTHERS), points))
    return Chart(
        table.key, question, _growth(series, table), "lines", _axis_of_growth(table), table, series=tuple(series)
    )


def _axis_of_growth(table: Table) -> str:
    unit = table.columns[0].unit
    return {"us": "microseconds", "ms": "milliseconds", "%": "% of one core"}.get(unit, unit)


def _growth(series: Sequence[Series], table: Table) -> str:
    unit = shown(table.columns[0].unit)
    said = []
    for one in series:
        if one.role == "ours" and len(one.points) > 1:
            first, last = one.points[0], one.points[-1]
            more = f", {times(last[1] / first[1])} times as much" if first[1] > 0 else ""
            said.append(f"{one.name}: {figure(first[1])} {unit} at {first[0]:,.0f}, {figure(last[1])} {unit} at "
                        f"{last[0]:,.0f}{more}.")  # fmt: skip
    return " ".join(said)
