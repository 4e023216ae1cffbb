"""Route classes that answer for what their endpoint raised.

FastAPI's documented way to customise errors is a subclass of `APIRoute` whose `get_route_handler` wraps the handler it
inherits. Where it makes a response of an error, FastAPI's stacks see a request that went well. So the inherited handler
of such a class is watched, and an error that leaves it rolls back before the class sees it. Routes of classes
that inherit the method are not touched.

A route can't use a Poolkit that does not exist yet, so it is enough to begin when the first one is made.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from poolkit_fastapi.middleware import roll_back

__all__ = ["watch"]

Handler = Callable[[Request], Awaitable[Response]]


@functools.cache
def watch() -> None:
    """Watch the routes that are made from now on. Does nothing the second time."""
    original: Callable[[APIRoute], Handler] = APIRoute.get_route_handler

    @functools.wraps(original)
    def get_route_handler(self: APIRoute) -> Handler:
        handler = original(self)
        return handler if type(self).get_route_handler is get_route_handler else _watched(handler)

    APIRoute.get_route_handler = get_route_handler  # type: ignore[method-assign,assignment]


def _watched(handler: Handler) -> Handler:
    @functools.wraps(handler)
    async def handle(request: Request) -> Any:
        try:
            return await handler(request)
        except BaseException as error:
            await roll_back(request.scope, error)
            raise

    return handle
