"""What the Flask tests share beside fixtures: types, and an app with one view for each way a request can end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from flask import Blueprint, Flask, Response, abort, after_this_request, redirect, request
from flask.typing import ResponseReturnValue

from poolkit_flask import Poolkit

__all__ = [
    "ABORTED",
    "CASES",
    "BrokenError",
    "Case",
    "HandledError",
    "MakeApp",
    "Rows",
    "add_writer",
    "eventually",
    "views",
    "write",
]

MakeApp = Callable[..., tuple[Flask, Poolkit]]
Rows = Callable[[str], int]


class HandledError(Exception):
    """The app has a handler for it."""


class BrokenError(Exception):
    """The app has a handler for it, which fails."""


class Case(NamedTuple):
    """A way to end a request: the view's name, the status the client sees, and how many rows are saved."""

    view: str
    status: int
    rows: int


CASES = [
    Case("no_query", 200, 0),
    Case("return_200", 200, 1),
    Case("return_redirect", 302, 1),
    Case("return_404", 404, 1),
    Case("return_503", 503, 1),
    Case("raise_404", 404, 0),
    Case("raise_redirect", 302, 0),
    Case("raise_handled", 200, 0),
    Case("raise_broken_handler", 500, 0),
    Case("raise_unhandled", 500, 0),
    Case("swallow_sql_error", 500, 0),
    Case("swallow_and_answer_409", 409, 0),
    Case("commit_fails", 500, 0),
    Case("fail_after_the_view", 500, 0),
    Case("doom", 200, 0),
    Case("commit_early_then_raise", 500, 1),
]

ABORTED = "SELECT 1 / 0"


def write(db: Poolkit, word: str) -> None:
    """Insert the row that the tests count."""
    db.connection.execute("INSERT INTO flask_notes VALUES (%s)", (word,))


def add_writer(app: Flask, db: Poolkit) -> None:
    """Add a view that writes its word, and fails when asked to."""

    @app.get("/write/<word>")
    def writer(word: str) -> str:
        write(db, word)
        if "fail" in request.args:
            raise ZeroDivisionError
        return word


def views(db: Poolkit) -> Blueprint:  # noqa: C901  one small view for each case
    """Make the views of `CASES`, each of which writes its own name."""
    site = Blueprint("site", __name__)

    def view(run: Callable[[], ResponseReturnValue]) -> None:
        name = run.__name__

        def sync() -> ResponseReturnValue:
            if name != "no_query":
                write(db, f"sync {name}")
            return run()

        async def asynchronous() -> ResponseReturnValue:
            if name != "no_query":
                write(db, f"async {name}")
            return run()

        site.add_url_rule(f"/sync/{name}", f"sync_{name}", sync)
        site.add_url_rule(f"/async/{name}", f"async_{name}", asynchronous)

    @view
    def no_query() -> ResponseReturnValue:
        return "nothing"

    @view
    def return_200() -> ResponseReturnValue:
        return "saved"

    @view
    def return_redirect() -> ResponseReturnValue:
        return redirect("/elsewhere")

    @view
    def return_404() -> ResponseReturnValue:
        return "returned", 404

    @view
    def return_503() -> ResponseReturnValue:
        return "returned", 503

    @view
    def raise_404() -> ResponseReturnValue:
        abort(404)

    @view
    def raise_redirect() -> ResponseReturnValue:
        abort(redirect("/elsewhere"))

    @view
    def raise_handled() -> ResponseReturnValue:
        raise HandledError

    @view
    def raise_broken_handler() -> ResponseReturnValue:
        raise BrokenError

    @view
    def raise_unhandled() -> ResponseReturnValue:
        raise ZeroDivisionError

    @view
    def swallow_sql_error() -> ResponseReturnValue:
        with contextlib.suppress(psycopg.Error):
            db.connection.execute(ABORTED)
        return "looks well"

    @view
    def swallow_and_answer_409() -> ResponseReturnValue:
        with contextlib.suppress(psycopg.Error):
            db.connection.execute(ABORTED)
        return "that name is taken", 409

    @view
    def commit_fails() -> ResponseReturnValue:
        db.connection.execute("INSERT INTO flask_children VALUES (999)")
        return "looks well"

    @view
    def fail_after_the_view() -> ResponseReturnValue:
        @after_this_request
        def fail(response: Response) -> Response:
            raise ValueError("too late for the view")

        return "looks well"

    @view
    def doom() -> ResponseReturnValue:
        db.unit_of_work.doom("not today")
        return "returned"

    @view
    def commit_early_then_raise() -> ResponseReturnValue:
        db.unit_of_work.commit()
        raise ZeroDivisionError

    def fine(_: HandledError) -> ResponseReturnValue:
        return "handled", 200

    def broken(_: BrokenError) -> ResponseReturnValue:
        raise RuntimeError("the handler fails as well")

    site.register_error_handler(HandledError, fine)
    site.register_error_handler(BrokenError, broken)
    return site


def eventually(what: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Ask until the answer is true, and return it; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still {answer!r} after {seconds} s")
        time.sleep(0.01)
    return answer
