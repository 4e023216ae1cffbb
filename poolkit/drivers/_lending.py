"""Whose connection it is, where the library's object is made in C and can't be replaced for each borrowing.

The object stays the same, so it knows the borrowing it is in. What is made from it (a cursor) keeps the borrowing it
was made in, and refuses when that has ended, also while the next one uses the session. The connection itself refuses
while it is idle.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Borrowing", "ClosedByUser", "End"]


class End(Protocol):
    """What has ended a borrowing: `poolkit.errors.Returned`, or a close by the borrower."""

    def error(self, what: str = "connection") -> Exception:
        """Make the error for a use after the end."""


class ClosedByUser(NamedTuple):
    """The end of a borrowing whose connection its borrower has closed. `kind`: the error of the library's own."""

    kind: type[Exception]

    def error(self, what: str = "connection") -> Exception:
        """Make the error for a use after the end."""
        whose = "" if what == "connection" else f"{what}'s "
        return self.kind(f"{whose}connection already closed: its borrower has called close()")


class Borrowing:
    """One borrowing; `ended` is None until its end."""

    ended: End | None = None
