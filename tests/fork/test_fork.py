"""Forks: no connection is shared, none of the parent's is ended, nobody gets another's answer. See the cases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from fork_cases import CASES
from fork_pg_cases import PG_CASES

HERE = Path(__file__).parent
# From 3.12 on Python warns of any fork beside threads. The cases are about exactly that.
COMMAND = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning"]
# Taken once: pytest names the current test in the environment, which must not change under a start in another thread.
ENVIRON = dict(os.environ)
AT_ONCE = 3  # a case mostly starts an interpreter and waits for its children; none knows of another

Done = subprocess.CompletedProcess[str]


def run(script: str, *arguments: str) -> Done:
    """Run one case in a fresh interpreter."""
    return subprocess.run(
        [*COMMAND, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=ENVIRON,
    )


def check(case: Callable[..., None], done: Done) -> None:
    """It must have succeeded without a word on stderr."""
    assert case.__doc__
    noise = [line for line in done.stderr.splitlines() if "could not let go" not in line]
    assert done.returncode == 0, done.stderr
    assert case.__name__ == "a_driver_that_can_not_let_go" or not noise, done.stderr


@pytest.fixture(scope="module")
def beside() -> Iterator[ThreadPoolExecutor]:
    """Threads that run cases ahead of their tests; those that no test came for are not begun."""
    threads = ThreadPoolExecutor(AT_ONCE)
    yield threads
    threads.shutdown(cancel_futures=True)


def asked(request: pytest.FixtureRequest) -> set[object]:
    """The cases of the selected tests."""
    return {item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")}


@pytest.fixture(scope="module")
def plain(request: pytest.FixtureRequest, beside: ThreadPoolExecutor) -> dict[str, Future[Done]]:
    """Every selected case without a server, under way."""
    wanted = asked(request)
    return {case.__name__: beside.submit(run, "fork_cases.py", case.__name__) for case in CASES if case in wanted}


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, beside: ThreadPoolExecutor, pg_dsn: str) -> dict[str, Future[Done]]:
    """Every selected case with PostgreSQL, under way."""
    wanted, script = asked(request), "fork_pg_cases.py"
    return {case.__name__: beside.submit(run, script, case.__name__, pg_dsn) for case in PG_CASES if case in wanted}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_fork(case: Callable[[], None], plain: dict[str, Future[Done]]) -> None:
    """The rule is the case's own docstring."""
    check(case, plain[case.__name__].result())


@pytest.mark.parametrize("case", PG_CASES, ids=lambda case: case.__name__)
def test_fork_with_postgresql(case: Callable[[str], None], served: dict[str, Future[Done]]) -> None:
    """The same with sessions of a real server; the rule is the case's own docstring."""
    check(case, served[case.__name__].result())
