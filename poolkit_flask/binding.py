"""What an app does differently once it has a Poolkit. Six of its methods are wrapped, on the app itself.

`full_dispatch_request` is the commit point. All that writes has run by then: the view, `after_request`, the session,
the receivers of `request_finished`. Nothing has been sent. A COMMIT that fails there goes through the app's error
handlers like any error of a view, which a receiver of `request_finished` could not do: Flask would make a 500 of it.
Teardown is too late for that, because the server has been given the status.

`preprocess_request` and `dispatch_request` are where an error leaves the user's code. They see it before anybody else,
so the transaction is rolled back before an error handler runs, and what the handler writes is its own and stays.
(`handle_user_exception` would do, if other extensions did not replace it and keep to themselves what it gets.)

`handle_user_exception` and `handle_exception` turn the errors that mean "come back later" into a 503, where the app
has no handler of its own. `do_teardown_request` is the net: what was taken outside the dispatch is given back there.

From Flask 3.2 on these methods are given the context as their first argument; so whatever comes first is passed on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import flask.globals
from flask import Flask, Response
from werkzeug.exceptions import ServiceUnavailable

from poolkit import UnitOfWorkError, web
from poolkit.blocks import bind, unbind
from poolkit_flask import pages
from poolkit_flask.settings import Settings
from poolkit_flask.unit import Body, RequestUnit, body_unit

__all__ = ["Binding"]

logger = logging.getLogger("poolkit")

# Flask 3.2 has one kind of context, with or without a request. Its proxies would cost twice as much, and can't tell
# the copy of a context from the original.
_contexts: ContextVar[Any] = getattr(flask.globals, "_cv_request", None) or flask.globals._cv_app  # noqa: SLF001

_MARK = "poolkit.unit"
_PRESERVED = "werkzeug.debug.preserve_context"  # what the test client of Flask asks for in `with client:`
_SOCKET = (
    "a Socket.IO handler has no response before which its work could be committed. In the handler write "
    "`with db.begin():` for one transaction: db.connection is its connection in there"
)


def request_context() -> Any:
    """Return the current request's context, or None."""
    context = _contexts.get(None)
    return context if context is not None and getattr(context, "has_request", True) else None


