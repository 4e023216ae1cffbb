"""FastAPI without a pool: each request connects, commits and closes."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

app = FastAPI()
URL = os.environ.get("DATABASE_URL", "")


class Order(BaseModel):
    """What is ordered."""

    product_id: int
    quantity: int


@app.get("/products/{product_id}")
async def product(product_id: int) -> dict[str, Any]:
    """Show one product."""
    async with await psycopg.AsyncConnection.connect(URL) as conn:
        cursor = await conn.execute("SELECT id, name, price, stock FROM products WHERE id = %s", (product_id,))
        row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404)
    return {"id": row[0], "name": row[1], "price": str(row[2]), "stock": row[3]}


@app.post("/orders", status_code=201)
async def create_order(order: Order) -> dict[str, int]:
    """Insert an order and lower the stock."""
    async with await psycopg.AsyncConnection.connect(URL) as conn:
        cursor = await conn.execute(
            "INSERT INTO orders (product_id, quantity) VALUES (%s, %s) RETURNING id",
            (order.product_id, order.quantity),
        )
        row = await cursor.fetchone()
        await conn.execute("UPDATE products SET stock = stock - %s WHERE id = %s", (order.quantity, order.product_id))
    return {"id": row[0] if row else 0}
