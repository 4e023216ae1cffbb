"""poolkit: the request's unit of work, a transaction."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask

from poolkit_flask import Poolkit

SIZE = int(os.environ["BENCH_POOL_SIZE"])

app = Flask(__name__)
app.config["POOLKIT"] = {"default": {"url": os.environ["BENCH_DSN"], "min_size": SIZE, "max_size": SIZE}}
db = Poolkit(app)


@app.get("/hello")
def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/<int:item_id>")
def item(item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    row = db.connection.execute("SELECT id, name FROM items WHERE id = %s", (item_id,)).fetchone()
    return {"id": row[0], "name": row[1]}


@app.get("/set")
def change() -> dict[str, Any]:
    """Change the session, and read one row."""
    conn = db.connection
    conn.execute("SET statement_timeout = 60000")
    row = conn.execute("SELECT name FROM items WHERE id = 1").fetchone()
    return {"name": row[0]}


@app.get("/hit")
def hit() -> dict[str, Any]:
    """Write and read in one transaction."""
    conn = db.connection
    row = conn.execute("INSERT INTO hits (item_id) VALUES (1) RETURNING id").fetchone()
    conn.execute("SELECT name FROM items WHERE id = 1").fetchone()
    return {"id": row[0]}
