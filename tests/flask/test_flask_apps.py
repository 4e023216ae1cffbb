"""Several apps, apps that come and go, other extensions, and what is open when."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from flask import Blueprint, Flask, Response, request
from flask_rig import MakeApp, Rows, add_writer, eventually, write
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

import poolkit
from poolkit_flask import Poolkit


def test_apps_beside_each_other_have_their_own(make_app: MakeApp, rows: Rows) -> None:
    """Behind a dispatcher each app's requests use its own pools; one app calling the other keeps both apart."""
    (first, first_db), (second, second_db) = make_app(), make_app()
    add_writer(first, first_db)
    add_writer(second, second_db)

    @first.get("/both")
    def both() -> str:
        write(first_db, "first")
        assert second.test_client().get("/write/second").status_code == 200
        with second.app_context(), second_db.begin():
            write(second_db, "block")
        with second.app_context(), pytest.raises(poolkit.UnitOfWorkError, match="no request"):
            write(second_db, "mixed")
        raise ZeroDivisionError

    client = Client(DispatcherMiddleware(first, {"/second": second}))
    assert client.get("/write/a").status_code == 200
    assert client.get("/second/write/b").status_code == 200
    assert client.get("/both").status_code == 500
    assert [rows(word) for word in ("a", "b", "first", "second", "block")] == [1, 1, 0, 1, 1]
    assert first.extensions["poolkit"].registry is not second.extensions["poolkit"].registry


def test_blueprints_and_factories(dsn: str, tag: str, rows: Rows) -> None:
    """One Poolkit in a module of its own serves every app a factory makes, in the views of blueprints."""
    db = Poolkit()
    site = Blueprint("site", __name__)

    @site.get("/<word>")
    def view(word: str) -> str:
        write(db, word)
        return word

    def create_app() -> Flask:
        app = Flask("made")
        app.config["POOLKIT"] = {"default": {"url": dsn, "options": {"application_name": tag}}}
        db.init_app(app)
        app.register_blueprint(site, url_prefix="/site")
        return app

    apps = [create_app(), create_app()]
    for app in apps:
        assert app.test_client().get("/site/word").status_code == 200
    assert rows("word") == 2
    for app in apps:
        db.close(app)


def test_an_app_that_is_dropped_takes_its_connections_with_it(
    dsn: str, tag: str, backends: Callable[[], list[str]]
) -> None:
    """A suite that makes an app for each test doesn't collect connections, and hears no warning of open ones."""

    def make() -> weakref.ref[Flask]:
        app = Flask("short")
        app.config["POOLKIT"] = {"default": {"url": dsn, "options": {"application_name": tag}}}
        db = Poolkit(app)
        add_writer(app, db)
        assert app.test_client().get("/write/x").status_code == 200
        return weakref.ref(app)

    gone = make()
    assert backends() == ["idle"]
    gc.collect()
    assert gone() is None
    eventually(lambda: not backends())


def test_a_teardown_of_another_extension_that_fails_leaks_nothing(app: Flask, db: Poolkit, rows: Rows) -> None:
    """Whatever happens at teardown: what the request took is back by then."""
    add_writer(app, db)

    @app.teardown_request
    def first(error: BaseException | None) -> None:
        raise OSError("teardown_request")

    @app.teardown_appcontext
    def second(error: BaseException | None) -> None:
        raise OSError("teardown_appcontext")

    @app.after_request
    def stop(response: Response) -> Response:
        if "stop" in request.args:
            raise SystemExit
        return response

    for path in ("/write/good", "/write/bad?fail", "/write/stopped?stop"):
        with pytest.raises(OSError, match="teardown"):
            app.test_client().get(path)
        assert db.pool().stats().out == 0
    assert [rows(word) for word in ("good", "bad", "stopped")] == [1, 0, 0]


def test_nothing_is_opened_before_it_is_used(make_app: MakeApp, backends: Callable[[], list[str]]) -> None:
    """Importing, init_app, a page without a query: no connection. warm() opens the first ones, in the worker."""
    app, db = make_app({"min_size": 2})
    app.add_url_rule("/", "hello", lambda: "hello")
    assert app.test_client().get("/").status_code == 200
    assert backends() == []
    assert db.warm() is True
    eventually(lambda: backends() == ["idle", "idle"])
    db.close(app)
    eventually(lambda: not backends())


def test_warm_needs_to_know_the_app_where_there_are_several(make_app: MakeApp) -> None:
    """Gunicorn's hooks run without a context."""
    app, _ = make_app()
    db = Poolkit()
    apps = []
    for name in "ab":
        other = Flask(name)
        other.config["POOLKIT"] = app.config["POOLKIT"]
        db.init_app(other)
        apps.append(other)
    with pytest.raises(RuntimeError, match="2 apps"):
        db.warm()
    assert db.warm(apps[1]) is True
    db.close(apps[1])
