"""psycopg_pool's connection() around each view: a transaction."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask
from psycopg_pool import ConnectionPool

SIZE = int(os.environ["BENCH_POOL_SIZE"])

app = Flask(__name__)
pool: Any = ConnectionPool(os.environ["BENCH_DSN"], min_size=SIZE, max_size=SIZE, open=True)


@app.get("/hello")
def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/<int:item_id>")
def item(item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    with pool.connection() as conn:
        row = conn.execute("SELECT id, name FROM items WHERE id = %s", (item_id,)).fetchone()
    return {"id": row[0], "name": row[1]}


@app.get("/hit")
def hit() -> dict[str, Any]:
    """Write and read in one transaction."""
    with pool.connection() as conn:
        row = conn.execute("INSERT INTO hits (item_id) VALUES (1) RETURNING id").fetchone()
        conn.execute("SELECT name FROM items WHERE id = 1").fetchone()
    return {"id": row[0]}
