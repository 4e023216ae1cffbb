"""Floor: a queue of asyncpg connections in the handler, autocommit."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions.

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI

SIZE = int(os.environ["BENCH_POOL_SIZE"])

idle: asyncio.LifoQueue[Any] = asyncio.LifoQueue()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Connect, as many times as there may be connections."""
    connections = [await asyncpg.connect(os.environ["BENCH_DSN"]) for _ in range(SIZE)]
    for conn in connections:
        idle.put_nowait(conn)
    yield
    for conn in connections:
        await conn.close()


app = FastAPI(lifespan=lifespan)


@app.get("/hello")
async def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/{item_id}")
async def item(item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    conn = await idle.get()
    try:
        row = await conn.fetchrow("SELECT id, name FROM items WHERE id = $1", item_id)
    finally:
        idle.put_nowait(conn)
    return {"id": row[0], "name": row[1]}


@app.get("/hit")
async def hit() -> dict[str, Any]:
    """Write and read in one transaction."""
    conn = await idle.get()
    try:
        async with conn.transaction():
            number = await conn.fetchval("INSERT INTO hits (item_id) VALUES (1) RETURNING id")
            await conn.fetchval("SELECT name FROM items WHERE id = 1")
    finally:
        idle.put_nowait(conn)
    return {"id": number}
