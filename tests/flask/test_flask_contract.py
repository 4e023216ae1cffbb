"""How a request ends: what the client sees, and what is saved. Sync and async views alike."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from flask import Flask, Response, abort, g, request, request_finished, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask_rig import ABORTED, CASES, Case, MakeApp, Rows, views, write
from werkzeug.exceptions import HTTPException

import poolkit
from poolkit.testing import FakeDriver, FakeServer
from poolkit_flask import Poolkit


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.view)
def test_raise_rolls_back_and_return_commits(
    case: Case, kind: str, app_and_db: tuple[Flask, Poolkit], rows: Rows, backends: Callable[[], list[str]]
) -> None:
    """Return commits whatever the status, raise rolls back whatever it becomes; no failure to save is a success."""
    app, db = app_and_db
    app.register_blueprint(views(db))
    response = app.test_client().get(f"/{kind}/{case.view}")
    assert response.status_code == case.status
    assert rows(f"{kind} {case.view}") == case.rows
    assert db.pool().stats().out == 0
    assert backends() == ([] if case.view == "no_query" else ["idle"])


def test_a_base_exception_rolls_back(app: Flask, db: Poolkit, rows: Rows) -> None:
    """A worker that is told to stop in the middle of a view (SystemExit) saves nothing, and gives back."""

    @app.get("/")
    def stop() -> str:
        write(db, "stop")
        raise SystemExit

    with pytest.raises(SystemExit):
        app.test_client().get("/")
    assert rows("stop") == 0
    assert db.pool().stats().out == 0


@pytest.mark.parametrize("propagate", [True, False])
def test_an_error_that_is_shown_to_the_test_rolls_back_too(*, propagate: bool, make_app: MakeApp, rows: Rows) -> None:
    """Whether Flask makes a 500 of an error or lets it through (TESTING, DEBUG) is all the same."""
    app, db = make_app(PROPAGATE_EXCEPTIONS=propagate)

    @app.get("/")
    def fail() -> str:
        write(db, "fail")
        raise KeyError("x")

    if propagate:
        with pytest.raises(KeyError):
            app.test_client().get("/")
    else:
        assert app.test_client().get("/").status_code == 500
    assert rows("fail") == 0


def test_the_commit_comes_before_the_first_byte(app: Flask, db: Poolkit, rows: Rows) -> None:
    """When the server is given the status, the row is there for others to see and the connection is back."""
    seen: list[tuple[str, int, int]] = []

    @app.get("/")
    def save() -> str:
        write(db, "early")
        return "saved"

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        seen.append((status, rows_now("early"), db.pool(name="default").stats().out))
        return lambda _: None

    rows_now = rows
    with app.test_request_context("/") as context:
        environ = context.request.environ.copy()
    for _ in app.wsgi_app(environ, start_response):
        pass
    assert seen == [("200 OK", 1, 0)]


def test_what_an_error_handler_used_is_back_before_the_first_byte(app: Flask, db: Poolkit) -> None:
    """A slow client of an error page holds no connection either."""
    out: list[int] = []

    @app.errorhandler(KeyError)
    def handler(_: KeyError) -> tuple[str, int]:
        write(db, "handler")
        out.append(db.pool().stats().out)
        return "handled", 400

    @app.get("/")
    def fail() -> str:
        raise KeyError

    with app.test_request_context("/"):
        app.full_dispatch_request()
        out.append(db.pool().stats().out)
    assert out == [1, 0]


def test_a_hook_that_refuses_rolls_back(app: Flask, db: Poolkit, rows: Rows) -> None:
    """abort() in before_request is an exception like that of a view."""

    @app.before_request
    def login() -> None:
        write(db, "hook")
        abort(401)

    app.add_url_rule("/", "view", lambda: "never")
    assert app.test_client().get("/").status_code == 401
    assert rows("hook") == 0


def test_a_failing_commit_reaches_the_handler_for_its_error(app: Flask, db: Poolkit, rows: Rows) -> None:
    """The handler that the app has for a failing statement also has the failing COMMIT, and sees the same error."""

    @app.errorhandler(psycopg.errors.ForeignKeyViolation)
    def conflict(error: psycopg.Error) -> tuple[str, int]:
        return f"{error.sqlstate}", 409

    @app.after_request
    def mark(response: Response) -> Response:
        response.headers["X-Mark"] = "there"
        return response

    app.register_blueprint(views(db))
    response = app.test_client().get("/sync/commit_fails")
    assert (response.status_code, response.text) == (409, "23503")
    assert response.headers["X-Mark"] == "there"
    assert rows("sync commit_fails") == 0


def test_an_aborted_transaction_can_be_handled_too(app: Flask, db: Poolkit) -> None:
    """A swallowed SQL error is a CommitFailed, for whoever wants another answer than 500."""

    @app.errorhandler(poolkit.CommitFailed)
    def lost(error: poolkit.CommitFailed) -> tuple[str, int]:
        return f"{error}", 422

    app.register_blueprint(views(db))
    response = app.test_client().get("/sync/swallow_sql_error")
    assert response.status_code == 422
    assert "nothing was saved" in response.text


def test_a_view_that_answers_a_failed_statement_with_an_error_is_named(
    app: Flask, db: Poolkit, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own 409 is sent; the log has the endpoint, and the statement's error as the server told it."""
    app.register_blueprint(views(db))
    assert app.test_client().get("/sync/swallow_and_answer_409").text == "that name is taken"
    assert "GET /sync/swallow_and_answer_409: answered 409" in caplog.text
    assert "division by zero" in caplog.text
    assert db.registry.tally.rollbacks == {"swallowed_error": 1}


