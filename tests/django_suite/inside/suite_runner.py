"""Django's test runner, which also writes what became of each test as a line of JSON.

Loaded by Django's `runtests.py`, in an environment that has Django and little else. With `--parallel` each worker
writes for itself: what it sends to the first process names tests by their number, which goes wrong where unittest
doesn't count the skipped ones (Python 3.12.1), and can't be sent at all where an exception can't be pickled.
"""

from __future__ import annotations

import json
import os
import traceback
import unittest
from pathlib import Path
from typing import Any

from django.test.runner import DiscoverRunner, ParallelTestSuite, RemoteTestResult, RemoteTestRunner


def write(**line: Any) -> None:
    """Add a line to this process's file of results; what was written survives a crash."""
    with Path(os.environ["POOLKIT_SUITE_RESULTS"], str(os.getpid())).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class Writing:
    """Mix in before a result class: writes each event."""

    muted = False

    def _note(self, test: Any, kind: str, detail: Any = "") -> None:
        if self.muted:
            return
        whole = getattr(test, "test_case", test)  # of a subtest its test: the parts have no stable names
        if isinstance(detail, tuple):
            detail = "".join(traceback.format_exception(*detail))
        write(test=whole.id(), kind=kind, detail=detail)

    def startTest(self, test: Any) -> None:  # noqa: N802
        """Note it, so that a test which never ends has a name."""
        self._note(test, "unfinished")
        super().startTest(test)  # type: ignore[misc]

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        """Note it."""
        self._note(test, "ok")
        super().addSuccess(test)  # type: ignore[misc]

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        """Note it."""
        self._note(test, "error", err)
        super().addError(test, self.told(err))  # type: ignore[misc]

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        """Note it."""
        self._note(test, "failure", err)
        super().addFailure(test, self.told(err))  # type: ignore[misc]

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        """Note it."""
        self._note(test, "skip", reason)
        super().addSkip(test, reason)  # type: ignore[misc]

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        """Note it."""
        self._note(test, "expected failure")
        super().addExpectedFailure(test, self.told(err))  # type: ignore[misc]

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        """Note it."""
        self._note(test, "unexpected success")
        super().addUnexpectedSuccess(test)  # type: ignore[misc]

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        """Note the ones that failed."""
        if err is not None:
            self._note(test, "failure" if issubclass(err[0], test.failureException) else "error", err)
        super().addSubTest(test, subtest, err)  # type: ignore[misc]

    def told(self, err: Any) -> Any:
        """Return what the class that comes after this one is told of an error."""
        return err


class Result(Writing, unittest.TextTestResult):
    """What one process prints and writes."""


class WorkersResult(Writing, RemoteTestResult):  # type: ignore[misc]
    """What a worker writes; the first process hears of errors by their text alone, which can always be sent."""

    def told(self, err: Any) -> Any:
        """Return an error that can be pickled."""
        text = "".join(traceback.format_exception(*err))
        return AssertionError, AssertionError(text), None

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        """Hand on a subtest that failed as its test: a subtest's parameters can't all be pickled."""
        if err is not None:
            self.addFailure(test, err)


class WorkersRunner(RemoteTestRunner):  # type: ignore[misc]
    """Runs a part of the suite in a worker."""

    resultclass = WorkersResult


class Suite(ParallelTestSuite):  # type: ignore[misc]
    """The suite that is spread over workers."""

    runner_class = WorkersRunner

    def run(self, result: Any) -> Any:
        """Run it; what is replayed here was written already."""
        result.muted = True
        return super().run(result)


class Runner(DiscoverRunner):  # type: ignore[misc]
    """Django's runner with the result class above."""

    parallel_test_suite = Suite

    def get_resultclass(self) -> type[unittest.TextTestResult]:
        """Write, whatever else was asked for."""
        return Result

    def teardown_databases(self, old_config: Any, **kwargs: Any) -> None:
        """Drop the test databases; only a run that got through this has come to its end."""
        super().teardown_databases(old_config, **kwargs)
        write(end=True)
