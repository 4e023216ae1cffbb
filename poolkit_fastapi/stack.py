"""FastAPI's own stack of what has to end with the endpoint: where function-scoped `yield` dependencies lie.

To put an end onto it costs 1 us of CPU, a `yield` dependency 45, and both end at the same moment: after the response
was serialised and before it starts, inside the exception handlers. But the stack is not documented. So nothing is
assumed of it: three endpoints are asked, once in a process (3 ms), and only where the stack does all of that is it
used. Elsewhere there is the `yield` dependency. They stand behind the same middleware as in an app, but in no app: what
traces requests sees an app's, and these belong to none.
"""

from __future__ import annotations

import functools
import logging
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.exceptions import ResponseValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.responses import JSONResponse
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

__all__ = ["is_sound", "put_last"]

logger = logging.getLogger("poolkit")

_KEY = "fastapi_function_astack"
_EXPECTED = {
    "/returned": ["ended", None, 409],
    "/raised": ["ended", "HTTPException", 418],
    "/refused": ["ended", "ResponseValidationError", 422],
}


def put_last(connection: HTTPConnection, end: Any) -> None:
    """Have `end` called when all else on the request's stack has ended: dependencies that began before it, too.

    What they raise then is in time: a COMMIT before would stand behind their error.
    """
    stack: AsyncExitStack = connection.scope[_KEY]
    begun = stack.pop_all() if getattr(stack, "_exit_callbacks", True) else None  # seldom any, and it takes 1 us
    stack.push_async_exit(end)
    if begun is not None:
        stack.push_async_exit(begun)


@functools.cache
def is_sound() -> bool:
    """Whether this FastAPI has the stack, and ends what lies on it when it has to be ended."""
    try:
        return _observed() == _EXPECTED
    except Exception as error:  # noqa: BLE001  whatever it is, the documented way is there
        logger.debug("FastAPI's stack is not used: %r", error)
        return False


class _Conflict(Exception):
    """Stands for a COMMIT that fails, and that a handler makes a 409."""


def _observed() -> dict[str, list[Any]]:
    """Ask an app for each path; return how what lay on the stack ended there, and the status that came after it."""
    seen: list[Any] = []

    async def end(_kind: object, error: BaseException | None, _tb: object) -> None:
        seen.extend(["ended", None if error is None else type(error).__name__])
        if error is None:
            raise _Conflict

    async def push(connection: HTTPConnection) -> None:
        put_last(connection, end)

    app = _endpoints(push)
    observed = {}
    for path in _EXPECTED:
        _call(app, path, seen)
        observed[path] = seen[:]
        seen.clear()
    return observed


def _endpoints(push: Any) -> ASGIApp:
    router = APIRouter()

    @router.get("/returned", dependencies=[Depends(push)])
    async def returned() -> None:
        pass

    @router.get("/raised", dependencies=[Depends(push)])
    async def raised() -> None:
        raise HTTPException(418)

    @router.get("/refused", dependencies=[Depends(push)], response_model=int)
    async def refused() -> str:
        return "no number"

    async def answer(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(None, 409 if isinstance(error, _Conflict) else 422)

    handlers: dict[Any, Any] = {_Conflict: answer, ResponseValidationError: answer}
    return ExceptionMiddleware(AsyncExitStackMiddleware(router), handlers=handlers)


def _call(app: ASGIApp, path: str, seen: list[Any]) -> None:
    """Ask the app without a loop: nothing in it waits for anything."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [],
        "client": None, "server": None,
    }  # fmt: skip
    request: Any = app(scope, receive, send)
    try:
        request.send(None)
    except StopIteration:
        return
    request.close()
    raise RuntimeError("it waits")
