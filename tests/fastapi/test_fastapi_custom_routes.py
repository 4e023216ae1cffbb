"""Route classes that answer for what their endpoint raised: what raises rolls back, whatever is made of it."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from fastapi_rig import Exchange, MakeKit, Rows, out
from starlette.responses import Response

from poolkit_fastapi import Poolkit, stack

INSERT = "INSERT INTO notes VALUES (%s)"


class Polite(APIRoute):
    """Answers 200 whatever happened, as GraphQL and RPC do."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await inner(Request(request.scope, request.receive))
            except Exception as error:  # noqa: BLE001
                return JSONResponse({"error": type(error).__name__})

        return handle


class PoliteChild(Polite):
    """Inherits what its parent does."""


def add_endpoints(kit: Poolkit, router: APIRouter) -> None:
    """Write the word `route`, then end in each way."""
    Conn = Annotated[psycopg.AsyncConnection[Any], Depends(kit.connection)]  # noqa: N806
    SyncConn = Annotated[psycopg.Connection[Any], Depends(kit.sync_connection)]  # noqa: N806

    async def refusing(conn: Conn) -> None:
        await conn.execute(INSERT, ("route",))
        raise HTTPException(401)

    @router.get("/value")
    async def value(conn: Conn) -> None:
        await conn.execute(INSERT, ("route",))
        raise ValueError

    @router.get("/http")
    async def http(conn: Conn) -> None:
        await conn.execute(INSERT, ("route",))
        raise HTTPException(409)

    @router.get("/sync")
    def sync(conn: SyncConn) -> None:
        conn.execute(INSERT, ("route",))
        raise ValueError

    @router.get("/model", response_model=int)
    async def model(conn: Conn) -> str:
        await conn.execute(INSERT, ("route",))
        return "no number"

    @router.get("/dependency")
    async def dependency(_: Annotated[None, Depends(refusing)]) -> None:
        pass

    @router.get("/fine")
    async def fine(conn: Conn) -> None:
        await conn.execute(INSERT, ("fine",))


RAISING = {
    "value": "ValueError",
    "http": "HTTPException",
    "sync": "ValueError",
    "model": "ResponseValidationError",
    "dependency": "HTTPException",
}


@pytest.mark.parametrize("sound", [True, False], ids=["stack", "yield"])
@pytest.mark.parametrize("route_class", [Polite, PoliteChild])
def test_what_raises_rolls_back_whatever_the_route_makes_of_it(
    route_class: type[APIRoute], *, sound: bool, make_kit: MakeKit, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A custom route class that answers an error with 200 saves nothing of it, in both of FastAPI's ways to end."""
    monkeypatch.setattr(stack, "is_sound", lambda: sound)
    kit = make_kit()
    router = APIRouter(route_class=route_class)
    add_endpoints(kit, router)
    app = FastAPI()
    kit.init_app(app)
    app.include_router(router, prefix="/api")
    with TestClient(app) as client:
        for path, error in RAISING.items():
            answer = client.get(f"/api/{path}")
            assert (answer.status_code, answer.json()) == (200, {"error": error})
            assert rows("route") == 0, path
        assert client.get("/api/fine").json() is None
    assert rows("fine") == 1
    assert out(kit) == 0


def test_the_rollback_comes_before_the_answer(kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows) -> None:
    """What the route class itself writes about the error is its own, and stays."""

    class Logging(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            inner = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await inner(request)
                except ValueError:
                    async with kit.transaction() as conn:  # the pool has one for it, though it be a pool of one
                        await conn.execute(INSERT, ("logged",))
                    return JSONResponse({}, 400)

            return handle

    router = APIRouter(route_class=Logging)
    add_endpoints(kit, router)
    app.include_router(router)
    assert client.get("/value").status_code == 400
    assert (rows("route"), rows("logged")) == (0, 1)


@pytest.mark.asyncio
async def test_a_request_inside_a_request_is_rolled_back_alone(kit: Poolkit, app: FastAPI, rows: Rows) -> None:
    """An error that such a route answers is no error of the request that made this one."""
    router = APIRouter(route_class=Polite)
    add_endpoints(kit, router)
    app.include_router(router)

    @app.get("/outer")
    async def outer(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT, ("outer",))
        assert (await Exchange(app, "/value").run()).status == 200

    assert (await Exchange(app, "/outer").run()).status == 200
    assert (rows("outer"), rows("route")) == (1, 0)
    await kit.close()


def test_a_class_that_changes_nothing_is_left_alone(kit: Poolkit) -> None:
    """Only a class that has a handler of its own is watched: all other routes cost what they cost."""

    class Plain(APIRoute):
        pass

    async def endpoint() -> None:
        pass

    def handler_of(kind: type[APIRoute]) -> Callable[[Request], Awaitable[Response]]:
        return APIRoute.get_route_handler(kind("/", endpoint))

    assert handler_of(APIRoute).__code__ is handler_of(Plain).__code__
    assert handler_of(Polite).__code__ is not handler_of(Plain).__code__
