"""A failed statement whose error the endpoint handled: an answer that is an error is sent, one that is none is not."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import logging
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse
from fastapi_rig import MakeKit, Rows, Serve, out
from test_fastapi_custom_routes import Polite

from poolkit import AsyncUnitOfWork, CommitFailed, events
from poolkit_fastapi import Poolkit, stack

INSERT = "INSERT INTO notes VALUES ('lost')"
BAD = "SELECT 1 / 0"
hooks: list[str] = []


def add_endpoints(kit: Poolkit, app: FastAPI | APIRouter) -> None:
    """Endpoints of each kind: write, fail, handle the error, answer with the status that was asked for."""
    Conn = Annotated[psycopg.AsyncConnection[Any], Depends(kit.connection)]  # noqa: N806
    SyncConn = Annotated[psycopg.Connection[Any], Depends(kit.sync_connection)]  # noqa: N806
    UoW = Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]  # noqa: N806

    @app.get("/async/{status}")
    async def on_async(status: int, conn: Conn, uow: UoW) -> JSONResponse:
        uow.on_commit(lambda: hooks.append("commit"))
        uow.on_rollback(lambda: hooks.append("rollback"))
        await conn.execute(INSERT)
        try:
            await conn.execute(BAD)
        except psycopg.Error:
            return JSONResponse("the endpoint's own", status)
        raise AssertionError

    @app.get("/sync/{status}")
    def on_sync(status: int, conn: SyncConn, uow: UoW) -> JSONResponse:
        uow.on_commit(lambda: hooks.append("commit"))
        uow.on_rollback(lambda: hooks.append("rollback"))
        conn.execute(INSERT)
        try:
            conn.execute(BAD)
        except psycopg.Error:
            return JSONResponse("the endpoint's own", status)
        raise AssertionError


@pytest.fixture(autouse=True)
def _no_hooks() -> None:
    hooks.clear()


@pytest.mark.parametrize("sound", [True, False], ids=["stack", "yield"])
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_an_error_is_sent_as_it_is(
    kind: str,
    *,
    sound: bool,
    make_kit: MakeKit,
    serve: Serve,
    rows: Rows,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It claims no success: it is sent, nothing is saved, no `on_commit` runs, and log, counter and events tell why."""
    monkeypatch.setattr(stack, "is_sound", lambda: sound)
    kit = make_kit({"max_size": 1})
    app = FastAPI()
    kit.init_app(app)
    add_endpoints(kit, app)
    client = serve(app)
    client.get("/poolkit/ready")
    kit.sync_pool()
    told: list[str] = []
    for pool in kit.registry.live_pools():
        pool.listen(lambda event: told.append(event.reason) if isinstance(event, events.RolledBack) else None)
    caplog.set_level(logging.WARNING, "poolkit")
    for status in (409, 503):
        answer = client.get(f"/{kind}/{status}")
        assert (answer.status_code, answer.json()) == (status, "the endpoint's own")
    assert rows("lost") == 0
    assert hooks == ["rollback", "rollback"]
    assert kit.registry.tally.rollbacks == {"swallowed_error": 2}
    (text,) = [record.getMessage() for record in caplog.records]
    assert f"GET /{kind}/{{status}}: answered 409" in text
    assert "division by zero" in text
    assert told[-1] == "swallowed_error"
    assert out(kit) == 0


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("status", [200, 302])
def test_a_success_is_not_sent(status: int, kind: str, *, kit: Poolkit, app: FastAPI, serve: Serve, rows: Rows) -> None:
    """Under 400 the client would take it for saved: it becomes the error, for the app's handler if there is one."""
    add_endpoints(kit, app)
    client = serve(app)
    answer = client.get(f"/{kind}/{status}")
    assert answer.status_code == 500
    assert rows("lost") == 0
    assert hooks == ["rollback"]
    assert out(kit) == 0


def test_the_app_may_answer_for_it(kit: Poolkit, app: FastAPI, serve: Serve) -> None:
    """A handler for `CommitFailed` finds the error of a success that could not be sent."""

    @app.exception_handler(CommitFailed)
    async def handle(_request: Any, error: CommitFailed) -> JSONResponse:
        return JSONResponse(str(error), 418)

    add_endpoints(kit, app)
    answer = serve(app).get("/async/200")
    assert answer.status_code == 418
    assert "nothing was saved" in answer.json()


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_the_app_may_want_an_error_always(kind: str, make_kit: MakeKit, serve: Serve, rows: Rows) -> None:
    """With `swallowed_error="raise"` an answer of 409 is replaced as well."""
    kit = make_kit(units={"swallowed_error": "raise"})
    app = FastAPI()
    kit.init_app(app)
    add_endpoints(kit, app)
    assert serve(app).get(f"/{kind}/409").status_code == 500
    assert rows("lost") == 0
    assert out(kit) == 0


def test_a_route_class_does_not_change_that(kit: Poolkit, app: FastAPI, serve: Serve, rows: Rows) -> None:
    """The status that counts is the one that is sent, also where a route class stands between."""
    router = APIRouter(route_class=Polite)
    add_endpoints(kit, router)
    app.include_router(router)
    client = serve(app)
    assert client.get("/async/409").json() == "the endpoint's own"
    assert client.get("/async/200").status_code == 500
    assert rows("lost") == 0


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_savepoint_keeps_the_rest(kind: str, kit: Poolkit, app: FastAPI, serve: Serve, rows: Rows) -> None:
    """The documented answer with 409: the failed statement is undone by itself, and what is beside it is saved."""

    @app.get("/async")
    async def on_async(conn: Annotated[Any, Depends(kit.connection)]) -> JSONResponse:
        await conn.execute("INSERT INTO notes VALUES ('kept')")
        try:
            async with conn.transaction():
                await conn.execute(BAD)
        except psycopg.errors.DivisionByZero:
            return JSONResponse("taken", 409)
        raise AssertionError

    @app.get("/sync")
    def on_sync(conn: Annotated[Any, Depends(kit.sync_connection)]) -> JSONResponse:
        conn.execute("INSERT INTO notes VALUES ('kept')")
        try:
            with conn.transaction():
                conn.execute(BAD)
        except psycopg.errors.DivisionByZero:
            return JSONResponse("taken", 409)
        raise AssertionError

    assert serve(app).get(f"/{kind}").status_code == 409
    assert rows("kept") == 1
