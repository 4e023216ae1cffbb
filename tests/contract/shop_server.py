"""A running shop, seen from outside: its HTTP port, its processes, and what the database says of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import psutil
import requests
from shop_database import Database, Row, database_at

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
KINDS = {"flask": ["flask"], "django": ["django"], "django-asgi": ["django", "--asgi"], "fastapi": ["fastapi"]}
# Django under every server, on either database.
_SERVERS = {
    "gthread": [],
    "uvicorn": ["--server", "uvicorn"],
    "gevent": ["--server", "gevent"],
    "granian": ["--server", "granian"],
    "granian-asgi": ["--server", "granian", "--asgi"],
}
EVERY = {
    f"{database}-{server}": ["django", *arguments]
    for database in ("postgresql", "mariadb")
    for server, arguments in _SERVERS.items()
}
WORKERS = 2
POOL = 2  # connections per pool
TIMEOUT = 0.5  # seconds a request waits for one

# What a server never says on its standard error, whatever it was asked to do. (family=2 is the network: gunicorn itself
# forgets files and the object of a socket that it was given by number.)
FORBIDDEN = re.compile(
    r"unclosed (transport|event loop|<socket\.socket.*family=2)|was deleted while still open|never awaited|"
    r"never retrieved|Exception ignored|Task was destroyed"
)


def until(condition: Callable[[], T], what: str, within: float = 10.0) -> T:
    """Ask again and again until the answer is true; fail with `what` and the last answer after `within` seconds."""
    end = time.monotonic() + within
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {within:g} s: {what} (last answer: {answer!r})"
        time.sleep(0.02)


class Shop:
    """One shop started through `example_projects.serve`, with whatever it needs given by the environment."""

    def __init__(self, *arguments: str, environ: Mapping[str, str | None], workers: int = WORKERS) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("POOLKIT_DEFAULT")}
        merged = {"PYTHONWARNINGS": "default::ResourceWarning", **inherited, **environ}
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "example_projects.serve", *arguments, "--workers", str(workers), "--port", "0"],
            cwd=ROOT,
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )
        self.workers = workers
        self.url = ""
        self.dsn = environ.get("DATABASE_URL") or ""
        self.database: Database = database_at(self.dsn)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its watchdogs end the rest
            self.process.wait()
        self._out.close()
        self._err.close()

    @property
    def said(self) -> str:
        """Everything on standard output."""
        return _content(self._out)

    @property
    def complained(self) -> str:
        """Everything on standard error."""
        return _content(self._err)

    def wait_ready(self) -> Self:
        """Return once it says that it answers."""
        until(lambda: self.said.endswith("\n") or self.process.poll() is not None, "the ready line", 40)
        assert self.said.startswith("ready http://127.0.0.1:"), self.complained
        self.url = self.said.split()[1]
        return self

    def wait_warm(self) -> Self:
        """Return once each worker has had a connection: on a busy machine the first may come later than TIMEOUT."""

        def all_warm() -> bool:
            self.at_once(2 * self.workers, lambda: self.get("/products"))
            return all(any(pool["acquired"] for pool in pools) for pools in self.stats().values())

        until(all_warm, "a connection in every worker")
        return self

    def ended(self, within: float = 15.0) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(within)

    # -- asking it ------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Send one request on a connection of its own."""
        return requests.request(method, self.url + path, timeout=30, **arguments)

    def get(self, path: str) -> requests.Response:
        """Send a GET."""
        return self.ask("GET", path)

    def post(self, path: str, body: object = None) -> requests.Response:
        """Send a POST with a JSON body."""
        return self.ask("POST", path, json=body)

    def order(self, product_id: int = 1, quantity: int = 1, fault: str = "") -> requests.Response:
        """Order something."""
        return self.post("/orders" + (f"?fault={fault}" if fault else ""), _order(product_id, quantity))

    def at_once(self, count: int, call: Callable[[], T]) -> list[T]:
        """Make a call from so many threads at once."""
        with ThreadPoolExecutor(count) as threads:
            return [future.result() for future in [threads.submit(call) for _ in range(count)]]

    def raw(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Open a bare connection; a small receive buffer makes a client that takes little at a time."""
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(30)
        client.connect(("127.0.0.1", urlsplit(self.url).port))
        return client

    def stats(self) -> dict[int, list[dict[str, Any]]]:
        """The pools of every worker, by its process id."""
        found: dict[int, list[dict[str, Any]]] = {}

        def ask_some() -> bool:
            for answer in self.at_once(4, lambda: self.get("/poolkit/stats.json")):
                assert answer.status_code == 200, answer.text
                found[answer.json()["pid"]] = answer.json()["pools"]
            return len(found) >= self.workers

        until(ask_some, "an answer of every worker")
        return found

    # -- asking the database --------------------------------------------------------------------------------------

    def query(self, statement: str, *arguments: object) -> list[Row]:
        """Ask the database directly; the rows as tuples."""
        return self.database.query(statement, *arguments)

    def saved(self) -> tuple[int, int]:
        """How many orders there are, and the stock of all products together."""
        orders, stock = self.query("SELECT (SELECT count(*) FROM orders), (SELECT sum(stock) FROM products)")[0]
        return orders, int(stock)

    def holds_nothing(self) -> None:
        """Wait until no worker has a connection out, and the database sees nobody at work or in a transaction."""
        busy: list[Any] = []

        def back() -> bool:
            busy[:] = [pool for pools in self.stats().values() for pool in pools if pool["out"] or pool["waiting"]]
            busy.extend(self.database.busy())
            return not busy

        try:
            until(back, "every connection given back, and no session at work")
        except AssertionError as error:
            error.add_note(f"still there: {busy}")
            raise

    # -- ending it ------------------------------------------------------------------------------------------------

    def stop(self, sent: signal.Signals = signal.SIGTERM, within: float = 12.0) -> None:
        """End it, and make sure that nothing is left: no process, no session, no complaint."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(sent)
        assert self.ended(within) == 0, self.complained
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, f"still there: {[process.cmdline() for process in alive]}"
        if self.dsn:
            try:
                until(lambda: not self.database.sessions(), "no session left")
            except AssertionError as error:
                error.add_note(f"left: {self.database.sessions()}")
                raise
        assert not FORBIDDEN.search(self.complained), self.complained


def of_each(shops: Mapping[str, Shop], call: Callable[[Shop], object]) -> None:
    """Call something for every shop at once; raise all that went wrong, with the shop's kind."""

    def attempt(kind: str) -> Exception | None:
        try:
            call(shops[kind])
        except Exception as error:  # noqa: BLE001
            error.add_note(f"this was the {kind} shop")
            return error
        return None

    with ThreadPoolExecutor(max(1, len(shops))) as threads:
        errors = [error for error in threads.map(attempt, shops) if error]
    if errors:
        raise ExceptionGroup("the shops", errors)


def _order(product_id: object, quantity: object) -> dict[str, object]:
    return {"product_id": product_id, "quantity": quantity}


def _content(file: Any) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")
