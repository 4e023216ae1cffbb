"""Every page of the shop. `db.connection` is this request's connection: taken on first use, committed on return."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Blueprint, Response, abort, request
from flask.typing import ResponseReturnValue

from example_projects.flask_shop import faults
from example_projects.flask_shop.extensions import db
from example_projects.passwords import check_password
from poolkit import Pool

shop = Blueprint("shop", __name__)
background = ThreadPoolExecutor(max_workers=2, thread_name_prefix="notify")

PAGE = 500  # orders in one page of orders.csv


@shop.get("/hello")
def hello() -> ResponseReturnValue:
    """Take no connection: nothing is asked of the database."""
    return {"hello": "world"}


@shop.get("/products")
def products() -> ResponseReturnValue:
    """List the products."""
    rows: list[Any] = db.connection.execute("SELECT id, name, price, stock FROM products ORDER BY id").fetchall()
    return rows


@shop.get("/products/<int:product_id>")
def product(product_id: int) -> ResponseReturnValue:
    """Show one product."""
    query = "SELECT id, name, price, stock FROM products WHERE id = %s"
    return _one(query, product_id)


@shop.post("/orders")
def create_order() -> ResponseReturnValue:
    """Order: one transaction inserts the order and lowers the stock."""
    product_id, quantity = _whole_numbers(request.get_json(), product_id=2**63 - 1, quantity=1000)
    conn = db.connection
    lowered = "UPDATE products SET stock = stock - %s WHERE id = %s RETURNING stock"
    left = conn.execute(lowered, (quantity, product_id)).fetchone()
    if left is None:
        abort(404, "no such product")
    inserted = "INSERT INTO orders (product_id, quantity) VALUES (%s, %s) RETURNING id"
    order = conn.execute(inserted, (product_id, quantity)).fetchone()
    if left["stock"] < 0:
        abort(409, "not enough in stock")  # raised, so both writes are rolled back
    faults.happen(request.args.get("fault"), conn, order["id"])
    return order, 201


@shop.get("/orders/<int:order_id>")
def order(order_id: int) -> ResponseReturnValue:
    """Show one order."""
    return _one("SELECT id, product_id, quantity, status FROM orders WHERE id = %s", order_id)


@shop.get("/orders.csv")
def orders_csv() -> ResponseReturnValue:
    """Stream every order. The body is sent after this has returned, and takes a connection only for each page."""
    return Response(_csv(db.pool()), mimetype="text/csv")


def _csv(pool: Pool[Any]) -> Iterator[str]:
    yield "id,product_id,quantity,status\r\n"
    last = 0
    query = "SELECT id, product_id, quantity, status FROM orders WHERE id > %s ORDER BY id LIMIT %s"
    while True:
        with pool.transaction() as conn:
            rows = conn.execute(query, (last, PAGE)).fetchall()
        if not rows:
            return
        last = rows[-1]["id"]
        text = io.StringIO()
        csv.writer(text).writerows(row.values() for row in rows)
        yield text.getvalue()


@shop.post("/orders/<int:order_id>/notify")
def notify(order_id: int) -> ResponseReturnValue:
    """Accept, and do the work in the background once this request has committed."""
    _one("SELECT id FROM orders WHERE id = %s", order_id)
    pool = db.pool()
    db.unit_of_work.on_commit(lambda: background.submit(_mark_notified, pool, order_id))
    return {"status": "accepted"}, 202


def _mark_notified(pool: Pool[Any], order_id: int) -> None:
    with pool.transaction() as conn:
        conn.execute("UPDATE orders SET status = 'notified' WHERE id = %s", (order_id,))


@shop.post("/login")
def login() -> ResponseReturnValue:
    """Log in. A wrong password is counted, and 401 is returned, not raised: what is returned is committed."""
    body = request.get_json()
    if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in ("user", "password")):
        abort(400, "expected a JSON object with user and password, both text")
    found = db.connection.execute("SELECT password FROM users WHERE name = %s", (body["user"],)).fetchone()
    if found and check_password(body["password"], found["password"]):
        db.connection.execute("UPDATE users SET failed_logins = 0 WHERE name = %s", (body["user"],))
        return {"user": body["user"]}
    db.connection.execute("UPDATE users SET failed_logins = failed_logins + 1 WHERE name = %s", (body["user"],))
    return {"error": "wrong user or password"}, 401


@shop.get("/users/<name>")
def user(name: str) -> ResponseReturnValue:
    """Show how often a login failed."""
    return _one("SELECT failed_logins FROM users WHERE name = %s", name)


@shop.get("/quote/<int:product_id>")
def quote(product_id: int) -> ResponseReturnValue:
    """Ask the pricing service, through this thread's pooled session."""
    answer = db.get("pricing").get(f"/price/{product_id}")
    if answer.status_code == 404:
        abort(404, "no price for that")
    answer.raise_for_status()
    return {"id": product_id, "price": answer.json()["price"]}


@shop.get("/where")
def where() -> ResponseReturnValue:
    """Tell which process answers, and which backend serves it."""
    row = db.connection.execute("SELECT pg_backend_pid() AS backend").fetchone()
    return {"pid": os.getpid(), **row}


@shop.get("/sleep")
def sleep() -> ResponseReturnValue:
    """Hold this request's connection for a while."""
    seconds = request.args.get("seconds", type=float)
    if seconds is None or not 0 <= seconds <= 60:
        abort(400, "seconds must be a number from 0 to 60")
    db.connection.execute("SELECT pg_sleep(%s)", (seconds,))
    return {"slept": seconds}


def _one(query: str, key: object) -> dict[str, Any]:
    """Return the one row, or raise 404."""
    row: dict[str, Any] | None = db.connection.execute(query, (key,)).fetchone()
    if row is None:
        abort(404, "no such thing")
    return row


def _whole_numbers(body: object, **highest: int) -> list[int]:
    """Take whole numbers from 1 up out of a JSON object, or raise 400 with what is wrong."""
    if not isinstance(body, dict):
        abort(400, "expected a JSON object")
    numbers = []
    for name, most in highest.items():
        number = body.get(name)
        if type(number) is not int or not 1 <= number <= most:
            abort(400, f"{name} must be a whole number from 1 to {most}")
        numbers.append(number)
    return numbers
