"""The judgement: which differences between two runs of a test suite are faults, and how results are read."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from . import __main__ as program
from .databases import ENGINES, settings_text
from .runs import Outcome, Report, Task, read_results, run
from .sources import Source, SuiteError, get_source
from .verdicts import Known, compare, read_known


def report(**kinds: str) -> Report:
    """Return a report of tests `app.<name>`."""
    return Report({f"app.{name}": Outcome(kind) for name, kind in kinds.items()}, complete=True)


def known(name: str) -> Known:
    return Known(f"app.{name}", ("postgresql",), "because")


def test_what_fails_only_with_ours_is_a_fault() -> None:
    """A failure counts where Django's own engine passes; one that both have does not."""
    verdict = compare(report(a="ok", b="failure", c="error"), report(a="failure", b="error", c="ok"), [])
    assert list(verdict.only_ours) == ["app.a"]
    assert verdict.both == ["app.b"]
    assert verdict.only_theirs == ["app.c"]
    assert not verdict.good


@pytest.mark.parametrize("kind", ["error", "failure", "unexpected success", "unfinished", "skip"])
def test_every_way_of_not_passing_is_a_fault(kind: str) -> None:
    """A skip, too: a feature that only poolkit's engine lacks must not pass as a success."""
    assert not compare(report(a="ok"), report(a=kind), []).good
    assert compare(report(a=kind), report(a=kind), []).good


def test_a_test_that_did_not_run_is_a_fault() -> None:
    """A run that left tests out says so for each of them."""
    verdict = compare(report(a="ok", b="skip"), report(), [])
    assert {outcome.kind for outcome in verdict.only_ours.values()} == {"not run"}
    assert len(verdict.only_ours) == 2
    assert not verdict.good


def test_two_runs_of_nothing_are_not_good() -> None:
    """Where no test ran, nothing was shown."""
    assert not compare(report(), report(), []).good


def test_a_listed_failure_is_no_fault_and_is_told_with_its_reason() -> None:
    """The list takes a failure out of the faults."""
    verdict = compare(report(a="ok"), report(a="failure"), [known("a")])
    assert verdict.good
    assert verdict.listed == {"app.a": "because"}
    assert "app.a: because" in program.details(verdict)


@pytest.mark.parametrize(("theirs", "ours"), [("ok", "ok"), ("failure", "failure")])
def test_an_entry_without_need_is_a_fault(theirs: str, ours: str) -> None:
    """An entry must name a test that ran and went worse with poolkit's engine."""
    verdict = compare(report(a=theirs), report(a=ours), [known("a")])
    assert list(verdict.stale) == ["app.a"]
    assert not verdict.good


def test_an_entry_of_a_test_that_is_gone_is_a_fault() -> None:
    """A new Django may have renamed it; where its label did not run nothing is known."""
    assert compare(report(a="ok"), report(a="ok"), [known("gone")]).stale == {"app.gone": "there is no such test"}
    other = Known("elsewhere.a", ("postgresql",), "because")
    assert compare(report(a="ok"), report(a="ok"), [other]).good


def test_an_entry_speaks_of_its_own_engine_driver_and_series() -> None:
    """5.2 is not 5.20, and what holds for one driver says nothing of another."""
    entry = Known("a", ("postgresql",), "because", ("psycopg",), ("5.2",))
    assert entry.concerns("postgresql", "psycopg", "5.2.3")
    assert entry.concerns("postgresql", "psycopg", "5.2")
    assert not entry.concerns("postgresql", "psycopg", "5.20.1")
    assert not entry.concerns("postgresql", "psycopg2", "5.2.3")
    assert not entry.concerns("mysql", "psycopg", "5.2.3")


def test_the_list_is_whole() -> None:
    """Every entry has a reason that is a sentence, known engines, and stands there once."""
    entries = read_known()
    for entry in entries:
        assert set(entry.engines) <= set(ENGINES)
        assert len(entry.reason.split()) > 4
    keys = [(entry.test, engine, entry.drivers, entry.django) for entry in entries for engine in entry.engines]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("entry", ['test = "a"\nengines = ["mysql"]', 'test="a"\nengines=["mysql"]\nreason="r"\nx=1'])
