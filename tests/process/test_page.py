"""docs/process-life.md says nothing that no test holds, and leaves no row of the tests out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from life_rig import COLUMNS
from life_rows import ROWS

from poolkit import surroundings

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "process-life.md").read_text("utf-8")
LINES = [line for line in PAGE.splitlines() if line.startswith("| ") and "`test_" in line]
WARNINGS = " ".join(value for name, value in vars(surroundings).items() if name.isupper() and isinstance(value, str))


def functions() -> set[str]:
    """Every test function of this folder."""
    trees = [ast.parse(path.read_text("utf-8")) for path in HERE.glob("test_*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def unknown(text: str) -> list[str]:
    """The tests that a text names and that are not there."""
    cases = {f"test_{column}[{row.name}]" for row in ROWS for column in COLUMNS}
    programs = ast.parse((HERE / "life_gevent_cases.py").read_text("utf-8")).body
    cases |= {f"test_gevent[{node.name}]" for node in programs if isinstance(node, ast.FunctionDef)}
    named = re.findall(r"`(test_[\w\[\]-]+)`", text)
    return [name for name in named if name not in cases and name not in functions()]


def test_every_test_named_is_there():
    """A cell whose test was renamed or dropped is found out."""
    assert unknown(PAGE) == []


def test_every_cell_is_held_by_its_test():
    """A cell names the test of its row and column."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in LINES if "`test_worker[" in line]
    assert len(rows) == len(ROWS)
    for row, cells in zip(ROWS, rows, strict=True):
        for column, cell in zip(COLUMNS, (cells[1], cells[2], cells[3], cells[4]), strict=True):
            assert f"`test_{column}[{row.name}]`" in cell


def test_what_is_not_supported_has_its_warning():
    """Where the page says "not supported", it quotes the warning that a user gets, and each row that warns says so."""
    quoted = re.findall(r'not supported: "([^"]+)"', PAGE)
    assert len(quoted) >= 3
    for words in quoted + re.findall(r'^\| "([^"]+)"', PAGE, re.MULTILINE):
        assert words in WARNINGS, words
    for row in ROWS:
        if row.says:
            assert any(f"[{row.name}]" in line and "not supported" in line for line in LINES), row.name


@pytest.mark.parametrize("text", ["`test_worker[gunicorn-nonsense]`", "`test_nothing`", "`test_gevent[no_case]`"])
def test_a_name_that_is_not_there_is_seen(text):
    """The check is alive."""
    assert unknown(text)
