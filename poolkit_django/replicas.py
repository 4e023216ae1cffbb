"""Replicas, as far as it can be decided without asking anybody: who is fit to be read from, and by whom.

What is written on a primary has a position in its log (PostgreSQL calls it an LSN), and a standby has replayed the log
up to a position of its own. Both only grow. So there are two questions, and neither is about a fixed delay:

- May anybody read from this replica? It has answered lately, and it is not too far behind. How far that is in seconds
  is told from what was seen before: the primary was at P at the time t, so a replica that has replayed P is behind by
  at most now - t. The age of the last replayed transaction alone would call every replica of a quiet primary late.
- May *this client* read from it? A client that wrote carries the position of its write, its mark, and the replica must
  have replayed that. An old sight of a replica is good enough for a yes, because positions only grow.

An engine without such positions (MySQL, SQLite) has marks that are times: until then the client reads the primary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from poolkit_django.writing import writes

__all__ = [
    "Course",
    "Limits",
    "Mark",
    "Replica",
    "Sight",
    "end_of_record",
    "fittest",
    "limits_from",
    "lsn",
    "lsn_text",
    "marks_from",
    "merged",
    "writes",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica must keep to, in seconds and bytes; POOLKIT_REPLICA_OPTIONS."""

    max_lag: float = 10.0
    """A replica further behind than so many seconds is left out."""
    max_lag_bytes: int | None = None
    """The same in bytes of the primary's log; None: only the seconds count."""
    pause: float = 0.5
    """Between two looks at a replica that is in use."""
    timeout: float = 1.0
    """For an answer, and for a connection; a replica that takes longer is left out."""
    remember: float = 60.0
    """How long a client's mark lives; not less than `max_lag`, for later no replica in use can lack the write."""
    cookie: str | None = "poolkit_replica"
    """The name of the cookie that carries a client's mark; None: no cookie, tokens are carried by hand."""

    @property
    def trust(self) -> float:
        """How long a sight counts: the primary and the replica may both take their time in a round of looking."""
        return self.pause + 2 * self.timeout


def limits_from(given: object) -> Limits:
    """Read POOLKIT_REPLICA_OPTIONS. Raises `ValueError` with all that is wrong."""
    if not isinstance(given, Mapping):
        raise ValueError(f"must be a mapping, not {given!r}")  # noqa: TRY004  a setting's value, as the others
    known = [field.name for field in fields(Limits)]
    problems = [f"{name!r} is not one of {', '.join(known)}" for name in given if name not in known]
    problems += [problem for name in known if name in given and (problem := _fault(name, given[name]))]
    if not problems:
        limits = Limits(**given)
        if limits.remember >= limits.max_lag:
            return limits
        problems = [f"'remember' ({limits.remember:g} s) must not be less than 'max_lag' ({limits.max_lag:g} s)"]
    raise ValueError("; ".join(problems))


def _fault(name: str, value: object) -> str | None:
    if name == "cookie":
        return (
            None if value is None or (isinstance(value, str) and value) else f"'cookie' must be a name, not {value!r}"
        )
    if name == "max_lag_bytes" and value is None:
        return None
    kinds = (int,) if name == "max_lag_bytes" else (int, float)
    if isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < float("inf"):
        return None
    return f"{name!r} must be a positive {'whole number' if kinds == (int,) else 'number of seconds'}, not {value!r}"


# -- positions and marks -----------------------------------------------------------------------------------------------


def lsn(text: str) -> int:
    """Read PostgreSQL's spelling of a position, "16/B374D848". Raises `ValueError`."""
    high, slash, low = text.partition("/")
    if not slash or not (0 < len(high) <= 8 and 0 < len(low) <= 8):
        raise ValueError(f"not a position in a log: {text!r}")
    return int(high, 16) << 32 | int(low, 16)


def lsn_text(position: int) -> str:
    """Spell a position as PostgreSQL does."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


_PAGE = 8192
_HEADERS = (24, 40)  # of a page of the log, and of a segment's first one


def end_of_record(position: int) -> int:
    """Take off the page header after which the next record will come: nothing that exists ends there.

    A standby is at the end of the last record, so of a quiet primary it would be short of the header for ever.
    """
    return position - position % _PAGE if position % _PAGE in _HEADERS else position


@dataclass(frozen=True, slots=True)
class Mark:
    """What a client has to find: a position of the primary's, or the primary itself until a time (Unix, seconds)."""

    position: int = 0
    until: float = 0.0

    def with_(self, other: Mark) -> Mark:
        """Join two: both must be met."""
        return Mark(max(self.position, other.position), max(self.until, other.until))

    def plain(self) -> list[str | float]:
        """Spell it for JSON."""
        return [lsn_text(self.position), self.until]


Marks = Mapping[str, Mark]


