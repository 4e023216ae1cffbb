"""A request's connection is its own until its end, and nobody's after: what was kept is refused, with advice."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from fastapi_rig import Exchange, Rows, Serve, out, settled

from poolkit import LeaseError
from poolkit.errors import Returned
from poolkit.testing import FakeAsyncDriver, FakeConnection
from poolkit_fastapi import Poolkit

INSERT = "INSERT INTO notes VALUES ('late')"
SCHEMES = ["postgresql", "postgresql+asyncpg"]


# -- what keeps nothing costs nothing ----------------------------------------------------------------------------------


class Renewing(FakeAsyncDriver):
    """Counts how often the session had to be given another object, for somebody still had the old one."""

    renewed = 0

    def renew(self, connection: FakeConnection, returned: Returned) -> FakeConnection:
        assert "scope=" in str(returned.error())
        self.renewed += 1
        return connection


COMMON = ["async", "repository", "in_time", "unit", "returned"]  # a thread may keep a call a moment after it


@pytest.mark.parametrize("path", [*COMMON, "raised", "kept"])
def test_the_framework_keeps_nothing(path: str) -> None:  # noqa: C901  one small endpoint for each path
    """The session of an endpoint that keeps no reference goes back as it is; to renew it takes a microsecond."""
    driver = Renewing()
    kit = Poolkit({"default": {"driver": driver}})
    app = FastAPI()
    kit.init_app(app)
    Conn = Annotated[Any, Depends(kit.connection)]  # noqa: N806
    kept: list[Any] = []

    class Repository:
        def __init__(self, conn: Any) -> None:
            self.conn = conn

    async def repository_of(conn: Conn) -> Repository:
        return Repository(conn)

    async def in_time(conn: Conn) -> AsyncIterator[Any]:
        yield conn
        conn.execute("in time")

    @app.get("/async")
    async def on_async(conn: Conn) -> None:
        conn.execute("word")

    @app.get("/repository")
    async def on_repository(repository: Annotated[Repository, Depends(repository_of)]) -> None:
        repository.conn.execute("word")

    @app.get("/in_time")
    async def on_in_time(conn: Annotated[Any, Depends(in_time, scope="function")]) -> None:
        conn.execute("word")

    @app.get("/unit")
    async def on_unit(uow: Annotated[Any, Depends(kit.unit_of_work)]) -> None:
        (await uow.get()).execute("word")

    @app.get("/returned", response_model=int)
    async def on_returned(conn: Conn) -> Any:
        conn.execute("word")
        return 1

    @app.get("/raised")
    async def on_raised(conn: Conn) -> None:
        conn.execute("word")
        raise HTTPException(400)

    @app.get("/kept")
    async def on_kept(conn: Conn) -> None:
        kept.append(conn)

    client = TestClient(app)
    for _ in range(3):
        client.get(f"/{path}")
    assert (driver.renewed == 0) is (path in COMMON)


# -- what is kept is refused -------------------------------------------------------------------------------------------


@pytest.fixture(params=SCHEMES)
def kit(request: pytest.FixtureRequest, dsn: str) -> Poolkit:
    """One for each driver for asyncio, with a single connection: whoever is late meets the next request on it."""
    return Poolkit({"default": {"url": dsn.replace("postgresql", request.param, 1), "max_size": 1, "timeout": 5}})


Late = Callable[[Any], Awaitable[None]]


class Rivals:
    """A request that keeps its connection, and another one that has the session when the first one comes back to it."""

    def __init__(self, kit: Poolkit) -> None:
        self.kit = kit
        self.app = FastAPI()
        kit.init_app(self.app)
        self.errors: list[BaseException] = []
        self.lent = asyncio.Event()
        self.over = asyncio.Event()
        self.fails = False

        @self.app.get("/rival")
        async def rival(conn: Annotated[Any, Depends(kit.connection)]) -> None:
            await conn.execute("INSERT INTO notes VALUES ('rival')")
            self.lent.set()
            async with asyncio.timeout(5):
                await self.over.wait()
            if self.fails:
                raise HTTPException(418)

    async def late(self, conn: Any) -> None:
        """Use the connection while the rival is in the middle of its transaction."""
        async with asyncio.timeout(5):
            await self.lent.wait()
        try:
            await conn.execute(INSERT)
        except BaseException as error:
            self.errors.append(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self.over.set()

    async def meet(self, path: str) -> tuple[int, int]:
        first = asyncio.ensure_future(Exchange(self.app, path).run())
        assert await settled(lambda: self.waiting)
        second = await Exchange(self.app, "/rival").run()
        return (await first).status, second.status

    @property
    def waiting(self) -> bool:
        """Whether the session is back in the pool while the first request's code waits to use it."""
        pools = list(self.kit.registry.live_pools())
        return bool(pools) and all(pool.stats().acquired and not pool.stats().out for pool in pools)