def test_an_error_handler_finds_a_working_connection(app: Flask, db: Poolkit, rows: Rows) -> None:
    """The view's transaction is gone before the handler runs; what the handler writes (an audit row) is saved."""

    @app.errorhandler(psycopg.errors.DivisionByZero)
    def audit(_: psycopg.Error) -> tuple[str, int]:
        write(db, "audit")
        return "noted", 400

    @app.get("/")
    def fail() -> str:
        write(db, "fail")
        db.connection.execute(ABORTED)
        return "never"

    assert app.test_client().get("/").status_code == 400
    assert (rows("fail"), rows("audit")) == (0, 1)
    assert db.pool().stats().out == 0


def test_the_handler_for_500_finds_a_working_connection(app: Flask, db: Poolkit, rows: Rows) -> None:
    """The same for the last handler of all, which Flask calls when the dispatch is over."""

    @app.errorhandler(500)
    def audit(_: HTTPException) -> tuple[str, int]:
        write(db, "audit")
        return "noted", 500

    @app.get("/")
    def fail() -> str:
        write(db, "fail")
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500
    assert (rows("fail"), rows("audit")) == (0, 1)
    assert db.pool().stats().out == 0


def test_what_hooks_write_is_part_of_the_transaction(app: Flask, db: Poolkit, rows: Rows) -> None:
    """before_request, after_request, the session and the receivers of request_finished come before the commit."""
    seen: list[int] = []

    class Store(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Any) -> SecureCookieSession:
            write(db, "open")
            return SecureCookieSession()

        def save_session(self, app: Flask, session: Any, response: Any) -> None:
            write(db, "save")

    app.session_interface = Store()
    app.before_request(lambda: write(db, "before"))

    @app.after_request
    def after(response: Response) -> Response:
        write(db, "after")
        return response

    def finished(sender: Flask, **_: Any) -> None:
        write(db, "finished")
        seen.append(rows("before"))

    @app.get("/")
    def view() -> str:
        session["user"] = 1
        write(db, "view")
        return "saved"

    with request_finished.connected_to(finished, app):
        assert app.test_client().get("/").status_code == 200
    words = ["open", "before", "view", "after", "save", "finished"]
    assert seen == [0], "one transaction, still open when the last of them wrote"
    assert {word: rows(word) for word in words} == dict.fromkeys(words, 1)


def test_a_session_that_can_not_be_saved_rolls_back(app: Flask, db: Poolkit, rows: Rows) -> None:
    """What fails after the view takes the view's writes with it."""

    class Store(SecureCookieSessionInterface):
        def save_session(self, app: Flask, session: Any, response: Any) -> None:
            raise OSError("no space left")

    app.secret_key = "x"
    app.session_interface = Store()
    app.register_blueprint(views(db))
    assert app.test_client().get("/sync/return_200").status_code == 500
    assert rows("sync return_200") == 0


