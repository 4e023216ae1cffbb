"""A worker that a supervisor kills in mid request: what is left on the server."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psycopg
import pytest

WORKER = """
import signal, sys, time
import poolkit

if sys.argv[2] == "exits":  # as a supervisor's handler for a soft end may do
    signal.signal(signal.SIGABRT, lambda *_: sys.exit(3))
pool = poolkit.Pool(sys.argv[1], max_size=2)
with pool.transaction() as connection:
    connection.execute("INSERT INTO killed VALUES (1)")
    print(connection.info.backend_pid, flush=True)
    connection.execute("SELECT pg_sleep(60)") if sys.argv[3] == "asking" else time.sleep(60)
"""


@pytest.fixture
def admin(pg_dsn):
    with psycopg.connect(pg_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE killed (n int)")
        yield connection
        connection.execute("DROP TABLE killed")


def _gone(admin, pid):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["asking", "thinking"])
@pytest.mark.parametrize("how", ["dies", "exits"])
def test_nothing_of_a_killed_worker_stays_on_the_server(pg_dsn, admin, how, doing):
    """Gunicorn aborts a sync worker that is too slow: its work is undone, its session and locks end."""
    command = [sys.executable, "-c", WORKER, pg_dsn, how, doing]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        pid = int(worker.stdout.readline())
        time.sleep(0.2)
        worker.send_signal(signal.SIGABRT)
        assert worker.wait(10) == (3 if how == "exits" else -signal.SIGABRT)
    assert _gone(admin, pid)
    assert admin.execute("SELECT count(*) FROM killed").fetchone() == (0,)
    admin.execute("SET lock_timeout = '1s'")
    admin.execute("TRUNCATE killed")
