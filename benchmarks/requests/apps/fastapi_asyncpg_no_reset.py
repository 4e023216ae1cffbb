"""asyncpg's pool without its reset, a yield dependency, autocommit."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions.

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI, Request

SIZE = int(os.environ["BENCH_POOL_SIZE"])


async def leave(_conn: Any) -> None:
    """Reset nothing: what one request changes in its session, the next one finds."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool."""
    async with asyncpg.create_pool(os.environ["BENCH_DSN"], min_size=SIZE, max_size=SIZE, reset=leave) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


async def connection(request: Request) -> AsyncIterator[Any]:
    """Lend a connection to the request."""
    async with request.app.state.pool.acquire() as conn:
        yield conn


Conn = Annotated[Any, Depends(connection)]


@app.get("/hello")
async def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/{item_id}")
async def item(conn: Conn, item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    row = await conn.fetchrow("SELECT id, name FROM items WHERE id = $1", item_id)
    return {"id": row[0], "name": row[1]}


@app.get("/hit")
async def hit(conn: Conn) -> dict[str, Any]:
    """Write and read in one transaction."""
    async with conn.transaction():
        number = await conn.fetchval("INSERT INTO hits (item_id) VALUES (1) RETURNING id")
        await conn.fetchval("SELECT name FROM items WHERE id = 1")
    return {"id": number}
