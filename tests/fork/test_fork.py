"""Forks: no connection is shared, none of the parent's is ended, nobody gets another's answer. See the cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fork_cases import CASES
from fork_pg_cases import PG_CASES

HERE = Path(__file__).parent
# From 3.12 on Python warns of any fork beside threads. The cases are about exactly that.
COMMAND = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning"]


def run(script: str, *arguments: str) -> None:
    """Run one case in a fresh interpreter; it must succeed without a word on stderr."""
    done = subprocess.run(
        [*COMMAND, str(HERE / script), *arguments], capture_output=True, text=True, timeout=90, check=False
    )
    noise = [line for line in done.stderr.splitlines() if "could not let go" not in line]
    assert done.returncode == 0, done.stderr
    assert arguments[0] == "a_driver_that_can_not_let_go" or not noise, done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_fork(case):
    """The rule is the case's own docstring."""
    assert case.__doc__
    run("fork_cases.py", case.__name__)


@pytest.mark.parametrize("case", PG_CASES, ids=lambda case: case.__name__)
def test_fork_with_postgresql(case, pg_dsn):
    """The same with sessions of a real server; the rule is the case's own docstring."""
    assert case.__doc__
    run("fork_pg_cases.py", case.__name__, pg_dsn)
