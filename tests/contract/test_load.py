"""More requests than connections, clients that read slowly or leave: nothing is held, nothing is half saved."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from shop_server import POOL, WORKERS, Shop, until

FAT = 250  # characters of status, so that the orders do not fit into the buffers between server and client
ORDERS = 20_000


@pytest.fixture
def many_orders(shop: Shop) -> Iterator[None]:
    """Five megabytes of orders: more than the four that Linux may buffer for a client that takes little."""
    shop.query("TRUNCATE orders")
    shop.database.add_orders(ORDERS, "x" * FAT)
    yield
    shop.query("TRUNCATE orders")


def slow_reader(shop: Shop) -> socket.socket:
    """Ask for all orders, read the beginning, and then nothing."""
    client = shop.raw(receive_buffer=8192)
    client.sendall(b"GET /orders.csv HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert client.recv(64).startswith(b"HTTP/1.1 200")
    return client


def rest_of(client: socket.socket) -> bytes:
    received = []
    while some := client.recv(1 << 20):
        received.append(some)
    return b"".join(received)


def test_a_slow_reader_holds_no_connection(shop: Shop, many_orders: None) -> None:
    """However many clients stall in mid stream, the pools are free; and the stream goes on where it was."""
    clients = [slow_reader(shop)]
    try:
        shop.holds_nothing()  # the first has stalled before the others come, which might cut it short by a full pool
        clients += [slow_reader(shop) for _ in range(2 * WORKERS * POOL)]
        shop.holds_nothing()
        assert shop.get("/products").status_code == 200
        last = shop.query("INSERT INTO orders (product_id, quantity) VALUES (1, 77) RETURNING id")[0][0]
        text = rest_of(clients[0])
    finally:
        for client in clients:
            client.close()
    # The last row came long after the client had begun to stall: it was in mid stream all the while.
    assert f"{last},1,77,new".encode() in text
    shop.holds_nothing()


def test_an_abandoned_stream_holds_nothing(shop: Shop, many_orders: None) -> None:
    """Clients that leave in mid stream leave no connection, and no worker thread, behind."""
    for _ in range(3):
        for client in [slow_reader(shop) for _ in range(WORKERS * POOL)]:
            client.close()
    shop.holds_nothing()
    assert shop.get("/orders.csv").text.count("\n") == ORDERS + 1


def test_a_burst_past_the_pool_is_shed(shop: Shop) -> None:
    """60 at once on four connections: some are served, the others are told when to come back, and nothing leaks."""
    answers = shop.at_once(60, lambda: shop.get("/sleep?seconds=0.15"))
    assert set(Counter(answer.status_code for answer in answers)) == {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    shop.holds_nothing()
    assert shop.get("/poolkit/ready").status_code == 200


def test_requests_wait_for_the_database_side_by_side(shop: Shop) -> None:
    """A request that waits for the database keeps no other of its worker from working, with threads or without."""
    seen = threading.Event()

    def ask() -> set[int]:
        statuses = {shop.get("/sleep?seconds=0.4").status_code}
        while not seen.is_set():  # a busy machine may need some time for a look at it
            statuses.add(shop.get("/sleep?seconds=0.4").status_code)
        return statuses

    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(ask) for _ in range(12)]
        try:
            until(lambda: len(shop.database.sleeping()) > WORKERS, "more at work at once than there are workers")
        finally:
            seen.set()
        assert set().union(*(one.result() for one in asked)) <= {200, 503}
    shop.holds_nothing()


def test_orders_at_once_are_all_counted(shop: Shop) -> None:
    """Under contention each 201 is one order and one piece of stock, and everything else is nothing."""
    orders, stock = shop.saved()
    statuses = Counter(shop.at_once(40, lambda: shop.order(product_id=3).status_code))
    assert set(statuses) <= {201, 503}
    assert statuses[201] > 0
    shop.holds_nothing()
    assert shop.saved() == (orders + statuses[201], stock - statuses[201])


def test_a_client_gone_in_mid_request_leaves_nothing(shop: Shop) -> None:
    """Whoever leaves while the database works for him holds nothing once it is done."""
    for _ in range(WORKERS * POOL):
        client = shop.raw()
        client.sendall(b"GET /sleep?seconds=0.4 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(shop.database.sleeping, "the request is under way")
        client.close()
    shop.holds_nothing()


def test_a_client_gone_in_mid_body_leaves_nothing(shop: Shop) -> None:
    """An order that never arrives whole is no order."""
    before = shop.saved()
    for _ in range(4):
        client = shop.raw()
        client.sendall(
            b"POST /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 35\r\n\r\n"
            b'{"product_id": 1, "quant'
        )
        client.close()
    shop.holds_nothing()
    assert shop.saved() == before


def test_the_numbers_say_who_holds_what(shop: Shop) -> None:
    """A holder is named by its route, never by what somebody sent."""
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(shop.get, "/sleep?seconds=0.777")

        def named() -> list[str]:  # a connection has its name a moment after it was taken
            holders = [holder for pools in shop.stats().values() for pool in pools for holder in pool["holders"]]
            return [holder for holder in holders if "GET /sleep" in holder]

        found = until(named, "a holder that is named by its route")
        assert asked.result().status_code == 200
    assert "0.777" not in found[0]
