"""Whose the request's unit is: what FastAPI and Starlette run for the request has it, a task of the view's has not."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a test.

import asyncio
import logging
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi_rig import MakeKit, Rows, Serve
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount, Route

from poolkit import AsyncUnitOfWork, async_unit_of_work, current
from poolkit_fastapi import Poolkit


class Seen:
    """An app whose parts note whether `current()` is the request's unit."""

    def __init__(self, kit: Poolkit) -> None:
        self.kit = kit
        self.app = FastAPI()
        kit.init_app(self.app)
        self.notes: dict[str, bool] = {}
        self._units: list[Any] = []

    def unit(self, unit: AsyncUnitOfWork) -> None:
        self._units.append(unit)

    def note(self, where: str) -> None:
        self.notes[where] = current() is self._units[-1]


@pytest.fixture
def seen(make_kit: MakeKit) -> Seen:
    return Seen(make_kit())


def test_endpoints_and_dependencies_in_threads_have_the_unit(seen: Seen, serve: Serve) -> None:
    """`def` endpoints, `def` dependencies and those that yield run in threads, for the request that waits for them."""
    uow = Annotated[AsyncUnitOfWork, Depends(seen.kit.unit_of_work)]

    def first(unit: uow) -> None:
        seen.unit(unit)
        seen.note("dependency")

    def yields(unit: uow) -> Any:
        seen.note("before yield")
        yield unit
        seen.note("after yield")

    def endpoint(
        _: Annotated[None, Depends(first)], __: Annotated[Any, Depends(yields, scope="function")]
    ) -> dict[str, int]:
        seen.note("endpoint")
        return {}

    async def asynchronous(unit: uow) -> dict[str, int]:
        seen.unit(unit)
        seen.note("async endpoint")
        return {}

    seen.app.get("/")(endpoint)
    seen.app.get("/async")(asynchronous)
    client = serve(seen.app)
    assert client.get("/").status_code == client.get("/async").status_code == 200
    assert seen.notes == {
        "dependency": True, "before yield": True, "endpoint": True, "after yield": True, "async endpoint": True,
    }  # fmt: skip


def test_an_endpoint_below_a_base_http_middleware_has_the_unit_around_it(seen: Seen, serve: Serve) -> None:
    """A unit that is begun above the middleware is that of the endpoint, though a task stands between."""

    class Around(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            async with async_unit_of_work(seen.kit.registry) as unit:
                seen.unit(unit)
                return await call_next(request)

    def endpoint(_: Any) -> Any:
        seen.note("endpoint")
        return StreamingResponse(iter([b"x"]))

    seen.app.router.routes.append(Mount("/below", routes=[Route("/", endpoint)], middleware=[Middleware(Around)]))
    assert serve(seen.app).get("/below/").text == "x"
    assert seen.notes == {"endpoint": True}


def test_streamed_bodies_have_the_unit_that_was_kept_for_them(seen: Seen, serve: Serve) -> None:
    """After `uow.stream()` the body, sync or async, and a generator endpoint are in the request's unit."""
    uow = Annotated[AsyncUnitOfWork, Depends(seen.kit.unit_of_work)]
    router = APIRouter()

    @router.get("/{kind}")
    async def streamed(kind: str, unit: uow) -> StreamingResponse:
        seen.unit(unit)
        await unit.get()
        unit.stream()

        def sync() -> Any:
            seen.note("sync")
            yield b"x"

        async def asynchronous() -> Any:
            seen.note("async")
            yield b"x"

        return StreamingResponse(sync() if kind == "sync" else asynchronous())

    @seen.app.get("/lines")
    async def lines(unit: uow) -> Any:
        seen.unit(unit)
        seen.note("generator")
        yield {"line": 1}

    seen.app.include_router(router)
    client = serve(seen.app)
    for path in ("/lines", "/sync", "/async"):
        assert client.get(path).status_code == 200
    assert seen.notes == {"generator": True, "sync": True, "async": True}


def test_a_task_of_the_view_commits_for_itself(
    make_kit: MakeKit, rows: Rows, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Its block is a unit of its own: neither the end of its request nor the next one's rollback touches it."""
    kit, app, go = make_kit(), FastAPI(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    kit.init_app(app)

    async def transfer() -> None:
        async with async_unit_of_work(kit.registry) as unit:
            conn = await unit.get()
            await conn.execute("INSERT INTO notes VALUES ('debit')")
            await go.wait()
            await conn.execute("INSERT INTO notes VALUES ('credit')")

    @app.get("/a")
    async def first(conn: Annotated[psycopg.AsyncConnection[Any], Depends(kit.connection)]) -> int:
        await conn.execute("SELECT 1")
        tasks.append(asyncio.create_task(transfer()))
        await asyncio.sleep(0)
        return 1

    @app.get("/b")
    async def second(conn: Annotated[psycopg.AsyncConnection[Any], Depends(kit.connection)]) -> int:
        await conn.execute("INSERT INTO notes VALUES ('b')")
        go.set()
        await tasks[0]
        raise RuntimeError

    client = serve(app)
    with caplog.at_level(logging.WARNING, "poolkit"):
        assert client.get("/a").status_code == 200
        assert client.get("/b").status_code == 500
    assert (rows("debit"), rows("credit"), rows("b")) == (1, 1, 0)
    assert "no part of 'GET /a'" in caplog.text
