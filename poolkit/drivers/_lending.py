"""Whose connection it is, where the library's object is made in C and can't be replaced for each borrowing.

The object stays the same, so it knows the borrowing it is in. What is made from it (a cursor) keeps the borrowing it
was made in, and refuses when that has ended, also while the next one uses the session. The connection itself refuses
while it is idle.

A thread that closes its connection may go on, and the next one has the same object by then. As long as the block of the
first goes on, the object serves only the thread that has borrowed it since: another holder may have it from the
first. Where it is not known which thread that is (see `poolkit.closing`), only the first is refused.
"""

# ruff: noqa: SLF001  the object, its session and its driver are one thing in three

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any
from weakref import ref

from poolkit.driver import GiveBack
from poolkit.errors import Returned

__all__ = ["Borrowing", "Closings", "Lending", "LentSession", "still_closed", "stranger"]

Closings = list[tuple[int, Returned]]
"""The threads that have closed a connection in the middle of a block, and where."""

_ADVICE = (
    "that block goes on, and until its end only the thread that has borrowed the connection since may use it: acquire "
    "another one"
)


class Borrowing:
    """One borrowing; `ended` is None until its end."""

    ended: Returned | None = None


class _Beside(Borrowing):
    """A borrowing of what others have closed, and may still refer to."""

    def __init__(self, resource: Any, closings: Closings, give_back: GiveBack | None) -> None:
        self._resource = ref(resource)
        self._closings = closings
        self._give_back = give_back
        self._ended: Returned | None = None

    @property
    def ended(self) -> Returned | None:
        """The end, of this one or for the running thread."""
        return self._ended or stranger(self._resource(), self._closings, self._give_back)

    @ended.setter
    def ended(self, end: Returned | None) -> None:
        self._ended = end


def still_closed(closings: Closings) -> bool:
    """Whether a block goes on in which the connection was closed, at the begin of the next borrowing."""
    closings[:] = [closing for closing in closings if not _is_over(closing[1])]
    return bool(closings)


def stranger(resource: Any, closings: Closings, give_back: GiveBack | None) -> Returned | None:
    """Say where it was closed in a block that goes on, if the running thread may have it from there."""
    is_stranger = None if give_back is None else give_back.is_stranger(resource)
    if is_stranger is False:
        return None
    me = get_ident()
    for thread, place in reversed(closings):
        if (is_stranger or thread == me) and not _is_over(place):
            return place if thread == me else place._replace(advice=_ADVICE)
    return None


def _is_over(place: Returned) -> bool:
    return place.block is None or place.block() is None


class LentSession:
    """What is known of such an object, in its attribute `_session`: whose it is, and what its borrower does with it."""

    __slots__ = ("borrowing", "closed_by_user", "closings", "explicit_end", "failed", "give_back", "news")

    def __init__(self) -> None:
        self.borrowing = Borrowing()
        self.closings: Closings = []
        self.give_back: GiveBack | None = None  # where a pool has it: what `close` calls
        self.explicit_end: Callable[[str], None] | None = None  # hears of the borrower's own commit and rollback
        self.closed_by_user = False  # with a transaction open
        self.failed = ""  # what the statement that ended the transaction was told
        self.news: Any = []  # what was done while it was new, in the driver's terms; None from its first borrowing on

    def refuse(self, what: str = "connection") -> None:
        """Raise the error of a borrowing that has ended."""
        if self.borrowing.ended is not None:
            raise self.borrowing.ended.error(what)

    def tell_end(self, op: str) -> None:
        """Tell of a commit or rollback that the borrower asks for."""
        if self.explicit_end is not None:
            self.explicit_end(op)

    def end(self, returned: Returned) -> None:
        """End the borrowing."""
        self.borrowing.ended = returned
        if returned.block is not None:
            self.closings.append((get_ident(), returned))


class Lending:
    """The part of a driver that is about whose such an object is."""

    def lend(self, resource: Any) -> None:
        """Begin a borrowing. No I/O."""
        session: LentSession = resource._session
        if session.closings and still_closed(session.closings):
            session.borrowing = _Beside(resource, session.closings, session.give_back)
        else:
            session.borrowing = Borrowing()
        session.news = None
        session.closed_by_user = False

    def retire(self, resource: Any, returned: Returned) -> None:
        """End a borrowing: what was made in it refuses from now on, and the connection until it is lent again.

        Raises the library's own error where another thread is inside of it.
        """
        resource._session.end(returned)

    def closed_by_user(self, resource: Any) -> bool:
        """Whether the borrower has closed it with a transaction open."""
        closed: bool = resource._session.closed_by_user
        return closed

    def on_user_close(self, resource: Any, give_back: GiveBack | None) -> None:
        """Have `close` give the connection back; None: it is its borrower's for good."""
        resource._session.give_back = give_back

    def on_explicit_end(self, resource: Any, callback: Callable[[str], None] | None) -> None:
        """Have the connection's own `commit` and `rollback` call `callback` before they do anything."""
        resource._session.explicit_end = callback