def test_a_session_that_can_not_be_opened_rolls_back(app: Flask, db: Poolkit, rows: Rows) -> None:
    """Even before anything was dispatched: nothing is saved, and the handler for 500 finds a working connection."""

    @app.errorhandler(500)
    def audit(_: HTTPException) -> tuple[str, int]:
        write(db, "audit")
        return "noted", 500

    class Store(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Any) -> SecureCookieSession:
            write(db, "open")
            raise OSError("no such store")

    app.session_interface = Store()
    assert app.test_client().get("/").status_code == 500
    assert (rows("open"), rows("audit")) == (0, 1)
    assert db.pool().stats().out == 0


def test_an_extension_that_keeps_errors_to_itself_changes_nothing(app: Flask, db: Poolkit, rows: Rows) -> None:
    """Some extensions replace handle_user_exception and never call the one before: raise rolls back all the same."""

    def own(error: Exception) -> tuple[str, int]:
        return f"mine: {type(error).__name__}", 418

    app.handle_user_exception = own  # type: ignore[method-assign, assignment]
    app.register_blueprint(views(db))
    response = app.test_client().get("/sync/raise_unhandled")
    assert (response.status_code, response.text) == (418, "mine: ZeroDivisionError")
    assert rows("sync raise_unhandled") == 0


def test_the_veto_sees_the_status(make_app: MakeApp, rows: Rows) -> None:
    """POOLKIT_ROLLBACK_ON decides on returned responses by their status."""
    app, db = make_app(POOLKIT_ROLLBACK_ON=lambda status: status >= 500)
    app.register_blueprint(views(db))
    client = app.test_client()
    assert client.get("/sync/return_503").status_code == 503
    assert client.get("/sync/return_404").status_code == 404
    assert (rows("sync return_503"), rows("sync return_404")) == (0, 1)


def test_a_veto_that_fails_is_an_error_and_saves_nothing(make_app: MakeApp, rows: Rows) -> None:
    """A broken veto can't be taken for a yes."""

    def veto(status: int) -> bool:
        raise ValueError(status)

    app, db = make_app(POOLKIT_ROLLBACK_ON=veto)
    app.register_blueprint(views(db))
    assert app.test_client().get("/sync/return_200").status_code == 500
    assert rows("sync return_200") == 0
    assert db.pool().stats().out == 0


def test_hooks_on_commit_and_on_rollback(app: Flask, db: Poolkit, rows: Rows, caplog: Any) -> None:
    """on_commit hooks run when the row is there, and an error of theirs is logged and changes nothing."""
    seen: list[object] = []

    @app.get("/<fate>")
    def view(fate: str) -> str:
        write(db, fate)
        unit = db.unit_of_work
        unit.on_commit(lambda: seen.append(("committed", rows(fate))))
        unit.on_commit(lambda: 1 / 0)
        unit.on_rollback(lambda: seen.append(("rolled back", rows(fate))))
        if fate == "raise":
            raise ZeroDivisionError
        return fate

    with caplog.at_level(logging.CRITICAL, "poolkit"):
        assert app.test_client().get("/return").status_code == 200
        assert app.test_client().get("/raise").status_code == 500
    assert seen == [("committed", 1), ("rolled back", 0)]


def test_after_an_early_commit_there_is_no_transaction(app: Flask, db: Poolkit, rows: Rows) -> None:
    """commit() ends the unit; what comes after commits by itself, and is given back with the response."""

    @app.get("/")
    def view() -> str:
        write(db, "first")
        db.unit_of_work.commit()
        assert rows("first") == 1
        write(db, "second")
        assert rows("second") == 1
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500
    assert (rows("first"), rows("second")) == (1, 1)
    assert db.pool().stats().out == 0


def test_one_request_has_one_connection_and_two_names_have_two(make_app: MakeApp, dsn: str, rows: Rows) -> None:
    """Asked twice for a name, a request gets the same connection; each name has its own pool; all end together."""
    app, db = make_app(POOLKIT={"default": {"url": dsn, "max_size": 1}, "other": {"url": dsn, "max_size": 1}})

    @app.get("/<fate>")
    def view(fate: str) -> str:
        assert db.connection is db.get("default") is db.connection
        assert db.get("other") is not db.connection
        for name in ("default", "other"):
            db.get(name).execute("INSERT INTO flask_notes VALUES (%s)", (fate,))
        if fate == "raise":
            raise ZeroDivisionError
        return fate

    assert app.test_client().get("/return").status_code == 200
    assert app.test_client().get("/raise").status_code == 500
    assert (rows("return"), rows("raise")) == (2, 0)


