"""Contexts of all kinds: ambient, preserved, copied, nested, of several apps, and none."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, copy_current_request_context, request
from flask_rig import MakeApp, Rows, eventually, write
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

import poolkit
from poolkit_flask import Poolkit


def add_writer(app: Flask, db: Poolkit) -> None:
    """Add a view that writes its word, and fails when asked to."""

    @app.get("/write/<word>")
    def writer(word: str) -> str:
        write(db, word)
        if "fail" in request.args:
            raise ZeroDivisionError
        return word


def in_thread(work: Callable[[], Any]) -> Any:
    """Run work in a thread with an empty context."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result(10)


# -- no request --------------------------------------------------------------------------------------------------------


def test_without_a_request_the_connection_is_refused(app: Flask, db: Poolkit) -> None:
    """With only an app context nothing would say when to commit: the error says what to write instead."""
    with app.app_context():
        for ask in (lambda: db.connection, lambda: db.get("default"), lambda: db.unit_of_work):
            with pytest.raises(poolkit.UnitOfWorkError, match=r"with db\.begin\(\) as uow"):
                ask()


def test_begin_is_a_unit_for_commands_and_scripts(app: Flask, db: Poolkit, rows: Rows) -> None:
    """Inside db.begin() db.connection is the block's; its end commits, an error rolls back."""
    with app.app_context():
        with db.begin() as unit:
            assert db.unit_of_work is unit
            assert db.connection is unit.get() is db.get("default")
            write(db, "good")
        with contextlib.suppress(ZeroDivisionError), db.begin():
            write(db, "bad")
            raise ZeroDivisionError
    assert (rows("good"), rows("bad")) == (1, 0)


def test_the_default_registry_is_the_apps(app: Flask, db: Poolkit, rows: Rows) -> None:
    """poolkit.unit_of_work() in an app's context means that app's connections."""
    with app.app_context(), poolkit.unit_of_work() as unit:
        assert unit.registry is db.registry
        write(db, "good")
    assert rows("good") == 1


def test_a_thread_needs_no_context_where_there_is_one_app(app: Flask, db: Poolkit, rows: Rows) -> None:
    """Pools and transactions can be had in a thread, which has no context."""

    def work() -> None:
        with db.transaction() as conn:
            conn.execute("INSERT INTO flask_notes VALUES ('thread')")
        with db.begin():
            write(db, "block")
        with db.pool().acquire() as conn:
            conn.execute("INSERT INTO flask_notes VALUES ('pool')")

    in_thread(work)
    assert [rows(word) for word in ("thread", "block", "pool")] == [1, 1, 1]


def test_several_apps_have_to_be_told_apart(make_app: MakeApp) -> None:
    """Where one Poolkit has several apps, code without a context can't mean one of them."""
    db = Poolkit()
    with pytest.raises(RuntimeError, match="no app yet"):
        db.pool()
    apps = [Flask("a"), Flask("b")]
    for app in apps:
        app.config["POOLKIT"] = {"default": {"url": "sqlite:///:memory:"}}
        db.init_app(app)
    with pytest.raises(RuntimeError, match="2 apps"):
        db.pool()
    for app in apps:
        with app.app_context():
            assert db.registry is app.extensions["poolkit"].registry


def test_an_app_without_this_poolkit_is_named(make_app: MakeApp) -> None:
    """A Poolkit never answers with the connections of another one."""
    app, db = make_app()
    other, other_db = make_app()
    with other.app_context(), pytest.raises(RuntimeError, match=f"{other.name}.*another Poolkit"):
        db.pool()
    with Flask("bare").app_context(), pytest.raises(RuntimeError, match="'bare' has no Poolkit"):
        db.pool()
    with app.app_context():
        assert db.registry is not other_db._of(other).registry


# -- tests -------------------------------------------------------------------------------------------------------------


def test_an_ambient_app_context_is_not_the_requests(app: Flask, db: Poolkit, rows: Rows) -> None:
    """Inside a fixture's app context each request still has its own unit, ended with it."""
    add_writer(app, db)
    with app.app_context():
        client = app.test_client()
        assert client.get("/write/one").status_code == 200
        assert rows("one") == 1
        assert db.pool().stats().out == 0
        assert client.get("/write/two?fail").status_code == 500
        assert client.get("/write/three").status_code == 200
        assert (rows("two"), rows("three")) == (0, 1)
        with pytest.raises(poolkit.UnitOfWorkError, match="no request"):
            write(db, "four")


