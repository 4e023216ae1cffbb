"""How a shop starts, outlives its database, and ends."""

from __future__ import annotations

import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from shop_database import own_database
from shop_server import EVERY, KINDS, Shop, of_each, until

from example_projects import serve
from poolkit.testing.mariadb import LocalMariadb, MariadbNotFound
from poolkit.testing.postgres import LocalPostgres

ON_MARIADB = ("mariadb-gthread", "mariadb-uvicorn")


@pytest.fixture
def private_mariadb(unavailable: Callable[[str, str], NoReturn]) -> Iterator[LocalMariadb]:
    """A server to kill."""
    try:
        server = LocalMariadb().start()
    except MariadbNotFound as error:
        unavailable("mysql", f"{error} (a server that runs already is no help: this test kills it)")
    with server:
        yield server


@pytest.mark.slow
def test_the_shops_outlive_their_database(private_pg: LocalPostgres) -> None:
    """They start without a database and say so with 503; serve once there is one; are back soon after a restart.

    All four at once, because they share the server that is stopped. In the end nothing is left of any.
    """
    with ExitStack() as stack:
        urls = {kind: stack.enter_context(own_database(private_pg.dsn)) for kind in KINDS}
        private_pg.stop("immediate")
        shops = {kind: stack.enter_context(without_database(KINDS[kind], url)) for kind, url in urls.items()}
        outlive(private_pg, shops)


@pytest.mark.slow
def test_djangos_shop_outlives_its_mariadb(private_mariadb: LocalMariadb) -> None:
    """The same of MariaDB: with threads, and by ASGI."""
    with ExitStack() as stack:
        urls = {kind: stack.enter_context(own_database(private_mariadb.dsn)) for kind in ON_MARIADB}
        private_mariadb.kill()
        shops = {kind: stack.enter_context(without_database(EVERY[kind], url)) for kind, url in urls.items()}
        outlive(private_mariadb, shops)


def outlive(server: LocalPostgres | LocalMariadb, shops: dict[str, Shop]) -> None:
    """Hold shops to it whose server is away."""
    of_each(shops, Shop.wait_ready)
    of_each(shops, refuses)
    server.start()
    of_each(shops, opens)
    restart_under_load(shops, server)
    of_each(shops, Shop.holds_nothing)
    of_each(shops, stop_with_work_under_way)


def without_database(arguments: list[str], url: str) -> Shop:
    environ = {"DATABASE_URL": url, "PRICING_URL": "http://127.0.0.1:9", "POOLKIT_DEFAULT_MAX_SIZE": "2"}
    return Shop(*arguments, environ=environ, workers=1)


def refuses(shop: Shop) -> None:
    """Without a database every answer is quick: 503 where one is needed, 200 where none is."""
    assert shop.get("/hello").status_code == 200
    assert shop.get("/poolkit/health").status_code == 200
    assert shop.get("/poolkit/ready").status_code == 503
    answer = shop.get("/products")
    assert (answer.status_code, int(answer.headers["Retry-After"]) >= 1) == (503, True)
    assert urlsplit(shop.dsn).password not in answer.text + shop.complained


def opens(shop: Shop) -> None:
    """With a database there are soon goods on the shelves, and the shop says that it is ready."""
    until(lambda: (answer := shop.get("/products")).status_code == 200 and len(answer.json()) == 5, "five products", 15)
    until(lambda: shop.get("/poolkit/ready").status_code == 200, "readiness")


