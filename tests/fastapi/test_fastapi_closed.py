"""Endpoints that close their connection, as other pools have taught them: what is told is what is saved."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi_rig import Rows, Serve, out

from poolkit import AsyncUnitOfWork
from poolkit_fastapi import Poolkit

INSERT = "INSERT INTO notes VALUES ('closed')"
SCHEMES = ["postgresql", "postgresql+asyncpg"]


@pytest.fixture(params=SCHEMES)
def kit(request: pytest.FixtureRequest, dsn: str) -> Poolkit:
    """One for each driver for asyncio, with a single connection."""
    url = dsn.replace("postgresql", request.param, 1)
    return Poolkit({"default": {"url": url, "max_size": 1, "timeout": 5}})


def test_work_that_is_open_is_an_error_that_names_the_close(
    kit: Poolkit, app: FastAPI, serve: Serve, rows: Rows
) -> None:
    """Nothing was saved, and coming back later would not help: a 500, and not the 503 of a server that went away."""
    told: list[str] = []

    @app.exception_handler(Exception)
    async def note(_request: Any, error: Exception) -> Any:
        told.append(str(error))
        raise error

    @app.get("/")
    async def endpoint(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT)
        await conn.close()

    answer = serve(app).get("/")
    assert (answer.status_code, answer.headers.get("Retry-After")) == (500, None)
    assert "closed, by its close(), with a transaction open: nothing was saved" in told[0]
    assert rows("closed") == 0
    assert out(kit) == 0


def test_nothing_open_is_no_error(kit: Poolkit, app: FastAPI, serve: Serve, rows: Rows) -> None:
    """Work that is saved stays told as saved, and the session is there for the next request."""
    pids: list[int] = []

    @app.get("/")
    async def endpoint(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        pids.append(conn.info.backend_pid if hasattr(conn, "info") else conn.get_server_pid())
        if pids[1:]:
            return
        await conn.close()

    client = serve(app)
    assert client.get("/").status_code == 200
    assert client.get("/").status_code == 200
    assert len(set(pids)) == 1
    assert out(kit) == 0


def test_whoever_asks_again_is_lent_another(kit: Poolkit, app: FastAPI, serve: Serve, rows: Rows) -> None:
    """A connection that was closed with nothing open is back: two steps of an endpoint may each close theirs."""

    @app.get("/")
    async def endpoint(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> None:
        for _ in range(2):
            await (await uow.get()).close()
        await (await uow.get()).execute(INSERT)

    assert serve(app).get("/").status_code == 200
    assert rows("closed") == 1
    assert out(kit) == 0


def test_an_endpoint_that_only_read_may_close(kit: Poolkit, app: FastAPI, serve: Serve, rows: Rows) -> None:
    """Nothing was to be saved, so nothing is lost: no error, and the session goes on."""
    pids: list[int] = []

    @app.get("/")
    async def endpoint(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        pids.append(conn.info.backend_pid if hasattr(conn, "info") else conn.get_server_pid())
        await conn.execute("SELECT count(*) FROM notes")
        await conn.close()

    client = serve(app)
    assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    assert len(set(pids)) == 1
    assert out(kit) == 0
