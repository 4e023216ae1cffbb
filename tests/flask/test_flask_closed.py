"""Views that close their connection, as other pools have taught them: what is told is what is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask_rig import MakeApp, Rows

from poolkit import CommitFailed
from poolkit_flask import Poolkit

SCHEMES = ["postgresql", "postgresql+psycopg2"]


@pytest.fixture(params=SCHEMES)
def made(request: pytest.FixtureRequest, dsn: str, make_app: MakeApp) -> tuple[Flask, Poolkit]:
    """An app for each driver, with a single connection."""
    return make_app({"url": dsn.replace("postgresql", request.param, 1), "max_size": 1})


def insert(conn: Any) -> None:
    conn.cursor().execute("INSERT INTO flask_notes VALUES ('closed')")


def close_in_mid_transaction(conn: Any) -> None:
    insert(conn)
    conn.close()


def test_work_that_is_open_is_an_error_that_names_the_close(made: tuple[Flask, Poolkit], rows: Rows) -> None:
    """Nothing was saved, and coming back later would not help: a 500, and not the 503 of a server that went away."""
    app, db = made
    told: list[str] = []

    @app.errorhandler(CommitFailed)
    def note(error: CommitFailed) -> Any:
        told.append(str(error))
        raise error

    app.add_url_rule("/", "view", lambda: close_in_mid_transaction(db.connection) or "x")
    response = app.test_client().get("/")
    assert (response.status_code, response.headers.get("Retry-After")) == (500, None)
    assert "closed, by its close(), with a transaction open: nothing was saved" in told[0]
    assert rows("closed") == 0


def only_close(conn: Any) -> None:
    conn.close()


def read_and_close(conn: Any) -> None:
    conn.cursor().execute("SELECT count(*) FROM flask_notes")
    conn.close()


def only_with(conn: Any) -> None:
    with conn:
        insert(conn)


def with_and_close(conn: Any) -> None:
    with conn:
        insert(conn)
    conn.close()


def commit_and_close(conn: Any) -> None:
    insert(conn)
    conn.commit()
    conn.close()


@pytest.mark.parametrize("habit", [only_close, read_and_close, only_with, with_and_close, commit_and_close])
def test_saved_work_is_told_as_saved(habit: Callable[[Any], None], made: tuple[Flask, Poolkit], rows: Rows) -> None:
    """`with conn:`, `commit()` and `close()` with nothing open do no harm, and the session goes on to the next one."""
    app, db = made

    def pid(conn: Any) -> int:
        number: int = conn.info.backend_pid
        return number

    pids: list[int] = []

    @app.get("/")
    def view() -> str:
        pids.append(pid(db.connection))
        habit(db.connection)
        return "x"

    client = app.test_client()
    assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    assert len(set(pids)) == 1
    assert rows("closed") == (0 if habit in {only_close, read_and_close} else 3)


def test_whoever_asks_again_is_lent_another(made: tuple[Flask, Poolkit], rows: Rows) -> None:
    """A connection that was closed with nothing open is back: two steps of a view may each open and close theirs."""
    app, db = made

    @app.get("/<int:steps>")
    def view(steps: int) -> str:
        for _ in range(steps):
            commit_and_close(db.connection)
        insert(db.connection)
        return "x"

    assert app.test_client().get("/2").status_code == 200
    assert rows("closed") == 3