def test_who_holds_what_is_told_by_the_route(app: Flask, db: Poolkit) -> None:
    """The label of a holder is the method and the rule: no value of a parameter, which may be private, is shown."""
    seen: list[str] = []

    @app.post("/orders/<int:order_id>")
    def view(order_id: int) -> str:
        write(db, "label")
        seen.extend(holder.label for holder in db.pool().holders())
        return "x"

    app.test_client().post("/orders/4711?token=secret")
    assert seen == ["POST /orders/<int:order_id>"]


def test_where_there_is_no_route_the_label_says_so(app: Flask, db: Poolkit) -> None:
    """A request that matches nothing may use a connection too, in before_request."""
    seen: list[str] = []

    @app.before_request
    def look() -> None:
        write(db, "lost")
        seen.extend(holder.label for holder in db.pool().holders())

    assert app.test_client().get("/nowhere/secret").status_code == 404
    assert seen == ["GET (no route)"]


def test_current_and_joined_blocks_find_the_requests_unit(app: Flask, db: Poolkit, rows: Rows) -> None:
    """Poolkit's own functions know the request: a library that uses them takes part in its transaction."""

    @app.get("/")
    def view() -> str:
        unit = db.unit_of_work
        assert poolkit.current() is unit
        with poolkit.unit_of_work() as joined, db.begin() as joined_too:
            assert joined is joined_too is unit
            write(db, "joined")
        with db.begin(new=True) as own:
            assert own is not unit
            assert db.unit_of_work is own
            write(db, "own")
        assert db.unit_of_work is unit
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500
    assert (rows("joined"), rows("own")) == (0, 1)


def test_a_transaction_of_its_own_is_independent(app: Flask, db: Poolkit, rows: Rows) -> None:
    """db.transaction() commits at the end of its block whatever becomes of the request, and is not its connection."""

    @app.get("/")
    def view() -> str:
        write(db, "request")
        with db.transaction() as conn:
            conn.execute("INSERT INTO flask_notes VALUES ('own')")
            assert conn is not db.connection
        with contextlib.suppress(ZeroDivisionError), db.transaction() as conn:
            conn.execute("INSERT INTO flask_notes VALUES ('undone')")
            raise ZeroDivisionError
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500
    assert (rows("request"), rows("own"), rows("undone")) == (0, 1, 0)


def test_a_transaction_is_entered_once(app: Flask, db: Poolkit) -> None:
    """The second time it could only be in autocommit, which is not what its name says."""
    block = db.transaction()
    with block:
        pass
    with pytest.raises(poolkit.UnitOfWorkError, match=r"db\.transaction\(\)"), block:
        pass


def test_g_and_request_are_left_alone(app: Flask, db: Poolkit) -> None:
    """Nothing of poolkit's shows up among the app's own things."""

    @app.get("/")
    def view() -> str:
        write(db, "x")
        return f"{list(g)} {sorted(vars(request))}"

    with app.test_client() as client:
        assert "poolkit" not in client.get("/").text


def test_a_driver_of_the_apps_own_is_part_of_the_request(make_app: MakeApp, dsn: str) -> None:
    """What the settings name by its driver is committed and rolled back with the rest, and shown with it."""
    server = FakeServer()
    app, db = make_app(POOLKIT={"default": {"url": dsn}, "ledger": {"driver": FakeDriver(server), "max_size": 1}})

    @app.get("/<word>")
    def view(word: str) -> str:
        db.get("ledger").execute(word)
        if word == "refused":
            abort(400)
        return word

    client = app.test_client()
    assert [client.get(f"/{word}").status_code for word in ("written", "refused")] == [200, 400]
    assert server.log == ["1:begin", "1:written", "1:commit", "1:begin", "1:refused", "1:rollback"]
    assert client.get("/poolkit/ready").status_code == 200
    assert "ledger: FakeDriver" in app.test_cli_runner().invoke(args=["poolkit", "status"]).output
