"""The contract, case by case, for `async def` and `def` endpoints: what is saved, and what the client is told."""

# ruff: noqa: N806  Conn and UoW are types, though made in a function
# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit, Rows, Serve, out
from pydantic import BaseModel

from poolkit import AsyncUnitOfWork
from poolkit_fastapi import Poolkit


class HandledError(Exception):
    """What the app answers with 200."""


class Item(BaseModel):
    number: int


def nothing(_: Any) -> Any:
    return "ok"


def returns(status: int) -> Callable[[Any], Any]:
    return lambda _: JSONResponse({"status": status}, status)


def raises(error: Exception) -> Callable[[Any], Any]:
    def end(_: Any) -> Any:
        raise error

    return end


# name: how the endpoint ends after its INSERT; the status the client sees; whether the row is there
CASES: dict[str, tuple[Callable[[Any], Any], int, int]] = {
    "return": (nothing, 200, 1),
    "return_404": (returns(404), 404, 1),
    "return_500": (returns(500), 500, 1),
    "return_redirect": (lambda _: RedirectResponse("/elsewhere"), 307, 1),
    "raise_404": (raises(HTTPException(404)), 404, 0),
    "raise_redirect": (raises(HTTPException(307, headers={"Location": "/"})), 307, 0),
    "handled": (raises(HandledError()), 200, 0),
    "unhandled": (raises(ZeroDivisionError()), 500, 0),
    "bad_response": (lambda _: {"number": "none"}, 500, 0),
}
BAD = "INSERT INTO notes SELECT 'x' FROM generate_series(1, 1) WHERE 1 / 0 = 1"
ORPHAN = "INSERT INTO children VALUES (1)"  # found out by the COMMIT


def add_async(app: FastAPI, kit: Poolkit) -> None:
    Conn = Annotated[psycopg.AsyncConnection[Any], Depends(kit.connection)]
    UoW = Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]

    for name, (end, _status, _rows) in CASES.items():
        model = Item if name == "bad_response" else None

        def add(name: str = name, end: Any = end, model: Any = model) -> None:
            @app.get(f"/async/{name}", response_model=model)
            async def endpoint(conn: Conn) -> Any:
                await conn.execute("INSERT INTO notes VALUES (%s)", ("async",))
                return end(conn)

        add()

    @app.get("/async/no_query")
    async def no_query(uow: UoW) -> bool:
        return uow.used

    @app.get("/async/swallowed")
    async def swallowed(conn: Conn) -> str:
        await conn.execute("INSERT INTO notes VALUES ('async')")
        try:
            await conn.execute(BAD)
        except psycopg.Error:
            return "all is well"
        return "not reached"

    @app.get("/async/commit_fails")
    async def commit_fails(conn: Conn) -> str:
        await conn.execute("INSERT INTO notes VALUES ('async')")
        await conn.execute(ORPHAN)
        return "saved"

    @app.get("/async/doomed")
    async def doomed(uow: UoW) -> str:
        await (await uow.get()).execute("INSERT INTO notes VALUES ('async')")
        uow.doom()
        return "not saved"

    @app.get("/async/committed_then_raised")
    async def committed_then_raised(uow: UoW) -> None:
        await (await uow.get()).execute("INSERT INTO notes VALUES ('async')")
        await uow.commit()
        raise HTTPException(418)