def merged(one: Marks, other: Marks) -> dict[str, Mark]:
    """Join the marks of two: those of each primary."""
    both = dict(one)
    for alias, mark in other.items():
        both[alias] = both[alias].with_(mark) if alias in both else mark
    return both


def marks_from(plain: object, primaries: Iterable[str]) -> dict[str, Mark]:
    """Read marks from JSON; what is not understood, or is of a primary that is none any more, is left out."""
    if not isinstance(plain, dict):
        return {}
    found = {}
    for alias in primaries:
        try:
            position, until = plain[alias]
            found[alias] = Mark(lsn(position), float(until))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return found


# -- what was seen -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sight:
    """What a server said of itself. `position` is None for an engine that has none."""

    position: int | None = None
    standby: bool = True
    age: float | None = None
    """Seconds since the commit of what a standby replayed last; None where it has replayed nothing."""
    started: str = ""
    """When the server was started: tells two servers apart."""


class Course:
    """Where a primary was, and when: the last hundred sights of it."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=100)
        self.started = ""

    def note(self, now: float, sight: Sight) -> None:
        """Take down a sight."""
        if sight.position is None:
            return
        if self._seen and sight.position < self._seen[-1][1]:  # another server: after a failover, or a restore
            self._seen.clear()
        self._seen.append((now, sight.position))
        self.started = sight.started

    def position(self, since: float) -> int | None:
        """Where the primary was, if it was seen since then."""
        return self._seen[-1][1] if self._seen and self._seen[-1][0] >= since else None

    def reached_by(self, position: int) -> float | None:
        """The last time at which the primary had nothing that this position lacks."""
        return next((at for at, was in reversed(self._seen) if was <= position), None)


class Replica:
    """One replica, as it was seen last."""

    def __init__(self, alias: str, limits: Limits) -> None:
        self.alias = alias
        self.limits = limits
        self.seen: float | None = None
        self.position: int | None = None
        self.lag: float | None = None
        self.lag_bytes: int | None = None
        self.out: str | None = None
        """Why it is left out, whatever its lag."""
        self.last_error: str | None = None

    def heard(self, now: float, sight: Sight, course: Course) -> None:
        """Take down what the replica said."""
        self.seen = now
        self.out = None
        if not sight.standby and sight.started != course.started:
            self._leave_out("it is not a standby (any more)")
            return
        if self.position is not None and sight.position is not None and sight.position < self.position:
            self.lag = None  # a new copy, or an older one: nothing seen before counts
        self.position = sight.position
        self._measure(now, sight, course)

    def _measure(self, now: float, sight: Sight, course: Course) -> None:
        self.lag = self.lag_bytes = None
        newest = course.position(now - self.limits.trust)
        if newest is None or sight.position is None:
            return
        self.lag_bytes = max(0, newest - sight.position)
        level = course.reached_by(sight.position)
        bounds = [bound for bound in (None if level is None else now - level, sight.age) if bound is not None]
        if self.lag_bytes == 0:
            self.lag = 0.0
        elif bounds:
            self.lag = max(0.0, min(bounds))

    def failed(self, error: object) -> None:
        """Hear that it can't be reached, or is silent."""
        self._leave_out(str(error).partition("\n")[0])

    def _leave_out(self, why: str) -> None:
        self.out = self.last_error = why

    def is_fit(self, now: float) -> bool:
        """Whether anybody may read from it."""
        if self.out is not None or self.seen is None or now - self.seen > self.limits.trust:
            return False
        if self.lag is not None and self.lag > self.limits.max_lag:
            return False
        most = self.limits.max_lag_bytes
        return most is None or self.lag_bytes is None or self.lag_bytes <= most

    def has(self, mark: Mark, wall: float) -> bool:
        """Whether a client with this mark finds its writes here. `wall` is Unix time."""
        if mark.until > wall:
            return False
        return not mark.position or (self.position is not None and self.position >= mark.position)

    def is_worth_waiting_for(self, now: float) -> bool:
        """Whether nothing recent is known of it, and nothing bad: then one look decides."""
        return self.out is None and (self.seen is None or now - self.seen > self.limits.trust)

    def as_dict(self, now: float) -> dict[str, Any]:
        """Tell its state in plain data, for pages and logs."""
        return {
            "alias": self.alias,
            "in_use": self.is_fit(now),
            "position": None if self.position is None else lsn_text(self.position),
            "lag_seconds": self.lag,
            "lag_bytes": self.lag_bytes,
            "seen_seconds_ago": None if self.seen is None else round(now - self.seen, 3),
            "out": self.out,
            "last_error": self.last_error,
        }


def fittest(replicas: Iterable[Replica], mark: Mark, now: float, wall: float) -> list[Replica]:
    """Every replica that this client may read from now."""
    return [replica for replica in replicas if replica.is_fit(now) and replica.has(mark, wall)]
