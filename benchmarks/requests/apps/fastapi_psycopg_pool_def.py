"""psycopg_pool in a def handler, in a transaction."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions.

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from psycopg_pool import ConnectionPool

SIZE = int(os.environ["BENCH_POOL_SIZE"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool."""
    with ConnectionPool(os.environ["BENCH_DSN"], min_size=SIZE, max_size=SIZE, open=False) as pool:
        pool.wait()
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/hello")
async def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/{item_id}")
def item(request: Request, item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    with request.app.state.pool.connection() as conn:
        row = conn.execute("SELECT id, name FROM items WHERE id = %s", (item_id,)).fetchone()
    return {"id": row[0], "name": row[1]}


@app.get("/hit")
def hit(request: Request) -> dict[str, Any]:
    """Write and read in one transaction."""
    with request.app.state.pool.connection() as conn:
        row = conn.execute("INSERT INTO hits (item_id) VALUES (1) RETURNING id").fetchone()
        conn.execute("SELECT name FROM items WHERE id = 1").fetchone()
    return {"id": row[0]}
