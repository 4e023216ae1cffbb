"""The page about testing faults tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poolkit import testing
from poolkit.testing.postgres import LocalPostgres

PAGE = Path(__file__).parents[2] / "docs" / "testing-faults.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.usefixtures("private_pg")
def test_blocks_run():
    """Every block runs, from top to bottom; an error names the line of the page."""
    text = PAGE.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") > 5
    names: dict[str, object] = {"__name__": "page"}
    try:
        for block in blocks:
            above = "\n" * text.count("\n", 0, block.start(1))
            exec(compile(above + block.group(1), PAGE, "exec"), names)
    finally:
        for name in ("pool", "pair", "idle", "network", "standby", "postgres"):
            if name in names:
                names[name].close()


def test_names_exist():
    """Every part and every fault that the page names is there."""
    text = PAGE.read_text()
    for name in re.findall(r"\b(?:Manual|Fake|Fault)[A-Z]\w+", text):
        assert name in testing.__all__
    faults = re.findall(r"\bnetwork\.(\w+)|`(\w+)\([^)]*\)`", text)
    known = set(dir(testing.FaultProxy)) | set(dir(LocalPostgres))
    for fault in {one or other for one, other in faults} - {"LocalPostgres", "LocalMariadb", *testing.__all__}:
        assert fault in known, fault
