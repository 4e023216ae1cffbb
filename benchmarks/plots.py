"""Charts drawn with matplotlib: the same drawing for a file (light, with its question) and for the page (its colours).

What goes into the page is SVG whose colours are replaced by the page's own, so that it turns dark with it. The marks
of poolkit have one colour everywhere, floors are hollow, and what else there is stays grey but in lines, where each
library keeps a tint of its own.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.charts import Chart, Mark, Series, figure

__all__ = ["inline", "save"]


@dataclass(frozen=True)
class Theme:
    """Colours of one drawing."""

    ink: str
    muted: str
    grid: str
    ours: str
    peer: str
    floor: str
    paper: str
    tints: tuple[str, ...]


LIGHT = Theme(
    ink="#1c2430", muted="#5d6878", grid="#e3e7ed", ours="#0b7a75", peer="#a9b4c2", floor="#7b8797", paper="#ffffff",
    tints=("#b45f06", "#6d4aa8", "#a33b56", "#4a6b8a"),
)  # fmt: skip
# Colours that stand for the page's; each is replaced by its variable.
VARIABLES = ("ink", "muted", "grid", "ours", "peer", "floor", "paper", "tint1", "tint2", "tint3", "tint4")
STANDS_FOR = {f"#0101{number:02x}": f"var(--{name})" for number, name in enumerate(VARIABLES, 16)}
_INK, _MUTED, _GRID, _OURS, _PEER, _FLOOR, _PAPER, *_TINTS = STANDS_FOR
PAGE = Theme(_INK, _MUTED, _GRID, _OURS, _PEER, _FLOOR, _PAPER, tuple(_TINTS))
LIBRARIES = ("psycopg_pool", "SQLAlchemy", "asyncpg", "")  # whose tint is whose; the last is everybody else's
WIDTH = 6.4  # inches
BROAD = 1.9  # times that, where the page gives it twice the room
FONT = {"font.family": "DejaVu Sans", "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "poolkit"}


def save(chart: Chart, folder: Path) -> list[str]:
    """Write the chart as SVG and PNG, named after its key; return the files' names."""
    names = []
    for kind in ("svg", "png"):
        name = f"{chart.key}.{kind}"
        drawn = _drawn(chart, LIGHT, titled=True)
        with mpl.rc_context(FONT):
            drawn.savefig(folder / name, dpi=160, facecolor=LIGHT.paper, bbox_inches="tight", metadata=_dateless(kind))
        names.append(name)
    return names


def inline(chart: Chart, prefix: str) -> str:
    """Draw the chart as SVG for the page; `prefix` keeps its ids apart from those of the others."""
    drawn = _drawn(chart, PAGE, titled=False)
    text = io.StringIO()
    with mpl.rc_context(FONT):
        drawn.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata=_dateless("svg"))
    return _at_home(text.getvalue(), prefix)


def _dateless(kind: str) -> dict[str, None]:
    return {"Date": None} if kind == "svg" else {"Software": None}


