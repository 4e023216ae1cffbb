"""An event loop in which time passes only when nothing else is left to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from poolkit.testing.fakes import ManualClock

__all__ = ["ManualLoop"]


class _Jumping(selectors.DefaultSelector):
    """A selector that does not wait: it moves the clock to where the wait would have ended."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(timeout if timeout is None else 0)
        if not events and timeout is not None and timeout > 0:
            self._clock.advance(timeout)
        return events


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop on a `ManualClock`: `asyncio.sleep(3600)` takes no time, and every timer fires in its order.

    For tests in which all that happens happens in the loop: work in threads takes real time, which passes unseen here.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(_Jumping(clock))
        self._manual_clock = clock

    def time(self) -> float:
        """Tell the clock's time."""
        return self._manual_clock()

    def run(self, work: Any) -> Any:
        """Run an awaitable to its end, with this loop as the running one."""
        return self.run_until_complete(work)
