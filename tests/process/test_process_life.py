"""Every way of running an application: whose the sessions are, and that none is left. docs/process-life.md tells it.

Each row of that table lives once (started, asked, a worker killed, stopped); a test here is one cell.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import pytest
from life_rows import ROWS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")]


@pytest.fixture(params=[row.name for row in ROWS])
def row(request: pytest.FixtureRequest) -> str:
    """Which way."""
    return request.param


@pytest.fixture
def cell(row: str, lives: dict, unavailable: Callable[[str, str], None]) -> Callable[[str], None]:
    """Raise what went wrong in a column of the row."""
    missing = [name for name in next(r for r in ROWS if r.name == row).needs if not importlib.util.find_spec(name)]
    if missing:
        unavailable(missing[0], "it is not installed")

    def cell(column: str) -> None:
        error = lives[row].result(100)[column]
        if error is not None:
            raise error

    return cell


def test_worker(cell):
    """Each worker has sessions of its own, named after it; requests get their own answers; the log is silent."""
    cell("worker")


def test_before(cell):
    """A pool made and used before the fork serves the child anew; the parent's session is neither used nor ended."""
    cell("before")


def test_stop(cell):
    """After SIGTERM no session is left on the server, no process, and nothing is complained of."""
    cell("stop")


def test_kill(cell):
    """A worker killed with -9 leaves nothing, and nobody else loses anything."""
    cell("kill")
