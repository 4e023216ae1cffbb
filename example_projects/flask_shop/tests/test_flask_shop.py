"""The shop through Flask's test client."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient

from example_projects.flask_shop.extensions import db


def orders(app: Flask) -> int:
    """Count the orders, through a connection of the test's own."""
    with app.app_context(), db.transaction() as conn:
        count: int = conn.execute("SELECT count(*) AS orders FROM orders").fetchone()["orders"]
        return count


def test_an_order_is_there_when_the_answer_is(app: Flask, client: FlaskClient) -> None:
    """A view that returns has committed."""
    before = orders(app)
    answer = client.post("/orders", json={"product_id": 1, "quantity": 2})
    assert answer.status_code == 201
    assert orders(app) == before + 1
    shown = client.get(f"/orders/{answer.json['id']}").json
    assert shown == {"id": answer.json["id"], "product_id": 1, "quantity": 2, "status": "new"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/orders", {"product_id": 5, "quantity": 1}, 409),
        ("/orders", {"product_id": 99, "quantity": 1}, 404),
        ("/orders", {"product_id": 1}, 400),
        ("/orders?fault=raise", {"product_id": 1, "quantity": 1}, 500),
        ("/orders?fault=commit", {"product_id": 1, "quantity": 1}, 409),
        ("/orders?fault=swallow", {"product_id": 1, "quantity": 1}, 500),
    ],
)
def test_what_goes_wrong_leaves_nothing(
    app: Flask, client: FlaskClient, path: str, body: dict[str, int], status: int
) -> None:
    """A view that raises, and a COMMIT that fails, save nothing."""
    before = orders(app)
    assert client.post(path, json=body).status_code == status
    assert orders(app) == before


def test_a_failed_login_is_counted(client: FlaskClient) -> None:
    """A returned 401 commits."""
    before = client.get("/users/bob").json["failed_logins"]
    assert client.post("/login", json={"user": "bob", "password": "no"}).status_code == 401
    assert client.get("/users/bob").json == {"failed_logins": before + 1}


def test_the_stream_and_the_price(client: FlaskClient) -> None:
    """A body is streamed page by page; a price comes from the pricing service."""
    assert client.get("/orders.csv").text.startswith("id,product_id,quantity,status\r\n")
    assert client.get("/quote/2").json == {"id": 2, "price": 690}
