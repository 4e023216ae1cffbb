"""PoolkitMiddleware: one unit of work for each request, for sync and async views, under WSGI and ASGI.

It stands outside the session and authentication middleware, so that what they write belongs to the unit, and inside
those that only look at the finished response (security headers, compression, CORS, the page cache). `manage.py check`
tells where.

An exception that leaves a view rolls back at once, whatever response it becomes: what handles it (process_exception,
handler500, signals, logging) finds no transaction, and what it writes stays. A returned response commits. The COMMIT
comes before the first byte, and where it fails the client gets a 500 like for any error (a 503 where the server went
away), unless POOLKIT_EXCEPTION_HANDLER makes something else of it. A response whose status is an error is sent although
a failed statement was ignored: nothing of its request is saved, and a warning says so.

As with ATOMIC_REQUESTS, atomic(durable=True) is refused inside; a view that wants to be its own master says so with
@transaction.non_atomic_requests. What can't be seen from here, and so commits: an exception that a framework above
Django has answered inside the view without marking its response (Django REST framework does mark it).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from _thread import get_ident
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import iscoroutinefunction
from typing import Any

from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.core.handlers import exception as exception_handling
from django.core.handlers.base import BaseHandler
from django.core.signals import got_request_exception
from django.db import Error as DatabaseError
from django.db import connections
from django.http import HttpRequest, JsonResponse

from poolkit import web
from poolkit_django import checks, conf, native
from poolkit_django.awaited import to_the_end
from poolkit_django.replica_settings import replicas
from poolkit_django.units import Unit

__all__ = ["PoolkitMiddleware"]

logger = logging.getLogger("poolkit")


class PoolkitMiddleware:
    """One unit of work for each request."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        """Check every setting of poolkit's, so that a server does not start with wrong ones, and log the doubtful."""
        self.get_response = get_response
        self.registry = conf.registry()
        self._rollback_on = conf.rollback_on()
        self._handler = conf.exception_handler()
        conf.stats_token()
        conf.stats()
        conf.orm_pools()
        self._marks = _marks()
        native.check_settings()
        checks.say_at_start()
        _watch_views()
        _watch_responses()
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)
            self._is_async = True
            if type(self).process_view is PoolkitMiddleware.process_view:
                self.process_view = self._process_view_async  # type: ignore[method-assign, assignment]
        else:
            self._is_async = False

    def __call__(self, request: Any) -> Any:
        """Serve one request."""
        if self._is_async:
            return self._serve_async(request)
        return self._serve(request)

    def _serve(self, request: Any) -> Any:
        unit = self._begin(request)
        try:
            unit.begin()
            response = self.get_response(request)
            return self._end(request, unit, response)
        except BaseException as error:
            unit.close(error)
            unit.leave()
            raise

    async def _serve_async(self, request: Any) -> Any:
        unit = self._begin(request)
        unit.awaits = True
        try:
            await sync_to_async(unit.begin, thread_sensitive=True)()
            response = await self.get_response(request)
            return await to_the_end(self._end, request, unit, response)
        except BaseException as error:
            await to_the_end(unit.close, error)
            unit.leave()
            raise

    def _begin(self, request: Any) -> Unit:
        method: str = request.method
        label = method if method.isalpha() else _on_one_line(method)
        unit = Unit(self.registry, label, self._rollback_on)
        request.poolkit_unit = unit
        if self._marks is not None:
            self._marks.read(request, unit)
        unit.enter()
        return unit

    # -- on the way in ------------------------------------------------------------------------------------------------

    def process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG002  Django's signature
        """Name the unit, and see to what the view was decorated with."""
        unit: Unit | None = getattr(request, "poolkit_unit", None)
        if unit is None or unit.ended:
            return
        unit.relabel(f"{unit.label} /{request.resolver_match.route.lstrip('^/')}")
        apart = getattr(view, "_non_atomic_requests", ())
        for alias in apart:
            unit.exclude(alias)
        if self._marks is not None:
            unit.around_view = frozenset(alias for alias in _atomic_requests() if alias not in apart)
        if getattr(view, "poolkit_retryable", False) and unit.used:
            unit.split()

    async def _process_view_async(self, request: Any, view: Any, args: Any, kwargs: Any) -> None:
        """The same, in the loop where nothing is to be done in the request's thread: a step into it costs the most."""
        unit: Unit | None = getattr(request, "poolkit_unit", None)
        work = functools.partial(PoolkitMiddleware.process_view, self, request, view, args, kwargs)
        apart: object = getattr(view, "_non_atomic_requests", None)
        if unit is not None and (unit.used or apart):
            await to_the_end(work)
        else:
            work()

    # -- on the way out -----------------------------------------------------------------------------------------------

    def process_exception(self, request: Any, error: Exception) -> Any:
        """Answer an exception of the view's that nobody else answered: by the app's handler, or with a 503."""
        return self._answer(request, error)

    def _answer(self, request: Any, error: Exception) -> Any:
        response = None if self._handler is None else self._handler(request, error)
        if response is None:
            cause = _unavailable(error)
            if cause is not None:
                what = _on_one_line(f"{request.method} {request.path}")
                logger.warning("%s: %s", what, str(cause).partition("\n")[0])
                reply = web.unavailable(cause)
                response = JsonResponse(reply.body, status=reply.status, headers=reply.headers)
        return response

    def _end(self, request: Any, unit: Unit, response: Any) -> Any:
        """Commit or roll back; return the response to send. Runs in the unit's own thread."""
        if unit.error is None and getattr(response, "exception", False):  # how Django REST framework says it
            unit.error = _Handled()
        response = self._instead(request, unit, response)
        if unit.streaming and unit.error is None and getattr(response, "streaming", False):
            _stream(response, unit)
        else:
            response = self._finish(request, unit, response)
        if self._marks is not None:
            self._marks.write(unit, response)
        response._resource_closers.append(functools.partial(_close, unit))  # noqa: SLF001  as Django itself does
        return response

    def _instead(self, request: Any, unit: Unit, response: Any) -> Any:
        """Answer 503 where another middleware, inside this one, found no connection and the answer became a 500."""
        error = unit.error
        if response.status_code != 500 or not isinstance(error, DatabaseError) or _unavailable(error) is None:
            return response
        return self._answer(request, error) or response

    def _finish(self, request: Any, unit: Unit, response: Any) -> Any:
        try:
            unit.finish(status=response.status_code)
        except Exception as error:
            _drop(response)
            instead = self._answer(request, error)
            if instead is None:
                raise
            return instead
        return response


