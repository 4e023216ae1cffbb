"""What the pages promise is shown by a test, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_bad_day_names_exists():
    """A rule whose test is gone is a rule no more."""
    page = (ROOT / "docs" / "bad-day.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    there = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert named <= set(re.findall(r"def (test_\w+)\(", there))


def test_pages_are_linked():
    """From the README or from one another: a page that nobody finds is not read."""
    pages = list((ROOT / "docs").glob("*.md"))
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *pages])
    for page in pages:
        assert f"({page.name})" in text or f"(docs/{page.name})" in text, page.name


def test_the_settings_are_in_the_readme():
    """Every setting of a pool, by its name."""
    from poolkit import PoolConfig  # noqa: PLC0415  the other tests read files only

    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Settings") : readme.index("## How it differs")]
    missing = [name for name in PoolConfig.names() if f"`{name}`" not in table]
    assert not missing
