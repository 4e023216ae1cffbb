"""The engine for PostgreSQL where Django uses psycopg2: in processes of their own, for Django takes one library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROMISES = (
    *("engine", "engines", "connecting", "iterators", "contract", "late", "reset", "retry", "found_by_suite"),
    *("early", "limits", "middleware", "signals", "hooks"),
)

# As on a machine that has psycopg2 alone.
PROGRAM = """
import sys

sys.modules["psycopg"] = None
import django
from django.conf import settings
from django.core.management import call_command
from django_rig import run
from urllib.parse import unquote, urlsplit

parts = urlsplit(sys.argv[1])
where = {"NAME": parts.path[1:], "USER": parts.username, "PASSWORD": unquote(parts.password or ""),
         "HOST": parts.hostname, "PORT": str(parts.port)}
settings.configure(
    SECRET_KEY="none",
    INSTALLED_APPS=["poolkit_django"],
    MIDDLEWARE=["poolkit_django.middleware.PoolkitMiddleware"],
    DATABASES={"default": {**where, "ENGINE": "poolkit_django.backends.postgresql", "OPTIONS": {"pool": True}}},
)
django.setup()
call_command("check", databases=["default"])
call_command("poolkit", "ping")
import poolkit_django
from django.db import connection

with poolkit_django.unit_of_work():
    print(run("SELECT 40 + 2"), type(connection.connection).__module__)
"""


def test_without_psycopg_3(pg_dsn: str) -> None:
    """The engine, its checks and its commands do with psycopg2 alone."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    code = f"import sys; sys.path.insert(0, {str(HERE)!r})\n{PROGRAM}".replace("from django_rig import run\n", _RUN)
    done = subprocess.run(
        [sys.executable, "-c", code, pg_dsn], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[(42,)] poolkit.drivers.psycopg2" in done.stdout


_RUN = """
def run(sql):
    from django.db import connection
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()

"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_the_engine_promises(pg_dsn: str) -> None:
    """The tests of the engine and of the unit of work hold with psycopg2, less those that look into psycopg 3."""
    run_tests(
        pg_dsn,
        "psycopg2_cases.py",
        *(f"test_django_{name}.py" for name in PROMISES if (HERE / f"test_django_{name}.py").exists()),
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_matrix(pg_dsn: str) -> None:
    """No kind of state reaches the next request with psycopg2 either, and a reset that fails or hangs is found out."""
    files = ("test_django_matrix.py", "test_django_matrix_trips.py", "test_django_matrix_faults.py")
    run_tests(pg_dsn, *files, "-m", "slow or not slow", "-k", "postgresql and not native")


def run_tests(pg_dsn: str, *arguments: str) -> None:
    """Run files of this folder in a process whose Django has psycopg2."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    paths = os.pathsep.join([str(ROOT), str(HERE)])
    given = [str(HERE / argument) if argument.endswith(".py") else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "on_psycopg2", "-q", "-p", "no:cacheprovider", *given],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "POOLKIT_TEST_PG_DSN": pg_dsn},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