def _marks() -> Any:
    """Return what carries a client's mark from request to request, where there are replicas."""
    if not replicas():
        return None
    from poolkit_django.routers import Marks  # noqa: PLC0415  it imports the engine

    return Marks()


def _atomic_requests() -> list[str]:
    return [alias for alias in connections if connections.settings[alias]["ATOMIC_REQUESTS"]]


class _Handled(Exception):
    """Stands for an exception that a framework above Django has made a response of."""


def _unavailable(error: BaseException) -> BaseException | None:
    """Find the error of poolkit's that asks the client to come back later, also as the cause of one of Django's."""
    if web.is_unavailable(error):
        return error
    cause = error.__cause__
    if isinstance(error, DatabaseError) and cause is not None and web.is_unavailable(cause):
        return cause
    return None


def _on_one_line(text: str) -> str:
    """Escape what a client has sent, as Django does for its own log: a line feed in a path begins no line there."""
    return text.encode("unicode_escape").decode("ascii")


def _drop(response: Any) -> None:
    """Close what a response holds that won't be sent; not by its close(), which would end the request."""
    for closer in response._resource_closers:  # noqa: SLF001  as Django itself does
        with contextlib.suppress(Exception):
            closer()


def _close(unit: Unit) -> None:
    unit.close()
    unit.leave()


# -- how exceptions become known ---------------------------------------------------------------------------------------


def _note(request: Any, error: BaseException | None) -> None:
    unit: Unit | None = getattr(request, "poolkit_unit", None)
    if unit is not None and unit.error is None:
        unit.error = error


def _roll_back(request: Any, error: Exception) -> None:
    """Roll back what an error has left, before anybody handles it: what handlers write is on its own, and stays."""
    unit: Unit | None = getattr(request, "poolkit_unit", None)
    if unit is None:
        return
    _note(request, error)
    if unit.ended or not unit.used:
        return
    if get_ident() == unit.thread:
        unit.roll_back(error)
    elif unit.awaits:  # Django makes the responses of an async site in threads of any kind
        async_to_sync(to_the_end)(unit.roll_back, error)


def _watch_views() -> None:
    """See every exception that leaves a view before any middleware answers it, and roll back.

    A middleware's own process_exception is not told once another, nearer to the view, has returned a response; the work
    would be committed although the view raised. So the method that asks them all is wrapped, once.
    """
    ask = BaseHandler.process_exception_by_middleware
    if getattr(ask, "_poolkit", False):
        return

    @functools.wraps(ask)
    def process_exception_by_middleware(self: Any, exception: Exception, request: HttpRequest) -> Any:
        _roll_back(request, exception)
        return ask(self, exception, request)

    process_exception_by_middleware._poolkit = True  # type: ignore[attr-defined]  # noqa: SLF001
    BaseHandler.process_exception_by_middleware = process_exception_by_middleware


def _watch_responses() -> None:
    """See every exception that Django itself makes a response of, wherever it was raised.

    Its signal tells of those that become a 500 only, and a Http404 or PermissionDenied of a middleware's is no view's.
    """
    make = exception_handling.response_for_exception
    if getattr(make, "_poolkit", False):
        return

    @functools.wraps(make)
    def response_for_exception(request: HttpRequest, exc: Exception) -> Any:
        _roll_back(request, exc)
        return make(request, exc)

    response_for_exception._poolkit = True  # type: ignore[attr-defined]  # noqa: SLF001
    exception_handling.response_for_exception = response_for_exception


def _note_unhandled(*, request: Any = None, **_: Any) -> None:
    """Hear of errors outside of views: in other middleware, in a template's late rendering."""
    _note(request, sys.exc_info()[1] or _Handled())


got_request_exception.connect(_note_unhandled, dispatch_uid="poolkit_django.middleware")


# -- ends that wait ----------------------------------------------------------------------------------------------------


def _stream(response: Any, unit: Unit) -> None:
    """Keep the transaction to the end of the body; a body left before its end rolls back."""
    if response.is_async:
        response.streaming_content = _to_the_end_async(response.streaming_content, unit)
    else:
        response.streaming_content = _to_the_end(response.streaming_content, unit)


def _to_the_end(body: Iterator[bytes], unit: Unit) -> Iterator[bytes]:
    try:
        yield from body
    except BaseException as error:
        unit.finish(error)
        raise
    unit.finish()


async def _to_the_end_async(body: AsyncIterator[bytes], unit: Unit) -> AsyncIterator[bytes]:
    try:
        async for part in body:
            yield part
    except BaseException as error:
        await to_the_end(unit.finish, error)
        raise
    await to_the_end(unit.finish)