def test_an_entry_that_is_not_whole_is_refused(tmp_path: Path, entry: str) -> None:
    """An entry without a reason, or with a field nobody reads, stops the run."""
    file = tmp_path / "known.toml"
    file.write_text(f"[[listed]]\n{entry}\n")
    with pytest.raises(ValueError, match="must have test, engines and reason"):
        read_known(file)


def test_the_gravest_event_of_a_test_counts(tmp_path: Path) -> None:
    """Subtests and workers write several lines; a test that only began is unfinished, a cut line is left out."""
    events = [("a", "unfinished"), ("a", "failure"), ("b", "unfinished"), ("c", "unfinished"), ("c", "ok")]
    lines = [json.dumps({"test": test, "kind": kind, "detail": ""}) for test, kind in events]
    (tmp_path / "1").write_text("\n".join(lines))
    (tmp_path / "2").write_text(json.dumps({"test": "a", "kind": "ok", "detail": ""}) + '\n{"end": true}\n{"test": "d')
    found = read_results(tmp_path)
    assert {test: outcome.kind for test, outcome in found.outcomes.items()} == {
        "a": "failure",
        "b": "unfinished",
        "c": "ok",
    }
    assert found.complete
    assert found.failed == {"a", "b"}


def test_only_django_s_own_engine_is_helped_to_pymysql() -> None:
    """PyMySQL is found by poolkit's engine itself, so the run shows that it does."""
    assert "install_as_MySQLdb" in settings_text("django.db.backends.mysql", "pymysql", {})
    assert "install_as_MySQLdb" not in settings_text("poolkit_django.backends.mysql", "pymysql", {})
    assert "install_as_MySQLdb" not in settings_text("django.db.backends.mysql", "mysqlclient", {})


@pytest.mark.parametrize("wanted", ["five", "5", "5.2.3; rm", "../5.2", "-r x"])
def test_a_version_that_is_none_is_refused(tmp_path: Path, wanted: str) -> None:
    """What is no version goes to no program's command line."""
    with pytest.raises(SuiteError, match="is no version of Django"):
        get_source(wanted, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "mysql", "--driver", "psycopg"], "--driver psycopg is none for --engine mysql"),
        (["--here", "--django", "5.2"], "leave --django out"),
        (["--all", "--labels", "basic"], "leave --labels out"),
        (["--engine", "oracle"], "invalid choice"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """One clear sentence, and argparse's exit status."""
    with pytest.raises(SystemExit, match="2"):
        program.main(arguments)
    assert said in capsys.readouterr().err


STUCK = """
import json, os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(os.path.join(os.environ["POOLKIT_SUITE_RESULTS"], "1"), "w") as file:
    file.write(json.dumps({"test": "app.a", "kind": "unfinished", "detail": str(worker.pid)}) + "\\n")
time.sleep(60)
"""


def task(folder: Path, script: str, timeout: float) -> Task:
    """Return a task on a source whose runtests.py is this script."""
    (folder / "tests").mkdir()
    (folder / "tests" / "runtests.py").write_text(script)
    return Task(sys.executable, Source("0", folder), ("app",), folder, 1, timeout)


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended_with_its_workers(tmp_path: Path) -> None:
    """The test it was in is named, and none of its processes lives on."""
    found = run(task(tmp_path, STUCK, 4), "stuck", "")
    assert not found.complete
    assert found.failed == {"app.a"}
    worker = int(found.outcomes["app.a"].detail)
    with pytest.raises(SuiteError, match="did not come to its end; not finished: app"):
        program._check_report(found, "engine")
    deadline = time.monotonic() + 5  # a signal takes a moment
    while not _ended(worker):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_run_sees_nothing_of_this_process_s_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools and Django are set up by the settings that were written for the run, and by nothing else."""
    monkeypatch.setenv("POOLKIT_DEFAULT_MAX_SIZE", "1")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "elsewhere")
    script = "import os, sys; print(sorted(os.environ), sys.argv[1:]); import suite_settings, poolkit_django"
    found = run(task(tmp_path, script, 20), "plain", "print('settings read')")
    assert "settings read" in found.log
    assert "POOLKIT_DEFAULT_MAX_SIZE" not in found.log
    assert "DJANGO_SETTINGS_MODULE" not in found.log
    assert "--settings=suite_settings" in found.log
