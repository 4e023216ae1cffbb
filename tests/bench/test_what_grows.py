"""Burst, memory and growth, once through: what they measure is there, and what is exact in it is held."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks import __main__ as command
from benchmarks import burst, collect, growth, memory
from benchmarks.results import Result, load
from benchmarks.stand_ins import ASYNC, SYNC, AsyncStandIn, Line, StandIn


def _measured(main: Callable[[Sequence[str]], int], tmp_path: Path, *options: str) -> Result:
    file = tmp_path / "result.json"
    assert main(["--quick", "--json", str(file), *options]) == 0
    return load([file])[0]


@pytest.mark.slow
def test_a_burst_opens_what_the_pool_may_and_no_more(tmp_path: Path) -> None:
    """However many ask in one moment, ten connections are opened, and everybody gets one."""
    result = _measured(burst.main, tmp_path)
    assert [set(table.of("opened")["poolkit"].samples) for table in result.tables] == [{10.0}] * 4
    assert all(table.targets[0].value is not None for table in result.tables)


@pytest.mark.slow
@pytest.mark.parametrize("stand_ins", [SYNC, ASYNC])
def test_an_idle_connection_costs_less_than_a_page_of_text(stand_ins: Sequence[StandIn | AsyncStandIn]) -> None:
    """Bytes of Python objects are counted, not timed: 320 of the pool's own for each, with room for one more dict."""
    gc.collect()  # what others left is not to be freed while this is counted
    counted = memory.counted(next(stand_in for stand_in in stand_ins if stand_in.name == "poolkit"))
    assert 50 < counted["idle"] < 600
    assert counted["threads"] <= 0, "one of an earlier test may end meanwhile"


@pytest.mark.slow
def test_a_process_grows_with_real_connections(pg_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is weighed from outside, in a process that has nothing else to do; a connection has buffers, so it weighs."""
    monkeypatch.setattr(memory, "REAL", 10)
    assert memory.grown("poolkit", pg_dsn) > 1000


@pytest.mark.slow
def test_a_hundred_pools_keep_no_thread_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One housekeeper looks after all of them, and those that opened connections are gone."""
    monkeypatch.setattr(growth, "DECADES", (1, 100))
    result = _measured(growth.main, tmp_path, "--only", "threads")
    by_key = {table.key: table for table in result.tables}
    assert by_key["growth-threads"].of("100")["poolkit"].samples[0] <= 1
    assert set(by_key["growth-sleepers"].rows["poolkit"]) == {"1", "100"}


def test_a_burst_in_which_somebody_is_forgotten_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that failed is told of, and does not look like one that was quick."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def refuses() -> NoReturn:
        raise OSError("refused")

    with pytest.raises(RuntimeError, match="2 of 2 threads got no connection"):
        burst.rush(refuses, 2)


def test_a_line_counts_what_was_opened() -> None:
    """Two at once are two connections; one after the other, one."""
    stand_in = next(stand_in for stand_in in SYNC if stand_in.name == "poolkit")
    line = Line()
    with stand_in.opened(line, 5) as borrow:
        with borrow(), borrow():
            pass
        with borrow():
            pass
    assert line.opened == 2


def test_a_report_is_asked_for_anywhere_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench micro --report DIR --quick` and `bench --report DIR micro --quick` are the same."""
    asked: list[list[str]] = []
    monkeypatch.setattr(collect, "main", lambda argv, _: asked.append(argv) or 0)
    assert command.main(["micro", "--report", "out", "--quick"]) == 0
    assert command.main(["--report", "out", "micro", "--quick"]) == 0
    assert asked == [["out", "micro", "--quick"]] * 2
