"""Flask 3.2 gives the methods that poolkit wraps the context as their first argument. An app of today that does so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from flask import Flask
from flask_rig import CASES, MakeApp, Rows, views

import poolkit
from poolkit_flask import Poolkit

_inside: list[str] = []
_missing: list[str] = []


def _method(name: str) -> Callable[..., Any]:
    """Take the context, and call Flask's method without it. Only Flask's own methods may leave it out, among them."""

    def method(self: Newer, *args: Any, **keywords: Any) -> Any:
        if args and args[0] is self.context:
            args = args[1:]
        elif not _inside:
            _missing.append(name)
        _inside.append(name)
        try:
            return getattr(Flask, name)(self, *args, **keywords)
        finally:
            _inside.remove(name)

    return method


class Newer(Flask):
    """Flask with the signatures of 3.2."""

    context: Any = None

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        with self.request_context(environ) as context:
            self.context = context
            try:
                response = self.full_dispatch_request(context)
            except Exception as error:  # noqa: BLE001
                response = self.handle_exception(context, error)
            return response(environ, start_response)

    def full_dispatch_request(self, *args: Any) -> Any:
        try:
            answer = self.preprocess_request(*args)
            if answer is None:
                answer = self.dispatch_request(*args)
        except Exception as error:  # noqa: BLE001
            answer = self.handle_user_exception(*args, error)
        return self.finalize_request(*args, answer)

    preprocess_request = _method("preprocess_request")
    dispatch_request = _method("dispatch_request")
    handle_user_exception = _method("handle_user_exception")
    handle_http_exception = _method("handle_http_exception")
    handle_exception = _method("handle_exception")
    finalize_request = _method("finalize_request")


def test_whatever_comes_first_is_passed_on(make_app: MakeApp, rows: Rows) -> None:
    """Every case ends as with the older signatures, and poolkit never calls one of the methods without the context."""
    old, _ = make_app()
    app, db = Newer("newer"), Poolkit()
    app.config.update(old.config)
    app.logger.disabled = True
    db.init_app(app)
    app.register_error_handler(psycopg.errors.ForeignKeyViolation, lambda _: ("conflict", 409))

    @app.get("/full")
    def full() -> str:
        raise poolkit.AcquireTimeout("default", "no connection came free")

    @app.after_request
    def late(response: Any) -> Any:
        if response.headers.get("X-Late"):
            raise poolkit.AcquireTimeout("default", "no connection came free")
        return response

    @app.get("/late")
    def tail() -> tuple[str, dict[str, str]]:
        return "x", {"X-Late": "1"}

    app.register_blueprint(views(db))
    for case in CASES:
        status = app.test_client().get(f"/sync/{case.view}").status_code
        assert status == (409 if case.view == "commit_fails" else case.status), case
        assert rows(f"sync {case.view}") == case.rows
    assert app.test_client().get("/full").status_code == 503
    assert app.test_client().get("/late").status_code == 503
    assert _missing == []
    db.close(app)
