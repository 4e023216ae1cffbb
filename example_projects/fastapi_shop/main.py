"""The application: every page of the shop. `conn` is the request's connection, committed before the answer leaves."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import AsyncIterator
from typing import Annotated

import psycopg
import requests
from fastapi import BackgroundTasks, FastAPI, HTTPException, Query, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from example_projects.fastapi_shop import faults
from example_projects.fastapi_shop.database import Conn, Row, SyncConn, db
from example_projects.passwords import check_password
from poolkit import PoolError

app = FastAPI(title="The shop")
db.init_app(app)

PAGE = 500  # orders in one page of orders.csv


class NewOrder(BaseModel):
    """What is ordered."""

    product_id: int = Field(strict=True, ge=1, lt=2**63)
    quantity: int = Field(strict=True, ge=1, le=1000)


class Credentials(BaseModel):
    """Who wants to come in."""

    user: str
    password: str


@app.exception_handler(psycopg.IntegrityError)
async def conflict(_: Request, __: Exception) -> JSONResponse:
    """Answer 409 where the database refused, be it a statement or the COMMIT."""
    return JSONResponse({"detail": "that contradicts what is stored"}, 409)


@app.exception_handler(requests.RequestException)
async def bad_gateway(_: Request, __: Exception) -> JSONResponse:
    """Answer 502 where the pricing service does not do its part."""
    return JSONResponse({"detail": "no price can be had at the moment"}, 502)


@app.get("/hello")
async def hello() -> Row:
    """Take no connection: nothing is asked of the database."""
    return {"hello": "world"}


@app.get("/products")
async def products(conn: Conn) -> list[Row]:
    """List the products."""
    cursor = await conn.execute("SELECT id, name, price, stock FROM products ORDER BY id")
    return await cursor.fetchall()


@app.get("/products/{product_id}")
async def product(product_id: int, conn: Conn) -> Row:
    """Show one product."""
    return await _one(conn, "SELECT id, name, price, stock FROM products WHERE id = %s", product_id)


@app.post("/orders", status_code=201)
async def create_order(order: NewOrder, conn: Conn, fault: faults.Fault | None = None) -> Row:
    """Order: one transaction inserts the order and lowers the stock."""
    created = await _order(conn, order.product_id, order.quantity)
    await faults.happen(fault, conn, created["id"])
    return created


async def _order(conn: psycopg.AsyncConnection[Row], product_id: int, quantity: int) -> Row:
    lowered = "UPDATE products SET stock = stock - %s WHERE id = %s RETURNING stock"
    left = await (await conn.execute(lowered, (quantity, product_id))).fetchone()
    if left is None:
        raise HTTPException(404, "no such product")
    inserted = "INSERT INTO orders (product_id, quantity) VALUES (%s, %s) RETURNING id"
    order = await (await conn.execute(inserted, (product_id, quantity))).fetchone()
    if order is None or left["stock"] < 0:
        raise HTTPException(409, "not enough in stock")  # raised, so both writes are rolled back
    return order


@app.get("/orders.csv")
async def orders_csv() -> Response:
    """Stream every order. The body is sent after this has returned, and takes a connection only for each page."""
    return StreamingResponse(_csv(), media_type="text/csv")


async def _csv() -> AsyncIterator[str]:
    yield "id,product_id,quantity,status\r\n"
    last = 0
    query = "SELECT id, product_id, quantity, status FROM orders WHERE id > %s ORDER BY id LIMIT %s"
    while True:
        async with db.transaction() as conn:
            rows = await (await conn.execute(query, (last, PAGE))).fetchall()
        if not rows:
            return
        last = rows[-1]["id"]
        text = io.StringIO()
        csv.writer(text).writerows(row.values() for row in rows)
        yield text.getvalue()


@app.get("/orders/{order_id}")
async def order(order_id: int, conn: Conn) -> Row:
    """Show one order."""
    return await _one(conn, "SELECT id, product_id, quantity, status FROM orders WHERE id = %s", order_id)


@app.post("/orders/{order_id}/notify", status_code=202)
async def notify(order_id: int, conn: Conn, background: BackgroundTasks) -> Row:
    """Accept, and do the work once the answer is sent."""
    await _one(conn, "SELECT id FROM orders WHERE id = %s", order_id)
    background.add_task(_mark_notified, order_id)
    return {"status": "accepted"}


async def _mark_notified(order_id: int) -> None:
    async with db.transaction() as conn:
        await conn.execute("UPDATE orders SET status = 'notified' WHERE id = %s", (order_id,))


@app.post("/login")
def login(given: Credentials, conn: SyncConn) -> Response:
    """Log in, in a thread because hashing takes its time.

    A wrong password is counted, and 401 is returned, not raised: what is returned is committed.
    """
    found = conn.execute("SELECT password FROM users WHERE name = %s", (given.user,)).fetchone()
    if found and check_password(given.password, found["password"]):
        conn.execute("UPDATE users SET failed_logins = 0 WHERE name = %s", (given.user,))
        return JSONResponse({"user": given.user})
    conn.execute("UPDATE users SET failed_logins = failed_logins + 1 WHERE name = %s", (given.user,))
    return JSONResponse({"detail": "wrong user or password"}, 401)


@app.get("/users/{name}")
async def user(name: str, conn: Conn) -> Row:
    """Show how often a login failed."""
    return await _one(conn, "SELECT failed_logins FROM users WHERE name = %s", name)


@app.get("/quote/{product_id}")
def quote(product_id: int) -> Row:
    """Ask the pricing service, through this thread's pooled session."""
    answer = db.get("pricing").get(f"/price/{product_id}")
    if answer.status_code == 404:
        raise HTTPException(404, "no price for that")
    answer.raise_for_status()
    return {"id": product_id, "price": answer.json()["price"]}


@app.get("/where")
async def where(conn: Conn) -> Row:
    """Tell which process answers, and which backend serves it."""
    cursor = await conn.execute("SELECT pg_backend_pid() AS backend")
    return {"pid": os.getpid(), **(await cursor.fetchone() or {})}


@app.get("/sleep")
async def sleep(seconds: Annotated[float, Query(ge=0, le=60)], conn: Conn) -> Row:
    """Hold this request's connection for a while."""
    await conn.execute("SELECT pg_sleep(%s)", (seconds,))
    return {"slept": seconds}


@app.websocket("/ws")
async def orders_by_websocket(socket: WebSocket) -> None:
    """Take one order for each message, a product's id; answer with the order's. Each is a transaction of its own."""
    await socket.accept()
    async for text in socket.iter_text():
        try:
            async with db.transaction() as conn:
                order = await _order(conn, int(text), quantity=1)
            answer = str(order["id"])
        except (ValueError, HTTPException) as error:
            answer = f"error: {error}"
        except (psycopg.Error, PoolError):
            answer = "error: not possible at the moment"
        await socket.send_text(answer)


async def _one(conn: psycopg.AsyncConnection[Row], query: str, key: object) -> Row:
    """Return the one row, or raise 404."""
    row = await (await conn.execute(query, (key,))).fetchone()
    if row is None:
        raise HTTPException(404, "no such thing")
    return row
