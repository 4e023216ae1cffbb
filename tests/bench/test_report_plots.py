"""The drawings, with matplotlib itself. Only the lock of `run.py bench` has it; CI runs these in that environment."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_made as made
import pytest

from benchmarks.charts import Chart, charts_of
from benchmarks.report import Report

pytest.importorskip("matplotlib", reason="matplotlib is in the lock of `run.py bench` only")

from benchmarks import collect, plots

pytestmark = pytest.mark.slow


def _bars() -> Report:
    return made.table_of({"ideal": (1.0,), "poolkit": (1.5, 2.5, 2.0), "psycopg_pool": (8.0,)})[0]


def _zero() -> Report:
    return made.table_of({"poolkit": (0.0,), "psycopg_pool": (-1.0,)})[0]


CASES = [_bars, _zero, made.growth, made.waits]


def _drawn(make: Callable[[], Report]) -> list[Chart]:
    return [chart for _, charts in charts_of([made.result_of(make())]) for chart in charts]


@pytest.mark.parametrize("make", CASES)
def test_a_drawing_for_the_page_has_the_pages_colours_and_ids_of_its_own(make: Callable[[], Report]) -> None:
    """It turns dark with the page, fits any width, and does not meet another drawing's clip paths."""
    for chart in _drawn(make):
        svg = plots.inline(chart, "one")
        root = ET.fromstring(svg)
        assert "width" not in root.attrib
        assert "viewBox" in root.attrib
        assert "var(--ours)" in svg
        assert not re.search(r"#0101[0-9a-f]{2}", svg)
        assert all(element.get("id", "one-").startswith("one-") for element in root.iter())


@pytest.mark.parametrize("make", CASES)
def test_a_drawing_for_a_file_stands_alone(make: Callable[[], Report], tmp_path: Path) -> None:
    """It has its question over it, its own colours, and its numbers as text."""
    for chart in _drawn(make):
        names = plots.save(chart, tmp_path)
        svg = (tmp_path / names[0]).read_text()
        assert "var(" not in svg
        assert chart.question in "".join(ET.fromstring(svg).itertext())
        assert (tmp_path / names[1]).read_bytes().startswith(b"\x89PNG")


def test_a_drawing_says_what_its_chart_says() -> None:
    """Every label is there."""
    chart = _drawn(_bars)[0]
    text = "".join(ET.fromstring(plots.inline(chart, "x")).itertext())
    assert all(mark.label in text and mark.name in text for mark in chart.marks)


def test_names_of_lines_do_not_meet() -> None:
    """Lines that end in the same place are named one under the other."""
    report = made.growth()
    for name in ("SQLAlchemy", "asyncpg", "DBUtils"):
        report.tables[0].add(name, **{"1": 1.0, "10": 1.1, "1000": 1.2})
    chart = next(charts[0] for _, charts in charts_of([made.result_of(report)]))
    drawn: Any = plots._drawn(chart, plots.LIGHT, titled=False)
    heights = sorted(text.get_window_extent().y0 for text in drawn.axes[0].texts)
    assert all(upper - lower > 10 for lower, upper in itertools.pairwise(heights))


def test_the_report_is_a_page_with_its_plots_beside_it(tmp_path: Path) -> None:
    """What the page links to is there; and again, over what was there."""
    results = [made.result_of(make()) for make in (_bars, made.growth, made.waits)]
    for _ in range(2):
        page = collect.write(results, tmp_path).read_text()
        linked = re.findall(r'href="([^"#]+)"', page)
        assert linked
        assert all((tmp_path / name).stat().st_size > 1000 for name in linked)
