"""How a shop starts, outlives its database, and ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from shop_server import KINDS, Shop, own_database, until

from poolkit.testing.postgres import LocalPostgres


def test_a_shop_outlives_its_database(kind: str, private_pg: LocalPostgres) -> None:
    """It starts without a database and says so with 503; serves once there is one; is back soon after a restart."""
    with own_database(private_pg.dsn) as dsn:
        private_pg.stop("immediate")
        environ = {"DATABASE_URL": dsn, "PRICING_URL": "http://127.0.0.1:9", "POOLKIT_DEFAULT_MAX_SIZE": "2"}
        with Shop(*KINDS[kind], "--port", "0", environ=environ) as shop:
            shop.wait_ready()
            refuses(shop)
            private_pg.start()
            until(lambda: shop.get("/products").status_code == 200, "the first answer with a database", 8)
            until(lambda: shop.get("/poolkit/ready").status_code == 200, "readiness", 5)
            restart_under_load(shop, private_pg)
            shop.holds_nothing()
            stop_with_work_under_way(shop)


def refuses(shop: Shop) -> None:
    """Without a database every answer is quick: 503 where one is needed, 200 where none is."""
    assert shop.get("/hello").status_code == 200
    assert shop.get("/poolkit/health").status_code == 200
    assert shop.get("/poolkit/ready").status_code == 503
    answer = shop.get("/products")
    assert (answer.status_code, int(answer.headers["Retry-After"]) >= 1) == (503, True)
    assert urlsplit(shop.dsn).password not in answer.text + shop.complained


def restart_under_load(shop: Shop, server: LocalPostgres) -> None:
    """Every order that was confirmed is there, errors end with the outage, and both workers serve again."""
    with customers(shop, 6) as seen:
        until(lambda: seen.statuses[201] >= 10, "some orders before")
        server.restart()
        until(lambda: steady(shop), "ten good answers on end")
        good = seen.statuses[201]
        until(lambda: seen.statuses[201] >= good + 10, "some orders after")
    assert set(seen.statuses) <= {201, 500, 503}, seen.statuses
    assert {number for (number,) in shop.query("SELECT id FROM orders")} >= set(seen.numbers)


def steady(shop: Shop) -> bool:
    return all(shop.get("/products/1").status_code == 200 for _ in range(10))


class Seen:
    """What the customers were told."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.numbers: list[int] = []


@contextmanager
def customers(shop: Shop, count: int) -> Iterator[Seen]:
    """Order again and again, from so many threads, until the end of the block."""
    seen, enough = Seen(), threading.Event()

    def buy(product_id: int) -> None:
        while not enough.is_set():
            answer = shop.order(product_id=product_id)
            seen.statuses[answer.status_code] += 1
            if answer.status_code == 201:
                seen.numbers.append(answer.json()["id"])

    threads = [threading.Thread(target=buy, args=[number % 3 + 1]) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        enough.set()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def stop_with_work_under_way(shop: Shop) -> None:
    """SIGTERM lets a short request finish and cuts a stalled stream; afterwards nothing is left."""
    shop.query(
        "INSERT INTO orders (product_id, quantity, status) SELECT 1, 1, repeat('x', 250) FROM generate_series(1, 20000)"
    )
    answers: list[int] = []
    asker = threading.Thread(target=lambda: answers.append(shop.get("/sleep?seconds=0.4").status_code))
    with shop.raw(receive_buffer=8192) as stalled, requests.Session() as idle:
        idle.get(f"{shop.url}/hello")
        stalled.sendall(b"GET /orders.csv HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert stalled.recv(64).startswith(b"HTTP/1.1 200")
        asker.start()
        until(lambda: shop.sessions("query LIKE '%pg_sleep%' AND state = 'active'"), "a request under way")
        shop.stop()
    asker.join()
    assert answers == [200]


# -- serve itself -----------------------------------------------------------------------------------------------------

LIVES = {"DATABASE_URL": "postgresql://postgres@127.0.0.1:9/none", "PRICING_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rails"], "invalid choice: 'rails'"),
        ([], "framework"),
        (["flask", "--workers", "0"], "--workers must be from 1 to 64, not 0"),
        (["flask", "--port", "70000"], "--port must be from 0 to 65535, not 70000"),
        (["flask", "--asgi"], "--asgi is for Django"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence(arguments: list[str], sentence: str) -> None:
    """What is wrong, on one line, and an exit code that says so."""
    refused(arguments, LIVES, sentence, code=2)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"DATABASE_URL": "nonsense"}, "malformed URL"),
        ({"DATABASE_URL": "postgres+psycopg3://localhost/shop"}, "unknown URL scheme"),
        ({"DATABASE_URL": "sqlite:///shop.db"}, "must begin with postgresql://"),
        ({"POOLKIT_DEFAULT_MAX_SIZE": "many"}, "POOLKIT_DEFAULT_MAX_SIZE must be a number"),
        ({"POOLKIT_DEFAULT_MAX_SIZE": "1", "POOLKIT_DEFAULT_MIN_SIZE": "2"}, "min_size"),
    ],
)
def test_wrong_settings_get_one_sentence(environ: dict[str, str], sentence: str) -> None:
    """Settings are checked before anything is started."""
    refused(["flask", "--port", "0"], LIVES | environ, sentence)