def add_task(rivals: Rivals) -> None:
    @rivals.app.get("/first")
    async def task(tasks: BackgroundTasks, conn: Annotated[Any, Depends(rivals.kit.connection)]) -> None:
        await conn.execute("SELECT 1")
        tasks.add_task(rivals.late, conn)


def add_stream(rivals: Rivals) -> None:
    @rivals.app.get("/first")
    async def stream(conn: Annotated[Any, Depends(rivals.kit.connection)]) -> StreamingResponse:
        await conn.execute("SELECT 1")

        async def body() -> AsyncIterator[str]:
            yield "head"
            await rivals.late(conn)
            yield "tail"

        return StreamingResponse(body())


def add_started_task(rivals: Rivals) -> None:
    started = []

    @rivals.app.get("/first")
    async def task(conn: Annotated[Any, Depends(rivals.kit.connection)]) -> None:
        await conn.execute("SELECT 1")
        started.append(asyncio.create_task(rivals.late(conn)))


def add_late_code(rivals: Rivals) -> None:
    async def repository(conn: Annotated[Any, Depends(rivals.kit.connection)]) -> AsyncIterator[Any]:
        yield conn
        await rivals.late(conn)

    @rivals.app.get("/first")
    async def first(conn: Annotated[Any, Depends(repository)]) -> None:
        await conn.execute("SELECT 1")


@pytest.mark.asyncio
@pytest.mark.parametrize("fails", [True, False], ids=["rival fails", "rival returns"])
@pytest.mark.parametrize("add", [add_task, add_stream, add_started_task, add_late_code])
async def test_a_late_use_is_refused_and_the_next_request_is_not_touched(
    add: Callable[[Rivals], None], *, fails: bool, kit: Poolkit, rows: Rows
) -> None:
    """The error names the request it belonged to and says what to write; the rival's transaction is its own."""
    rivals = Rivals(kit)
    rivals.fails = fails
    add(rivals)
    assert await rivals.meet("/first") == (200, 418 if fails else 200)
    (error,) = rivals.errors
    assert isinstance(error, LeaseError)
    for words in ("given back by GET /first", 'scope="function"', "await uow.get()"):
        assert words in str(error)
    assert (rows("late"), rows("rival")) == (0, 0 if fails else 1)
    assert out(kit) == 0
    await kit.close()


@pytest.mark.asyncio
async def test_code_after_yield_is_in_time_where_its_scope_says_so(kit: Poolkit, rows: Rows) -> None:
    """What the error advises works: it runs before the COMMIT, in the transaction of the endpoint."""
    app = FastAPI()
    kit.init_app(app)

    async def repository(conn: Annotated[Any, Depends(kit.connection)]) -> AsyncIterator[Any]:
        yield conn
        await conn.execute(INSERT)

    @app.get("/")
    async def endpoint(_: Annotated[Any, Depends(repository, scope="function")], status: int) -> None:
        if status != 200:
            raise HTTPException(status)

    exchange = Exchange(app, "/")
    exchange.scope["query_string"] = b"status=200"
    assert (await exchange.run()).status == 200
    assert rows("late") == 1
    await kit.close()


def test_an_open_websocket_is_refused_the_connection_of_its_handshake(
    kit: Poolkit, app: FastAPI, serve: Serve, rows: Rows
) -> None:
    """The handshake was its request: what comes in later takes its own, and is told so."""

    @app.websocket("/ws")
    async def ws(socket: WebSocket, conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute("SELECT 1")
        await socket.accept()
        try:
            await conn.execute(INSERT)
        except LeaseError as error:
            await socket.send_text(str(error))

    with serve(app).websocket_connect("/ws") as socket:
        text = socket.receive_text()
    assert "given back by WEBSOCKET /ws (handshake)" in text
    assert "async with db.transaction() as conn" in text
    assert rows("late") == 0
