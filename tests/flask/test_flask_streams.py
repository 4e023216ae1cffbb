"""Bodies that are sent after the view has returned: what they may use, and how they end."""

from __future__ import annotations

import gc
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask, Response, send_file, stream_with_context
from flask.testing import FlaskClient
from flask_rig import MakeApp, Rows, eventually, write
from werkzeug.test import EnvironBuilder
from werkzeug.wsgi import FileWrapper

import poolkit
from poolkit_flask import Poolkit

Wrap = Callable[[Iterator[str]], Any]

with_and_without_context = pytest.mark.parametrize("wrap", [stream_with_context, lambda body: body], ids=["swc", "raw"])


def pieces(app: Flask, path: str = "/", method: str = "GET") -> Any:
    """Call the app as a server does; return the body, for the test to read and to close."""
    environ = EnvironBuilder(path=path, method=method).get_environ()
    return app.wsgi_app(environ, lambda *_: lambda _: None)


def add_lazy(app: Flask, db: Poolkit, wrap: Wrap) -> None:
    """Add a view whose body writes, without having asked for a transaction."""

    @app.get("/")
    def view() -> Response:
        write(db, "view")

        def body() -> Iterator[str]:
            yield "a"
            write(db, "body")
            yield "b"
            write(db, "end")

        return Response(wrap(body()))


def add_stream(app: Flask, db: Poolkit, wrap: Wrap, *, fail: bool = False, last: str = "") -> None:
    """Add a view whose transaction lasts to the end of its body."""

    @app.get("/")
    def view() -> Response:
        db.unit_of_work.stream()
        write(db, "view")

        def body() -> Iterator[str]:
            yield "a"
            write(db, "body")
            yield "b"
            if fail:
                raise ZeroDivisionError
            if last:
                db.connection.execute(last)

        return Response(wrap(body()))


@with_and_without_context
def test_a_body_has_no_transaction_unless_it_asks(wrap: Wrap, app: Flask, db: Poolkit, rows: Rows) -> None:
    """The view has committed and given back before the first piece; what the body uses is given back at its end."""
    add_lazy(app, db, wrap)
    body = pieces(app)
    assert rows("view") == 1
    assert db.pool().stats().out == 0
    assert [next(body), next(body)] == [b"a", b"b"]
    assert rows("body") == 1, "saved at once: there is no transaction"
    assert db.pool().stats().out == 1
    assert list(body) == []
    assert rows("end") == 1
    assert db.pool().stats().out == 0
    body.close()


@with_and_without_context
@pytest.mark.parametrize("read", [0, 1, 2])
def test_an_abandoned_body_gives_back(read: int, wrap: Wrap, app: Flask, db: Poolkit) -> None:
    """However far it came, the server's close() ends what the body has taken."""
    add_lazy(app, db, wrap)
    body = pieces(app)
    for _ in range(read):
        next(body)
    assert db.pool().stats().out == (read == 2)
    body.close()
    assert db.pool().stats().out == 0


@with_and_without_context
def test_a_body_may_clean_up_with_a_connection(wrap: Wrap, app: Flask, db: Poolkit, rows: Rows) -> None:
    """What stands in its `finally` runs at close(), and can still use the request's connection."""

    @app.get("/")
    def view() -> Response:
        def body() -> Iterator[str]:
            try:
                yield "a"
            finally:
                write(db, "finally")

        return Response(wrap(body()))

    body = pieces(app)
    next(body)
    body.close()
    assert rows("finally") == 1
    assert db.pool().stats().out == 0


@with_and_without_context
def test_stream_commits_at_the_end_of_the_body(wrap: Wrap, app: Flask, db: Poolkit, rows: Rows) -> None:
    """After uow.stream() the view and its body are one transaction, committed before the server sees the end."""
    add_stream(app, db, wrap)
    body = pieces(app)
    assert [next(body), next(body)] == [b"a", b"b"]
    assert (rows("view"), rows("body")) == (0, 0)
    assert next(body, None) is None
    assert (rows("view"), rows("body")) == (1, 1)
    assert db.pool().stats().out == 0
    body.close()


