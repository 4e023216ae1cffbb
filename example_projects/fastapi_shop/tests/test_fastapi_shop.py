"""The shop through FastAPI's test client."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection of the test's own."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield conn


def orders(conn: psycopg.Connection) -> int:
    """Count the orders."""
    (count,) = conn.execute("SELECT count(*) FROM orders").fetchone() or (0,)
    return int(count)


def test_an_order_is_there_when_the_answer_is(client: TestClient, conn: psycopg.Connection) -> None:
    """An endpoint that returns has committed."""
    before = orders(conn)
    answer = client.post("/orders", json={"product_id": 1, "quantity": 2})
    assert answer.status_code == 201
    assert orders(conn) == before + 1
    shown = client.get(f"/orders/{answer.json()['id']}").json()
    assert shown == {"id": answer.json()["id"], "product_id": 1, "quantity": 2, "status": "new"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/orders", {"product_id": 5, "quantity": 1}, 409),
        ("/orders", {"product_id": 99, "quantity": 1}, 404),
        ("/orders", {"product_id": 1}, 422),
        ("/orders?fault=raise", {"product_id": 1, "quantity": 1}, 500),
        ("/orders?fault=commit", {"product_id": 1, "quantity": 1}, 409),
        ("/orders?fault=swallow", {"product_id": 1, "quantity": 1}, 500),
    ],
)
def test_what_goes_wrong_leaves_nothing(
    client: TestClient, conn: psycopg.Connection, path: str, body: dict[str, int], status: int
) -> None:
    """An endpoint that raises, and a COMMIT that fails, save nothing."""
    before = orders(conn)
    assert client.post(path, json=body).status_code == status
    assert orders(conn) == before


def test_a_failed_login_is_counted(client: TestClient) -> None:
    """A returned 401 commits, in a `def` endpoint too."""
    before = client.get("/users/bob").json()["failed_logins"]
    assert client.post("/login", json={"user": "bob", "password": "no"}).status_code == 401
    assert client.get("/users/bob").json() == {"failed_logins": before + 1}


def test_the_stream_and_the_price(client: TestClient) -> None:
    """A body is streamed page by page; a price comes from the pricing service."""
    assert client.get("/orders.csv").text.startswith("id,product_id,quantity,status\r\n")
    assert client.get("/quote/2").json() == {"id": 2, "price": 690}


def test_each_message_of_a_websocket_is_a_transaction(client: TestClient, conn: psycopg.Connection) -> None:
    """A bad message leaves nothing, and the socket stays open."""
    before = orders(conn)
    with client.websocket_connect("/ws") as socket:
        socket.send_text("99")
        assert socket.receive_text() == "error: 404: no such product"
        socket.send_text("1")
        assert int(socket.receive_text()) > 0
    assert orders(conn) == before + 1


def test_a_connection_of_the_tests_own(client: TestClient, database_url: str) -> None:
    """`dependency_overrides` puts a connection in the place of the pool's: here, one that sees an empty shop."""
    from example_projects.fastapi_shop.database import db  # noqa: PLC0415

    async def elsewhere() -> psycopg.AsyncConnection[dict[str, object]]:
        conn = await psycopg.AsyncConnection.connect(database_url, row_factory=psycopg.rows.dict_row)
        opened.append(conn)
        await conn.execute("CREATE TEMPORARY TABLE products (id int, name text, price int, stock int)")
        return conn

    opened: list[psycopg.AsyncConnection[dict[str, object]]] = []
    app = client.app
    assert isinstance(app, FastAPI)
    app.dependency_overrides[db.connection] = elsewhere
    try:
        assert client.get("/products").json() == []
    finally:
        app.dependency_overrides.clear()
        client.portal.call(opened[0].close)
    assert len(client.get("/products").json()) == 5
