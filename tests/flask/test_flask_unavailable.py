"""When there is no connection to be had: 503 with nothing to configure, unless the app has an answer of its own."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask, Response
from flask.sessions import SecureCookieSessionInterface
from flask_rig import MakeApp, Rows, eventually, write
from werkzeug.exceptions import HTTPException, ServiceUnavailable

import poolkit
from poolkit.testing.postgres import LocalPostgres
from poolkit_flask import Poolkit


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "poolkit")


@pytest.fixture
def full(make_app: MakeApp) -> Iterator[tuple[Flask, Poolkit]]:
    """An app whose only connection is taken, with a view that wants one."""
    app, db = make_app({"max_size": 1, "timeout": 0.02})
    app.add_url_rule("/", "view", lambda: write(db, "full") or "x")
    lease = db.pool().acquire(timeout=10)
    yield app, db
    lease.release()


def assert_ours(response: Any) -> None:
    """The 503 that poolkit makes: when to come back, and nothing about the inside."""
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json == {"error": "service unavailable"}


@pytest.mark.parametrize("propagate", [True, False])
def test_no_connection_in_time_is_a_503(*, propagate: bool, full: tuple[Flask, Poolkit]) -> None:
    """Also where a test wants to see its errors: this is an answer and no error."""
    app, _ = full
    app.config["PROPAGATE_EXCEPTIONS"] = propagate
    assert_ours(app.test_client().get("/"))


def test_it_is_logged_with_who_holds_what(full: tuple[Flask, Poolkit], caplog: pytest.LogCaptureFixture) -> None:
    """The client is told nothing; the log tells who has the connections."""
    app, _ = full
    with caplog.at_level(logging.WARNING, "poolkit"):
        app.test_client().get("/")
    assert "answering 503" in caplog.text
    assert "held by" in caplog.text


def test_who_holds_what_is_logged_once_in_a_minute(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    """Under overload each request has such an error: a line for each, the holders and their stacks now and then."""
    app, db = make_app({"max_size": 1, "timeout": 0.02, "leak_after": 60})
    app.add_url_rule("/", "view", lambda: write(db, "full") or "x")
    lease = db.pool().acquire(timeout=10)
    with caplog.at_level(logging.WARNING, "poolkit"):
        for _ in range(3):
            assert app.test_client().get("/").status_code == 503
    lease.release()
    first, *others = [record.getMessage() for record in caplog.records]
    assert "taken at" in first
    assert len(others) == 2
    assert all("no connection came free" in text and "\n" not in text and len(text) < 400 for text in others)


def test_in_an_async_view(full: tuple[Flask, Poolkit]) -> None:
    """Async views are refused like others."""
    app, db = full

    @app.get("/async")
    async def asynchronous() -> str:
        return str(db.connection)

    assert_ours(app.test_client().get("/async"))


def test_in_a_hook_before_the_view(full: tuple[Flask, Poolkit]) -> None:
    """It does not matter where in a request the connection is asked for: before the view."""
    app, db = full
    app.before_request(lambda: write(db, "before"))
    assert_ours(app.test_client().get("/"))


def test_in_a_hook_after_the_view(full: tuple[Flask, Poolkit]) -> None:
    """After the view, where Flask itself knows no error handlers but the one for 500."""
    app, db = full
    calls: list[int] = []

    @app.after_request
    def after(response: Response) -> Response:
        calls.append(response.status_code)
        if len(calls) == 1:
            write(db, "after")
        return response

    app.add_url_rule("/plain", "plain", lambda: "x")
    assert_ours(app.test_client().get("/plain"))
    assert calls == [200, 503]


def test_when_the_session_is_opened(full: tuple[Flask, Poolkit]) -> None:
    """When the session is opened, before there is a dispatch."""
    app, db = full

    class Store(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Any) -> Any:
            write(db, "session")

    app.session_interface = Store()
    assert_ours(app.test_client().get("/"))


@pytest.mark.parametrize(
    "kind", [poolkit.AcquireTimeout, poolkit.PoolError, poolkit.PoolkitError, TimeoutError, Exception]
)
def test_a_handler_of_the_app_comes_first(kind: type[Exception], full: tuple[Flask, Poolkit]) -> None:
    """For exactly the error, or for any base of it."""
    app, _ = full
    app.register_error_handler(kind, lambda error: (f"mine: {type(error).__name__}", 429))
    response = app.test_client().get("/")
    assert (response.status_code, response.text) == (429, "mine: AcquireTimeout")


@pytest.mark.parametrize("kind", [503, ServiceUnavailable, HTTPException])
def test_a_handler_for_the_status_makes_the_page(kind: Any, full: tuple[Flask, Poolkit]) -> None:
    """An app with a page for 503 shows it; the handler sees when to come back, and the cause."""
    app, _ = full

    def page(error: ServiceUnavailable) -> tuple[str, int, dict[str, str]]:
        return f"sorry: {type(error.__cause__).__name__}", 503, {"Retry-After": f"{error.retry_after}"}

    app.register_error_handler(kind, page)
    response = app.test_client().get("/")
    assert (response.status_code, response.text) == (503, "sorry: AcquireTimeout")
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("status", [503, 200])
def test_a_page_without_headers_says_when_to_come_back(status: int, full: tuple[Flask, Poolkit]) -> None:
    """A page for every HTTPException keeps its text and its status; what it forgets about a 503 is added."""
    app, _ = full
    app.register_error_handler(HTTPException, lambda error: ({"error": error.description}, status))
    response = app.test_client().get("/")
    assert response.status_code == status
    assert "error" in response.json
    assert ("Retry-After" in response.headers) is (status == 503)


def test_a_handler_that_fails_is_a_500(full: tuple[Flask, Poolkit]) -> None:
    """An error of the app's own handler is not hidden behind a 503."""
    app, _ = full

    @app.errorhandler(poolkit.AcquireTimeout)
    def handler(_: Exception) -> Any:
        raise ZeroDivisionError

    assert app.test_client().get("/").status_code == 500


