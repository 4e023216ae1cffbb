"""All rows of the matrix live at the same time, a few at once; each test waits for its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from life_rig import live
from life_rows import ROWS

AT_ONCE = 6  # each has three or four processes, and mostly waits


@pytest.fixture(scope="session")
def lives(request: pytest.FixtureRequest, pg_dsn: str) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """The life of every row that the selected tests ask for, under way."""
    asked = {item.callspec.params.get("row") for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield {row.name: threads.submit(live, row, pg_dsn) for row in ROWS if row.name in asked}
