"""CoDel: who is refused when waiting has been too long for too long, and who never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.overload import INTERVALS, CoDel

TARGET = 0.1
INTERVAL = TARGET * INTERVALS


def feed(codel, delays, step=0.05, now=1000.0):
    """Let waiters with these delays come up one after the other; return who was served."""
    served = []
    for delay in delays:
        served.append(codel.admits(delay, now))
        now += step
    return served


def test_short_waits_are_never_refused():
    """Below the target there is no overload, whatever the rate."""
    assert all(feed(CoDel(TARGET), [0.05] * 500))


def test_a_burst_is_served_whole():
    """A queue that is long for less than an interval does no harm."""
    count = int(INTERVAL / 0.05) - 1
    assert all(feed(CoDel(TARGET), [1.0] * count))


def test_a_standing_queue_is_shed():
    """Where even the shortest wait of an interval was too long, the old are refused."""
    served = feed(CoDel(TARGET), [1.0] * 200)
    count = int(INTERVAL / 0.05)
    assert all(served[:count])
    assert not any(served[count + 1 :])


def test_the_fresh_are_served_in_a_standing_queue():
    """Those below twice the target get through while the old are refused."""
    codel = CoDel(TARGET)
    feed(codel, [1.0] * 100)
    assert codel.slow
    assert codel.admits(0.15, 1005.01)
    assert not codel.admits(0.25, 1005.02)


def test_one_quick_hand_over_ends_the_shedding():
    """It proves that the queue did drain."""
    codel = CoDel(TARGET)
    feed(codel, [1.0] * 100)
    assert not codel.admits(1.0, 1005.01)
    assert codel.admits(0.01, 1005.02)
    assert codel.admits(1.0, 1005.03)


def test_a_pause_is_forgotten():
    """An interval in which nobody came up says nothing about a standing queue."""
    codel = CoDel(TARGET)
    feed(codel, [1.0] * 10)
    assert codel.admits(1.0, 1000.0 + 10 * INTERVAL)
    assert not codel.slow


@pytest.mark.parametrize("now", [0.0, 0.5, 1e9])
def test_the_clock_may_begin_anywhere(now):
    """A monotonic clock has no agreed zero."""
    assert CoDel(TARGET).admits(5.0, now)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), max_size=200))
def test_nobody_below_twice_the_target_is_ever_refused(waits):
    """Whatever came before."""
    codel = CoDel(TARGET)
    now = 1000.0
    for delay, step in waits:
        now += step
        admitted = codel.admits(delay, now)
        assert admitted or delay > 2 * TARGET


@given(st.lists(st.floats(0, TARGET), min_size=1, max_size=100), st.floats(0.01, 0.5))
def test_below_the_target_nobody_is_ever_refused(delays, step):
    """However many come up, however fast."""
    assert all(feed(CoDel(TARGET), delays, step))