def refused(arguments: list[str], environ: dict[str, str], sentence: str, code: int = 1) -> None:
    with Shop(*arguments, environ=environ) as shop:
        assert shop.ended() == code
        assert shop.complained.startswith("serve: ")
        assert shop.complained.count("\n") == 1
        assert sentence in shop.complained
        assert shop.said == ""


def test_a_port_in_use_gets_one_sentence() -> None:
    """Before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(["flask", "--port", str(port)], LIVES, f"port {port} can't be used")


def test_a_server_that_dies_at_start_is_told(kind: str) -> None:
    """The last line says that the server ended; serve ends too, and leaves nothing."""
    with Shop(*KINDS[kind], "--port", "0", environ=LIVES | {"PRICING_URL": "gopher://127.0.0.1"}) as shop:
        assert shop.ended(30) == 1
        assert shop.complained.splitlines()[-1].startswith("serve: the server ended by itself")
        assert "gopher" in shop.complained
        assert shop.said == ""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_without_a_database_a_private_one_comes_and_goes(pg_dsn: str, sent: signal.Signals) -> None:
    """Nothing given: PostgreSQL and the pricing service are started, and are gone afterwards with their folder."""
    with Shop("flask", "--workers", "1", "--port", "0", environ={"DATABASE_URL": None, "PRICING_URL": None}) as shop:
        shop.wait_ready()
        assert shop.order().status_code == 201
        assert shop.get("/quote/1").status_code == 200
        folder = private_folder(shop)
        shop.stop(sent)
        assert not folder.exists()


def test_killed_it_still_leaves_nothing(pg_dsn: str) -> None:
    """`kill -9` of serve: its watchdogs end the server and PostgreSQL, and remove the folder."""
    with Shop("flask", "--workers", "1", "--port", "0", environ={"DATABASE_URL": None, "PRICING_URL": None}) as shop:
        shop.wait_ready()
        folder = private_folder(shop)
        family = psutil.Process(shop.process.pid).children(recursive=True)
        shop.process.kill()
        _, alive = psutil.wait_procs(family, timeout=15)
        assert not alive
        until(lambda: not folder.exists(), "the folder is gone")


def private_folder(shop: Shop) -> Path:
    """The folder that the PostgreSQL of this shop works in."""
    for child in psutil.Process(shop.process.pid).children(recursive=True):
        if "-D" in child.cmdline() and os.path.basename(child.cmdline()[0]) == "postgres":
            return Path(child.cwd()).parent if child.cwd().endswith("data") else Path(child.cwd())
    raise AssertionError("no PostgreSQL among its children")
