"""Too few connections, no server, a server that comes back: 503 with Retry-After, with nothing to configure."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import asyncio
import time
from typing import Annotated, Any

import anyio.to_thread
import psycopg
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from fastapi_rig import Exchange, MakeKit, Rows, Serve, out, settles

from poolkit import AcquireTimeout, ConnectRejected, NestedAcquire, OpenFailed, PoolError
from poolkit.testing.postgres import LocalPostgres
from poolkit_fastapi import Poolkit


def make_app(kit: Poolkit) -> FastAPI:
    app = FastAPI()
    kit.init_app(app)

    @app.get("/async")
    async def use(conn: Annotated[Any, Depends(kit.connection)]) -> int:
        return (await (await conn.execute("SELECT 1")).fetchone())[0]

    @app.get("/sync")
    def use_sync(conn: Annotated[Any, Depends(kit.sync_connection)]) -> int:
        return conn.execute("SELECT 1").fetchone()[0]

    return app


KINDS = pytest.mark.parametrize("kind", ["async", "sync"])


@KINDS
@pytest.mark.asyncio
async def test_an_exhausted_pool_is_503(kind: str, make_kit: MakeKit) -> None:
    """Whoever gets no connection in time is told when to come back, and nothing about the pool."""
    kit = make_kit({"max_size": 1, "timeout": 0.05})
    app = make_app(kit)
    await kit.open()  # a connect may take longer on a busy machine
    await kit.registry.in_thread(kit.registry.warm)
    async with kit.begin() as uow:
        await (uow.get() if kind == "async" else uow.get_sync())
        refused = await Exchange(app, f"/{kind}").run()
    served = await Exchange(app, f"/{kind}").run()
    assert (refused.status, refused.pieces) == (503, [b'{"error":"service unavailable"}'])
    assert (served.status, served.pieces) == (200, [b"1"])
    assert out(kit) == 0
    await kit.close()


@KINDS
@pytest.mark.asyncio
async def test_a_full_queue_is_503_at_once(kind: str, make_kit: MakeKit) -> None:
    """Overload is refused without a wait."""
    kit = make_kit({"max_size": 1, "timeout": 30, "max_waiting": 0})
    app = make_app(kit)
    async with kit.begin() as uow, asyncio.timeout(5):
        await (uow.get() if kind == "async" else uow.get_sync())
        assert (await Exchange(app, f"/{kind}").run()).status == 503
    await kit.close()


@pytest.mark.parametrize("size", [1, 3])
@KINDS
@pytest.mark.asyncio
async def test_many_requests_share_few_connections(size: int, kind: str, make_kit: MakeKit) -> None:
    """120 at once, few connections, fewer threads than requests: all are served, none waits for a thread in vain."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = 4
    kit = make_kit({"max_size": size, "timeout": 20})
    app = make_app(kit)
    exchanges = await asyncio.gather(*(Exchange(app, f"/{kind}").run() for _ in range(120)))
    assert {exchange.status for exchange in exchanges} == {200}
    assert out(kit) == 0
    assert max(stats.opened for stats in kit.registry.stats()) <= size
    await kit.close()


def exhausted(make_kit: MakeKit, serve: Serve, app_of: Any) -> tuple[int, str, str | None]:
    """Ask for two connections of a pool of one."""
    kit = make_kit({"max_size": 1, "timeout": 0.05})
    app: FastAPI = app_of(kit)

    @app.get("/two")
    async def two(_one: Annotated[Any, Depends(kit.connection)]) -> None:
        async def another() -> None:
            async with kit.transaction():
                pass

        await asyncio.create_task(another())  # this task itself would be told that it waits for itself

    answer = serve(app).get("/two")
    assert out(kit) == 0
    return answer.status_code, answer.text, answer.headers.get("retry-after")


