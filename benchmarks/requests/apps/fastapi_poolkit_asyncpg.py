"""poolkit, asyncpg, a dependency: the request's unit of work."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions.

import os
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from poolkit_fastapi import Poolkit

SIZE = int(os.environ["BENCH_POOL_SIZE"])
URL = os.environ["BENCH_DSN"].replace("postgresql://", "postgresql+asyncpg://", 1)

app = FastAPI()
db = Poolkit({"default": {"url": URL, "min_size": SIZE, "max_size": SIZE}})
db.init_app(app)
Conn = Annotated[Any, Depends(db.connection)]


@app.get("/hello")
async def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/{item_id}")
async def item(conn: Conn, item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    row = await conn.fetchrow("SELECT id, name FROM items WHERE id = $1", item_id)
    return {"id": row[0], "name": row[1]}


@app.get("/set")
async def change(conn: Conn) -> dict[str, Any]:
    """Change the session, and read one row."""
    await conn.execute("SET statement_timeout = 60000")
    return {"name": await conn.fetchval("SELECT name FROM items WHERE id = 1")}


@app.get("/hit")
async def hit(conn: Conn) -> dict[str, Any]:
    """Write and read in one transaction."""
    number = await conn.fetchval("INSERT INTO hits (item_id) VALUES (1) RETURNING id")
    await conn.fetchval("SELECT name FROM items WHERE id = 1")
    return {"id": number}