class Binding:
    """One app and its Poolkit: kept in `app.extensions["poolkit"]`."""

    def __init__(self, app: Flask, settings: Settings, owner: object) -> None:
        self.app = app
        self.owner = owner
        self._methods: Any = app  # their signatures depend on the version
        self.settings = settings
        self.registry = settings.registry
        self._pages: dict[str, pages.Page] = {}

    def install(self) -> None:
        """Wrap the app. What Flask may refuse, because requests were served already, comes first."""
        self._methods._check_setup_finished("init_app")  # noqa: SLF001  nothing public asks, and adds nothing
        if self.settings.url_prefix is not None:
            blueprint, self._pages = pages.make(self.settings)
            self.app.register_blueprint(blueprint)
        wrappers: dict[str, Callable[..., Any]] = {
            "full_dispatch_request": self._full_dispatch_request,
            "preprocess_request": self._watched,
            "dispatch_request": self._watched,
            "handle_user_exception": self._handle_user_exception,
            "handle_exception": self._handle_exception,
            "do_teardown_request": self._do_teardown_request,
        }
        for name, wrapper in wrappers.items():
            original = getattr(self.app, name)
            setattr(self.app, name, functools.wraps(original)(functools.partial(wrapper, original)))

    # -- the request's unit ---------------------------------------------------------------------------------------

    def find(self) -> RequestUnit | None:
        """Find the unit of the request or of the body this code runs in, if it is one of this app."""
        context = request_context()
        if context is not None and context.app is self.app:
            return self._adopt(context)
        unit = body_unit()
        return unit if unit is not None and unit.registry is self.registry else None

    def _adopt(self, context: Any) -> RequestUnit:
        """Return the unit of a context; make one where nothing was dispatched yet.

        That is a session being opened, a test's request context, or a copy of a context for another thread. A copy
        shares the request and its environ, but it has no view whose return could commit. A context that is there again
        after its request (`with app.test_client() as client:`) is popped once more, which gives everything back.
        """
        unit: RequestUnit | None = getattr(context, "_poolkit", None)
        if unit is None:
            if hasattr(context.request, "sid"):  # Flask-SocketIO's own mark
                raise UnitOfWorkError(_SOCKET)
            first = context.request.environ.get(_MARK)
            is_copy = first is not None and first.registry is self.registry
            unit = self._make(context)
            if is_copy:
                unit.finish()
        elif unit.over and _PRESERVED in context.request.environ:
            unit = self._make(context)
            unit.finish()
        return unit

    def label(self, otherwise: str) -> str:
        """Return what the numbers call the request or the body that this code runs in."""
        context = request_context()
        if context is not None and context.app is self.app:
            return _label(context.request)
        unit = body_unit()
        return otherwise if unit is None or unit.registry is not self.registry else unit.label

    def _make(self, context: Any) -> RequestUnit:
        unit = RequestUnit(self.registry, _label(context.request), self.settings.rollback_on)
        context._poolkit = unit  # noqa: SLF001  here and not in g, which requests inside a test's app context share
        return unit

    def _begin(self, context: Any) -> RequestUnit:
        unit: RequestUnit | None = getattr(context, "_poolkit", None)
        if unit is not None and unit.ended:  # of a request served inside another with the same environ
            unit.end(None)
            unit = None
        if unit is None:
            unit = self._make(context)
        context.request.environ[_MARK] = unit
        unit.running = True
        return unit

    # -- the commit point -----------------------------------------------------------------------------------------

    def _full_dispatch_request(self, original: Callable[..., Response], *first: Any) -> Response:
        context = _contexts.get()
        page = self._pages.get(context.request.endpoint) if self._pages else None
        if page is not None and context.request.method in ("GET", "HEAD"):
            return page()  # past the app's own hooks, which may want a connection or a login
        unit = self._begin(context)
        token = bind(unit)
        try:
            response = original(*first)
            try:
                self._settle(context, unit, response)
            except Exception as error:  # noqa: BLE001  the driver's, for a COMMIT that failed: the app's to handle
                response = self._answer(context, unit, error, first)
        except BaseException as error:
            unit.finish(error)
            raise
        finally:
            unit.running = False
            unbind(token)
        return response

    def _answer(self, context: Any, unit: RequestUnit, error: Exception, first: tuple[Any, ...]) -> Response:
        unit.finish(error)
        answer = self._methods.handle_user_exception(*first, error)
        response: Response = self._methods.finalize_request(*first, answer)
        self._settle(context, unit, response)
        return response

    def _settle(self, context: Any, unit: RequestUnit, response: Response) -> None:
        """Commit and give back before the first byte, or leave it to the body where that was asked for."""
        streamed = response.is_streamed and _is_streamed(context.request.method, response, unit)
        if not (streamed and unit.streaming):
            unit.finish(status=response.status_code)
            if unit.used:  # by its own hooks
                unit.close()
        if streamed:
            response.response = Body(response.response, unit, response.status_code)

    # -- errors ---------------------------------------------------------------------------------------------------

    def _watched(self, original: Callable[..., Any], *first: Any) -> Any:
        try:
            return original(*first)
        except BaseException as error:
            context = request_context()
            unit: RequestUnit | None = getattr(context, "_poolkit", None)
            if unit is not None and unit.running:
                unit.finish(error)
            raise

    def _handle_user_exception(self, original: Callable[..., Any], *args: Any) -> Any:
        error = args[-1]
        if not web.is_unavailable(error):
            return original(*args)
        try:
            return original(*args)
        except Exception as raised:
            if raised is not error:
                raise
            return self._unavailable(args[:-1], error)

    def _handle_exception(self, original: Callable[..., Response], *args: Any) -> Response:
        error = args[-1]
        unit: RequestUnit | None = getattr(request_context(), "_poolkit", None)
        if unit is not None:
            unit.finish(error)  # a session that could not be opened: nothing was dispatched
        if not web.is_unavailable(error):
            return original(*args)
        answer = self._unavailable(args[:-1], error)
        response: Response = self._methods.finalize_request(*args[:-1], answer, from_error_handler=True)
        return response

    def _unavailable(self, first: tuple[Any, ...], error: Exception) -> Any:
        """Answer 503: by the app's handler for that status, if it has one, else by ours.

        A page for HTTPException seldom keeps the error's headers; so the client is told all the same when to come back.
        """
        reply = web.unavailable(error)
        logger.warning("answering 503: %s", web.described(self.registry, error))
        refusal = ServiceUnavailable(retry_after=int(reply.headers["Retry-After"]))
        refusal.__cause__ = error
        answer = self._methods.handle_http_exception(*first, refusal)
        if answer is refusal:
            return pages.respond(reply)
        response = self._methods.make_response(answer)
        if response.status_code == reply.status:
            for name, value in reply.headers.items():
                response.headers.setdefault(name, value)
        return response

    # -- the net --------------------------------------------------------------------------------------------------

    def _do_teardown_request(self, original: Callable[..., None], *args: Any) -> None:
        """Give back what was taken outside the dispatch: by an error handler, a copied context, a test's context.

        After all that the app does at this time; `teardown_request` would cost twice as much.
        """
        try:
            original(*args)
        finally:
            unit: RequestUnit | None = getattr(_contexts.get(None), "_poolkit", None)
            if unit is not None and not unit.running and not unit.carried:
                error = args[-1] if args and isinstance(args[-1], BaseException) else None
                if not unit.ended and unit.used and error is None:
                    logger.warning(
                        "%s: rolled back, because no view has returned here. Use `with db.begin() as uow:`, or "
                        "`db.unit_of_work.commit()`",
                        unit.label,
                    )
                unit.end(error)


def _label(request: Any) -> str:
    rule = request.url_rule
    return f"{request.method} {'(no route)' if rule is None else rule.rule}"


def _is_streamed(method: str, response: Response, unit: RequestUnit) -> bool:
    """Whether code of the user's may run after this: while the body of a streamed response is sent, if it is."""
    if method == "HEAD" or response.status_code in (204, 304):
        return False
    # A file is sent by the server's own means, which must not find it wrapped.
    return unit.streaming or not response.direct_passthrough