def _at_home(svg: str, prefix: str) -> str:
    """Make a drawing part of a page: no prologue, ids of its own, the page's colours and font, any width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for code, variable in STANDS_FOR.items():
        svg = svg.replace(code, variable)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    head, rest = svg.split(">", 1)
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + f' aria-hidden="true">{rest}'


def _drawn(chart: Chart, theme: Theme, *, titled: bool) -> Figure:
    with mpl.rc_context(FONT):
        draw = {"bars": _bars, "ranges": _ranges, "lines": _lines}[chart.kind]
        drawn = draw(chart, theme)
        if titled:
            top = 1 + 0.25 / drawn.get_figheight()  # above the axes' own title, whatever the height
            drawn.suptitle(chart.question, x=0.01, y=top, ha="left", fontsize=12, fontweight="bold", color=theme.ink)
    return drawn


def _rows(chart: Chart, theme: Theme) -> tuple[Figure, Any]:
    """A figure with a line for each mark, named at its left."""
    width = WIDTH * BROAD if chart.broad else WIDTH
    drawn = Figure(figsize=(width, 0.55 + 0.34 * len(chart.marks)), layout="constrained")
    axes = drawn.add_subplot()
    _plain(axes, theme)
    axes.set_yticks(range(len(chart.marks)), [mark.name for mark in chart.marks])
    axes.set_ylim(len(chart.marks) - 0.4, -0.6)
    for label, mark in zip(axes.get_yticklabels(), chart.marks, strict=True):
        label.set_color(theme.ours if mark.role == "ours" else theme.ink)
        label.set_fontweight("bold" if mark.role == "ours" else "normal")
    axes.grid(visible=True, axis="x", color=theme.grid, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(chart.axis, color=theme.muted, fontsize=9, loc="left")
    return drawn, axes


def _plain(axes: Any, theme: Theme) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(axis="both", which="both", colors=theme.muted, labelsize=9.5, length=0)
    axes.set_axisbelow(True)
    axes.patch.set_alpha(0)


def _bars(chart: Chart, theme: Theme) -> Figure:
    drawn, axes = _rows(chart, theme)
    top = max((mark.high for mark in chart.marks), default=0.0) or 1.0
    bottom = min(0.0, *(mark.low for mark in chart.marks)) if chart.marks else 0.0
    for place, mark in enumerate(chart.marks):
        color = {"ours": theme.ours, "floor": theme.floor}.get(mark.role, theme.peer)
        hollow = mark.role == "floor"
        axes.barh(
            place, mark.middle, height=0.62, facecolor="none" if hollow else color, edgecolor=color,
            linewidth=1.1 if hollow else 0,
        )  # fmt: skip
        if mark.high > mark.low:
            axes.plot([mark.low, mark.high], [place, place], color=theme.ink, linewidth=1.3, solid_capstyle="butt")
        _beside(axes, mark, place, max(mark.high, mark.middle, 0.0), theme)
    axes.set_xlim(bottom * 1.05, top * 1.24)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: figure(value)))
    return drawn


def _beside(axes: Any, mark: Mark, place: int, where: float, theme: Theme) -> None:
    axes.annotate(
        mark.label, (where, place), (6, 0), textcoords="offset points", va="center", fontsize=9.5,
        color=theme.ours if mark.role == "ours" else theme.ink,
        fontweight="bold" if mark.role == "ours" else "normal",
    )  # fmt: skip


def _ranges(chart: Chart, theme: Theme) -> Figure:
    drawn, axes = _rows(chart, theme)
    least = min((mark.middle for mark in chart.marks if mark.middle > 0), default=0.01)
    most = max((mark.longest or mark.high for mark in chart.marks), default=1.0)
    far = most / least > 30
    floor = least / 2 if far else 0.0
    for place, mark in enumerate(chart.marks):
        color = theme.ours if mark.role == "ours" else theme.floor
        start, tail, end = (max(value, floor) for value in (mark.middle, mark.high, mark.longest or mark.high))
        axes.plot([tail, end], [place, place], color=color, linewidth=1.2, linestyle=(0, (1, 1.6)))
        axes.plot([start, tail], [place, place], color=color, linewidth=4.5, alpha=0.45, solid_capstyle="round")
        axes.plot([start], [place], "o", color=color, markersize=7)
        axes.plot([tail], [place], "|", color=color, markersize=11, markeredgewidth=2.2)
        axes.plot([end], [place], "o", markerfacecolor="none", markeredgecolor=color, markersize=6.5)
        _beside(axes, mark, place, end, theme)
    if far:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(floor * 0.8, most * (most / floor) ** 0.33)
    else:
        axes.set_xlim(0, most * 1.28)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: figure(value)))
    return drawn


def _lines(chart: Chart, theme: Theme) -> Figure:
    drawn = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = drawn.add_subplot()
    _plain(axes, theme)
    values = [point[1] for one in chart.series for point in one.points]
    positive = [value for value in values if value > 0]
    far = bool(positive) and max(positive) / min(positive) > 25
    axes.set_xscale("log")
    if far:
        axes.set_yscale("symlog", linthresh=min(positive)) if len(positive) < len(values) else axes.set_yscale("log")
    else:
        axes.set_ylim(0, max(values) * 1.12 or 1.0)
    for one in chart.series:
        _line(axes, one, theme)
    axes.grid(visible=True, axis="y", color=theme.grid, linewidth=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: figure(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(chart.axis, loc="left", color=theme.muted, fontsize=9)
    steps = sorted({point[0] for one in chart.series for point in one.points})
    axes.set_xlim(steps[0] * 0.9, steps[-1] * (steps[-1] / steps[0]) ** 0.36)
    axes.set_xticks(steps)
    _name_lines(drawn, axes, chart.series, theme)
    return drawn


def _looks(one: Series, theme: Theme) -> dict[str, Any]:
    """Color and dash of a line: the library tells the one, what comes after its name the other."""
    if one.role == "ours":
        color, width = theme.ours, 2.4
    else:
        whose = next(number for number, library in enumerate(LIBRARIES) if library in one.name)
        color, width = theme.tints[whose], 1.5
    return {"color": color, "linewidth": width, "linestyle": (0, (4, 2)) if "all in turn" in one.name else "solid"}


def _line(axes: Any, one: Series, theme: Theme) -> None:
    looks = _looks(one, theme)
    steps, middle, low, high = zip(*one.points, strict=True)
    axes.plot(steps, middle, marker="o", markersize=4.5, **looks, zorder=3 if one.role == "ours" else 2)
    axes.fill_between(steps, low, high, color=looks["color"], alpha=0.16, linewidth=0)


def _name_lines(drawn: Figure, axes: Any, series: Sequence[Series], theme: Theme) -> None:
    """Write each line's name and last figure at its end, pushed apart where they would meet."""
    drawn.canvas.draw()  # only now does it know where things are
    ends: list[list[Any]] = []
    for one in series:
        step, middle = one.points[-1][:2]
        across, up = axes.transData.transform((step, middle))
        ends.append([up, across, one, middle])
    ends.sort(key=lambda end: end[0])
    room = drawn.dpi / 72 * 12.5
    for lower, upper in itertools.pairwise(ends):
        upper[0] = max(upper[0], lower[0] + room)
    edge = axes.transData.transform((max(point[0] for one in series for point in one.points), 1))[0]
    for up, across, one, middle in ends:
        x, y = axes.transData.inverted().transform((max(across, edge) + room * 0.7, up))
        ours = one.role == "ours"
        axes.text(
            x, y, f"{one.name}  {figure(middle)}", va="center", fontsize=9.5, color=_looks(one, theme)["color"],
            fontweight="bold" if ours else "normal",
        )  # fmt: skip
