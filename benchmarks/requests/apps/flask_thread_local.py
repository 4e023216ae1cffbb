"""Floor: a connection for each thread, no pool, autocommit."""

from __future__ import annotations

import os
import threading
from typing import Any

import psycopg
from flask import Flask

app = Flask(__name__)


class Mine(threading.local):
    """One thread's connection."""

    def __init__(self) -> None:
        self.conn: Any = psycopg.connect(os.environ["BENCH_DSN"], autocommit=True)


mine = Mine()


@app.get("/hello")
def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/<int:item_id>")
def item(item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    row = mine.conn.execute("SELECT id, name FROM items WHERE id = %s", (item_id,)).fetchone()
    return {"id": row[0], "name": row[1]}


@app.get("/hit")
def hit() -> dict[str, Any]:
    """Write and read in one transaction."""
    conn = mine.conn
    with conn.transaction():
        row = conn.execute("INSERT INTO hits (item_id) VALUES (1) RETURNING id").fetchone()
        conn.execute("SELECT name FROM items WHERE id = 1").fetchone()
    return {"id": row[0]}
