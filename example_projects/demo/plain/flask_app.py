"""Flask without a pool: each request connects, commits and closes."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from flask import Flask, abort, request

app = Flask(__name__)
URL = os.environ.get("DATABASE_URL", "")


@app.get("/products/<int:product_id>")
def product(product_id: int) -> dict[str, Any]:
    """Show one product."""
    with psycopg.connect(URL) as conn:
        row = conn.execute("SELECT id, name, price, stock FROM products WHERE id = %s", (product_id,)).fetchone()
    if row is None:
        abort(404)
    return {"id": row[0], "name": row[1], "price": str(row[2]), "stock": row[3]}


@app.post("/orders")
def create_order() -> tuple[dict[str, int], int]:
    """Insert an order and lower the stock."""
    wanted = request.get_json()
    with psycopg.connect(URL) as conn:
        row = conn.execute(
            "INSERT INTO orders (product_id, quantity) VALUES (%s, %s) RETURNING id",
            (wanted["product_id"], wanted["quantity"]),
        ).fetchone()
        conn.execute("UPDATE products SET stock = stock - %s WHERE id = %s", (wanted["quantity"], wanted["product_id"]))
    return {"id": row[0] if row else 0}, 201
