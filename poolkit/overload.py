"""Whom to refuse when waiting has been too long for too long (controlled delay, CoDel); how fast a queue drains. Pure.

A queue that is long for a moment is a burst and does no harm. A queue in which everybody who comes up has waited longer
than the target, for a whole interval, is standing: it adds delay to everyone and serves nobody better. Then those who
have waited longer than the target are refused, so that the fresh ones are served in time instead of everyone too late.
It ends when somebody comes up after half the target, or finds that nobody had stood before him: the queue did drain.
That may have been a hiccup, which emptied the line once. So for some intervals after the end a queue that is above the
target again is taken for the same one, and shed at once.

The idea is Nichols and Jacobson's (ACM Queue 10(5), 2012); to refuse by age while the queue stands is how Elixir's
db_connection and Facebook's servers adapt it. Both of those let the newest go first, or allow twice the target. Neither
is needed here: of those in line none is older than the target once the old are refused, so first come, first served
costs nothing, and the slowest of the served have waited for about the target (tests/shells/test_overload_policies.py).
The interval is four targets and not CoDel's twenty, because what is served until the queue is found to stand is late.

Both are asked only when a waiter is about to be served, so they cost nothing otherwise.
"""

from __future__ import annotations

import math

__all__ = ["CoDel", "Pace"]

INTERVALS = 4  # an interval is this many targets long
RELAPSE = 8  # intervals after the end of a standing queue
RECENT = 1 / 16  # what the latest hand-over weighs


class CoDel:
    """Decide, waiter by waiter in the order in which they asked, who is still worth serving. Times in seconds."""

    __slots__ = ("_above_since", "_ended", "_interval", "_last", "slow", "target")

    def __init__(self, target: float) -> None:
        self.target = target
        self._interval = target * INTERVALS
        self._last = -math.inf  # when somebody came up
        self._above_since: float | None = None  # nobody has come up within the target since then
        self._ended = -math.inf  # when a queue had ceased to stand
        self.slow = False

    def admits(self, delay: float, now: float) -> bool:
        """Note that a waiter comes up after `delay`; say whether to serve (True) or to refuse it."""
        drained = now - delay > self._last  # it asked later than that, so nobody was in line then
        self._last = now
        if self.slow and (drained or delay <= self.target / 2):
            self.slow = False
            self._ended = now
        if drained or delay <= self.target:
            self._above_since = None
            return True
        if self._above_since is None:
            self._above_since = now
        relapsed = now - self._ended < RELAPSE * self._interval
        self.slow = self.slow or relapsed or now - self._above_since >= self._interval
        return not self.slow


class Pace:
    """How fast waiters are served of late, while there are any."""

    __slots__ = ("_last", "seconds")

    def __init__(self) -> None:
        self._last = -math.inf
        self.seconds: float | None = None  # from one hand-over to the next; None before two came in a row

    def note(self, delay: float, now: float) -> None:
        """Note a hand-over to one who had waited for `delay`."""
        apart = now - self._last
        self._last = now
        if delay <= apart:  # nobody was in line in between: that tells nothing
            return
        self.seconds = apart if self.seconds is None else self.seconds + (apart - self.seconds) * RECENT
