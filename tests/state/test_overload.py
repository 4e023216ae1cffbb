"""CoDel: who is refused when waiting has been too long for too long. Pace: how fast a queue drains of late."""

# ruff: noqa: E501  a mutant is quoted as it stands in the source

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import poolkit.overload
from poolkit.overload import INTERVALS, RELAPSE, CoDel, Pace

TARGET = 0.1
INTERVAL = TARGET * INTERVALS
STEP = 0.01


def feed(codel, delays, step=STEP, now=1000.0):
    """Let waiters with these delays come up one after the other; return who was served."""
    served = []
    for delay in delays:
        served.append(codel.admits(delay, now))
        now += step
    return served


def standing(now=1000.0):
    """A CoDel whose queue has stood for long, and the moment of the next hand-over."""
    codel = CoDel(TARGET)
    feed(codel, [1.0] * 100, now=now)
    assert codel.slow
    return codel, now + 100 * STEP


def test_short_waits_are_never_refused():
    """Up to the target there is no overload, whatever the rate."""
    assert all(feed(CoDel(TARGET), [TARGET] * 500))


def test_a_burst_is_served_whole():
    """A queue that stands for less than an interval does no harm."""
    assert all(feed(CoDel(TARGET), [1.0] * int(INTERVAL / STEP)))


def test_a_standing_queue_is_shed():
    """Once nobody has come up within the target for a whole interval, the old are refused."""
    count = int(INTERVAL / STEP) + 2  # the first finds nobody before it
    served = feed(CoDel(TARGET), [1.0] * 200)
    assert all(served[: count - 1])
    assert not any(served[count:])


def test_the_fresh_are_served_in_a_standing_queue():
    """Those within the target get through while the others are refused."""
    codel, now = standing()
    assert codel.admits(TARGET, now)
    assert not codel.admits(TARGET * 1.01, now)


def test_the_shedding_goes_on_while_the_queue_is_held_at_the_target():
    """Who is served in time because others were refused proves nothing about the queue."""
    codel, now = standing()
    assert all(feed(codel, [0.9 * TARGET] * 50, now=now))
    assert codel.slow
    assert not codel.admits(1.0, now + 50 * STEP)


def test_one_quick_hand_over_ends_the_shedding():
    """It proves that the queue did drain."""
    codel, now = standing()
    assert not codel.admits(1.0, now)
    assert codel.admits(TARGET / 2, now + STEP)
    assert not codel.slow


def test_a_queue_that_stands_again_soon_is_the_same():
    """One hiccup that emptied the line is not to cost another interval of late service; much later it is a new one."""
    for later, again in ((RELAPSE * INTERVAL - STEP, True), (RELAPSE * INTERVAL + STEP, False)):
        codel, now = standing()
        assert codel.admits(TARGET / 2, now)
        codel.admits(TARGET, now + later - STEP)
        assert codel.admits(1.5 * TARGET, now + later) is not again


def test_one_hand_over_in_time_begins_the_interval_anew():
    """Only a whole interval without one is a standing queue."""
    count = int(INTERVAL / STEP) - 2
    assert all(feed(CoDel(TARGET), ([1.0] * count + [TARGET]) * 3))


def test_one_who_found_nobody_in_line_ends_the_shedding():
    """However long it waited then: the queue was empty when it came, so nobody would be served better without it."""
    codel, now = standing()
    assert codel.admits(5 * TARGET, now + 6 * TARGET)
    assert not codel.slow


def test_slow_work_alone_is_no_standing_queue():
    """One at a time, each found nobody waiting and waits long for the one connection: refusing would help nobody."""
    codel = CoDel(TARGET)
    assert all(codel.admits(3 * TARGET, 1000.0 + number * 4 * TARGET) for number in range(50))


@pytest.mark.parametrize("now", [0.0, 0.5, 1e9])
def test_the_clock_may_begin_anywhere(now):
    """A monotonic clock has no agreed zero."""
    assert CoDel(TARGET).admits(5.0, now)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), max_size=200))
@settings(database=None)
def test_nobody_within_the_target_is_ever_refused(waits):
    """Whatever came before."""
    codel = CoDel(TARGET)
    now = 1000.0
    for delay, step in waits:
        now += step
        assert codel.admits(delay, now) or delay > TARGET