@with_and_without_context
@pytest.mark.parametrize("read", [0, 1, 2])
def test_an_abandoned_stream_rolls_back(read: int, wrap: Wrap, app: Flask, db: Poolkit, rows: Rows) -> None:
    """A client that goes away has not got what it was promised: nothing is saved."""
    add_stream(app, db, wrap)
    body = pieces(app)
    for _ in range(read):
        next(body)
    body.close()
    assert (rows("view"), rows("body")) == (0, 0)
    assert db.pool().stats().out == 0


@with_and_without_context
def test_a_stream_that_fails_rolls_back(wrap: Wrap, app: Flask, db: Poolkit, rows: Rows) -> None:
    """An error in the body goes to the server, which cuts the response short, and nothing is saved."""
    add_stream(app, db, wrap, fail=True)
    body = pieces(app)
    with pytest.raises(ZeroDivisionError):
        list(body)
    body.close()
    assert (rows("view"), rows("body")) == (0, 0)


@with_and_without_context
def test_a_commit_that_fails_cuts_the_stream(wrap: Wrap, app: Flask, db: Poolkit, rows: Rows) -> None:
    """It is too late for a status, but the server learns of it before it could send the end of the body."""
    add_stream(app, db, wrap, last="INSERT INTO flask_children VALUES (999)")
    body = pieces(app)
    assert [next(body), next(body)] == [b"a", b"b"]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        next(body)
    body.close()
    assert rows("view") == 0
    assert db.pool().stats().out == 0


def test_head_commits_a_stream_at_once(app: Flask, db: Poolkit, rows: Rows) -> None:
    """No body is read for HEAD, so there is no end to wait for."""
    add_stream(app, db, lambda body: body)
    body = pieces(app, method="HEAD")
    assert rows("view") == 1
    assert list(body) == []
    body.close()
    assert rows("body") == 0


def test_stream_without_a_streamed_body_commits_at_once(app: Flask, db: Poolkit, rows: Rows) -> None:
    """A body that is there already has nothing to wait for, and a failing commit is still an error."""

    @app.get("/<fate>")
    def view(fate: str) -> str:
        db.unit_of_work.stream()
        write(db, fate)
        if fate == "fail":
            db.connection.execute("INSERT INTO flask_children VALUES (999)")
        return "all of it"

    assert app.test_client().get("/good").status_code == 200
    assert app.test_client().get("/fail").status_code == 500
    assert (rows("good"), rows("fail")) == (1, 0)


def test_doom_counts_for_a_stream(app: Flask, db: Poolkit, rows: Rows) -> None:
    """A body can still decide that nothing is to be saved."""

    @app.get("/")
    def view() -> Response:
        unit = db.unit_of_work
        unit.stream()
        write(db, "view")

        def body() -> Iterator[str]:
            yield "a"
            unit.doom()

        return Response(body())

    assert app.test_client().get("/").text == "a"
    assert rows("view") == 0


def test_the_veto_counts_for_a_stream(make_app: MakeApp, rows: Rows) -> None:
    """The status of a streamed response is known as well as any other's."""
    app, db = make_app(POOLKIT_ROLLBACK_ON=lambda status: status == 404)

    @app.get("/")
    def view() -> tuple[Response, int]:
        db.unit_of_work.stream()
        write(db, "view")
        return Response(iter("ab")), 404

    assert app.test_client().get("/").text == "ab"
    assert rows("view") == 0


def test_a_unit_kept_by_a_body_is_given_back(app: Flask, db: Poolkit) -> None:
    """A body may hold on to the unit itself, and ask it when the context is long gone."""

    @app.get("/")
    def view() -> Response:
        unit = db.unit_of_work
        return Response(str(unit.get().execute("SELECT 7").fetchone()[0]) for _ in "ab")

    body = pieces(app)
    assert [next(body), next(body)] == [b"7", b"7"]
    assert db.pool().stats().out == 1
    body.close()
    assert db.pool().stats().out == 0


def test_a_transaction_for_each_page(app: Flask, db: Poolkit, rows: Rows) -> None:
    """db.transaction() in a body needs no context, and holds nothing between two pages."""

    @app.get("/")
    def view() -> Response:
        def body() -> Iterator[str]:
            for page in "ab":
                with db.transaction() as conn:
                    conn.execute("INSERT INTO flask_notes VALUES (%s)", (page,))
                yield page

        return Response(body())

    body = pieces(app)
    for page in "ab":
        assert next(body) == page.encode()
        assert rows(page) == 1
        assert db.pool().stats().out == 0
    body.close()


