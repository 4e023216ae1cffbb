"""How samples are taken: by turns, with loops that are long enough, on one CPU, without the garbage collector."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys

import pytest

from poolkit.bench.figures import fairness, overhead, percentile, quartiles, ratio
from poolkit.bench.measuring import (
    MOST,
    WARM_UP,
    calibrated,
    calibrated_async,
    enough,
    interleaved,
    per_call,
    pinned,
    quiet,
)


class Work:
    """A loop whose turns take so long, by a clock of its own; the first turn ever takes longer."""

    def __init__(self, each: float, first: float = 0.0) -> None:
        self.now = 0.0
        self.each = each
        self.first = first
        self.turns: list[int] = []

    def clock(self) -> float:
        return self.now

    def loop(self, times: int) -> None:
        self.turns.append(times)
        self.now += times * self.each + self.first
        self.first = 0.0

    async def awaited(self, times: int) -> None:
        self.loop(times)


def test_turns_are_taken_there_and_back() -> None:
    """A drift hits all alike: each second round goes the other way."""
    assert list(interleaved("abc", 2)) == [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a")]


def test_a_call_is_a_share_of_its_loop() -> None:
    """Microseconds for one turn."""
    work = Work(2e-6)
    assert per_call(work.loop, 1000, work.clock) == pytest.approx(2.0)


@pytest.mark.parametrize("each", [1e-8, 1e-6, 3e-4, 0.5])
async def test_a_loop_is_long_enough(each: float) -> None:
    """So many turns are found that one loop takes the time wanted, and not many times that, in both worlds."""
    for_threads, for_tasks = Work(each), Work(each)
    times = calibrated(for_threads.loop, 0.01, for_threads.clock)
    assert times == await calibrated_async(for_tasks.awaited, 0.01, for_tasks.clock)
    assert 0.01 <= times * each <= max(0.025, each)


def test_a_first_connect_does_not_count() -> None:
    """What happens once is over before the turns are timed: a slow connect does not make for a loop of one turn."""
    work = Work(1e-6, first=5.0)
    assert calibrated(work.loop, 0.01, work.clock) >= 10_000
    assert work.turns[0] == WARM_UP


def test_a_clock_that_stands_still_ends_in_a_bound() -> None:
    """What takes no time at all is not tried for ever."""
    assert enough(1, 0.0, 0.01) == 10
    work = Work(0.0)
    assert calibrated(work.loop, 0.01, work.clock) == MOST


def test_more_is_tried_by_steps() -> None:
    """At most ten times as much, at least one more, never beyond the bound."""
    assert enough(10, 1e-9, 1.0) == 100
    assert enough(10, 0.9, 1.0) == 13
    assert enough(10, 1.0, 1.0) == 12
    assert enough(MOST, 0.1, 1.0) == MOST


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(enabled: bool) -> None:  # noqa: FBT001
    """Nothing is collected within, and afterwards it is as it was before, whatever happened."""
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(KeyError), quiet():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin")
def test_pinned_to_one_cpu_and_back() -> None:
    """This process and another are on the same CPU within, and where they were afterwards; a process gone is none."""
    before = os.sched_getaffinity(0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        with pinned([other.pid, gone.pid]) as done:
            assert done
            assert len(os.sched_getaffinity(0)) == 1
            assert os.sched_getaffinity(other.pid) == os.sched_getaffinity(0)
        assert os.sched_getaffinity(0) == before == os.sched_getaffinity(other.pid)
        other.communicate(b"\n")


def test_percentiles_are_samples() -> None:
    """The least sample that so many do not exceed; of nothing there is none."""
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(samples, share) for share in (0.0, 0.2, 0.5, 0.99, 1.0)] == [1.0, 1.0, 3.0, 5.0, 5.0]
    with pytest.raises(ValueError, match="at least one sample"):
        percentile([], 0.5)


def test_quartiles() -> None:
    """A fourth of the samples lies below the first, a fourth above the third; one sample is both."""
    assert quartiles([1, 2, 3, 4, 5]) == (2, 4)
    assert quartiles([7.0]) == (7.0, 7.0)


def test_fairness_is_least_by_most() -> None:
    """One who gets nothing makes it 0, whatever the others get; nobody served is not fair either."""
    assert fairness([10, 10, 10]) == 1.0
    assert fairness([100, 0, 100]) == 0.0
    assert fairness([50, 100]) == 0.5
    assert fairness([0, 0]) == fairness([]) == 0.0


def test_comparisons_are_made_within_a_round() -> None:
    """A machine that was three times as slow in one round changes neither ratio nor, here, the verdict."""
    assert ratio([2, 6, 2], [4, 12, 4]) == 0.5
    assert overhead([5, 35, 6], [4, 33, 4]) == 2
    with pytest.raises(ValueError, match="zip"):
        ratio([1], [1, 2])
