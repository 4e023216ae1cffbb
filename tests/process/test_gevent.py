"""Pools under gevent, with the real psycopg. See the cases."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("life_gevent_cases.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "everything_is_patched_in_time",
        "greenlets_are_killed",
        "poolkit_was_imported_first",
        "psycopg_was_imported_first",
    ],
)
def test_gevent(case, pg_dsn, unavailable):
    """The rule is the case's own docstring; nothing but its warning is said."""
    if importlib.util.find_spec("gevent") is None:
        unavailable("gevent", "it is not installed")
    command = [sys.executable, "-W", "error", str(CASES), case, pg_dsn]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == (case == "psycopg_was_imported_first"), done.stderr
