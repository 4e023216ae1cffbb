"""Start and stop, with a lifespan and without; sub-apps; plain Starlette; many loops."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import gc
import logging
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit, Rows, Serve, out, settles
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Route

import poolkit
from poolkit_fastapi import Poolkit

INSERT = "INSERT INTO notes VALUES (%s)"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'life'"


@pytest.fixture
def life(dsn: str) -> Poolkit:
    """A Poolkit whose sessions can be counted on the server."""
    return Poolkit({"default": {"url": dsn, "max_size": 3, "options": {"application_name": "life"}}})


def sessions(monitor: psycopg.Connection) -> int:
    row = monitor.execute(SESSIONS).fetchone()
    return row[0] if row else -1


def at_most(number: int, monitor: psycopg.Connection) -> bool:
    """Whether the server has so few sessions, now or when it has read the goodbyes that are under way."""
    return settles(lambda: sessions(monitor) <= number)


def add_route(app: FastAPI, kit: Poolkit) -> None:
    @app.get("/")
    async def root(conn: Annotated[Any, Depends(kit.connection)]) -> int:
        return (await (await conn.execute("SELECT 1")).fetchone())[0]

    @app.get("/sync")
    def sync(conn: Annotated[Any, Depends(kit.sync_connection)]) -> int:
        return conn.execute("SELECT 1").fetchone()[0]


def test_the_apps_own_lifespan_is_kept(life: Poolkit, monitor: psycopg.Connection, rows: Rows) -> None:
    """It runs inside ours, so it has a database on both ends; its state reaches the requests."""

    @asynccontextmanager
    async def mine(_app: FastAPI) -> AsyncIterator[dict[str, str]]:
        async with life.transaction() as conn:
            await conn.execute(INSERT, ("start",))
        yield {"greeting": "hello"}
        async with life.transaction() as conn:
            await conn.execute(INSERT, ("stop",))

    app = FastAPI(lifespan=mine)
    life.init_app(app)

    @app.get("/state")
    async def state(request: Request) -> str:
        return request.state.greeting

    with TestClient(app) as client:
        assert client.get("/state").json() == "hello"
        assert rows("start") == 1
    assert rows("stop") == 1
    assert at_most(0, monitor)


def test_the_start_opens_and_the_stop_closes(life: Poolkit, monitor: psycopg.Connection) -> None:
    """The first connection is there before the first request; after the stop the server knows of none."""
    app = FastAPI()
    life.init_app(app)
    add_route(app, life)
    with TestClient(app) as client:
        assert sessions(monitor) == 1
        assert client.get("/").json() == client.get("/sync").json() == 1
        assert sessions(monitor) == 2
    assert at_most(0, monitor)


def test_a_lifespan_that_fails_leaves_nothing_open(life: Poolkit, monitor: psycopg.Connection) -> None:
    """An app that can't start gives back what was opened for it."""

    @asynccontextmanager
    async def broken(_app: FastAPI) -> AsyncIterator[None]:
        async with life.transaction():
            raise ZeroDivisionError
        yield

    app = FastAPI(lifespan=broken)
    life.init_app(app)
    with pytest.raises(ZeroDivisionError), TestClient(app):
        pass
    assert at_most(0, monitor)


def test_lifespans_of_included_routers_run_inside(life: Poolkit, monitor: psycopg.Connection) -> None:
    """A router included later may use the database in its lifespan, too."""
    seen: list[int] = []

    @asynccontextmanager
    async def of_router(_app: Any) -> AsyncIterator[None]:
        seen.append(sessions(monitor))
        yield
        seen.append(sessions(monitor))

    app = FastAPI()
    life.init_app(app)
    app.include_router(APIRouter(lifespan=of_router))
    with TestClient(app):
        pass
    assert seen == [1, 1]


def test_an_app_can_be_started_again(life: Poolkit) -> None:
    """One test client after the other: pools that were closed are made anew."""
    app = FastAPI()
    life.init_app(app)
    add_route(app, life)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").json() == client.get("/sync").json() == 1


def test_no_lifespan_and_a_loop_per_request(life: Poolkit, monitor: psycopg.Connection) -> None:
    """A test client that is not entered runs no lifespan, and each request in its own loop: no session piles up."""
    app = FastAPI()
    life.init_app(app)
    add_route(app, life)
    client = TestClient(app)
    for _ in range(5):
        assert client.get("/").json() == client.get("/sync").json() == 1
        assert at_most(2, monitor)
    with client:  # a loop with a lifespan closes the rest
        pass
    assert at_most(0, monitor)