def add_sync(app: FastAPI, kit: Poolkit) -> None:
    Conn = Annotated[psycopg.Connection[Any], Depends(kit.sync_connection)]
    UoW = Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]

    for name, (end, _status, _rows) in CASES.items():
        model = Item if name == "bad_response" else None

        def add(name: str = name, end: Any = end, model: Any = model) -> None:
            @app.get(f"/sync/{name}", response_model=model)
            def endpoint(conn: Conn) -> Any:
                conn.execute("INSERT INTO notes VALUES (%s)", ("sync",))
                return end(conn)

        add()

    @app.get("/sync/no_query")
    def no_query(uow: UoW) -> bool:
        return uow.used

    @app.get("/sync/swallowed")
    def swallowed(conn: Conn) -> str:
        conn.execute("INSERT INTO notes VALUES ('sync')")
        try:
            conn.execute(BAD)
        except psycopg.Error:
            return "all is well"
        return "not reached"

    @app.get("/sync/commit_fails")
    def commit_fails(conn: Conn) -> str:
        conn.execute("INSERT INTO notes VALUES ('sync')")
        conn.execute(ORPHAN)
        return "saved"

    @app.get("/sync/doomed")
    def doomed(conn: Conn, uow: UoW) -> str:
        conn.execute("INSERT INTO notes VALUES ('sync')")
        uow.doom()
        return "not saved"


def make_app(kit: Poolkit) -> FastAPI:
    app = FastAPI()
    kit.init_app(app)
    add_async(app, kit)
    add_sync(app, kit)

    @app.exception_handler(HandledError)
    async def handled(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"handled": True})

    @app.exception_handler(418)
    async def teapot(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"teapot": True}, 418)

    return app


@pytest.fixture(scope="module")
def shared(dsn: str) -> Iterator[tuple[Poolkit, FastAPI, TestClient]]:
    """One app for all the cases: each must leave it as it was."""
    kit = Poolkit({"default": {"url": dsn, "max_size": 1, "timeout": 5}})
    app = make_app(kit)
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield kit, app, client


KINDS = pytest.mark.parametrize("kind", ["async", "sync"])


@KINDS
@pytest.mark.parametrize("case", CASES)
def test_raise_rolls_back_and_return_commits(
    kind: str, case: str, shared: tuple[Poolkit, FastAPI, TestClient], rows: Rows
) -> None:
    """What leaves the endpoint decides, not the status: raise is rollback, return is commit; nothing stays in use."""
    kit, _app, client = shared
    _end, status, saved = CASES[case]
    assert client.get(f"/{kind}/{case}").status_code == status
    assert rows(kind) == saved
    assert out(kit) == 0


@KINDS
def test_no_query_takes_no_connection(kind: str, shared: tuple[Poolkit, FastAPI, TestClient]) -> None:
    """A request that asks nothing of the database takes nothing."""
    kit, _app, client = shared
    before = sum(stats.acquired for stats in kit.registry.stats())
    assert client.get(f"/{kind}/no_query").json() is False
    assert sum(stats.acquired for stats in kit.registry.stats()) == before


@KINDS
def test_a_swallowed_error_is_never_a_success(
    kind: str, shared: tuple[Poolkit, FastAPI, TestClient], rows: Rows
) -> None:
    """PostgreSQL would answer this COMMIT with a silent ROLLBACK: the client must not see 200."""
    kit, _app, client = shared
    assert client.get(f"/{kind}/swallowed").status_code == 500
    assert rows(kind) == 0
    assert out(kit) == 0


@KINDS
def test_a_failing_commit_is_an_error(kind: str, shared: tuple[Poolkit, FastAPI, TestClient], rows: Rows) -> None:
    """The COMMIT comes before the first byte: where it fails the client sees 500."""
    kit, _app, client = shared
    assert client.get(f"/{kind}/commit_fails").status_code == 500
    assert rows(kind) == 0
    assert out(kit) == 0


@KINDS
def test_a_typed_handler_sees_the_failing_commit(kind: str, make_kit: MakeKit, serve: Serve, rows: Rows) -> None:
    """The driver's own error goes through the app's handlers, unchanged."""
    app = make_app(make_kit())

    @app.exception_handler(psycopg.errors.ForeignKeyViolation)
    async def conflict(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"conflict": True}, 409)

    answer = serve(app).get(f"/{kind}/commit_fails")
    assert (answer.status_code, answer.json()) == (409, {"conflict": True})
    assert rows(kind) == 0


@KINDS
def test_doom_rolls_back_a_returned_response(
    kind: str, shared: tuple[Poolkit, FastAPI, TestClient], rows: Rows
) -> None:
    """`doom` is the way to say no and still return."""
    assert shared[2].get(f"/{kind}/doomed").status_code == 200
    assert rows(kind) == 0


