"""What runs after the endpoint: streamed bodies, generator endpoints, background tasks, tasks left behind."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Annotated, Any

import anyio
import psycopg
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from fastapi.testclient import TestClient
from fastapi_rig import Exchange, MakeKit, Rows, Serve, out, settled
from pydantic import BaseModel

from poolkit import AsyncUnitOfWork, UnitOfWorkError, current
from poolkit_fastapi import Poolkit

INSERT = "INSERT INTO notes VALUES (%s)"
IN_TRANSACTION = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"


class Item(BaseModel):
    number: int


class Cut(Exception):
    """What a body raises in the middle."""


def add_generators(app: FastAPI, kit: Poolkit) -> None:
    @app.get("/jsonl")
    async def jsonl(conn: Annotated[Any, Depends(kit.connection)], fail: int = 0) -> AsyncIterable[Item]:
        await conn.execute(INSERT, ("jsonl",))
        yield Item(number=1)
        if fail:
            raise Cut
        await conn.execute(INSERT, ("jsonl",))
        yield Item(number=2)

    @app.get("/jsonl_sync")
    def jsonl_sync(conn: Annotated[Any, Depends(kit.sync_connection)], fail: int = 0) -> Iterable[Item]:
        conn.execute(INSERT, ("jsonl_sync",))
        yield Item(number=1)
        if fail:
            raise Cut
        conn.execute(INSERT, ("jsonl_sync",))
        yield Item(number=2)

    @app.get("/sse", response_class=EventSourceResponse)
    async def sse(conn: Annotated[Any, Depends(kit.connection)], fail: int = 0) -> AsyncIterable[Item]:
        await conn.execute(INSERT, ("sse",))
        yield Item(number=1)
        if fail:
            raise Cut
        await conn.execute(INSERT, ("sse",))
        yield Item(number=2)

    add_explicit(app, kit)


def add_explicit(app: FastAPI, kit: Poolkit) -> None:
    @app.get("/explicit")
    async def explicit(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)], fail: int = 0) -> StreamingResponse:
        uow.stream()
        conn = await uow.get()

        async def body() -> AsyncIterator[str]:
            await conn.execute(INSERT, ("explicit",))
            yield "one "
            if fail:
                raise Cut
            await conn.execute(INSERT, ("explicit",))
            yield "two"

        return StreamingResponse(body())

    @app.get("/explicit_sync")
    def explicit_sync(
        uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)],
        conn: Annotated[Any, Depends(kit.sync_connection)],
        fail: int = 0,
    ) -> StreamingResponse:
        uow.stream()

        def body() -> Iterator[str]:
            conn.execute(INSERT, ("explicit_sync",))
            yield "one "
            if fail:
                raise Cut
            conn.execute(INSERT, ("explicit_sync",))
            yield "two"

        return StreamingResponse(body())


KEEPING = pytest.mark.parametrize("name", ["jsonl", "jsonl_sync", "sse", "explicit", "explicit_sync"])


@KEEPING
def test_a_kept_transaction_commits_with_the_last_piece(
    name: str, kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows
) -> None:
    """A generator endpoint, and a body after `stream()`, is one transaction from the first statement to the last."""
    add_generators(app, kit)
    assert client.get(f"/{name}").status_code == 200
    assert rows(name) == 2
    assert out(kit) == 0


@KEEPING
def test_a_kept_transaction_rolls_back_where_the_body_raises(
    name: str, kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows
) -> None:
    """A body that raises undoes all of it, also what it wrote before the first piece."""
    add_generators(app, kit)
    client.get(f"/{name}?fail=1")
    assert rows(name) == 0
    assert out(kit) == 0


@KEEPING
@pytest.mark.asyncio
async def test_an_abandoned_body_rolls_back(name: str, kit: Poolkit, app: FastAPI, rows: Rows) -> None:
    """A client that leaves after the first piece: what it did not get whole is not saved."""
    add_generators(app, kit)
    exchange = Exchange(app, f"/{name}", leave_after=1)
    async with asyncio.timeout(5):
        await exchange.run()
    assert exchange.pieces
    assert not exchange.complete
    assert rows(name) == 0
    assert out(kit) == 0
    await kit.close()


@pytest.mark.parametrize("handled", [False, True])
@pytest.mark.asyncio
async def test_a_commit_that_fails_after_the_body_cuts_it_short(
    handled: bool,  # noqa: FBT001
    kit: Poolkit,
    app: FastAPI,
    rows: Rows,
) -> None:
    """The status is sent by then; what is left is not to end the body as if it were whole, and to say what failed."""
    if handled:

        @app.exception_handler(psycopg.errors.ForeignKeyViolation)
        async def conflict(_request: Request, _error: Exception) -> Response:
            return Response("conflict", 409)

    @app.get("/orphan")
    async def orphan(conn: Annotated[Any, Depends(kit.connection)]) -> AsyncIterable[Item]:
        await conn.execute("INSERT INTO children VALUES (1)")
        yield Item(number=1)

    exchange = Exchange(app, "/orphan")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await exchange.run()
    assert exchange.status == 200
    assert not exchange.complete
    assert out(kit) == 0
    await kit.close()


def add_late(app: FastAPI, kit: Poolkit, seen: list[Any]) -> None:
    @app.get("/stream")
    async def stream(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)], use: int = 1) -> StreamingResponse:
        await (await uow.get()).execute(INSERT, ("before",))

        async def body() -> AsyncIterator[str]:
            seen.append(out(kit))
            yield "one "
            if use:
                conn = await uow.get()
                await conn.execute(INSERT, ("late",))
                seen.append((await (await conn.execute(IN_TRANSACTION)).fetchone())[0])
            yield "two "
            yield "three"

        return StreamingResponse(body())

    @app.get("/stream_sync")
    def stream_sync(
        uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)],
        conn: Annotated[Any, Depends(kit.sync_connection)],
    ) -> StreamingResponse:
        conn.execute(INSERT, ("before",))

        def body() -> Iterator[str]:
            seen.append(out(kit))
            yield "one "
            late = anyio.from_thread.run(uow.get_sync)
            late.execute(INSERT, ("late",))
            seen.append(late.execute(IN_TRANSACTION).fetchone()[0])
            yield "two "
            yield "three"

        return StreamingResponse(body())


@pytest.mark.parametrize("name", ["stream", "stream_sync"])
def test_a_stream_holds_nothing_and_may_ask_anew(
    name: str, kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows
) -> None:
    """The unit ends before the body; a body that asks gets a connection without a transaction, returned at its end."""
    seen: list[Any] = []
    add_late(app, kit, seen)
    assert client.get(f"/{name}").text == "one two three"
    assert seen == [0, False]
    assert (rows("before"), rows("late")) == (1, 1)
    assert out(kit) == 0


@pytest.mark.parametrize("name", ["stream", "stream_sync"])
@pytest.mark.asyncio
async def test_an_abandoned_stream_gives_back_what_it_asked_for(
    name: str, kit: Poolkit, app: FastAPI, rows: Rows
) -> None:
    """What ran in autocommit stays; the connection does not depend on the body being closed or collected."""
    add_late(app, kit, [])
    exchange = Exchange(app, f"/{name}", leave_after=2)
    async with asyncio.timeout(5):
        await exchange.run()
    assert not exchange.complete
    assert (rows("before"), rows("late")) == (1, 1)
    assert out(kit) == 0
    await kit.close()


def test_a_background_task_runs_in_autocommit(kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows) -> None:
    """The task begins after the COMMIT, its writes are saved one by one, and its connection goes back at the end."""
    seen: list[Any] = []

    @app.get("/task")
    async def task(tasks: BackgroundTasks, uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> str:
        async def work() -> None:
            seen.append((rows("before"), out(kit), current()))
            conn = await uow.get()
            await conn.execute(INSERT, ("late",))
            seen.append(rows("late"))
            raise Cut

        await (await uow.get()).execute(INSERT, ("before",))
        tasks.add_task(work)
        return "ok"

    assert client.get("/task").status_code == 200
    assert seen == [(1, 0, None), 1]
    assert rows("late") == 1
    assert out(kit) == 0


@pytest.mark.asyncio
async def test_a_task_that_outlives_its_request_is_refused(kit: Poolkit, app: FastAPI, rows: Rows) -> None:
    """Nobody would give that connection back: the unit says so, and what to do instead."""
    left: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    @app.get("/leave")
    async def leave(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> None:
        async def work() -> None:
            await over.wait()
            async with kit.transaction() as conn:
                await conn.execute(INSERT, ("own",))
            await uow.get()

        left.append(asyncio.create_task(work()))

    await Exchange(app, "/leave").run()
    over.set()
    with pytest.raises(UnitOfWorkError, match=r"GET /leave: this request is over.*db\.transaction"):
        await left[0]
    assert rows("own") == 1
    assert out(kit) == 0
    await kit.close()


@pytest.mark.asyncio
async def test_a_task_waiting_for_a_connection_when_the_request_ends_keeps_none(make_kit: MakeKit) -> None:
    """A lease that arrives after the end is given back at once."""
    kit = make_kit({"max_size": 1})
    app = FastAPI()
    kit.init_app(app)
    left: list[asyncio.Task[Any]] = []

    @app.get("/leave")
    async def leave(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> None:
        left.append(asyncio.create_task(uow.get()))
        await asyncio.sleep(0)

    async with kit.transaction():
        await Exchange(app, "/leave").run()
    with pytest.raises(UnitOfWorkError, match="was closed while 'default' was waited for"):
        await left[0]
    assert out(kit) == 0
    await kit.close()


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("how", ["task", "scope"])
@pytest.mark.asyncio
async def test_a_cancelled_request_gives_its_connection_back(
    kind: str, how: str, kit: Poolkit, app: FastAPI, rows: Rows
) -> None:
    """Cancelled in mid query, by asyncio or by an anyio scope: rolled back, and the pool is as it was.

    A `def` endpoint can't be interrupted: it runs to its end, and what counts is how it ended.
    """

    @app.get("/async")
    async def slow(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT, ("cancelled",))
        await conn.execute("SELECT pg_sleep(0.2)")
        await asyncio.sleep(0.01)

    @app.get("/sync")
    def slow_sync(conn: Annotated[Any, Depends(kit.sync_connection)]) -> None:
        conn.execute(INSERT, ("cancelled",))
        conn.execute("SELECT pg_sleep(0.2)")

    async def cancel() -> None:
        if how == "scope":
            with anyio.move_on_after(0.1):
                await Exchange(app, f"/{kind}").run()
            return
        task = asyncio.create_task(Exchange(app, f"/{kind}").run())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])

    await kit.open()
    await cancel()
    assert await settled(lambda: out(kit) == 0)
    assert kind == "sync" or rows("cancelled") == 0
    async with kit.transaction() as conn:
        assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
    await kit.close()


@pytest.mark.asyncio
async def test_a_commit_goes_on_when_its_request_is_cancelled(kit: Poolkit, app: FastAPI, rows: Rows) -> None:
    """A COMMIT is never cancelled: its outcome would be unknown."""

    @app.get("/commit")
    async def commit(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        # the check of this constraint takes its time, inside the COMMIT
        await conn.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$"
        )
        await conn.execute(
            "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION dawdle()"
        )
        await conn.execute(INSERT, ("committed",))
        ends.set()

    ends = asyncio.Event()
    task = asyncio.create_task(Exchange(app, "/commit").run())
    try:
        await ends.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert await settled(lambda: out(kit) == 0)
        assert rows("committed") == 1
    finally:
        async with kit.transaction() as conn:
            await conn.execute("DROP FUNCTION dawdle CASCADE")
        await kit.close()


@pytest.mark.asyncio
async def test_tasks_of_one_request_share_its_connection(kit: Poolkit, app: FastAPI, rows: Rows) -> None:
    """Two tasks that ask at once get the same connection: a request can't deadlock itself against the pool."""
    seen: list[bool] = []

    @app.get("/gather")
    async def gather(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> None:
        first, second = await asyncio.gather(uow.get(), uow.get())
        seen.append(first is second)

    await Exchange(app, "/gather").run()
    assert seen == [True]
    await kit.close()


def test_the_app_is_usable_after_a_failing_stream(make_kit: MakeKit, serve: Serve, rows: Rows) -> None:
    """A pool of one survives a hundred bodies that fail."""
    kit = make_kit({"max_size": 1, "timeout": 1})
    app = FastAPI()
    kit.init_app(app)
    add_generators(app, kit)
    client = serve(app)
    for _ in range(20):
        for name in ("jsonl", "jsonl_sync", "explicit"):
            client.get(f"/{name}?fail=1")
    assert client.get("/jsonl").status_code == 200
    assert rows("jsonl") == 2
    assert out(kit) == 0
