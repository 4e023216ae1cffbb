"""Every row of the contract, asked over HTTP of a real server, and checked in the database by a connection of ours."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from shop_server import POOL, WORKERS, Shop, until
from websockets.sync.client import connect

from example_projects.pricing import PRICES, PricingServer


def test_hello_touches_no_pool(shop: Shop) -> None:
    """A request that asks nothing of the database takes no connection."""
    with requests.Session() as client:  # kept alive, so it is one worker that answers

        def acquired() -> tuple[int, int]:
            stats = client.get(f"{shop.url}/poolkit/stats.json").json()
            return stats["pid"], sum(pool["acquired"] for pool in stats["pools"])

        client.get(f"{shop.url}/products")
        before = acquired()
        answers = [client.get(f"{shop.url}/hello") for _ in range(3)]
        assert acquired() == before
        assert before[1] > 0
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"hello": "world"})] * 3


def test_products(shop: Shop) -> None:
    """GET /products lists all; GET /products/ID shows one as it is in the database."""
    listed = shop.get("/products").json()
    assert len(listed) == 5
    shown = shop.get("/products/4")
    assert shown.status_code == 200
    assert shown.json() == listed[3] == {"id": 4, "name": "Samovar", "price": 450_00, "stock": 3}


@pytest.mark.parametrize("path", ["/products/999", "/orders/999999", "/users/nobody", "/quote/999"])
def test_what_is_not_there_is_404(shop: Shop, path: str) -> None:
    """An unknown id is 404."""
    assert shop.get(path).status_code == 404


def test_head(shop: Shop, kind: str) -> None:
    """HEAD has no body and leaves nothing behind. FastAPI's GET routes do not answer it, and say so."""
    answer = shop.ask("HEAD", "/products")
    assert (answer.status_code, answer.content) == (405 if kind == "fastapi" else 200, b"")
    assert not shop.database.in_transaction()


def test_an_order_is_saved_whole(shop: Shop) -> None:
    """A 201 means that the order is in the database and the stock is lowered, by the time the client has the answer."""
    orders, stock = shop.saved()
    answer = shop.order(product_id=2, quantity=3)
    assert shop.saved() == (orders + 1, stock - 3)
    assert answer.status_code == 201
    number = answer.json()["id"]
    expected = {"id": number, "product_id": 2, "quantity": 3, "status": "new"}
    assert shop.get(f"/orders/{number}").json() == expected
    assert answer.json() == {"id": number}


def test_an_order_past_the_stock_leaves_nothing(shop: Shop) -> None:
    """What is raised after both writes rolls both back."""
    before = shop.saved()
    assert shop.order(product_id=4, quantity=4).status_code == 409
    assert shop.saved() == before


