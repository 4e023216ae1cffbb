"""Views that run again after a serialization failure or a deadlock."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest
from flask import Flask, Response
from flask.typing import ResponseReturnValue
from flask_rig import MakeApp, Rows, write

from poolkit_flask import Poolkit

FAIL = "DO $$ BEGIN RAISE EXCEPTION 'try again' USING ERRCODE = '{}'; END $$"


def fail(db: Poolkit, code: str = "40001") -> None:
    """Let the server refuse with that code."""
    db.connection.execute(FAIL.format(code))


@pytest.mark.parametrize("code", ["40001", "40P01"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_view_runs_again(kind: str, code: str, app: Flask, db: Poolkit, rows: Rows) -> None:
    """What the failed tries wrote is gone, the last one's is saved, and the client sees the last answer."""
    tries: list[str] = []

    def work(word: str) -> ResponseReturnValue:
        tries.append(word)
        write(db, word)
        if len(tries) < 3:
            fail(db, code)
        return f"{len(tries)}", 201

    @app.post("/sync/<word>")
    @db.retryable(attempts=3)
    def sync(word: str) -> ResponseReturnValue:
        return work(word)

    @app.post("/async/<word>")
    @db.retryable(attempts=3)
    async def asynchronous(word: str) -> ResponseReturnValue:
        return work(word)

    response = app.test_client().post(f"/{kind}/word")
    assert (response.status_code, response.text) == (201, "3")
    assert rows("word") == 1
    assert tries == ["word"] * 3


def test_the_last_try_decides(app: Flask, db: Poolkit, rows: Rows) -> None:
    """After so many attempts the driver's error is the view's; nothing is saved."""
    tries: list[int] = []

    @app.get("/")
    @db.retryable(attempts=2)
    def view() -> str:
        tries.append(1)
        write(db, "never")
        fail(db)
        return "never"

    app.register_error_handler(psycopg.errors.SerializationFailure, lambda _: ("busy", 409))
    assert app.test_client().get("/").status_code == 409
    assert len(tries) == 2
    assert rows("never") == 0


def test_other_errors_are_not_tried_again(app: Flask, db: Poolkit) -> None:
    """Running the same again would not help."""
    tries: list[int] = []

    @app.get("/")
    @db.retryable()
    def view() -> str:
        tries.append(1)
        db.connection.execute("SELECT 1 / 0")
        return "never"

    assert app.test_client().get("/").status_code == 500
    assert len(tries) == 1


def test_a_serialization_failure_of_the_commit_counts(app: Flask, db: Poolkit, rows: Rows, dsn: str) -> None:
    """Two serializable transactions that read what the other writes: the one refused at COMMIT runs again."""
    tries: list[int] = []
    count = "SELECT count(*) FROM flask_notes WHERE word = %s"

    @app.get("/")
    @db.retryable()
    def view() -> str:
        tries.append(1)
        conn = db.connection
        conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        conn.execute(count, ("theirs",))
        write(db, "mine")
        if len(tries) == 1:
            with psycopg.connect(dsn) as other:
                other.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
                other.execute(count, ("mine",))
                other.execute("INSERT INTO flask_notes VALUES ('theirs')")
        return "x"

    assert app.test_client().get("/").status_code == 200
    assert len(tries) == 2
    assert (rows("mine"), rows("theirs")) == (1, 1)


def test_the_veto_counts_for_a_retryable_view(make_app: MakeApp, rows: Rows) -> None:
    """Its unit ends with the view, and the status is known there."""
    app, db = make_app(POOLKIT_ROLLBACK_ON=lambda status: status == 418)

    @app.get("/<int:status>")
    @db.retryable()
    def view(status: int) -> ResponseReturnValue:
        write(db, f"{status}")
        return "x", status

    assert app.test_client().get("/418").status_code == 418
    assert app.test_client().get("/404").status_code == 404
    assert (rows("418"), rows("404")) == (0, 1)


def test_a_connection_in_use_before_the_view_is_tried_once(
    app: Flask, db: Poolkit, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """What before_request did can't be run again: that is said, and the view is part of the request's unit."""
    tries: list[int] = []
    app.before_request(lambda: write(db, "hook"))

    @app.get("/<fate>")
    @db.retryable()
    def view(fate: str) -> str:
        tries.append(1)
        if fate == "bad":
            fail(db)
        return "x"

    with caplog.at_level(logging.WARNING, "poolkit"):
        assert app.test_client().get("/bad").status_code == 500
    assert "tried once" in caplog.text
    assert (len(tries), rows("hook")) == (1, 0)
    assert app.test_client().get("/good").status_code == 200
    assert rows("hook") == 1


def test_a_stream_can_not_run_again(app: Flask, db: Poolkit, rows: Rows) -> None:
    """A body that keeps the transaction open contradicts a view that ends it: an error, and nothing is saved."""

    @app.get("/")
    @db.retryable()
    def view() -> Any:
        db.unit_of_work.stream()
        write(db, "stream")
        return Response(iter("ab"))

    assert app.test_client().get("/").status_code == 500
    assert rows("stream") == 0


def test_doom_is_respected(app: Flask, db: Poolkit, rows: Rows) -> None:
    """A retryable view that dooms its unit saves nothing."""

    @app.get("/")
    @db.retryable()
    def view() -> str:
        write(db, "doomed")
        db.unit_of_work.doom()
        return "x"

    assert app.test_client().get("/").status_code == 200
    assert rows("doomed") == 0
