"""The clock of the pools, and what it can't see.

Ages, idle times and deadlines are measured in it. On Linux it is CLOCK_BOOTTIME, which goes on while the machine is
suspended: a connection that slept for an hour has been idle for an hour, and is asked before it is lent. macOS has
CLOCK_MONOTONIC for that, which there is not `time.monotonic`. Elsewhere it is `time.monotonic`.

It need not be the clock of an event loop or of a lock's timeout: those stand still meanwhile. So nothing compares a
moment of one with a moment of the other; what is waited for is always a difference.

A virtual machine that was paused, or restored from a snapshot, knows nothing of the time that went by: only its wall
clock is set right afterwards. `Leaps` notices that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

__all__ = ["Leaps", "clock"]

LEAP = 30.0  # seconds; as long as `check_after`. A clock that is set by less is none that was stopped


def _find_clock() -> Callable[[], float]:
    number = getattr(time, "CLOCK_BOOTTIME", None)
    if number is None and sys.platform == "darwin":
        number = time.CLOCK_MONOTONIC
    return time.monotonic if number is None else partial(time.clock_gettime, number)


clock = _find_clock()


def _wall() -> float:
    # Not time.time, where there is a choice: libraries that freeze the time for a test put another in its place.
    return time.clock_gettime(time.CLOCK_REALTIME) if hasattr(time, "clock_gettime") else time.time()


class Leaps:
    """Notices that the wall clock was set forward, against the clock of the pools."""

    def __init__(self, now: Callable[[], float] = clock) -> None:
        self._now = now
        self._ahead = _wall() - now()

    def seen(self) -> float:
        """Return by how many seconds it was set forward since the last call; 0 for less than half a minute."""
        ahead = _wall() - self._now()
        leap, self._ahead = ahead - self._ahead, ahead
        return leap if leap >= LEAP else 0.0
