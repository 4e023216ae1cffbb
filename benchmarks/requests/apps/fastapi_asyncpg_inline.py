"""asyncpg's pool in the handler, autocommit."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions.

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI, Request

SIZE = int(os.environ["BENCH_POOL_SIZE"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool."""
    async with asyncpg.create_pool(os.environ["BENCH_DSN"], min_size=SIZE, max_size=SIZE) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/hello")
async def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/{item_id}")
async def item(request: Request, item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    async with request.app.state.pool.acquire() as conn:
        row = await conn.fetchrow("SELECT id, name FROM items WHERE id = $1", item_id)
    return {"id": row[0], "name": row[1]}


@app.get("/hit")
async def hit(request: Request) -> dict[str, Any]:
    """Write and read in one transaction."""
    async with request.app.state.pool.acquire() as conn, conn.transaction():
        number = await conn.fetchval("INSERT INTO hits (item_id) VALUES (1) RETURNING id")
        await conn.fetchval("SELECT name FROM items WHERE id = 1")
    return {"id": number}
