"""The 503 of a request that could have no connection, unless the app has an answer of its own."""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import Any, cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.websockets import WebSocket

from poolkit import web

__all__ = ["call", "find", "install", "install_below"]

TRY_AGAIN_LATER = 1013
"""The close code of a websocket whose server is overloaded (RFC 6455 registry)."""


def install(app: Starlette) -> None:
    """Answer for poolkit's own errors wherever the app has no handler for exactly them."""
    for kind in web.UNAVAILABLE:
        if kind not in app.exception_handlers:
            app.add_exception_handler(kind, cast("Any", refuse))  # one for requests and websockets alike


def install_below(app: Starlette) -> None:
    """Do the same for mounted apps: an error never leaves them for the app above."""
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, Starlette):
            install(route.app)
            install_below(route.app)


async def refuse(connection: HTTPConnection, error: Exception) -> Response | None:
    """Answer 503 and say when to come back. A handler of the app for a base class, `PoolError` say, comes first."""
    own = find(connection.app, error)
    if own is not None and own is not refuse:
        return await call(own, connection, error)
    if not web.is_unavailable(error):
        raise error
    if isinstance(connection, WebSocket):
        await connection.close(TRY_AGAIN_LATER)
        return None
    return respond(web.unavailable(error))


def find(app: Starlette, error: Exception) -> Any:
    """Find the app's handler for an error: its own before ours. The catch-all for `Exception` is not one."""
    ours = None
    for kind in type(error).__mro__:
        if kind is Exception:
            break
        handler = app.exception_handlers.get(cast("type[Exception]", kind))
        if handler is refuse:
            ours = handler
        elif handler is not None:
            return handler
    return ours


async def call(handler: Any, connection: HTTPConnection, error: Exception) -> Response | None:
    """Call an exception handler, sync or async."""
    is_async = iscoroutinefunction(handler) or iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004
    answer = await handler(connection, error) if is_async else await run_in_threadpool(handler, connection, error)
    return cast("Response | None", answer)


def respond(reply: web.Reply) -> Response:
    """Make a response of plain data."""
    return JSONResponse(reply.body, reply.status, reply.headers)
