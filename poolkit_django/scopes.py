"""Which unit of work this code runs in: a context variable, so that threads and tasks of one request see the same.

It stands alone because both the engine and the units need it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

__all__ = ["Scope", "current_scope", "scope_var", "takers"]


class Scope(Protocol):
    """What the engine needs of a unit of work."""

    registry: Any
    """Its tally says what was said already."""

    @property
    def label(self) -> str:
        """What the work is called where holders are listed."""

    @property
    def closed(self) -> bool:
        """Whether it is over for good: what is leased from now on is ended by its own holder."""

    def leased(self, wrapper: Any) -> None:
        """Hear of a wrapper that took a connection."""

    def visits(self, thread: int) -> bool:
        """Whether its end will come to this thread, and end there what is leased now."""

    def is_over_in(self, thread: int) -> bool:
        """Whether nobody will visit this thread to take its connection back."""


scope_var: ContextVar[Any] = ContextVar("poolkit_django_unit", default=None)

takers: dict[str, Callable[[Any], tuple[Any, str]]] = {}
"""How to lease for an alias where it is not just its own pool that is asked: a replica's wrapper to a lease, and
whose that is: "" for its own, or the "replica" or "primary" that stands in."""


def current_scope() -> Scope | None:
    """Return the innermost unit of work, ended or not."""
    scope: Scope | None = scope_var.get()
    return scope
