"""A part of Django's own test suite on poolkit's engines: short, and on the Django that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from . import sources

ROOT = Path(__file__).parents[2]
LABELS = ("transactions", "transaction_hooks", "handlers", "get_or_create")


@pytest.fixture(scope="module")
def source(unavailable: Callable[[str, str], NoReturn]) -> sources.Source:
    """Django's source, of the version that is installed."""
    try:
        return sources.get_source(sources.installed_django(sys.executable), sources.cache_folder())
    except sources.SuiteError as error:
        unavailable("django", f"its source can't be had: {error}")


def suite(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    command = [sys.executable, "-m", "tests.django_suite", "--here", *arguments]
    variables = {**os.environ, **environ}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.slow
@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("engine", ["postgresql", "sqlite3", "mysql"])
def test_django_s_own_tests_pass_on_our_engine(engine: str, request: pytest.FixtureRequest) -> None:
    """Transactions, hooks, handlers and get_or_create do with poolkit's engine what they do with Django's."""
    # The fixture skips, or fails where a server is required; the run makes databases of its own on it.
    fixture = {"postgresql": "pg_dsn", "mysql": "mysql_dsn"}.get(engine)
    name = {"postgresql": "POOLKIT_TEST_PG_DSN"}.get(engine, "POOLKIT_TEST_MYSQL_DSN")
    server = {name: request.getfixturevalue(fixture)} if fixture else {}
    done = suite("--engine", engine, "--labels", *LABELS, **server)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.strip().splitlines()[-1].split("  ")
    assert table[0].startswith(engine)


@pytest.mark.slow
@pytest.mark.usefixtures("source")
def test_a_label_that_django_lacks_is_told() -> None:
    """A label is looked up before anything is started."""
    done = suite("--engine", "postgresql", "--labels", "no_such_label")
    assert done.returncode == 2
    assert "has no tests called no_such_label" in done.stdout