def restart_under_load(shops: dict[str, Shop], server: LocalPostgres | LocalMariadb) -> None:
    """Every order that was confirmed is there, errors end with the outage, and the shops serve again."""
    with ExitStack() as stack:
        seen = {kind: stack.enter_context(customers(shop, 3)) for kind, shop in shops.items()}
        until(lambda: all(one.statuses[201] >= 5 for one in seen.values()), "some orders before")
        server.restart()
        of_each(shops, lambda shop: until(lambda: steady(shop), "ten good answers on end", 15))
        good = {kind: one.statuses[201] for kind, one in seen.items()}
        until(lambda: all(one.statuses[201] >= good[kind] + 5 for kind, one in seen.items()), "some orders after")
    for kind, shop in shops.items():
        assert set(seen[kind].statuses) <= {201, 500, 503}, (kind, seen[kind].statuses)
        assert {number for (number,) in shop.query("SELECT id FROM orders")} >= set(seen[kind].numbers), kind


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
        while not enough.wait(0.01):
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
    shop.database.add_orders(20_000, "x" * 250)
    answers: list[int] = []
    asker = threading.Thread(target=lambda: answers.append(shop.get("/sleep?seconds=0.4").status_code))
    with shop.raw(receive_buffer=8192) as stalled, requests.Session() as idle:
        idle.get(f"{shop.url}/hello")
        stalled.sendall(b"GET /orders.csv HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert stalled.recv(64).startswith(b"HTTP/1.1 200")
        asker.start()
        until(shop.database.sleeping, "a request under way")
        shop.stop()
    asker.join()
    assert answers == [200]


# -- serve itself -----------------------------------------------------------------------------------------------------

NOWHERE = {"DATABASE_URL": "postgresql://postgres@127.0.0.1:9/none", "PRICING_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rails"], "invalid choice: 'rails'"),
        ([], "framework"),
        (["flask", "--workers", "0"], "--workers must be from 1 to 64, not 0"),
        (["flask", "--workers", "two"], "invalid int value: 'two'"),
        (["flask", "--port", "70000"], "--port must be from 0 to 65535, not 70000"),
        (["flask", "--asgi"], "--asgi is for Django"),
        (["fastapi", "--server", "granian"], "--server is for Django"),
        (["django", "--server", "gevent", "--asgi"], "--server gevent is for WSGI"),
        (["django", "--server", "apache"], "invalid choice: 'apache'"),
        (["flask", "--daemon"], "unrecognized arguments: --daemon"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong, on one line, and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        serve.main(arguments)
    assert ended.value.code == 2
    assert_one_sentence(capsys, sentence)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"DATABASE_URL": "nonsense"}, "malformed URL"),
        ({"DATABASE_URL": "postgres+psycopg3://localhost/shop"}, "unknown URL scheme"),
        ({"DATABASE_URL": "sqlite:///shop.db"}, "must begin with postgresql://"),
        ({"DATABASE_URL": "mysql://localhost/shop"}, "know only PostgreSQL, and Django's MariaDB"),
        ({"POOLKIT_DEFAULT_MAX_SIZE": "many"}, "POOLKIT_DEFAULT_MAX_SIZE must be a whole number"),
        ({"POOLKIT_DEFAULT_MAX_SIZE": "1", "POOLKIT_DEFAULT_MIN_SIZE": "2"}, "min_size"),
    ],
)
def test_wrong_settings_get_one_sentence(
    environ: dict[str, str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings are checked before anything is started; exit code 1."""
    for name, value in (NOWHERE | environ).items():
        monkeypatch.setenv(name, value)
    assert serve.main(["flask", "--port", "0"]) == 1
    assert_one_sentence(capsys, sentence)


def test_a_port_in_use_gets_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    monkeypatch.setenv("DATABASE_URL", NOWHERE["DATABASE_URL"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["flask", "--port", str(port)]) == 1
    assert_one_sentence(capsys, f"port {port} can't be used")


def assert_one_sentence(capsys: pytest.CaptureFixture[str], sentence: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("serve: ")
    assert err.count("\n") == 1
    assert sentence in err


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["flask", "fastapi"])
def test_a_server_that_dies_at_start_is_told(framework: str) -> None:
    """The last line says that the server ended, gunicorn or uvicorn; serve ends too, and leaves nothing."""
    with Shop(framework, environ=NOWHERE | {"PRICING_URL": "gopher://127.0.0.1"}) as shop:
        assert shop.ended(30) == 1
        assert shop.complained.splitlines()[-1].startswith("serve: the server ended by itself")
        assert "gopher" in shop.complained
        assert shop.said == ""


@pytest.mark.slow
def test_without_a_database_a_private_one_comes_and_goes(pg_dsn: str) -> None:
    """Nothing given: PostgreSQL and the pricing service are started, and Ctrl-C ends them and removes the folder."""
    with Shop("flask", environ={"DATABASE_URL": None, "PRICING_URL": None}, workers=1) as shop:
        shop.wait_ready()
        assert shop.order().status_code == 201
        assert shop.get("/quote/1").status_code == 200
        folder = private_folder(shop)
        shop.stop(signal.SIGINT)
        assert not folder.exists()


@pytest.mark.slow
def test_killed_it_still_leaves_nothing(pg_dsn: str) -> None:
    """`kill -9` of serve: its watchdogs end the server and PostgreSQL, and remove the folder."""
    with Shop("flask", environ={"DATABASE_URL": None, "PRICING_URL": None}, workers=1) as shop:
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
        command = child.cmdline()
        if command and Path(command[0]).name == "postgres" and "-D" in command:
            data = Path(child.cwd())
            return data.parent if data.name == "data" else data
    raise AssertionError("no PostgreSQL among its children")
