"""The benchmarks: what they say of what they measured, and what they are asked. Nothing is measured here."""

from __future__ import annotations

import io
import json
import threading

import pytest
from rich.console import Console

from benchmarks import __main__ as bench
from benchmarks import recovery
from benchmarks.recovery import Crew, Done, attempt, judge
from benchmarks.report import Column, Report, arguments, interleaved, spread


@pytest.mark.parametrize(
    ("samples", "digits", "text"),
    [
        ([], 0, "-"),
        ([8, 8], 0, "8"),
        ([1, 5, 2], 0, "2 (1-5)"),
        ([1.04, 1.01], 1, "1.0"),
        ([1.0, 1.5], 2, "1.25 (1.00-1.50)"),
    ],
)
def test_a_cell_is_a_median_with_its_range(samples: list[float], digits: int, text: str) -> None:
    """A number without its spread would say more than was measured; a range that can't be seen is left out."""
    assert spread(samples, digits) == text


def test_the_rounds_go_there_and_back() -> None:
    """What slows the machine down meanwhile hits the first and the last alike."""
    assert list(interleaved("abc", 3)) == [(n, x) for n, order in enumerate(("abc", "cba", "abc")) for x in order]


def test_a_report_shows_its_conditions_and_writes_every_sample(tmp_path) -> None:
    """Who reads it later must know under what load it was made, and can draw the samples anew."""
    report = Report("speed")
    table = report.table("how long", Column("ms", "ms", 1), note="less is better")
    for value in (3.0, 1.0, 2.0):
        table.add("ours", ms=value)
    shown = io.StringIO()
    report.finish(str(tmp_path / "out.json"), Console(file=shown, width=100))
    assert "load" in shown.getvalue()
    assert "2.0 (1.0-3.0)" in shown.getvalue()
    assert "less is better" in shown.getvalue()
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["tables"][0]["rows"] == {
        "ours": {"ms": {"median": 2.0, "low": 1.0, "q1": 1.5, "q3": 2.5, "high": 3.0, "all": [3.0, 1.0, 2.0]}}
    }
    assert {"python", "load before", "load after", "versions"} <= written["conditions"].keys()


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--rounds", "x"], ["--jsn"]])
def test_a_wrong_option_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With status 2, before anything is started."""
    with pytest.raises(SystemExit) as ended:
        arguments("speed", "", rounds=3).parse_args(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_suites_are_run_with_what_follows_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named ones, or all of them; the worst status counts."""
    called: list[tuple[str, list[str]]] = []

    class Suite:
        def __init__(self, name: str) -> None:
            self.name = name

        def main(self, argv: list[str]) -> int:
            called.append((self.name, argv))
            return int(self.name.endswith("overload"))

    monkeypatch.setattr(bench.importlib, "import_module", Suite)
    assert bench.main(["recovery", "--quick"]) == 0
    assert called == [("benchmarks.recovery", ["--quick"])]
    assert bench.main([]) == 1
    assert [name for name, _ in called[1:]] == [f"benchmarks.{name}" for name in bench.SUITES]


@pytest.mark.parametrize(
    "argv", [["recovry"], ["recovery", "speed"], ["--json", "x"], ["recovery", "overload", "--json", "x"]]
)
def test_what_can_not_be_run_is_said(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A suite that is not there, or one file for several: status 2, and nothing is run."""
    assert bench.main(argv) == 2
    assert capsys.readouterr().err.startswith("bench: ")


def test_how_a_recovery_is_judged() -> None:
    """Failures at any time count; the first success counts from when the server was up; what hung counts in full."""
    done = [
        Done(0, 0.0, 0.1, ok=True),
        Done(0, 0.9, 1.0, ok=False),
        Done(1, 0.8, 2.5, ok=True),
        Done(0, 1.1, 2.3, ok=True),
    ]
    result = judge(done, stopped=1.05, up=2.0)
    assert result.failed == 1
    assert result.first == pytest.approx(0.3)
    assert result.slowest == pytest.approx(1.7)


def test_a_pool_that_never_comes_back_has_no_first_success() -> None:
    """It is not to pass for a fast one."""
    assert judge([Done(0, 0.0, 0.5, ok=True), Done(0, 1.0, 3.0, ok=False)], stopped=0.8, up=2.0).first == float("inf")


def test_workers_go_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each notes how it went and makes the next one; none is left when the crew is dismissed."""
    monkeypatch.setattr(recovery, "PAUSE", 0.0)
    seen = threading.Event()
    turns: list[int] = []

    def work(_hold: float) -> None:
        turns.append(0)
        if len(turns) >= 100:
            seen.set()
        if len(turns) % 2:
            raise OSError

    before = set(threading.enumerate())
    with Crew(work) as crew:
        assert seen.wait(5)
    assert set(threading.enumerate()) <= before  # one of an earlier test may have ended meanwhile
    assert {done.ok for done in crew.done} == {True, False}
    assert len(crew.served_since(0)) > 1
    assert not attempt(lambda _hold: 1 / 0).ok
