"""One exchange is one request (or one websocket) as poolkit sees it. A pure ASGI middleware makes it and ends it.

The unit of work ends at one of four points, all of them before the client can have been told of a success:

- normally in the function-scoped dependency (`dependencies`), after the response was serialised and before it starts;
- where the status decides (`rollback_on`, or a failed statement whose error was handled), when the response starts;
- of a websocket, when the handshake is answered: a dependency may look at who knocks, and nothing is held after that;
- for a generator endpoint and after `uow.stream()`, before the last piece of the body: a failing COMMIT cuts the body
  short, so the client sees that it is not whole.

Whoever asks after the end (a streamed body, a background task) is given a connection without a transaction. The
middleware takes it back when all of that is over, however it ended: a body given up half way rolls back.

It is the innermost of the app's middlewares, so an error response it has to make passes through all the others.
"""

from __future__ import annotations

import functools
import inspect
import sys
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from poolkit import AsyncUnitOfWork, Registry, UnitOfWorkError
from poolkit.blocks import bind, unbind
from poolkit.registry import add_finder
from poolkit_fastapi import handlers

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from poolkit_fastapi.extension import Poolkit

__all__ = ["Exchange", "PoolkitMiddleware", "current_exchange", "roll_back", "yields"]

_exchange: ContextVar[Exchange | None] = ContextVar("poolkit_fastapi_exchange", default=None)


_OVER = (
    "this request is over, and nobody would give the connection back. "
    "A task that outlives its request takes its own: async with db.transaction() as conn"
)

_OPEN = (
    "the websocket is open, and a connection would be held for as long as it is. "
    "Take one per message: async with db.transaction() as conn"
)
_ANSWERS = frozenset({"websocket.accept", "websocket.close", "websocket.http.response.start"})  # to a handshake


