"""Tests for `pytest -n 2`, run by the matrix: one of them kills its own worker, which is replaced."""

from __future__ import annotations

import os
import signal
import time

import life_app
import pytest


@pytest.mark.parametrize("number", range(0, 24, 2))
def test_report(number):
    """One report."""
    life_app.write(life_app.report(number))
    time.sleep(0.05)


def test_that_kills():
    """The worker is gone in the middle of a transaction."""
    with life_app.early.transaction() as conn:
        conn.execute("SELECT 1")
        os.kill(os.getpid(), signal.SIGKILL)