def test_the_handler_for_500_is_not_asked(full: tuple[Flask, Poolkit]) -> None:
    """A page for unexpected errors would hide that the client should come back."""
    app, _ = full
    app.register_error_handler(500, lambda _: ("oops", 500))
    assert_ours(app.test_client().get("/"))


def test_a_burst_is_served_or_refused(make_app: MakeApp, backends: Callable[[], list[str]]) -> None:
    """Forty requests at once on two connections: each is a 200 or a 503, and nothing stays out."""
    app, db = make_app({"timeout": 0.15})
    statuses: list[int] = []

    @app.get("/")
    def view() -> str:
        db.connection.execute("SELECT pg_sleep(0.03)")
        return "x"

    threads = [
        threading.Thread(target=lambda: statuses.append(app.test_client().get("/").status_code)) for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(statuses) == 40
    assert set(statuses) == {200, 503}
    assert db.pool().stats().out == 0
    assert len(backends()) <= 2
    assert app.test_client().get("/").status_code == 200


def test_a_server_that_goes_away_in_mid_view_saves_nothing(
    app: Flask, db: Poolkit, monitor: psycopg.Connection[Any], rows: Rows
) -> None:
    """The connection dies in the view: the error is the view's, 500, and the next request has a new connection."""

    @app.get("/<fate>")
    def view(fate: str) -> str:
        write(db, fate)
        if fate == "die":
            kill(monitor, db)
            db.connection.execute("SELECT 1")
        return fate

    assert app.test_client().get("/die").status_code == 500
    assert app.test_client().get("/live").status_code == 200
    assert (rows("die"), rows("live")) == (0, 1)


def test_a_server_that_goes_away_before_the_commit_is_a_503(
    app: Flask, db: Poolkit, monitor: psycopg.Connection[Any], rows: Rows
) -> None:
    """Whether the COMMIT was carried out is not known: never a 2xx, and the client may come back."""

    @app.get("/")
    def view() -> str:
        write(db, "die")
        kill(monitor, db)
        return "looks well"

    assert_ours(app.test_client().get("/"))
    assert rows("die") == 0
    assert db.pool().stats().out == 0


def kill(monitor: psycopg.Connection[Any], db: Poolkit) -> None:
    """End the request's session from outside, and wait until it is gone."""
    pid = db.connection.info.backend_pid
    monitor.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_a_server_away_at_the_start(make_app: MakeApp, private_pg: LocalPostgres) -> None:
    """The app starts, answers 503 quickly, and serves by itself once the server is up; no password is shown."""
    private_pg.stop()
    app, db = make_app({"url": private_pg.dsn, "open_timeout": 2, "timeout": 2})
    app.add_url_rule("/", "view", lambda: str(db.connection.execute("SELECT 1").fetchone()[0]))
    app.add_url_rule("/hello", "hello", lambda: "hello")
    client = app.test_client()
    assert db.warm(timeout=0.2) is False
    assert client.get("/hello").status_code == 200
    began = time.monotonic()
    assert_ours(client.get("/"))
    assert_ours(client.get("/"))
    assert time.monotonic() - began < 3
    assert client.get("/poolkit/health").status_code == 200
    assert client.get("/poolkit/ready").status_code == 503
    private_pg.start()
    eventually(lambda: client.get("/").status_code == 200, 15)
    assert client.get("/poolkit/ready").status_code == 200


def test_a_restarted_server_costs_no_request(make_app: MakeApp, private_pg: LocalPostgres) -> None:
    """Idle connections that died are noticed before they are lent."""
    app, db = make_app({"url": private_pg.dsn})
    app.add_url_rule("/", "view", lambda: str(db.connection.execute("SELECT 1").fetchone()[0]))
    client = app.test_client()
    assert client.get("/").status_code == 200
    private_pg.restart()
    assert client.get("/").status_code == 200


def test_nobody_listens_is_a_503_and_the_password_stays_secret(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the answer nor the log has the password of the settings."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://who:sesame@127.0.0.1:{taken.getsockname()[1]}/what"
        app, db = make_app({"url": url, "timeout": 0.3})
        app.add_url_rule("/", "view", lambda: str(db.connection))
        with caplog.at_level(logging.DEBUG):
            assert_ours(app.test_client().get("/"))
            report = app.test_cli_runner().invoke(args=["poolkit", "status", "--timeout", "0.3"])
    assert "can't connect" in report.output
    assert "sesame" not in caplog.text + report.output + repr(db) + repr(db.registry)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2"])
def test_a_wrong_setting_is_no_outage(
    scheme: str, *, dsn: str, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting does not mend it: a 500 at once, without Retry-After; log, `check` and readiness have the reason."""
    server, _, _ = dsn.replace("postgresql", scheme, 1).rpartition("/")
    app, db = make_app({"url": f"{server}/no_such_database"})
    app.logger.disabled = False
    app.add_url_rule("/", "view", lambda: write(db, "never") or "x")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "poolkit"):
        response = app.test_client().get("/")
    assert (response.status_code, response.headers.get("Retry-After")) == (500, None)
    assert time.monotonic() - began < 3
    assert "ConnectRejected" in caplog.text
    assert "no_such_database" in caplog.text
    ready = app.test_client().get("/poolkit/ready")
    assert (ready.status_code, ready.json) == (503, {"status": "not ready", "reason": "rejected"})
    checked = app.test_cli_runner().invoke(args=["poolkit", "check"])
    assert checked.exit_code == 1
    assert "no_such_database" in checked.output