class Exchange:
    """What one request holds of one `Poolkit`."""

    __slots__ = (
        "_depth",
        "_handled",
        "_inner",
        "_send",
        "_started",
        "_status",
        "_token",
        "failed",
        "kit",
        "outer",
        "scope",
        "unit",
    )

    def __init__(self, kit: Poolkit, scope: Scope, send: Send, outer: Exchange | None) -> None:
        self.kit = kit
        self.scope = scope
        self.outer = outer
        self.unit: AsyncUnitOfWork | None = None
        self.failed: BaseException | None = None
        self._send = send
        self._inner: Scope | None = None  # the endpoint's; a middleware below may have made a new one
        self._depth = 0
        self._started = False
        self._status: int | None = None

    @property
    def label(self) -> str:
        """The endpoint as it is declared ("GET /orders/{id}"), without any parameter's value."""
        scope = self.scope
        included = scope.get("fastapi", {}).get("effective_route_context")  # a router's prefix is not in its routes
        route = scope.get("route")
        path = getattr(included, "path_format", None) or getattr(route, "path_format", None) or "(no route)"
        return f"{scope.get('method', 'WEBSOCKET')} {path}"

    def enter(self, scope: Scope) -> AsyncUnitOfWork:
        """Return the unit of the request, or of a websocket's handshake. `scope` is the endpoint's."""
        if self.unit is None:
            if self._started and scope["type"] == "websocket":
                raise UnitOfWorkError(f"{self.label}: {_OPEN}")
            label = f"{self.label} (handshake)" if scope["type"] == "websocket" else self.label
            self.unit = AsyncUnitOfWork(self.kit.registry, label, self.kit.rollback_on)
            self._token = bind(self.unit)
            self._handled = sys.exception()
        self._inner = scope
        self._depth += 1
        return self.unit

    async def leave(self, unit: AsyncUnitOfWork, error: BaseException | None = None) -> None:
        """End the unit where the endpoint has ended, unless its end has to wait for the response.

        Security scopes make an older FastAPI solve the same dependency twice: the outermost one counts. A dependency
        that keeps an error to itself leaves FastAPI without a response, so that is a 500, and rolls back.
        """
        self._depth -= 1
        if error is None and (kept := sys.exception()) is not self._handled:
            error = kept
        if error is not None or not (self._depth or self._ends_later(unit)):
            await unit.finish(error)

    async def exit(
        self, _kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        """Do the same, as an `AsyncExitStack` would have it."""
        if self.unit is not None:
            await self.leave(self.unit, error)

    def _ends_later(self, unit: AsyncUnitOfWork) -> bool:
        return unit.streaming or unit.depends_on_status() or self.kit.yields(self.scope.get("endpoint"))

    async def roll_back(self, scope: Scope, error: BaseException) -> None:
        """Roll back where this is the exchange of the endpoint that raised."""
        if self.unit is not None and self._inner is scope:
            await self.unit.finish(error)

    async def end(self, error: BaseException | None) -> None:
        """The request is over: give everything back."""
        if self.unit is not None:
            unbind(self._token)
            await self.unit.shut(_OVER, error)

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on to the client; end a unit that waited for it first."""
        unit = self.unit
        if unit is not None and not unit.ended and self._is_due(unit, message):
            return self._finish_and_send(unit, message)
        if message["type"] == "http.response.start":
            self._started = True
        return self._send(message)

    async def send_to_socket(self, message: Message) -> None:
        """Pass a message on to a websocket; end the unit of the handshake before the answer to it."""
        if not self._started and message["type"] in _ANSWERS:
            self._started = True
            if self.unit is not None:
                await self.unit.finish()
                await self.unit.shut(_OPEN)
        await self._send(message)

    async def _finish_and_send(self, unit: AsyncUnitOfWork, message: Message) -> None:
        try:
            await unit.finish(status=self._status)
        except BaseException as error:
            self.failed = error
            raise
        await self.send(message)

    def _is_due(self, unit: AsyncUnitOfWork, message: Message) -> bool:
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
            return not (unit.streaming or self.kit.yields(self.scope.get("endpoint")))
        if kind == "http.response.body":
            return not message.get("more_body", False)
        ends: bool = kind == "http.response.pathsend"
        return ends

    async def answer(self, app: Starlette, receive: Receive) -> bool:
        """Let the app's own handler answer for a COMMIT that failed when the response was to start."""
        error = self.failed
        if self._started or not isinstance(error, Exception):
            return False
        handler = handlers.find(self.scope.get("app", app), error)
        if handler is None:
            return False
        request = Request(self.scope, receive)
        response = await handlers.call(handler, request, error)
        if response is not None:
            await response(self.scope, receive, self._send)
        return True


class PoolkitMiddleware:
    """Make an `Exchange` for each request and websocket, and end it. `Poolkit.init_app` adds it."""

    def __init__(self, app: ASGIApp, kit: Poolkit, owner: Starlette) -> None:
        self.app = app
        self.kit = kit
        self.owner = owner
        handlers.install_below(owner)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        exchange = Exchange(self.kit, scope, send, _exchange.get())
        token = _exchange.set(exchange)
        try:
            await self.app(scope, receive, exchange.send if scope["type"] == "http" else exchange.send_to_socket)
        except BaseException as error:
            await exchange.end(error)
            if exchange.failed is not None and await exchange.answer(self.owner, receive):
                return
            if exchange.failed is not None and exchange.failed is not error:
                raise exchange.failed from None  # what failed is the COMMIT, not a response that "already started"
            raise
        else:
            if exchange.unit is not None:
                await exchange.end(None)
        finally:
            _exchange.reset(token)


def current_exchange(kit: Poolkit) -> Exchange | None:
    """Find the exchange this code runs in."""
    exchange = _exchange.get()
    while exchange is not None and exchange.kit is not kit:
        exchange = exchange.outer
    return exchange


def _find_registry() -> Registry | None:
    exchange = _exchange.get()
    return None if exchange is None else exchange.kit.registry


add_finder(_find_registry)  # poolkit.async_unit_of_work() in a plain Starlette endpoint takes the app's connections


async def roll_back(scope: Scope, error: BaseException) -> None:
    """Roll back what an endpoint did that raised, in each exchange of it. `scope` is the endpoint's."""
    exchange = _exchange.get()
    while exchange is not None:
        await exchange.roll_back(scope, error)
        exchange = exchange.outer


def yields(endpoint: Any) -> bool:
    """Whether the endpoint yields its body: then it runs after the function-scoped dependencies have ended."""
    if endpoint is None:
        return False
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    endpoint = inspect.unwrap(endpoint)
    call = endpoint if inspect.isroutine(endpoint) else type(endpoint).__call__
    return inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)