def test_a_mounted_app_uses_the_one_above(kit: Poolkit, serve: Serve, rows: Rows) -> None:
    """The middleware of the app above serves the mounted app: same rules, no lifespan of its own."""
    app, below = FastAPI(), FastAPI()
    kit.init_app(app)

    @below.get("/write")
    async def write(conn: Annotated[Any, Depends(kit.connection)], fail: int = 0) -> None:
        await conn.execute(INSERT, ("below",))
        if fail:
            raise HTTPException(404)

    app.mount("/below", below)
    client = serve(app)
    assert client.get("/below/write?fail=1").status_code == 404
    assert rows("below") == 0
    assert client.get("/below/write").status_code == 200
    assert rows("below") == 1
    assert out(kit) == 0


@pytest.mark.parametrize("both", [False, True])
def test_a_mounted_app_with_its_own_init_app(both: bool, kit: Poolkit, serve: Serve, rows: Rows) -> None:  # noqa: FBT001
    """Its lifespan never runs, so it opens on first use; knowing both apps is still one unit per request."""
    app, below = FastAPI(), FastAPI()
    kit.init_app(below)
    if both:
        kit.init_app(app)

    @below.get("/write")
    async def write(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT, ("below",))

    app.mount("/below", below)
    assert serve(app).get("/below/write").status_code == 200
    assert rows("below") == 1
    assert out(kit) == 0


def test_plain_starlette(kit: Poolkit, serve: Serve, rows: Rows) -> None:
    """Without dependencies a block is the unit: it commits at its end, before the response, and raising undoes it."""

    async def write(request: Any) -> JSONResponse:
        async with kit.transaction() as conn:
            await conn.execute(INSERT, ("starlette",))
            if request.query_params.get("orphan"):
                await conn.execute("INSERT INTO children VALUES (1)")
            if request.query_params.get("fail"):
                raise StarletteHTTPException(404)
        return JSONResponse("saved")

    async def joined(_request: Any) -> JSONResponse:
        async with poolkit.async_unit_of_work() as uow:  # the app's own connections, without naming it
            await (await uow.get()).execute(INSERT, ("joined",))
            return JSONResponse(uow.registry is kit.registry)

    async def conflict(_request: Any, _error: Exception) -> JSONResponse:
        return JSONResponse("conflict", 409)

    app = Starlette(
        routes=[Route("/write", write), Route("/joined", joined)],
        exception_handlers={psycopg.errors.ForeignKeyViolation: conflict},
    )
    kit.init_app(app)
    client = serve(app)
    assert [client.get(f"/write{query}").status_code for query in ("?fail=1", "?orphan=1")] == [404, 409]
    assert rows("starlette") == 0
    assert client.get("/write").status_code == 200
    assert rows("starlette") == 1
    assert client.get("/joined").json() is True
    assert rows("joined") == 1
    assert client.get("/poolkit/ready").status_code == 200
    assert out(kit) == 0


@pytest.mark.asyncio
async def test_outside_requests(kit: Poolkit, rows: Rows) -> None:
    """`transaction` and `begin` are units of their own wherever a loop runs."""

    async def fail() -> None:
        async with kit.transaction() as conn:
            await conn.execute(INSERT, ("outside",))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert rows("outside") == 0
    async with kit.begin() as uow:
        await (await uow.get()).execute(INSERT, ("outside",))
        assert poolkit.current() is uow
    assert rows("outside") == 1
    await kit.close()


def test_a_transaction_in_a_request_is_its_own(kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows) -> None:
    """What a block has committed stays, whatever becomes of the request around it."""

    @app.get("/audit")
    async def audit(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT, ("request",))
        async with kit.transaction() as own:
            await own.execute(INSERT, ("audit",))
        raise HTTPException(400)

    assert client.get("/audit").status_code == 400
    assert (rows("audit"), rows("request")) == (1, 0)


def test_a_start_without_settings_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An app with nothing configured starts, and the log says what is missing."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    app = FastAPI()
    Poolkit().init_app(app)
    with caplog.at_level(logging.WARNING, "poolkit"), TestClient(app) as client:
        assert client.get("/poolkit/health").status_code == 200
    assert "set DATABASE_URL" in caplog.text


def test_a_kit_is_named_by_its_pools(make_kit: MakeKit) -> None:
    """Its repr helps where two are in use."""
    assert repr(make_kit()) == "<Poolkit of default>"


def test_what_is_known_of_endpoints_goes_with_the_kit(make_kit: MakeKit) -> None:
    """Nothing of poolkit keeps an app's endpoints when the app is gone: tests make many."""

    async def endpoint() -> AsyncIterator[int]:
        yield 1

    kit = make_kit()
    assert kit.yields(endpoint)
    known = weakref.ref(endpoint)
    del kit, endpoint
    gc.collect()
    assert known() is None
