"""What the units of work of one registry count, and what they say once and not each time."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from time import monotonic
from typing import Any

__all__ = ["Rarely", "Tally"]


class Tally:
    """Counts, by reason, of what a process's units of work did. They only grow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, int]] = {}
        self.each_minute = Rarely(60.0)
        self.once = Rarely()

    def add(self, kind: str, reason: str) -> None:
        """Count one."""
        with self._lock:
            counts = self._counts.setdefault(kind, {})
            counts[reason] = counts.get(reason, 0) + 1

    def of(self, kind: str) -> dict[str, int]:
        """The counts of one kind, by reason."""
        with self._lock:
            return dict(self._counts.get(kind, ()))

    @property
    def rollbacks(self) -> dict[str, int]:
        """Units that used a connection and were rolled back, by reason (`error`, `doomed`, `swallowed_error`, ...)."""
        return self.of("rollbacks")

    @property
    def explicit_ends(self) -> dict[str, int]:
        """How often code inside a unit called the connection's own `commit` or `rollback`."""
        return self.of("explicit_ends")

    @property
    def hook_failures(self) -> dict[str, int]:
        """Hooks that raised or took too long, by kind (`on_commit`, `on_rollback`)."""
        return self.of("hook_failures")

    @property
    def stray_leases(self) -> dict[str, int]:
        """Leases that a unit's end found in other threads (Django), by what was under way: `idle`, `statement`, ..."""
        return self.of("stray_leases")

    def as_dict(self) -> dict[str, Any]:
        """Make plain data of it, for JSON."""
        return {kind: self.of(kind) for kind in ("rollbacks", "explicit_ends", "hook_failures", "stray_leases")}


class Rarely:
    """Whether something is to be said again: once for each key, or once for each key in `seconds`.

    It remembers the last `most` keys.
    """

    def __init__(self, seconds: float | None = None, most: int = 1024) -> None:
        self._lock = threading.Lock()
        self._seconds = seconds
        self._most = most
        self._said: dict[Hashable, list[float]] = {}  # when it was said last, and how often it was not said since

    def due(self, key: Hashable) -> int | None:
        """Return how often it was left unsaid since the last time, None where it is to be left unsaid now."""
        now = monotonic()
        with self._lock:
            said = self._said.pop(key, None)
            if said is not None and (self._seconds is None or now - said[0] < self._seconds):
                self._said[key] = [said[0], said[1] + 1]
                return None
            while len(self._said) >= self._most:
                del self._said[next(iter(self._said))]
            self._said[key] = [now, 0]
            return 0 if said is None else int(said[1])
