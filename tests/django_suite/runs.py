"""Run Django's suite once, and read what became of each test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import poolkit
import poolkit_django

from .sources import Source

__all__ = ["FAILED", "Outcome", "Report", "Task", "environment", "finish", "lay_out", "read_results", "run"]

FAILED = frozenset({"failure", "error", "unexpected success", "unfinished"})
# A test may have several events, one for each subtest: the gravest counts.
_BY_GRAVITY = ("unfinished", "ok", "skip", "expected failure", "unexpected success", "failure", "error")
_INSIDE = Path(__file__).with_name("inside")


@dataclass(frozen=True)
class Outcome:
    """What became of a test: `kind` is one of unittest's endings, `detail` its traceback or the reason of a skip."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Task:
    """What is the same in both runs that are compared."""

    python: str
    source: Source
    labels: tuple[str, ...]
    folder: Path
    parallel: int
    timeout: float


@dataclass
class Report:
    """What became of a run. It is `complete` where it came to its end and dropped its databases."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    complete: bool = False
    seconds: float = 0.0
    log: str = ""

    @property
    def failed(self) -> set[str]:
        """The ids of the tests that failed."""
        return {test for test, outcome in self.outcomes.items() if outcome.kind in FAILED}


def run(task: Task, name: str, settings: str) -> Report:
    """Run the labels with these settings, in the folder's part of that name, and return what came out."""
    place = task.folder / name
    lay_out(place, settings)
    began = time.monotonic()
    with (place / "log").open("wb") as log:
        finish(_start(task, place, log.fileno()), task.timeout)
    report = read_results(place / "results")
    report.seconds = time.monotonic() - began
    report.log = (place / "log").read_text(errors="replace")
    return report


def lay_out(place: Path, settings: str) -> None:
    """Fill a folder with what a run imports: its settings, the runner that writes results, and poolkit."""
    (place / "results").mkdir(parents=True)
    (place / "suite_settings.py").write_text(settings, encoding="utf-8")
    (place / "suite_runner.py").symlink_to(_INSIDE / "suite_runner.py")
    for package in (poolkit, poolkit_django):
        # A link to each, rather than the folder that has them: what lies beside them there is not meant to be seen.
        (place / package.__name__).symlink_to(Path(str(package.__file__)).parent)


def environment(place: Path) -> dict[str, str]:
    """Return the environment of a program that runs in such a folder."""
    # What sets pools or Django up in this process is not meant for that one.
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("POOLKIT_", "DJANGO_"))}
    return environ | {"PYTHONPATH": str(place), "POOLKIT_SUITE_RESULTS": str(place / "results")}


def _start(task: Task, place: Path, log: int) -> subprocess.Popen[bytes]:
    command = [task.python, "runtests.py", "--settings=suite_settings", "--noinput", f"--parallel={task.parallel}"]
    return subprocess.Popen(
        [*command, *task.labels],
        cwd=task.source.tests,
        env=environment(place),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # it has workers of its own: all of them end where it took too long
    )


def finish(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Wait so many seconds, and leave nothing behind; a run that was ended has no end in its results."""
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_results(folder: Path) -> Report:
    """Put together what the processes of a run have written, each into a file of its own."""
    report = Report()
    for path in sorted(folder.iterdir()):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line: dict[str, Any] = json.loads(text)
            except ValueError:  # the last line of a process that was killed over it
                break
            _add(report, line)
    return report


def _add(report: Report, line: dict[str, Any]) -> None:
    if "end" in line:
        report.complete = True
        return
    new = Outcome(line["kind"], line["detail"])
    old = report.outcomes.get(line["test"], new)
    report.outcomes[line["test"]] = max(old, new, key=lambda outcome: _BY_GRAVITY.index(outcome.kind))
