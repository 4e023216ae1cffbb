"""Dependencies whose code after `yield` comes too late for the connection they were given.

A `yield` dependency of request scope, FastAPI's default, goes on when the response is out. The unit of work has ended
by then: a repository that does nothing there is none the worse for it, and one that asks the connection for something
is refused. Which of the two it is shows only when it runs; so the start names them, and says what to write.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from poolkit_fastapi.middleware import yields

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from poolkit_fastapi.extension import Poolkit

__all__ = ["tell"]

logger = logging.getLogger("poolkit")


def tell(app: Starlette, kit: Poolkit) -> None:
    """Name the dependencies of an app that stand on `kit`'s connection or unit and go on after its end, in one INFO."""
    found = dict.fromkeys(_name(call) for dependant in _dependants(app.routes) for call in _late(kit, dependant))
    if found:
        logger.info(
            "what these dependencies do after their `yield` runs when the response is out, and their connection has "
            'been given back by then: %s. Write Depends(..., scope="function") where it is used there',
            ", ".join(found),
        )


def _dependants(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        included = getattr(route, "effective_route_contexts", None)  # FastAPI keeps an included router as it is
        if included is not None:
            yield from _dependants(included())
        elif getattr(route, "dependant", None) is not None:
            yield route.dependant
        else:
            yield from _dependants(getattr(route, "routes", None) or ())


def _late(kit: Poolkit, dependant: Any) -> Iterator[Any]:
    for below in dependant.dependencies:
        if below.scope != "function" and yields(below.call) and _stands_on_a_connection(kit, below):
            yield below.call
        yield from _late(kit, below)


def _stands_on_a_connection(kit: Poolkit, dependant: Any) -> bool:
    return kit.dependencies.take_part(dependant.call) or any(
        _stands_on_a_connection(kit, below) for below in dependant.dependencies
    )


def _name(call: Any) -> str:
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"
