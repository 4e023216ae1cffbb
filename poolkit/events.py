"""What a pool tells its listeners. An event is built only where somebody listens.

A listener is any callable taking one event. It is called outside the pool's lock, in the thread or task in which the
thing happened, so it must be quick and must not raise: one that raises is logged and goes on listening. `connection` is
the driver's own object: it may be looked at during the call, and is not to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "Acquired",
    "Closed",
    "Event",
    "Leaked",
    "Listener",
    "OpenError",
    "Opened",
    "Refused",
    "Released",
    "RolledBack",
]


@dataclass(frozen=True, slots=True)
class Event:
    """What all events share: the pool's name."""

    pool: str


@dataclass(frozen=True, slots=True)
class Acquired(Event):
    """A borrower got a resource after `waited` seconds."""

    waited: float
    connection: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Released(Event):
    """A borrower gave a resource back after `used` seconds."""

    used: float
    connection: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """A borrower got an error instead, after `waited` seconds."""

    waited: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Opened(Event):
    """A resource was opened in `took` seconds."""

    took: float
    connection: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class OpenError(Event):
    """Opening a resource failed after `took` seconds."""

    took: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Closed(Event):
    """A resource was closed, and why (`lifetime`, `idle`, `broken`, `drained`, ...)."""

    reason: str
    connection: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Leaked(Event):
    """A lease is out for longer than `leak_after`: `taken` and `now` are stacks, taken at acquire and just now."""

    holder: str
    age: float
    taken: str
    now: str


@dataclass(frozen=True, slots=True)
class RolledBack(Event):
    """A unit of work was rolled back on this pool: which work, and why (`error`, `doomed`, `swallowed_error`, ...)."""

    label: str
    reason: str


Listener: TypeAlias = Callable[[Event], object]
