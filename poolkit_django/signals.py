"""Signals: what happens in the pools of this process, and how units of work end, told in Django's way.

    from poolkit_django.signals import connection_refused

    @receiver(connection_refused)
    def count(sender, pool, waited, error, **kwargs): ...

Every signal of a pool has `pool`, the pool's name (an alias of DATABASES, or a name of POOLKIT). The sender is the
class of the event (`poolkit.events`). They are sent in the thread or task in which the thing happened, never under a
pool's lock; so a receiver must be quick, and one that uses the database asks the very pool that it hears of. What a
receiver raises is logged by Django and hurts nobody.

    connection_opened       took                       a physical connection was opened, in so many seconds
    connection_open_failed  took, error
    connection_closed       reason                     "idle", "lifetime", "broken", "drained", ...
    connection_refused      waited, error              somebody got no connection
    connection_leaked       holder, age, taken, now    held for longer than leak_after; two stacks
    connection_acquired     waited                     of every borrowing: each costs a few microseconds while somebody
    connection_released     used                       listens to one of these two, and nothing while nobody does
    unit_ended              unit, label, committed, aliases, took, error

`unit_ended` comes from the unit of a request or of `unit_of_work()`, after its COMMIT or ROLLBACK and before the first
byte of the response: `took` are the seconds of the end alone, `error` is what it was rolled back for, or None. Django's
own `connection_created` is sent whenever a thread leases.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any
from weakref import WeakSet

from django.dispatch import Signal

from poolkit.events import Acquired, Closed, Event, Leaked, Opened, OpenError, Refused, Released
from poolkit_django import recent

__all__ = [
    "attach",
    "connection_acquired",
    "connection_closed",
    "connection_leaked",
    "connection_open_failed",
    "connection_opened",
    "connection_refused",
    "connection_released",
    "unit_ended",
]


class _Borrowing(Signal):
    """A signal of every borrowing: the pools build its events only while somebody listens."""

    def connect(self, *args: Any, **kwargs: Any) -> None:
        super().connect(*args, **kwargs)
        _watch_borrowings()

    def disconnect(self, *args: Any, **kwargs: Any) -> bool:
        found: bool = super().disconnect(*args, **kwargs)
        _watch_borrowings()
        return found


connection_opened = Signal()
connection_open_failed = Signal()
connection_closed = Signal()
connection_refused = Signal()
connection_leaked = Signal()
connection_acquired = _Borrowing()
connection_released = _Borrowing()
unit_ended = Signal()

_BORROWINGS: dict[type[Event], Signal] = {Acquired: connection_acquired, Released: connection_released}
_RARE: dict[type[Event], Signal] = {
    Opened: connection_opened,
    OpenError: connection_open_failed,
    Closed: connection_closed,
    Refused: connection_refused,
    Leaked: connection_leaked,
}
_pools: WeakSet[Any] = WeakSet()


def attach(pool: Any) -> Any:
    """Let a pool, for threads or for asyncio, send the signals; returns it. For who makes the pools."""
    _pools.add(pool)
    pool.listen(_hear, borrowings=False)
    if _is_watched():
        pool.listen(_hear_borrowing)
    return pool


def _is_watched() -> bool:
    return any(signal.has_listeners() for signal in _BORROWINGS.values())


def _watch_borrowings() -> None:
    watched = _is_watched()
    for pool in list(_pools):
        pool.unlisten(_hear_borrowing)
        if watched:
            pool.listen(_hear_borrowing)


def _hear(event: Event) -> None:
    recent.note(event)
    _send(_RARE.get(type(event)), event)


def _hear_borrowing(event: Event) -> None:
    _send(_BORROWINGS.get(type(event)), event)


def _send(signal: Signal | None, event: Event) -> None:
    if signal is not None and signal.receivers:
        told = {field.name: getattr(event, field.name) for field in fields(event)}
        signal.send_robust(type(event), **told)
