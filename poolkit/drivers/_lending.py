"""Whose connection it is, where the library's object is made in C and can't be replaced for each borrowing.

The object stays the same, so it knows the borrowing it is in. What is made from it (a cursor) keeps the borrowing it
was made in, and refuses when that has ended, also while the next one uses the session. The connection itself refuses
while it is idle.

A borrower that closes its connection may go on, and the next one has the same object by then. The thread that closed it
is refused as long as its block goes on, unless it has borrowed it anew.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from threading import get_ident

from poolkit.errors import Returned

__all__ = ["Borrowing", "Closings", "borrowed", "closed_here"]

Closings = dict[int, Returned]
"""By thread, where it has closed a connection in the middle of a block."""


class Borrowing:
    """One borrowing; `ended` is None until its end."""

    ended: Returned | None = None


class _Beside(Borrowing):
    """A borrowing of what others have closed, and may still refer to."""

    def __init__(self, closings: Closings) -> None:
        self._closings = closings
        self._ended: Returned | None = None

    @property
    def ended(self) -> Returned | None:
        """The end, of this one or of that of the running thread."""
        return self._ended or closed_here(self._closings)

    @ended.setter
    def ended(self, end: Returned | None) -> None:
        self._ended = end


def borrowed(closings: Closings) -> Borrowing:
    """Begin a borrowing, in the thread that borrows; in a loop it is not known which thread will use it."""
    closings.pop(get_ident(), None)
    if _get_running_loop() is not None:
        closings.clear()
    for thread, place in list(closings.items()):
        if _is_over(place):
            del closings[thread]
    return _Beside(closings) if closings else Borrowing()


def closed_here(closings: Closings) -> Returned | None:
    """Say where the running thread has closed the connection, if its block goes on."""
    place = closings.get(get_ident())
    return None if place is None or _is_over(place) else place


def _is_over(place: Returned) -> bool:
    return place.block is None or place.block() is None
