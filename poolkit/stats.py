"""PoolStats: what a pool looks like at one moment, and what it did since it was made. Pure.

Gauges (size, idle, out, resetting, opening, waiting) are of the moment; counters only grow. The snapshot is taken under
the pool's lock, so its numbers belong together. Times are seconds; `wait` counts only those who had to wait: who got a
connection at once is `acquired - wait.count`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["BOUNDS", "Histogram", "HistogramSnapshot", "PoolStats"]

# The bounds that the OpenTelemetry conventions advise for database durations, in seconds.
BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """How many values fell up to each bound (the last bucket is everything above), their number and their sum."""

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    count: int
    total: float


class Histogram:
    """Count durations into fixed buckets. Not locked: the pool's lock covers it."""

    __slots__ = ("buckets", "count", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.count = 0
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.count += 1
        self.total += seconds

    def snapshot(self) -> HistogramSnapshot:
        """Copy the numbers."""
        return HistogramSnapshot(BOUNDS, tuple(self.buckets), self.count, self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """One pool's numbers, all of the same moment."""

    name: str
    size: int
    idle: int
    out: int
    resetting: int = 0
    """Given back, and their reset is under way."""
    opening: int
    waiting: int
    min_size: int
    max_size: int
    generation: int
    closed: bool
    acquired: int
    timeouts: int
    overloaded: int
    """Refused because of the queue: because it was full (`max_waiting`), or `shed`."""
    shed: int
    """Of the overloaded: refused after waiting for longer than `target_delay` in a queue that did not drain."""
    refused: int
    opened: int
    open_failures: int
    closed_by_reason: dict[str, int]
    leaked: int
    used_seconds: float
    wait: HistogramSnapshot
    open_time: HistogramSnapshot
    outage: str | None = field(default=None)
    """What the last attempt to connect failed with, while the server is away."""
    rejected: bool = field(default=False)
    """Whether that was a refusal for good (a wrong password, say), which waiting does not mend."""

    def as_dict(self) -> dict[str, Any]:
        """Make plain data of it, for JSON."""
        return asdict(self)
