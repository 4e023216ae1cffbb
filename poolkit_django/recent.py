"""What happened in the pools of this process lately: for the page and for `stats`. A short memory, and never a secret.

An error is told by its first line, as it stands in the log; a stack is left to the log.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any, NamedTuple

from poolkit.events import Closed, Event, Leaked, Opened, OpenError, Refused

__all__ = ["KEPT", "Happening", "latest", "note"]

KEPT = 50


class Happening(NamedTuple):
    """One event: when (seconds since 1970), in which pool, of which kind, and in words."""

    at: float
    pool: str
    kind: str
    text: str


_memory: deque[tuple[int, Happening]] = deque(maxlen=KEPT)


def note(event: Event) -> None:
    """Remember an event; borrowings are too many to be worth it."""
    told = _told(event)
    if told is not None:
        happening = Happening(time.time(), event.pool, type(event).__name__, told)
        _memory.append((os.getpid(), happening))


def latest() -> list[Happening]:
    """Return what happened in this process, the newest first; what a parent has seen before the fork is its own."""
    mine = os.getpid()
    return [happening for pid, happening in reversed(list(_memory)) if pid == mine]


def _told(event: Any) -> str | None:
    match event:
        case Opened():
            return f"opened in {event.took * 1000:.0f} ms"
        case OpenError():
            return f"could not connect: {_first_line(event.error)}"
        case Closed():
            return f"closed: {event.reason}"
        case Refused():
            return f"refused after {event.waited:.2f} s: {type(event.error).__name__}"
        case Leaked():
            return f"{event.holder} holds a connection for {event.age:.1f} s"
    return None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
