"""Contexts of all kinds: ambient, preserved, copied, nested, of several apps, and none."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from flask import Flask, abort, copy_current_request_context, request
from flask_rig import MakeApp, Rows, add_writer, eventually, write
from werkzeug.test import EnvironBuilder, run_wsgi_app

import poolkit
from poolkit import UnitOfWorkError
from poolkit.testing import FakeConnection, FakeDriver, FakeServer
from poolkit_flask import Poolkit


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
    """`with client:` keeps the request's context, but the request is over: what is done in it is saved at once."""
    add_writer(app, db)
    with app.test_client() as client:
        for word in ("one", "two"):
            assert client.get(f"/write/{word}").status_code == 200
            assert rows(word) == 1
            assert db.pool().stats().out == 0
        assert request.path == "/write/two"
        write(db, "late")
        assert rows("late") == 1
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


def test_rows_can_be_seen_after_the_request_in_a_tests_client(app: Flask, db: Poolkit, rows: Rows) -> None:
    """`with client:` keeps the context: what is asked there has no transaction, and comes back with the context."""
    add_writer(app, db)
    with app.test_client() as client:
        for number in (1, 2):
            client.get("/write/seen")
            row = db.connection.execute("SELECT count(*) FROM flask_notes WHERE word = 'seen'").fetchone()
            assert row == (number,)
            assert db.unit_of_work.ended
            assert sum(pool.stats().out for pool in db.registry.live_pools()) == 1
    assert sum(pool.stats().out for pool in db.registry.live_pools()) == 0


def test_a_socketio_handler_is_told_to_say_where_its_unit_ends(app: Flask, db: Poolkit, rows: Rows) -> None:
    """It runs in a request context that nothing dispatches: nobody would commit, so nobody is lent anything."""
    environ = EnvironBuilder().get_environ()
    with app.request_context(environ):
        request.sid = "what Flask-SocketIO sets"  # type: ignore[attr-defined]
        for ask in (lambda: db.connection, lambda: db.unit_of_work, lambda: db.get("default")):
            with pytest.raises(UnitOfWorkError, match=r"Socket.IO handler .*with db.begin\(\)"):
                ask()
        with db.begin():
            write(db, "begin")
        with db.transaction() as conn:
            conn.execute("INSERT INTO flask_notes VALUES ('transaction')")
    assert (rows("begin"), rows("transaction")) == (1, 1)


def test_a_real_socketio_server(app: Flask, db: Poolkit, rows: Rows) -> None:
    """The same with Flask-SocketIO, where it is installed."""
    socketio = pytest.importorskip("flask_socketio", reason="Flask-SocketIO is not installed").SocketIO(app)

    @socketio.on("good")
    def good(word: str) -> str:
        with db.begin():
            write(db, word)
        return "saved"

    @socketio.on("bad")
    def bad(word: str) -> str:
        write(db, word)
        return "saved"

    client = socketio.test_client(app)
    assert client.emit("good", "good", callback=True) == "saved"
    with pytest.raises(UnitOfWorkError, match=r"with db.begin\(\)"):
        client.emit("bad", "bad", callback=True)
    assert (rows("good"), rows("bad")) == (1, 0)


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


class Optional(FakeDriver):
    """Notes with which options its transactions begin."""

    def begin(self, connection: FakeConnection, options: Any = None) -> None:
        self.server.log.append(f"options {options and options.isolation_level}")
        super().begin(connection)


def test_a_transaction_has_options(make_app: MakeApp) -> None:
    """What a view or a block asks for reaches its BEGIN."""
    server = FakeServer()
    app, db = make_app(POOLKIT={"default": {"driver": Optional(server)}})
    options: dict[str, Any] = {"isolation_level": "serializable"}

    @app.get("/view")
    def view() -> str:
        return str(db.get(**options))

    @app.get("/block")
    def block() -> str:
        with db.transaction(**options) as conn:
            return str(conn)

    @app.get("/plain")
    def plain() -> str:
        return str(db.connection)

    assert [app.test_client().get(f"/{path}").status_code for path in ("view", "block", "plain")] == [200] * 3
    seen = [line.removeprefix("options ") for line in server.log if line.startswith("options ")]
    assert seen == ["serializable", "serializable", "None"]


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
        unit = db.unit_of_work
        context = contextvars.copy_context()

        def ask() -> Any:
            with unit.share() if phase == "transaction" else contextlib.nullcontext():
                return db.connection

        futures.append(executor.submit(context.run, ask))
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
    """What an async view does in a thread of asgiref's is part of the request's transaction, at any depth."""
    seen: list[bool] = []

    @app.get("/")
    async def view() -> str:
        connection = db.connection
        threads = [sync_to_async(lambda: db.connection), sync_to_async(async_to_sync(ask))]
        for thread in threads:
            seen.extend([await asyncio.wait_for(thread(), 30) is connection])
        await sync_to_async(write)(db, "thread")
        raise ZeroDivisionError

    async def ask() -> Any:
        return db.connection

    assert app.test_client().get("/").status_code == 500
    assert seen == [True, True]
    assert rows("thread") == 0


@pytest.mark.parametrize("way", ["to_thread", "gather", "task"])
def test_what_only_copied_the_context_gets_no_connection_of_the_request(
    app: Flask, db: Poolkit, rows: Rows, way: str
) -> None:
    """A thread or task that the view starts may outlive it: it is refused, and told what to do, which works."""
    refused: list[str] = []

    def write_copied(unit: Any) -> None:
        try:
            write(db, "copied")
        except poolkit.UnitOfWorkError as error:
            refused.append(str(error))
        with unit.share():
            write(db, "shared")
        with db.transaction() as conn:
            conn.execute("INSERT INTO flask_notes VALUES ('own')")

    @app.get("/")
    async def view() -> str:
        unit = db.unit_of_work
        if way == "to_thread":
            await asyncio.to_thread(write_copied, unit)
        elif way == "gather":
            await asyncio.gather(asyncio.to_thread(write_copied, unit))
        else:
            await asyncio.create_task(_awaited(write_copied, unit))
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500
    assert (rows("copied"), rows("shared"), rows("own")) == (0, 0, 1)
    (message,) = refused
    for part in ("GET /", "with db.transaction() as conn:", "with uow.share():"):
        assert part in message


async def _awaited(work: Any, *arguments: Any) -> None:
    work(*arguments)
