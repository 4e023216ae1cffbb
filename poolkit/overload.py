"""Controlled delay (CoDel): whom to refuse when waiting has been too long for too long. Pure.

A queue that is long for a moment is a burst and does no harm. A queue whose *shortest* wait stays above the target
for a whole interval is standing: it adds delay to everyone and serves nobody better. Then those who have waited for
more than twice the target are refused, so that the fresh ones are served in time instead of everyone too late. The
measure is the minimum over an interval, because a single quick hand-over proves that the queue did drain.

The idea is Nichols and Jacobson's (ACM Queue 10(5), 2012); refusing by age in slow intervals only is how Elixir's
db_connection adapts it to a pool. It is asked only when a waiter is about to be served, so it costs nothing otherwise.
"""

from __future__ import annotations

__all__ = ["CoDel"]

INTERVALS = 20  # an interval is this many targets long: 100 ms for 5 ms in the paper


class CoDel:
    """Decide, waiter by waiter, who is still worth serving. Times in seconds."""

    __slots__ = ("_interval", "_least", "_until", "slow", "target")

    def __init__(self, target: float) -> None:
        self.target = target
        self._interval = target * INTERVALS
        self._until = 0.0
        self._least = 0.0
        self.slow = False

    def admits(self, delay: float, now: float) -> bool:
        """Note that a waiter comes up after `delay`; say whether to serve (True) or to refuse it."""
        if now >= self._until:
            # an interval in which nobody came up says nothing about standing queues
            fresh = now < self._until + self._interval
            self.slow = fresh and self._least > self.target
            self._least = delay
            self._until = now + self._interval
        elif delay < self._least:
            self._least = delay
            if delay <= self.target:
                self.slow = False
        return not (self.slow and delay > 2 * self.target)
