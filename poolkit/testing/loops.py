"""An event loop in which time passes only when nothing else is left to do, and then at once."""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import Any

from poolkit.testing.fakes import ManualClock

__all__ = ["ManualLoop", "Stuck"]


class Stuck(AssertionError):
    """Nothing in the loop can go on any more, or all that goes on is timers that never help."""


class _Jumping(selectors.DefaultSelector):
    """A selector that does not wait: it moves the clock to where the wait would have ended."""

    def __init__(self, clock: ManualClock, patience: float | None, horizon: float) -> None:
        super().__init__()
        self._clock = clock
        self._patience = patience
        self._end = clock() + horizon

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(self._patience if timeout is None else 0)
        if events:
            return events
        if timeout is None:
            raise Stuck("nobody can go on: there is no timer left, and no thread has called")
        if timeout <= 0:
            return events
        self._clock.advance(timeout)
        if self._clock() > self._end:
            raise Stuck("nobody has come to an end, however many timers have fired")
        return events


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop on a `ManualClock`: `asyncio.sleep(3600)` takes no time, and every timer fires in its order.

    For tests in which all that happens happens in the loop: work in threads takes real time, which passes unseen here.
    Where nothing is left that could happen, it waits for a thread to call: `patience` seconds of real time, then it
    raises `Stuck`; for ever by default. It raises it as well where `horizon` seconds of its own time have gone by.
    """

    def __init__(self, clock: ManualClock, *, patience: float | None = None, horizon: float = math.inf) -> None:
        super().__init__(_Jumping(clock, patience, horizon))
        self._manual_clock = clock

    def time(self) -> float:
        """Tell the clock's time."""
        return self._manual_clock()

    def run(self, work: Any) -> Any:
        """Run an awaitable to its end, with this loop as the running one."""
        return self.run_until_complete(work)