def test_commit_in_the_endpoint_is_final(shared: tuple[Poolkit, FastAPI, TestClient], rows: Rows) -> None:
    """What `commit()` has saved stays saved, whatever the endpoint raises after it."""
    assert shared[2].get("/async/committed_then_raised").status_code == 418
    assert rows("async") == 1


@KINDS
@pytest.mark.parametrize("case", CASES)
def test_the_veto_sees_the_status(kind: str, case: str, make_kit: MakeKit, serve: Serve, rows: Rows) -> None:
    """`rollback_on` can roll back a returned response by its status; raise stays rollback, the rest stays commit."""
    kit = make_kit(rollback_on=lambda status: status >= 500)
    _end, status, saved = CASES[case]
    assert serve(make_app(kit)).get(f"/{kind}/{case}").status_code == status
    assert rows(kind) == (0 if status >= 500 else saved)
    assert out(kit) == 0


@KINDS
def test_with_a_veto_a_failing_commit_is_an_error_as_well(
    kind: str, make_kit: MakeKit, serve: Serve, rows: Rows
) -> None:
    """With a veto the COMMIT waits for the status, and still comes before the first byte: 500, or the app's 409."""
    kit = make_kit(rollback_on=lambda status: status >= 500)
    app = make_app(kit)
    client = serve(app)
    assert client.get(f"/{kind}/commit_fails").status_code == 500
    assert client.get(f"/{kind}/swallowed").status_code == 500
    assert rows(kind) == 0
    handled = make_app(kit_again := make_kit(rollback_on=lambda status: status >= 500))

    @handled.exception_handler(psycopg.errors.ForeignKeyViolation)
    def conflict(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"conflict": True}, 409)

    answer = serve(handled).get(f"/{kind}/commit_fails")
    assert (answer.status_code, answer.json()) == (409, {"conflict": True})
    assert out(kit) == out(kit_again) == 0


def test_hooks_run_after_the_end(kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows) -> None:
    """on_commit runs after the COMMIT, on_rollback after the ROLLBACK; what they raise changes nothing."""
    told: list[tuple[str, int]] = []

    @app.get("/hooks")
    async def hooks(
        uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)], fail: Annotated[int, Query()] = 0
    ) -> None:
        def broken() -> None:
            raise ValueError

        uow.on_commit(lambda: told.append(("commit", rows_now())))
        uow.on_commit(broken)
        uow.on_rollback(lambda: told.append(("rollback", rows_now())))
        await (await uow.get()).execute("INSERT INTO notes VALUES ('hook')")
        if fail:
            raise HTTPException(400)

    def rows_now() -> int:
        return count("hook")

    count = rows
    assert client.get("/hooks").status_code == 200
    assert client.get("/hooks?fail=1").status_code == 400
    assert told == [("commit", 1), ("rollback", 1)]


@KINDS
def test_an_error_in_a_dependency_rolls_back(
    kind: str, kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows
) -> None:
    """A dependency that raises after another one wrote undoes that, validation errors of the request included."""
    if kind == "async":

        async def write(conn: Annotated[Any, Depends(kit.connection)]) -> None:
            await conn.execute("INSERT INTO notes VALUES ('dependency')")
    else:

        def write(conn: Annotated[Any, Depends(kit.sync_connection)]) -> None:
            conn.execute("INSERT INTO notes VALUES ('dependency')")

    def refuse(_written: Annotated[None, Depends(write)]) -> None:
        raise HTTPException(403)

    @app.get("/refused")
    async def refused(_: Annotated[None, Depends(refuse)]) -> None:
        pass

    @app.get("/invalid")
    async def invalid(_: Annotated[None, Depends(write)], number: int) -> None:
        pass

    assert client.get("/refused").status_code == 403
    assert client.get("/invalid?number=none").status_code == 422
    assert rows("dependency") == 0
    assert out(kit) == 0
