"""Giving connections back before the end: release(), arelease() and acommit().

A request keeps the connection of a transaction to its end. A view that waits for something slow after its last query
commits first, and waits with nothing in its hands:

    order = await Order.objects.acreate(...)
    await poolkit_django.acommit()
    await tell_the_warehouse(order)

Under ASGI nothing is kept outside of a transaction either: in an async request each query in autocommit (after
`acommit()`, or in a view with `@transaction.non_atomic_requests`) gives its connection back as it ends.
"""

from __future__ import annotations

import logging
from _thread import get_ident
from typing import Any

from django.db import connections
from django.utils.asyncio import async_unsafe

from poolkit import UnitOfWorkError
from poolkit_django.awaited import to_the_end
from poolkit_django.units import current_unit

__all__ = ["acommit", "arelease", "release"]

logger = logging.getLogger("poolkit")


@async_unsafe
def release() -> bool:
    """Give back the connections this thread holds outside of a transaction; the next query leases anew.

    For long work between queries: a thread of your own, a management command, a loop over a slow service. Returns
    whether nothing is held any more. What a transaction holds stays, and the log says so once: commit it first. So
    does what an open server-side cursor reads from. In the thread of a unit of work, what `get()` has leased from
    POOLKIT is meant as well. A native connection goes back at the end of its `aconnection()` block, and only there.
    """
    kept = [wrapper for wrapper in connections.all(initialized_only=True) if not _let_go(wrapper)]
    for wrapper in kept:
        if not any(getattr(block, "_from_testcase", False) for block in wrapper.atomic_blocks):
            _say(wrapper.alias)
    unit = current_unit()
    names = unit.let_go() if unit is not None and unit.thread == get_ident() else []
    for name in names:
        _say(name)
    return not kept and not names


async def arelease() -> bool:
    """`release()` in an async view: for the connections that this request holds in its thread."""
    return await to_the_end(release)


async def acommit() -> None:
    """Commit the request's unit of work now and give its connections back; what comes after is in autocommit.

    Raises as `Unit.commit` does, and `UnitOfWorkError` where there is no unit of work.
    """
    unit = current_unit()
    if unit is None:
        raise UnitOfWorkError("acommit(): there is no unit of work here; put PoolkitMiddleware into MIDDLEWARE")
    await to_the_end(unit.commit)


def _let_go(wrapper: Any) -> bool:
    if getattr(wrapper, "lease", None) is None:
        return True
    if wrapper.in_atomic_block or wrapper.open_cursors or not wrapper.get_autocommit():
        return False
    wrapper.close_if_unusable_or_obsolete()
    return True


_said: set[tuple[str, str]] = set()  # names and views: both are few


def _say(name: str) -> None:
    unit = current_unit()
    place = name, "" if unit is None else unit.label
    if place not in _said:
        _said.add(place)
        logger.warning(
            "%s: release() kept the connection of %r, for a transaction or a server-side cursor is open on it; commit "
            "first (acommit(), or current_unit().commit())",
            place[1] or "outside a request",
            place[0],
        )
