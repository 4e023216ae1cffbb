"""psycopg_pool, a yield dependency, in a transaction."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions.

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from psycopg_pool import AsyncConnectionPool

SIZE = int(os.environ["BENCH_POOL_SIZE"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool."""
    async with AsyncConnectionPool(os.environ["BENCH_DSN"], min_size=SIZE, max_size=SIZE, open=False) as pool:
        await pool.wait()
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


async def connection(request: Request) -> AsyncIterator[Any]:
    """Lend a connection to the request."""
    async with request.app.state.pool.connection() as conn:
        yield conn


Conn = Annotated[Any, Depends(connection)]


@app.get("/hello")
async def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/{item_id}")
async def item(conn: Conn, item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    cursor = await conn.execute("SELECT id, name FROM items WHERE id = %s", (item_id,))
    row = await cursor.fetchone()
    return {"id": row[0], "name": row[1]}


@app.get("/hit")
async def hit(conn: Conn) -> dict[str, Any]:
    """Write and read in one transaction."""
    cursor = await conn.execute("INSERT INTO hits (item_id) VALUES (1) RETURNING id")
    row = await cursor.fetchone()
    await (await conn.execute("SELECT name FROM items WHERE id = 1")).fetchone()
    return {"id": row[0]}
