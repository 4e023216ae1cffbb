"""Footings: what the code that runs here has written so far, and what it must find when it reads.

A unit of work has a footing of its own, and so has a thread outside of any. It learns of writes from the statements
themselves, so raw SQL counts as the ORM's does. A request's footing asks for the position of its write right after the
COMMIT, on the same connection: one round trip, only where something was written. Elsewhere nobody may ever read again,
so the question waits until somebody does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core import signing
from django.db import connections

from poolkit_django.replicas import Mark, marks_from, merged, writes
from poolkit_django.scopes import scope_var

__all__ = ["Footing", "Watch", "decode", "encode", "footing"]

_SALT = "poolkit_django.replicas"
_SETTLED = 0.1  # seconds after a write: until then reads go to the primary, and no position is asked for


class Footing:
    """What one unit of work, or one thread, stands on."""

    def __init__(self, marks: dict[str, Mark] | None = None, *, request: bool = False, unit: bool = False) -> None:
        self.marks: dict[str, Mark] = dict(marks or {})
        self.request = request
        self.unit = unit
        self.wrote: set[str] = set()
        """The primaries written on: the rest of a unit reads them."""
        self.unknown: dict[str, float] = {}
        """When something was committed whose position nobody has asked for yet."""
        self.chosen: dict[str, str] = {}
        """Where a unit reads: it stays there as long as it can."""
        self.changed = False

    def meet(self, primary: str, mark: Mark) -> None:
        """Have a mark more to meet."""
        self.marks = merged(self.marks, {primary: mark})
        self.changed = True

    def note_write(self, primary: str, wrapper: Any, fleet: Any) -> None:
        """Hear of a statement that wrote."""
        self.wrote.add(primary)
        if not wrapper.in_atomic_block:
            self.unknown[primary] = fleet.now()
        elif not is_test(wrapper):
            recent = wrapper.run_on_commit[-8:]
            if not any(isinstance(entry[1], _Committed) and entry[1].footing is self for entry in recent):
                wrapper.on_commit(_Committed(self, primary, wrapper, fleet), robust=True)

    def settle(self, primary: str, fleet: Any) -> None:
        """Ask for the position of what was committed, where that is not known yet."""
        if primary in self.unknown:
            wrapper = connections[primary]
            leased = wrapper.connection is not None
            self.meet(primary, fleet.mark_of(wrapper, self.unknown[primary]))
            self.unknown.pop(primary, None)
            if not leased:
                wrapper.close_if_unusable_or_obsolete()

    def is_settling(self, primary: str, fleet: Any) -> bool:
        """Whether a write was just now: whoever writes and reads in turns is not to ask each time."""
        since = self.unknown.get(primary)
        return since is not None and fleet.now() - since < _SETTLED


class _Committed:
    """Runs after the COMMIT of what was written; a rollback drops it, as Django drops every hook."""

    def __init__(self, footing: Footing, primary: str, wrapper: Any, fleet: Any) -> None:
        self.footing, self.primary, self.wrapper, self.fleet = footing, primary, wrapper, fleet

    def __call__(self) -> None:
        footing, now = self.footing, self.fleet.now()
        if footing.request:
            footing.meet(self.primary, self.fleet.mark_of(self.wrapper, now))
        else:
            footing.unknown[self.primary] = now
            _of_thread().unknown[self.primary] = now  # the task's next unit is to see it as well


class Watch:
    """Stands around every statement on a primary; see `connection.execute_wrapper`."""

    def __init__(self, primary: str, fleet: Any) -> None:
        self.primary, self.fleet = primary, fleet

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001  Django's
        """Run the statement, and note it if it may have written."""
        result = execute(sql, params, many, context)
        if writes(sql):
            footing().note_write(self.primary, context["connection"], self.fleet)
        return result


def is_test(wrapper: Any) -> bool:
    """Whether a TestCase has its transaction around everything: nothing is ever committed there."""
    blocks = wrapper.atomic_blocks
    return bool(blocks) and getattr(blocks[0], "_from_testcase", False)


class _Here(threading.local):
    def __init__(self) -> None:
        self.footing = Footing()


_here = _Here()


def _of_thread() -> Footing:
    return _here.footing


def footing() -> Footing:
    """Return the footing of the code that runs here."""
    unit = scope_var.get()
    if unit is None or unit.closed:
        return _here.footing
    found: Footing | None = unit.footing
    if found is None:
        found = unit.footing = Footing(_inherited(unit), unit=True)
        if not _in_request(unit):
            found.unknown.update(_here.footing.unknown)
    return found


def _in_request(unit: Any) -> bool:
    outer = unit.before
    return outer is not None and outer.footing is not None


def _inherited(unit: Any) -> dict[str, Mark]:
    """A thread's unit within a request has what the request has; a task's has what its thread has."""
    outer = unit.before
    return dict(outer.footing.marks) if _in_request(unit) else dict(_here.footing.marks)


@contextmanager
def carried(marks: dict[str, Mark]) -> Iterator[None]:
    """Have these marks as well until the block ends, in this unit of work or thread."""
    here = footing()
    before, changed = here.marks, here.changed
    here.marks, here.chosen = merged(before, marks), {}
    try:
        yield
    finally:
        if here.marks == merged(before, marks):
            here.marks = before
        here.changed = here.changed or changed


def encode(marks: dict[str, Mark]) -> str:
    """Sign marks for a cookie, or for a task's arguments."""
    return signing.dumps({alias: mark.plain() for alias, mark in marks.items()}, salt=_SALT)


def decode(text: str, max_age: float, primaries: list[str]) -> dict[str, Mark]:
    """Read signed marks; what is forged, too old or of no use is none."""
    try:
        return marks_from(signing.loads(text, salt=_SALT, max_age=max_age), primaries)
    except signing.BadSignature:
        return {}