def test_a_request_inside_a_block_is_not_part_of_it(app: Flask, db: Poolkit, rows: Rows) -> None:
    """A test's own unit around the client's call is the test's; the request commits by itself."""
    add_writer(app, db)
    with app.app_context(), contextlib.suppress(ZeroDivisionError), db.begin() as unit:
        write(db, "block")
        assert app.test_client().get("/write/request").status_code == 200
        assert rows("request") == 1
        assert db.unit_of_work is unit
        raise ZeroDivisionError
    assert (rows("block"), rows("request")) == (0, 1)


def test_a_client_that_preserves_the_context(app: Flask, db: Poolkit, rows: Rows) -> None:
    """`with client:` keeps the request's context, but the request is over: late use is refused with what to do."""
    add_writer(app, db)
    with app.test_client() as client:
        for word in ("one", "two"):
            assert client.get(f"/write/{word}").status_code == 200
            assert rows(word) == 1
            assert db.pool().stats().out == 0
        assert request.path == "/write/two"
        with pytest.raises(poolkit.UnitOfWorkError, match=r"GET /write/<word>: this request is over.*transaction"):
            write(db, "late")
        with db.begin():
            write(db, "block")
    assert rows("block") == 1


def test_a_test_request_context_rolls_back_and_says_so(
    app: Flask, db: Poolkit, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """A view called by hand has a connection; as no view returned to Flask, nothing is saved unless committed."""
    with caplog.at_level(logging.WARNING, "poolkit"):
        with app.test_request_context("/"):
            write(db, "lost")
        assert "no view has returned" in caplog.text
        caplog.clear()
        with app.test_request_context("/"):
            write(db, "kept")
            db.unit_of_work.commit()
        with contextlib.suppress(ZeroDivisionError), app.test_request_context("/"):
            write(db, "failed")
            raise ZeroDivisionError
        assert caplog.text == ""
    assert (rows("lost"), rows("kept"), rows("failed")) == (0, 1, 0)


def test_contexts_that_share_an_environ_are_alike(app: Flask, db: Poolkit, rows: Rows) -> None:
    """An extension may serve many messages with the environ of one handshake: db.begin() is for each of them."""
    environ = EnvironBuilder().get_environ()
    for _ in range(2):
        with app.request_context(environ):
            write(db, "message")
            assert not db.unit_of_work.ended
        with app.request_context(environ), db.begin() as unit:
            assert db.unit_of_work is unit
            write(db, "block")
    assert (rows("message"), rows("block")) == (0, 2)


def test_a_dispatch_by_hand_commits(app: Flask, db: Poolkit, rows: Rows) -> None:
    """full_dispatch_request in a test's context is a request like any other, and so is a second one."""
    fates = [200, 404, 200]

    @app.get("/")
    def view() -> str:
        write(db, "hand")
        if (status := fates.pop(0)) != 200:
            abort(status)
        return "x"

    with app.test_request_context("/"):
        for status, saved in ((200, 1), (404, 1), (200, 2)):
            assert app.full_dispatch_request().status_code == status
            assert rows("hand") == saved


# -- nested and copied -------------------------------------------------------------------------------------------------


def test_a_view_that_calls_its_own_app(app: Flask, db: Poolkit, rows: Rows) -> None:
    """The inner request has its own unit and its own connection; the outer one's is untouched by the inner's end."""
    add_writer(app, db)

    @app.get("/outer")
    def outer() -> str:
        write(db, "outer")
        conn = db.connection
        assert app.test_client().get("/write/inner").status_code == 200
        assert rows("inner") == 1
        assert db.connection is conn
        assert poolkit.current() is db.unit_of_work
        write(db, "outer")
        raise ZeroDivisionError

    assert app.test_client().get("/outer").status_code == 500
    assert (rows("outer"), rows("inner")) == (0, 1)


def test_a_request_passed_on_with_the_same_environ(app: Flask, db: Poolkit, rows: Rows) -> None:
    """An internal redirect shares the environ with the request that makes it, and nothing else."""
    add_writer(app, db)

    @app.get("/outer")
    def outer() -> str:
        write(db, "outer")
        environ = request.environ
        environ["PATH_INFO"] = "/write/inner"
        body, status, _ = run_wsgi_app(app.wsgi_app, environ)
        write(db, "outer")
        return f"{status} {b''.join(body).decode()}"

    assert app.test_client().get("/outer").text == "200 OK inner"
    assert (rows("outer"), rows("inner")) == (2, 1)


def test_an_inner_request_that_could_never_have_a_connection_is_told(make_app: MakeApp) -> None:
    """With one connection in the pool the inner request waits for the outer one, but not for ever."""
    app, db = make_app({"max_size": 1, "timeout": 0.1})
    add_writer(app, db)

    @app.get("/outer")
    def outer() -> str:
        write(db, "outer")
        return str(app.test_client().get("/write/inner").status_code)

    assert app.test_client().get("/outer").text == "503"


def test_a_copied_context_has_no_transaction(app: Flask, db: Poolkit, rows: Rows) -> None:
    """Work in the background with a copy of the request's context saves at once, and gives back at its end."""
    release = threading.Event()
    threads: list[threading.Thread] = []

    @app.get("/")
    def view() -> str:
        @copy_current_request_context
        def background() -> None:
            release.wait(10)
            write(db, "background")
            assert request.path == "/"
            assert db.pool().stats().out == 1

        threads.append(threading.Thread(target=background))
        threads[0].start()
        write(db, "view")
        return "started"

    assert app.test_client().get("/").status_code == 200
    assert rows("view") == 1
    release.set()
    threads[0].join(10)
    assert rows("background") == 1
    assert db.pool().stats().out == 0


def test_a_copied_context_beside_the_request_touches_nothing_of_it(app: Flask, db: Poolkit, rows: Rows) -> None:
    """The end of a copy, in another thread and in mid request, is not the end of the request's unit."""

    @app.get("/")
    def view() -> str:
        write(db, "view")
        copy = copy_current_request_context(lambda: write(db, "copy"))
        in_thread(copy)
        assert rows("copy") == 1
        copy_current_request_context(lambda: write(db, "inline"))()
        write(db, "view")
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500
    assert (rows("view"), rows("copy"), rows("inline")) == (0, 1, 0)


def test_a_thread_that_outlives_its_request_is_refused(app: Flask, db: Poolkit, rows: Rows) -> None:
    """With the variables of a request that is over, nobody would give a connection back."""
    contexts: list[contextvars.Context] = []

    @app.get("/")
    def view() -> str:
        write(db, "view")
        contexts.append(contextvars.copy_context())
        return "x"

    app.test_client().get("/")
    with pytest.raises(poolkit.UnitOfWorkError, match="is over"):
        in_thread(lambda: contexts[0].run(lambda: db.connection))

    def own() -> None:
        with db.transaction() as conn:
            conn.execute("INSERT INTO flask_notes VALUES ('own')")

    in_thread(lambda: contexts[0].run(own))
    assert rows("own") == 1


def test_a_thread_that_waits_past_the_end_of_its_request_leaves_nothing_out(make_app: MakeApp) -> None:
    """What it gets too late, in a transaction or after it, goes back at once; the thread is told."""
    app, db = make_app({"max_size": 1})
    futures: list[Future[Any]] = []
    executor = ThreadPoolExecutor(1)

    @app.get("/<phase>")
    def view(phase: str) -> str:
        if phase == "late":
            db.unit_of_work.commit()
        context = contextvars.copy_context()
        futures.append(executor.submit(context.run, lambda: db.connection))
        eventually(lambda: db.pool().stats().waiting)
        return "x"

    for phase in ("transaction", "late"):
        lease = db.pool().acquire()
        assert app.test_client().get(f"/{phase}").status_code == 200
        lease.release()
        with pytest.raises(poolkit.UnitOfWorkError, match=r"ended while|is over"):
            futures.pop().result(10)
        assert db.pool().stats().out == 0
    executor.shutdown()


def test_async_views_keep_their_unit_across_threads(app: Flask, db: Poolkit, rows: Rows) -> None:
    """What an async view does in a thread of asgiref's or asyncio's is part of the request's transaction."""

    @app.get("/")
    async def view() -> str:
        first = await asyncio.gather(*(asyncio.to_thread(lambda: db.connection) for _ in range(3)))
        assert {id(conn) for conn in first} == {id(db.connection)}
        await asyncio.to_thread(write, db, "thread")
        await asyncio.gather(*(asyncio.to_thread(write, db, "gather") for _ in range(3)))
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500
    assert (rows("thread"), rows("gather")) == (0, 0)


# -- apps --------------------------------------------------------------------------------------------------------------


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
