"""Random requests of several tenants to one app, interleaved: each is answered as by an app of its own."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi_rig import Exchange
from twin_web import COMMON, POSTGRES, Visit, WebTwins

from poolkit import AsyncUnitOfWork
from poolkit_fastapi import Poolkit

TABLES = (
    "CREATE TABLE IF NOT EXISTS web_twin_rows (who bigint, word varchar(40))",
    "CREATE SEQUENCE IF NOT EXISTS twin_numbers",
    "TRUNCATE web_twin_rows",
)


async def act(unit: AsyncUnitOfWork, visit: Visit, step: tuple[str, ...]) -> object:
    """Take one step in a request, and return its answer; an error of a statement is swallowed."""
    if step == ("raise",):
        raise ZeroDivisionError
    try:
        conn = await unit.get()
        match step:
            case ("commit",):
                await (conn.commit() if hasattr(conn, "commit") else conn.execute("COMMIT"))
            case ("rollback",):
                await (conn.rollback() if hasattr(conn, "rollback") else conn.execute("ROLLBACK"))
            case ("unit commit",):
                await unit.commit()
            case ("doom",):
                unit.doom()
            case _:
                return await run(conn, *visit.statements(step))
    except Exception as error:  # noqa: BLE001  the libraries have roots of their own
        return type(error).__name__
    return None


async def run(conn: Any, *statements: str) -> object:
    """Run statements, of which the last one is answered, whether or not those before fail."""
    for statement in statements[:-1]:
        with contextlib.suppress(Exception):
            await conn.execute(statement)
    statement = statements[-1]
    if hasattr(conn, "fetch"):  # asyncpg
        if statement.startswith(("SELECT", "SHOW")):
            return [tuple(row) for row in await conn.fetch(statement)]
        await conn.execute(statement)
        return []
    cursor = await conn.execute(statement)
    return await cursor.fetchall() if cursor.description else []


def make_app(settings: dict[str, Any], visits: dict[int, Visit]) -> tuple[FastAPI, Poolkit]:
    """Make an app whose one endpoint does what its visit says."""
    kit = Poolkit({"default": settings})
    app = FastAPI()
    kit.init_app(app)

    @app.get("/{key}")
    async def endpoint(key: int, unit: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> Any:
        visit = visits[key]
        steps = visit.ataken()

        async def body() -> AsyncIterator[str]:
            async for step in steps:
                if not step[0].startswith("stream"):
                    visit.answers.append(await act(unit, visit, step))
                yield "piece"

        async for step in steps:
            if step == ("stream",):
                return StreamingResponse(body())
            if step == ("stream in one transaction",):
                unit.stream()
                return StreamingResponse(body())
            visit.answers.append(await act(unit, visit, step))
        return "all"

    return app, kit


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs beside the test, which holds the requests."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["psycopg", "asyncpg"])
def twins(request: pytest.FixtureRequest, dsn: str, loop: asyncio.AbstractEventLoop) -> Iterator[WebTwins]:
    url = dsn.replace("postgresql", f"postgresql+{request.param}", 1)

    def make(
        size: int, visits: dict[int, Visit], reset: str
    ) -> tuple[Callable[[Visit], Future[None]], Callable[[], None]]:
        app, kit = make_app({"url": url, "max_size": size, "timeout": 10, "reset": reset}, visits)

        async def serve(visit: Visit) -> None:
            exchange = Exchange(app, f"/{visit.key}")
            try:
                await exchange.run()
                visit.outcome = exchange.status
            except Exception as error:  # noqa: BLE001  of the view, or of the body
                visit.outcome = exchange.status, type(error).__name__
            finally:
                visit.end()

        def stop() -> None:
            asyncio.run_coroutine_threadsafe(kit.close(), loop).result(10)

        return lambda visit: asyncio.run_coroutine_threadsafe(serve(visit), loop), stop

    with psycopg.connect(dsn, autocommit=True) as monitor:
        for statement in TABLES:
            monitor.execute(statement)

        def saved(who: int) -> object:
            return monitor.execute("SELECT word FROM web_twin_rows WHERE who = %s", [who]).fetchall()

        yield WebTwins(make, saved)


def test_requests_are_answered_as_alone(twins: WebTwins) -> None:
    """Whatever one tenant's request did, another one is answered as by an app of its own, and saves the same."""
    twins.run(20, POSTGRES, COMMON, fixed=True)


def test_without_resets_they_are_not(twins: WebTwins) -> None:
    """The programs tell an app apart whose pool passes sessions on as they are."""
    twins.fail_without_resets(POSTGRES, COMMON)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_requests_are_answered_as_alone(twins: WebTwins) -> None:
    """The same, many times as often."""
    twins.run(300, POSTGRES, COMMON)