def test_an_order_of_nothing_known_leaves_nothing(shop: Shop) -> None:
    """An unknown product is 404."""
    before = shop.saved()
    assert shop.order(product_id=999).status_code == 404
    assert shop.saved() == before


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"product_id": 1}, "quantity"),
        ({"quantity": 1}, "product_id"),
        ({"product_id": 1, "quantity": 0}, "quantity"),
        ({"product_id": 1, "quantity": 10**30}, "quantity"),
        ({"product_id": "tea", "quantity": 1}, "product_id"),
        ({"product_id": None, "quantity": 1}, "product_id"),
        ([1, 1], ""),
        ("tea", ""),
        (None, ""),
        (b'{"product_id": 1,', ""),
    ],
)
def test_a_malformed_order_is_refused_with_the_reason(shop: Shop, body: object, wrong: str) -> None:
    """400 or 422, and the text names the field; nothing is saved."""
    before = shop.saved()
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = shop.ask("POST", "/orders", data=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.text
    assert wrong in answer.text
    assert shop.saved() == before


@pytest.mark.parametrize(("fault", "status"), [("raise", 500), ("commit", 409), ("swallow", 500)])
def test_a_fault_after_the_writes_leaves_nothing(shop: Shop, fault: str, status: int) -> None:
    """An error, a COMMIT that fails, a failed statement that was ignored: never a 2xx, and nothing is saved.

    On MariaDB a foreign key is checked by the statement and not by the COMMIT, which changes nothing for the client.
    And a statement that fails there is undone by itself: to ignore it is right, and the rest is saved, whole.
    """
    orders, stock = shop.saved()
    answered = shop.order(fault=fault).status_code
    if fault == "swallow" and not shop.database.fails_whole:
        assert (answered, shop.saved()) == (201, (orders + 1, stock - 1))
    else:
        assert (answered, shop.saved()) == (status, (orders, stock))
    assert not shop.database.in_transaction()


def test_an_unknown_fault_is_refused(shop: Shop) -> None:
    """400 or 422; nothing is saved."""
    before = shop.saved()
    assert shop.order(fault="typo").status_code in (400, 422)
    assert shop.saved() == before


def test_a_returned_401_is_committed(shop: Shop) -> None:
    """A wrong password is answered with a returned 401, and the counter it raised is saved."""
    failed = "SELECT failed_logins FROM users WHERE name = 'alice'"
    shop.query("UPDATE users SET failed_logins = 0")
    for count in (1, 2):
        assert shop.post("/login", {"user": "alice", "password": "guess"}).status_code == 401
        assert shop.query(failed) == [(count,)]
    assert shop.get("/users/alice").json() == {"failed_logins": 2}
    assert shop.post("/login", {"user": "alice", "password": "wonderland"}).status_code == 200
    assert shop.query(failed) == [(0,)]
    assert shop.post("/login", {"user": "nobody", "password": "guess"}).status_code == 401
    assert shop.post("/login", {"user": "alice"}).status_code in (400, 422)


def test_orders_csv_has_every_order(shop: Shop) -> None:
    """The stream has each order once, in order, over several pages."""
    shop.database.add_orders(1200)
    answer = shop.get("/orders.csv")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/csv")
    rows = shop.query("SELECT id, product_id, quantity, status FROM orders ORDER BY id")
    expected = ["id,product_id,quantity,status", *(",".join(map(str, row)) for row in rows)]
    assert answer.text.splitlines() == expected


def test_notify_is_done_in_the_background(shop: Shop) -> None:
    """202 at once; the order is marked soon after, in a unit of work of its own."""
    number = shop.order().json()["id"]
    assert shop.post(f"/orders/{number}/notify").status_code == 202
    until(lambda: shop.get(f"/orders/{number}").json()["status"] == "notified", "the order is marked")
    assert shop.post("/orders/999999/notify").status_code == 404


def test_quotes_come_through_kept_connections(shop: Shop, pricing: PricingServer) -> None:
    """The price is the pricing service's, and the connections to it are used again."""
    assert shop.get("/quote/3").json() == {"id": 3, "price": PRICES[3]}
    opened, asked = pricing.connections, pricing.requests
    with requests.Session() as client:
        assert {client.get(f"{shop.url}/quote/3").status_code for _ in range(40)} == {200}
    assert pricing.requests - asked == 40
    assert pricing.connections - opened <= 10


def test_where_tells_the_worker_and_its_backend(shop: Shop) -> None:
    """The process is one of the server's; the database knows the backend, and which process is behind it."""
    answer = shop.get("/where").json()
    assert answer["pid"] in [child.pid for child in psutil.Process(shop.process.pid).children(recursive=True)]
    assert shop.database.process_of(answer["backend"]) == answer["pid"]


def test_a_worker_uses_its_connections_again(shop: Shop) -> None:
    """However many requests there are, no pool opens more connections than its size."""
    backends = {shop.get("/where").json()["backend"] for _ in range(20)}
    assert len(backends) <= WORKERS * POOL
    for pools in shop.stats().values():
        assert all(pool["size"] <= POOL for pool in pools)


def test_sleep(shop: Shop) -> None:
    """The answer says how long; a wrong number is refused."""
    assert shop.get("/sleep?seconds=0.01").json() == {"slept": 0.01}
    for wrong in ("", "?seconds=long", "?seconds=-1", "?seconds=nan", "?seconds=1e9"):
        assert shop.get("/sleep" + wrong).status_code in (400, 422)


def test_health_and_readiness_tell_nothing(shop: Shop) -> None:
    """Both are for anyone; the numbers are not for whoever was forwarded."""
    for path in ("/poolkit/health", "/poolkit/ready"):
        answer = shop.get(path)
        assert answer.status_code == 200
        assert list(answer.json()) == ["status"]
    forwarded = shop.ask("GET", "/poolkit/stats.json", headers={"X-Forwarded-For": "127.0.0.1"})
    assert forwarded.status_code == 403
    assert "pools" not in forwarded.text


def test_a_page_never_shows_the_password(shop: Shop) -> None:
    """Nor does the log."""
    password = urlsplit(shop.dsn).password
    assert password
    assert password not in shop.get("/poolkit/stats.json").text
    assert password not in shop.complained


def test_each_websocket_message_is_a_transaction_of_its_own(shop: Shop, kind: str) -> None:
    """An order for each message; a bad one leaves nothing, and the socket stays open. Only FastAPI has websockets."""
    if kind != "fastapi":
        assert shop.get("/ws").status_code == 404
        return
    orders, stock = shop.saved()
    with connect(shop.url.replace("http", "ws") + "/ws") as socket:
        socket.send("1")
        first = int(socket.recv(timeout=10))
        for wrong in ("tea", "999", "5", ""):  # no number, no such product, none left, nothing
            socket.send(wrong)
            assert str(socket.recv(timeout=10)).startswith("error")
            assert not shop.database.in_transaction()
        assert shop.saved() == (orders + 1, stock - 1)
        socket.send("2")
        second = int(socket.recv(timeout=10))
    assert shop.saved() == (orders + 2, stock - 2)
    assert shop.get(f"/orders/{second}").json()["product_id"] == 2
    assert second > first
