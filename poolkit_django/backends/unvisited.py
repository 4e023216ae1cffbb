"""Leases that no end of a unit will come by: taken after the end, or in an async request without a unit.

Such a lease ends with its last cursor. Where that was dropped and not closed, nothing reports it: so a caller that
takes a connection next, and the end of each unit, looks for leases that nothing uses any more, and ends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit import Lease

if TYPE_CHECKING:
    from poolkit_django.backends.strays import Straying

__all__ = ["leases", "sweep"]

leases: dict[Lease[Any], Straying] = {}


def sweep() -> None:
    """End every lease of these that nothing uses, without waiting."""
    for lease, wrapper in list(leases.items()):
        if lease.inherited or not wrapper.keeps(lease):
            leases.pop(lease, None)
