"""poolkit, psycopg, a dependency: the request's unit of work."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions.

import os
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from poolkit_fastapi import Poolkit

SIZE = int(os.environ["BENCH_POOL_SIZE"])
URL = os.environ["BENCH_DSN"]

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
    cursor = await conn.execute("SELECT id, name FROM items WHERE id = %s", (item_id,))
    row = await cursor.fetchone()
    return {"id": row[0], "name": row[1]}


@app.get("/set")
async def change(conn: Conn) -> dict[str, Any]:
    """Change the session, and read one row."""
    await conn.execute("SET statement_timeout = 60000")
    row = await (await conn.execute("SELECT name FROM items WHERE id = 1")).fetchone()
    return {"name": row[0]}


@app.get("/hit")
async def hit(conn: Conn) -> dict[str, Any]:
    """Write and read in one transaction."""
    cursor = await conn.execute("INSERT INTO hits (item_id) VALUES (1) RETURNING id")
    row = await cursor.fetchone()
    await (await conn.execute("SELECT name FROM items WHERE id = 1")).fetchone()
    return {"id": row[0]}
