"""gunicorn's own timeout: it ends a sync worker in the middle of whatever that does."""

from __future__ import annotations

import dataclasses
import http.client
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from life_rig import Host, own_database, until
from life_rows import ROWS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")]


def test_a_worker_that_is_timed_out_leaves_nothing(pg_dsn, unavailable):
    """Stuck in a transaction: nothing of it is saved, its session is gone, and the next worker serves."""
    if not importlib.util.find_spec("gunicorn"):
        unavailable("gunicorn", "it is not installed")
    (plain,) = [row for row in ROWS if row.name == "gunicorn-sync"]
    at = plain.command.index("--workers")
    row = dataclasses.replace(plain, command=(*plain.command[:at], "--timeout", "1", *plain.command[at:]))
    with (
        psycopg.connect(pg_dsn, autocommit=True) as admin,
        own_database(pg_dsn) as url,
        Host(row, url, admin) as host,
        ThreadPoolExecutor(1) as threads,
    ):
        known = {report["pid"] for report in host.start()}
        stuck = threads.submit(host.get, "/stuck")
        with pytest.raises((ConnectionError, http.client.HTTPException, AssertionError)):
            stuck.result(30)
        gone = until(lambda: {pid for pid in known if not host.sessions_of(pid)}, "the sessions of the worker are gone")
        assert len(gone) == 1
        until(lambda: {report["pid"] for report in host.reports()} - known, "a new worker serves")
        with psycopg.connect(url) as conn:
            assert conn.execute("SELECT to_regclass('half_done')").fetchone() == (None,)