def test_pace_is_the_time_between_hand_overs():
    """Ten a second while a queue stands: a tenth of a second each."""
    pace = Pace()
    assert pace.seconds is None
    for number in range(20):
        pace.note(5.0, 1000.0 + number * 0.1)
    assert pace.seconds == pytest.approx(0.1)


def test_pace_forgets():
    """A slow hour is forgotten after some dozens of hand-overs at another pace."""
    pace = Pace()
    now = 1000.0
    for apart in [10.0] * 100 + [0.1] * 100:
        now += apart
        pace.note(50.0, now)
    assert pace.seconds == pytest.approx(0.1, rel=0.3)


def test_pace_is_not_jerked_about_by_one_hand_over():
    """One that took ten times as long weighs a sixteenth."""
    pace = Pace()
    for number in range(50):
        pace.note(50.0, 1000.0 + number * 0.1)
    pace.note(50.0, 1005.9)
    assert pace.seconds == pytest.approx(0.1 + 0.9 / 16)


def test_the_time_in_which_nobody_waited_is_no_pace():
    """One who came after the last hand-over says nothing about the rate at which a queue drains."""
    pace = Pace()
    pace.note(50.0, 1000.0)
    pace.note(0.5, 1100.0)
    assert pace.seconds is None
    pace.note(0.5, 1100.2)
    assert pace.seconds == pytest.approx(0.2)


# -- what the tests above are worth -----------------------------------------------------------------------------------

MUTANTS = [
    ("the old are served", "return not self.slow\n", "return True\n"),
    ("everybody is refused in bad times", "            return True\n        if self", "            return not self.slow\n        if self"),
    ("a moment is an interval", ">= self._interval", ">= 0"),
    ("an interval never ends", ">= self._interval", ">= 1e9"),
    ("bad times never end", "            self.slow = False\n            self._ended", "            self._ended"),
    ("a relapse takes an interval", "self.slow or relapsed or", "self.slow or"),
    ("a relapse is for ever", "now - self._ended < RELAPSE * self._interval", "self._ended > 0"),
    ("every queue is a relapse", "if self.slow and (drained or delay <= self.target / 2):", "if drained or delay <= self.target / 2:"),
    ("an empty queue is no end", "(drained or delay <= self.target / 2)", "(delay <= self.target / 2)"),
    ("a quick hand-over is no end", "(drained or delay <= self.target / 2)", "drained"),
    ("bad times end at the target", "delay <= self.target / 2)", "delay <= self.target)"),
    ("an interval goes on over a hand-over in time", "            self._above_since = None\n            return", "            return"),
    ("an interval goes on over an empty queue", "if drained or delay <= self.target:", "if delay <= self.target:"),
    ("nobody ever came before", "        self._last = now\n        if self.slow", "        if self.slow"),
    ("twice the target is allowed", "if drained or delay <= self.target:", "if drained or delay <= 2 * self.target:"),
    ("the interval begins with each", "        if self._above_since is None:\n            self", "        if True:\n            self"),
    ("the pace counts the time without a queue", "        if delay <= apart:", "        if False:"),
    ("the pace is the last one's", "(apart - self.seconds) * RECENT", "(apart - self.seconds)"),
    ("the pace is the first one's", "(apart - self.seconds) * RECENT", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), [pytest.param(old, new, id=name) for name, old, new in MUTANTS])
def test_every_mutant_of_overload_is_seen(old, new, monkeypatch):
    """Each hand-made fault of overload.py fails one of the tests above at least."""
    source = Path(poolkit.overload.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1
    module = ModuleType("mutant_overload")
    exec(source.replace(old, new), module.__dict__)
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "CoDel", module.CoDel)
    monkeypatch.setattr(here, "Pace", module.Pace)
    assert any(_fails(test) for name, test in vars(here).copy().items() if _is_plain_test(name, test))


def _is_plain_test(name, test):
    return name.startswith("test_") and callable(test) and not inspect.signature(test).parameters


def _fails(test):
    try:
        test()
    except AssertionError:
        return True
    return False
