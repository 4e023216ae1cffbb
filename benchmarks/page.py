"""The report: one page that needs nothing beside it, with a question over each plot and its answer under it. Pure.

What the page says comes from the results alone; every text out of them is escaped. `plots` is asked for the drawings,
which stand beside the page as files as well.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.charts import Chart, charts_of, figure
from benchmarks.results import Cell, Column, Result, Table, Target
from benchmarks.style import STYLE

__all__ = ["render"]

Draw = Callable[[Chart, str], str]  # the chart and a prefix for ids, to SVG
SUITES: Mapping[str, tuple[str, str]] = {
    "micro": ("The price of a connection", "Taken and given back, without a query: what the pool itself costs."),
    "query": ("With a query", "One SELECT 1, over what the bare connection takes for it."),
    "round_trips": ("Round trips", "Counted by a proxy between client and server: exact, whatever the machine."),
    "contention": ("Everybody wants one", "More workers than connections, for seconds on end."),
    "burst": ("From nothing", "Everybody at once, and the pool is still empty."),
    "requests": ("Whole requests", "The same endpoint with each way to a connection, under real servers."),
    "recovery": ("A bad day", "The server restarts, goes away, ends the sessions."),
    "overload": ("Too much", "More than can be served, for longer than anyone would wait."),
    "fastapi_threads": ("FastAPI's threads", "Plain `def` endpoints, which share one thread pool."),
    "memory": ("Memory", "What it takes to have connections and not use them."),
    "growth": ("Growth", "What stays as cheap as it was when there is more of everything."),
}
ORDER = list(SUITES)
DASH = "\N{EN DASH}"
METHOD = (
    "All that is compared was measured in one run, by turns there and back again, so that a drift of the machine "
    "hits all alike. Shown are medians; the fine line over a bar and the band around a line are the middle half of the "
    "samples. Where nothing waits for a network, the process was pinned to one CPU. Ratios are to poolkit's best row. "
    "Absolute figures are this machine's; what carries over to another are the ratios, and differences of a few "
    "percent mean nothing."
)


class Aim(NamedTuple):
    """A target that was measured, and what it was measured in."""

    suite: str
    title: str
    target: Target


def render(results: Sequence[Result], draw: Draw, made: str) -> str:
    """Make the page of these results. `made` says when; `draw` returns the SVG of a chart."""
    ordered = sorted(results, key=lambda result: _place(result.suite))
    sections = [_section(result, charts, draw) for result, charts in charts_of(ordered)]
    aims = [
        Aim(result.suite, table.title, target)
        for result in ordered
        for table in result.tables
        for target in table.targets
        if target.reached is not None
    ]
    body = [
        _header(ordered, aims, made),
        _contents(ordered),
        "<main>",
        _targets(aims),
        *sections,
        _conditions(ordered),
        "</main>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>poolkit, measured</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _place(suite: str) -> tuple[int, str]:
    return (ORDER.index(suite) if suite in ORDER else len(ORDER), suite)


def _text(text: object) -> str:
    return html.escape(str(text))


def _name(suite: str) -> tuple[str, str]:
    return SUITES.get(suite, (suite.replace("_", " ").capitalize(), ""))


def _header(results: Sequence[Result], aims: Sequence[Aim], made: str) -> str:
    reached = sum(aim.target.reached is True for aim in aims)
    tally = f"<p class=tally><b>{reached}</b> of {len(aims)} targets reached</p>" if aims else ""
    machine = _one(result.conditions.get("machine", "") for result in results)
    python = _one(result.conditions.get("python", "") for result in results)
    return (
        "<header><p class=brand>poolkit</p><h1>What a connection costs</h1>"
        "<p class=lead>poolkit beside the pools that people would use instead, measured in turn on one machine.</p>"
        f"{tally}<p class=made>{_text(machine)} · Python {_text(python)} · {_text(made)}</p></header>"
    )


def _one(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def _contents(results: Sequence[Result]) -> str:
    links = "".join(f'<a href="#{_text(result.suite)}">{_text(_name(result.suite)[0])}</a>' for result in results)
    return f'<nav aria-label="Suites">{links}<a href="#conditions">Conditions</a></nav>'


def _targets(aims: Sequence[Aim]) -> str:
    """What was aimed at: what was missed, and folded away what was reached."""
    if not aims:
        return ""
    missed = [aim for aim in aims if not aim.target.reached]
    reached = [aim for aim in aims if aim.target.reached]
    more = f"<details><summary>The {len(reached)} that were reached</summary>{_judged(reached)}</details>"
    shown = f"{_judged(missed)}{more}" if missed and reached else _judged(aims)
    return f"<section id=targets><h2>What was aimed at</h2>{shown}</section>"


def _judged(aims: Sequence[Aim]) -> str:
    lines = "".join(
        f"<tr class={'yes' if aim.target.reached else 'no'}>"
        f"<td class=mark>{'reached' if aim.target.reached else 'missed'}</td>"
        f"<td>{_text(aim.target.text)}<br><small>{_text(aim.title)}</small></td>"
        f"<td class=number>{figure(aim.target.value or 0.0)}</td><td class=number>{_text(aim.target.limit)}</td>"
        f'<td><a href="#{_text(aim.suite)}">{_text(_name(aim.suite)[0])}</a></td></tr>'
        for aim in aims
    )
    head = "<tr><th></th><th>target</th><th>measured</th><th>limit</th><th></th></tr>"
    return f"<div class=wide><table class=targets>{head}{lines}</table></div>"


def _section(result: Result, charts: Sequence[Chart], draw: Draw) -> str:
    title, lead = _name(result.suite)
    figures = "".join(_figure(chart, draw) for chart in charts)
    empty = "" if charts else "<p class=note>Nothing of this suite was measured.</p>"
    return (
        f'<section id="{_text(result.suite)}"><h2>{_text(title)}</h2>'
        f"<p class=lead>{_text(lead)}</p><div class=figures>{figures}</div>{empty}</section>"
    )


def _figure(chart: Chart, draw: Draw) -> str:
    note = f"<p class=note>{_text(chart.table.note)}</p>" if chart.table.note else ""
    key = _text(chart.key)
    return (
        f'<figure id="{key}" class="{chart.kind}{" broad" if chart.broad else ""}"><h3>{_text(chart.question)}</h3>'
        f"<p class=answer>{_text(chart.answer)}</p>"
        f'<div class=plot role="img" aria-label="{_text(chart.alt)}">{draw(chart, key)}</div>'
        f"<figcaption>{note}<details><summary>The numbers</summary><div class=wide>{_table(chart.table)}</div>"
        f'<p class=files><a href="{key}.svg">SVG</a> <a href="{key}.png">PNG</a></p></details></figcaption></figure>'
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(column.heading)}</th>" for column in table.columns)
    rows = "".join(
        f'<tr class="{_text(table.roles.get(name, "peer"))}"><th scope=row>{_text(name)}</th>'
        + "".join(f"<td>{_cell(cells.get(column.key), column)}</td>" for column in table.columns)
        + "</tr>"
        for name, cells in table.rows.items()
    )
    return f"<table><caption>{_text(table.title)}</caption><tr><th></th>{head}</tr>{rows}</table>"


def _cell(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return DASH
    middle, low, high = (figure(value, column.digits) for value in (cell.middle, min(cell.samples), max(cell.samples)))
    return middle if low == high else f"{middle} <small>{low}{DASH}{high}</small>"


def _conditions(results: Sequence[Result]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_text(result.suite)}</th><td>{_text(result.conditions.get('python', ''))}</td>"
        f"<td>{_text(result.conditions.get('load before', ''))} → {_text(result.conditions.get('load after', ''))}</td>"
        f"<td>{_text(', '.join(_rest(result.conditions)))}</td></tr>"
        for result in results
    )
    versions = dict(sorted(item for result in results for item in result.conditions.get("versions", {}).items()))
    libraries = "".join(f"<li>{_text(name)} <b>{_text(version)}</b></li>" for name, version in versions.items())
    return (
        f"<section id=conditions><h2>Conditions</h2><p>{METHOD}</p><ul class=versions>{libraries}</ul>"
        "<div class=wide><table><tr><th>suite</th><th>Python</th><th>load before → after</th><th>more</th></tr>"
        f"{rows}</table></div></section>"
    )


def _rest(conditions: Mapping[str, Any]) -> Iterator[str]:
    for name, value in conditions.items():
        if name not in ("python", "machine", "versions", "load before", "load after"):
            yield f"{name} {value}"
