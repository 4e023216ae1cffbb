"""A connection for each request."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from flask import Flask, g

app = Flask(__name__)


def connection() -> Any:
    """Return this request's connection."""
    if "conn" not in g:
        g.conn = psycopg.connect(os.environ["BENCH_DSN"], autocommit=True)
    return g.conn


@app.teardown_appcontext
def close(_error: BaseException | None) -> None:
    """Close it."""
    conn = g.pop("conn", None)
    if conn is not None:
        conn.close()


@app.get("/hello")
def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/<int:item_id>")
def item(item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    row = connection().execute("SELECT id, name FROM items WHERE id = %s", (item_id,)).fetchone()
    return {"id": row[0], "name": row[1]}


@app.get("/hit")
def hit() -> dict[str, Any]:
    """Write and read in one transaction."""
    conn = connection()
    with conn.transaction():
        row = conn.execute("INSERT INTO hits (item_id) VALUES (1) RETURNING id").fetchone()
        conn.execute("SELECT name FROM items WHERE id = 1").fetchone()
    return {"id": row[0]}
