"""A request's connection is its own until its end, and nobody's after: what was kept is refused, with advice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, Response, abort, stream_with_context
from flask_rig import MakeApp, Rows

from poolkit import LeaseError
from poolkit.errors import Returned
from poolkit.testing import FakeConnection, FakeDriver
from poolkit_flask import Poolkit

INSERT = "INSERT INTO flask_notes VALUES ('late')"
WHOLE = ["postgresql"]
"""Drivers whose connection object is given to one borrower only."""
PARTLY = ["postgresql+psycopg2"]
"""Drivers whose connection object is of C: it is refused while nobody has the session, and its cursors always."""


class Renewing(FakeDriver):
    """Counts how often the session had to be given another object, for somebody still had the old one."""

    renewed = 0

    def renew(self, connection: FakeConnection, returned: Returned) -> FakeConnection:
        assert "db.transaction()" in str(returned.error())
        self.renewed += 1
        return connection


@pytest.mark.parametrize("path", ["used", "variable", "async", "streamed", "raised", "kept"])
def test_the_framework_keeps_nothing(path: str, make_app: MakeApp) -> None:
    """The session of a view that keeps no reference goes back as it is; to renew it takes a microsecond."""
    driver = Renewing()
    app, db = make_app(POOLKIT={"default": {"driver": driver}})
    kept = []

    @app.get("/used")
    def used() -> str:
        db.connection.execute("word")
        return "x"

    @app.get("/variable")
    def variable() -> str:
        conn = db.connection
        conn.execute("word")
        return "x"

    @app.get("/async")
    async def asynchronous() -> str:
        conn = db.connection
        conn.execute("word")
        return "x"

    @app.get("/streamed")
    def streamed() -> Iterator[str]:
        db.connection.execute("word")
        db.unit_of_work.stream()
        return iter(["a", "b"])

    @app.get("/raised")
    def raised() -> str:
        conn = db.connection
        conn.execute("word")
        abort(400)

    @app.get("/kept")
    def keep() -> str:
        kept.append(db.connection)
        return "x"

    for _ in range(3):
        app.test_client().get(f"/{path}")
    assert (driver.renewed > 0) is (path in {"raised", "kept"})


class Rivals:
    """A request that keeps its connection, and another one that has the session when the first one comes back to it."""

    def __init__(self, app: Flask, db: Poolkit, keep: Callable[[Any], Any]) -> None:
        self.app = app
        self.db = db
        self.keep = keep
        self.errors: list[BaseException | None] = []
        self.lent = threading.Event()
        self.over = threading.Event()

        @app.get("/rival")
        def rival() -> str:
            db.connection.cursor().execute("INSERT INTO flask_notes VALUES ('rival')")
            self.lent.set()
            assert self.over.wait(10)
            return "x"

    def kept(self) -> Any:
        """What the first request keeps: its connection, or something made from it."""
        conn = self.db.connection
        conn.cursor().execute("SELECT 1")
        return self.keep(conn)

    def late(self, kept: Any) -> None:
        """Use it while the rival is in the middle of its transaction."""
        assert self.lent.wait(10)
        try:
            kept.execute(INSERT)
            self.errors.append(None)
        except Exception as error:  # noqa: BLE001
            self.errors.append(error)
        finally:
            self.over.set()


def add_thread(rivals: Rivals) -> None:
    @rivals.app.get("/first")
    def first() -> str:
        threading.Thread(target=rivals.late, args=(rivals.kept(),)).start()
        return "x"


def add_stream(rivals: Rivals) -> None:
    @rivals.app.get("/first")
    def first() -> Response:
        kept = rivals.kept()

        def body() -> Iterator[str]:
            yield "head"
            rivals.late(kept)
            yield "tail"

        return Response(body())


def add_stream_with_context(rivals: Rivals) -> None:
    @rivals.app.get("/first")
    def first() -> Response:
        kept = rivals.kept()

        def body() -> Iterator[str]:
            yield "head"
            rivals.late(kept)
            yield "tail"

        return Response(stream_with_context(body()))


def connection_of(conn: Any) -> Any:
    return conn


def cursor_of(conn: Any) -> Any:
    return conn.cursor()


KEPT = [*((scheme, keep) for scheme in WHOLE for keep in (connection_of, cursor_of)), *((s, cursor_of) for s in PARTLY)]


@pytest.mark.parametrize(("scheme", "keep"), KEPT)
@pytest.mark.parametrize("add", [add_thread, add_stream, add_stream_with_context])
def test_a_late_use_is_refused_and_the_next_request_is_not_touched(
    add: Callable[[Rivals], None], scheme: str, keep: Callable[[Any], Any], *, dsn: str, make_app: MakeApp, rows: Rows
) -> None:
    """The error names the request it belonged to and says what to write; the rival's transaction is its own."""
    app, db = make_app({"url": dsn.replace("postgresql", scheme, 1), "max_size": 1})
    rivals = Rivals(app, db, keep)
    add(rivals)
    response = app.test_client().get("/first", buffered=False)
    body = response.iter_encoded()
    next(body)
    with ThreadPoolExecutor(1) as pool:
        rival = pool.submit(app.test_client().get, "/rival")
        for _ in body:
            pass
        assert rivals.over.wait(10)
        assert rival.result(10).status_code == 200
    response.close()
    (error,) = rivals.errors
    assert isinstance(error, LeaseError)
    assert "given back by GET /first" in str(error)
    assert "with db.transaction() as conn:" in str(error)
    assert (rows("late"), rows("rival")) == (0, 1)


@pytest.mark.parametrize("scheme", [*WHOLE, *PARTLY])
@pytest.mark.parametrize("keep", [connection_of, cursor_of])
def test_nobody_uses_what_lies_idle(
    scheme: str, keep: Callable[[Any], Any], *, dsn: str, make_app: MakeApp, rows: Rows
) -> None:
    """Between two requests the session is the pool's alone."""
    app, db = make_app({"url": dsn.replace("postgresql", scheme, 1), "max_size": 1})
    kept = []

    @app.get("/")
    def view() -> str:
        conn = db.connection
        conn.cursor().execute("SELECT 1")
        kept.append(keep(conn))
        return "x"

    app.test_client().get("/")
    with pytest.raises(LeaseError, match="given back by GET /"):
        (kept[0].cursor() if keep is connection_of else kept[0]).execute(INSERT)
    assert rows("late") == 0