def test_a_transaction_open_between_two_pieces_is_nobody_elses(app: Flask, db: Poolkit, rows: Rows) -> None:
    """While the server sends a piece, the body's own transaction is not the current unit of the thread."""

    @app.get("/")
    def view() -> Response:
        def body() -> Iterator[str]:
            with db.begin():
                yield "a"
                write(db, "inside")
                yield "b"

        return Response(body())

    body = pieces(app)
    assert next(body) == b"a"
    assert poolkit.current() is None
    assert next(body) == b"b"
    assert poolkit.current() is None
    assert next(body, None) is None
    assert rows("inside") == 1
    body.close()


def test_a_sent_file_is_left_to_the_server(app: Flask, db: Poolkit, rows: Rows) -> None:
    """send_file hands the server an object it knows (wsgi.file_wrapper), and the view's writes are committed."""

    @app.get("/")
    def view() -> Response:
        write(db, "view")
        return send_file(io.BytesIO(b"hello"), mimetype="text/plain")

    body = pieces(app)
    assert isinstance(body, FileWrapper)
    assert rows("view") == 1
    assert b"".join(body) == b"hello"
    body.close()


def test_a_file_can_be_a_stream_when_asked(app: Flask, db: Poolkit, rows: Rows) -> None:
    """After uow.stream() the file is the body whose end commits."""

    @app.get("/")
    def view() -> Response:
        db.unit_of_work.stream()
        write(db, "view")
        return send_file(io.BytesIO(b"hello"), mimetype="text/plain")

    body = pieces(app)
    assert rows("view") == 0
    assert b"".join(body) == b"hello"
    assert rows("view") == 1
    body.close()


def begin_in_a_thread(app: Flask) -> list[Any]:
    """Read two pieces in a thread of its own, as a server that forgets close(), and return the body in a list."""
    cell: list[Any] = []

    def read() -> None:
        body = pieces(app)
        cell.append(body)
        next(body)
        next(body)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(10)
    return cell


# Flask itself can't pop a context in another thread than the one that pushed it, and says so.
abandoned = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@abandoned
@with_and_without_context
def test_a_body_nobody_closes_is_given_back_by_the_collector(wrap: Wrap, app: Flask, db: Poolkit) -> None:
    """A server that forgets close() keeps no connection."""
    add_lazy(app, db, wrap)
    cell = begin_in_a_thread(app)
    assert db.pool().stats().out == 1
    cell.clear()
    gc.collect()
    eventually(lambda: db.pool().stats().out == 0)


def test_the_collector_does_not_touch_the_pool(app: Flask, db: Poolkit) -> None:
    """Objects are collected in the middle of anything: where this thread has the pool's lock, that is no deadlock."""
    add_lazy(app, db, lambda body: body)
    cell = begin_in_a_thread(app)
    with db.pool()._lock:
        cell.clear()
        gc.collect()
    eventually(lambda: db.pool().stats().out == 0)


@abandoned
@with_and_without_context
def test_a_body_finalised_in_another_request_leaves_that_alone(wrap: Wrap, app: Flask, db: Poolkit, rows: Rows) -> None:
    """An abandoned stream may be collected by a thread that serves somebody else: that request's work is untouched."""
    add_lazy(app, db, wrap)
    cell: list[Any] = []

    @app.get("/other")
    def other() -> str:
        write(db, "before")
        cell.clear()
        gc.collect()
        write(db, "after")
        assert rows("after") == 0, "still in the transaction"
        return "x"

    cell += begin_in_a_thread(app)
    assert app.test_client().get("/other").status_code == 200
    assert (rows("before"), rows("after")) == (1, 1)
    eventually(lambda: db.pool().stats().out == 0)


def test_a_test_client_that_does_not_buffer(app: Flask, db: Poolkit, rows: Rows) -> None:
    """With Flask's own client a streamed response is read piece by piece, and closed by its `with` block."""
    add_stream(app, db, stream_with_context)
    client: FlaskClient = app.test_client()
    with client.get("/", buffered=False) as response:
        assert next(response.iter_encoded()) == b"a"
    assert rows("view") == 0
    assert client.get("/").text == "ab"
    assert rows("view") == 1