def test_a_request_that_waits_for_itself_is_told_at_once(make_kit: MakeKit, serve: Serve) -> None:
    """Its own connection is the last one, and it asks for another beside it: nobody waits for the timeout."""
    kit = make_kit({"max_size": 1, "timeout": 60})
    app = make_app(kit)

    @app.get("/two")
    async def two(_one: Annotated[Any, Depends(kit.connection)]) -> str:
        with pytest.raises(NestedAcquire):
            async with kit.transaction():
                pass
        return "told"

    assert serve(app).get("/two").text == '"told"'
    assert out(kit) == 0


def test_the_503_says_when_to_come_back(make_kit: MakeKit, serve: Serve) -> None:
    """Retry-After is there, in whole seconds."""
    status, _text, wait = exhausted(make_kit, serve, make_app)
    assert status == 503
    assert wait is not None
    assert int(wait) >= 1


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", [AcquireTimeout, PoolError, TimeoutError])
def test_the_apps_own_handler_comes_first(order: str, kind: type[Exception], make_kit: MakeKit, serve: Serve) -> None:
    """A handler for the error or a base class of it, added before or after init_app, sync or async, answers."""

    def own(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(type(error).__name__, 429)

    def app_of(kit: Poolkit) -> FastAPI:
        app = FastAPI()
        if order == "before":
            app.add_exception_handler(kind, own)
        kit.init_app(app)
        if order == "after":
            app.add_exception_handler(kind, own)
        return app

    assert exhausted(make_kit, serve, app_of) == (429, '"AcquireTimeout"', None)


def test_a_catch_all_does_not_hide_the_503(make_kit: MakeKit, serve: Serve) -> None:
    """A handler for `Exception` is for the unexpected; a full pool is not that."""

    def app_of(kit: Poolkit) -> FastAPI:
        app = make_app(kit)

        @app.exception_handler(Exception)
        async def anything(_request: Request, _error: Exception) -> JSONResponse:
            return JSONResponse("oops", 500)

        return app

    assert exhausted(make_kit, serve, app_of)[0] == 503


def test_a_mounted_app_answers_503_as_well(make_kit: MakeKit, serve: Serve) -> None:
    """An error never leaves a mounted app for the one above: it has to know by itself."""
    kit = make_kit({"max_size": 1, "timeout": 0.05})
    app, below = FastAPI(), FastAPI()
    kit.init_app(app)

    @below.get("/two")
    async def two(_one: Annotated[Any, Depends(kit.connection)]) -> None:
        async def another() -> None:
            async with kit.transaction():
                pass

        await asyncio.create_task(another())  # this task itself would be told that it waits for itself

    app.mount("/below", below)
    assert serve(app).get("/below/two").status_code == 503
    assert out(kit) == 0


@pytest.fixture
def away(private_pg: LocalPostgres) -> tuple[LocalPostgres, Poolkit]:
    """A server to take away, and a Poolkit on it."""
    kit = Poolkit({"default": {"url": private_pg.dsn, "timeout": 2, "open_timeout": 2}})
    return private_pg, kit


@pytest.mark.slow
@KINDS
def test_an_app_starts_without_its_server_and_heals(
    kind: str, away: tuple[LocalPostgres, Poolkit], serve: Serve
) -> None:
    """The app starts, lives, is not ready and answers 503; once the server is there it serves, with no restart."""
    server, kit = away
    server.stop()
    client = serve(make_app(kit))
    answer = client.get(f"/{kind}")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/poolkit/health").status_code == 200
    assert client.get("/poolkit/ready").status_code == 503
    server.start()
    assert settles(lambda: client.get(f"/{kind}").status_code == 200, 10)
    # Each kind of pool finds out by itself: the other one's next attempt may be most of a second away.
    assert settles(lambda: client.get("/poolkit/ready").status_code == 200, 10)


@KINDS
def test_a_server_that_goes_away_and_comes_back(kind: str, away: tuple[LocalPostgres, Poolkit], serve: Serve) -> None:
    """After a restart no request gets a dead connection; while the server is away the 503s are quick."""
    server, kit = away
    client = serve(make_app(kit))
    assert client.get(f"/{kind}").status_code == 200
    server.restart()
    assert client.get(f"/{kind}").status_code == 200
    server.stop("immediate")
    client.get(f"/{kind}")
    began = time.monotonic()
    assert client.get(f"/{kind}").status_code == 503
    assert time.monotonic() - began < 1
    server.start()
    assert settles(lambda: client.get(f"/{kind}").status_code == 200, 10)


@KINDS
def test_a_commit_whose_server_went_away_is_503(
    kind: str, kit: Poolkit, app: FastAPI, client: TestClient, monitor: psycopg.Connection
) -> None:
    """Nobody knows whether it was carried out: the client is told to come back, never that all is well."""

    def end(pid: int) -> None:
        monitor.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    @app.get("/async")
    async def lost(conn: Annotated[Any, Depends(kit.connection)]) -> str:
        await conn.execute("INSERT INTO notes VALUES ('lost')")
        end(conn.info.backend_pid)
        return "saved"

    @app.get("/sync")
    def lost_sync(conn: Annotated[Any, Depends(kit.sync_connection)]) -> str:
        conn.execute("INSERT INTO notes VALUES ('lost')")
        end(conn.info.backend_pid)
        return "saved"

    answer = client.get(f"/{kind}")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert out(kit) == 0


def test_an_app_can_ask_why(away: tuple[LocalPostgres, Poolkit], serve: Serve) -> None:
    """The error that became a 503 carries the driver's own, and no password."""
    server, kit = away
    seen: list[Exception] = []
    server.stop()
    app = make_app(kit)

    @app.exception_handler(OpenFailed)
    async def note(_request: Request, error: Exception) -> JSONResponse:
        seen.append(error)
        return JSONResponse("no", 503)

    assert serve(app).get("/async").status_code == 503
    assert isinstance(seen[0].__cause__, psycopg.OperationalError)
    password = server.dsn.split(":")[2].split("@")[0]
    assert password not in f"{seen[0]!r} {seen[0]} {seen[0].__cause__}"


def test_rows_of_a_refused_request(make_kit: MakeKit, serve: Serve, rows: Rows) -> None:
    """A refusal in the middle of a request undoes what the request had done."""
    kit = make_kit({"max_size": 1, "timeout": 0.05})
    app = FastAPI()
    kit.init_app(app)

    @app.get("/late")
    async def late(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute("INSERT INTO notes VALUES ('refused')")
        async with kit.transaction():
            pass

    assert serve(app).get("/late").status_code == 503
    assert rows("refused") == 0


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg"])
@pytest.mark.parametrize("kind", ["connection", "transaction", "sync"])
def test_a_wrong_setting_is_no_outage(
    kind: str, scheme: str, *, dsn: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting does not mend it: a 500 at once, without Retry-After; log and readiness have the reason."""
    if (kind, scheme) == ("sync", "postgresql+asyncpg"):
        pytest.skip("for asyncio alone")
    server, _, _ = dsn.replace("postgresql", scheme, 1).rpartition("/")
    kit = Poolkit({"default": {"url": f"{server}/no_such_database"}})
    app = FastAPI()
    kit.init_app(app)

    @app.get("/connection")
    async def connection(_conn: Annotated[Any, Depends(kit.connection)]) -> None:
        pass

    @app.get("/transaction")
    async def transaction() -> None:
        async with kit.transaction():
            pass

    if kind == "sync":

        @app.get("/sync")
        def sync(_conn: Annotated[Any, Depends(kit.sync_connection)]) -> None:
            pass

    client = serve(app)
    answer, ready = client.get(f"/{kind}"), client.get("/poolkit/ready")
    assert (answer.status_code, answer.headers.get("Retry-After")) == (500, None)
    assert (ready.status_code, ready.json()) == (503, {"status": "not ready", "reason": "rejected"})
    assert "no_such_database" in caplog.text
    with pytest.raises(ConnectRejected, match="no_such_database"):
        TestClient(app).get(f"/{kind}")  # what the server logs
