"""Run the demonstration: `python3 run.py demo`. Every number in its tables was measured in this very run."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table

from example_projects.demo import servers
from example_projects.demo.database import PLAIN_SCHEMA, Database
from example_projects.demo.traffic import Answers, one, send, shopping, until
from poolkit.testing.postgres import LocalPostgres, PostgresFailed, PostgresNotFound

REQUESTS = 400
CLIENTS = 8
POOL = 4  # connections per worker
TIMEOUT = 1  # seconds a request waits for a connection
BURST = 60
PAUSE = 0.02  # seconds between two requests of one client, so that all three shops get their share of this machine
NAMES = {"flask": "Flask", "django": "Django", "fastapi": "FastAPI"}


@dataclass
class Shop:
    """One running shop with its database."""

    framework: str
    server: servers.Server
    database: Database

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.server.url


class Verdict(NamedTuple):
    """What came of one trial: a few words, and whether the promise was kept."""

    text: str
    kept: bool

    def __str__(self) -> str:
        return f"[green]✓[/] {self.text}" if self.kept else f"[bold red]✗ {self.text}[/]"


class Comparison(NamedTuple):
    """The same requests, with and without a pool."""

    framework: str
    pooled: Answers
    opened: int
    plain: Answers
    plain_opened: int


# -- trials: each asks the shop for trouble, then asks the database what happened -------------------------------------


def try_fault(shop: Shop, fault: str, expected: int) -> Verdict:
    """An order that goes wrong after its writes must leave nothing, and must not be answered with success."""
    before = shop.database.orders()
    status, _ = one(shop.url, "POST", f"/orders?fault={fault}", {"product_id": 1, "quantity": 1})
    saved = shop.database.orders() - before
    return Verdict(f"{status}, {saved} saved", status == expected and saved == 0)


def try_order(shop: Shop) -> Verdict:
    """An order that goes well is there when the client is told so."""
    before = shop.database.orders()
    status, _ = one(shop.url, "POST", "/orders", {"product_id": 1, "quantity": 1})
    saved = shop.database.orders() - before
    return Verdict(f"{status}, {saved} saved", status == 201 and saved == 1)


def try_gone_client(shop: Shop) -> Verdict:
    """Clients that hang up in the middle of a stream leave no connection behind."""
    for _ in range(2 * POOL):
        _read_a_little(shop.url, "/orders.csv")
    stuck = _settled(shop.database.in_transaction)
    status, _ = one(shop.url, "GET", "/products/1")
    return Verdict(f"{2 * POOL} gone, {stuck} held", stuck == 0 and status == 200)


def try_burst(shop: Shop) -> Verdict:
    """More than the pools can serve in time: some are told to come back later, nobody gets anything else."""
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.1):
            most = max(most, shop.database.sessions())

    watcher = threading.Thread(target=watch)
    watcher.start()
    answers = send(shop.url, iter([("GET", "/sleep?seconds=0.4", None)] * BURST), BURST)
    done.set()
    watcher.join()
    served, refused = answers.by_status[200], answers.by_status[503]
    stuck = _settled(shop.database.in_transaction)
    kept = served + refused == BURST == answers.retry_after + served and stuck == 0
    kept = kept and 0 < most <= POOL * servers.WORKERS
    return Verdict(f"{served} ok, {refused} x 503", kept)


def _read_a_little(url: str, path: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), 10) as conn:
        conn.sendall(f"GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n".encode())
        conn.recv(256)


def _settled(count: Callable[[], int], within: float = 3.0) -> int:
    """Read a number that should become 0 in a moment."""
    end = time.monotonic() + within
    while (left := count()) and time.monotonic() < end:
        time.sleep(0.05)
    return left


TRIALS: dict[str, Callable[[Shop], Verdict]] = {
    "an order": try_order,
    "the view raises": lambda shop: try_fault(shop, "raise", 500),
    "the COMMIT fails": lambda shop: try_fault(shop, "commit", 409),
    "an SQL error is swallowed": lambda shop: try_fault(shop, "swallow", 500),
    "clients leave mid stream": try_gone_client,
    f"{BURST} at once, pools of {POOL}": try_burst,
}


# -- the acts ---------------------------------------------------------------------------------------------------------


def compare(shop: Shop, plain: servers.Server, plain_database: Database) -> Comparison:
    """Send the same requests to the shop and to the app without a pool."""
    before = shop.database.connections_opened()
    pooled = send(shop.url, shopping(REQUESTS), CLIENTS)
    opened = shop.database.connections_opened() - before
    before = plain_database.connections_opened()
    unpooled = send(plain.url, shopping(REQUESTS), CLIENTS)
    return Comparison(shop.framework, pooled, opened, unpooled, plain_database.connections_opened() - before)


def restart_under_load(postgres: LocalPostgres, shops: list[Shop]) -> tuple[float, dict[str, tuple[Answers, float]]]:
    """Restart the server while all shops are being used; returns the outage, and per shop the answers and the delay."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(shops)) as executor:
        running = {shop.framework: executor.submit(send, shop.url, until(stop), CLIENTS, pause=PAUSE) for shop in shops}
        time.sleep(0.7)
        down = time.monotonic()
        postgres.stop("fast")
        time.sleep(0.3)
        postgres.start()
        up = time.monotonic()
        time.sleep(1.5)
        stop.set()
        answers = {name: future.result() for name, future in running.items()}
    back = {name: answer.first_success_after(up) for name, answer in answers.items()}
    return up - down, {name: (answers[name], back[name] or float("inf")) for name in answers}


def start_all(
    stack: ExitStack, postgres: LocalPostgres
) -> tuple[list[Shop], dict[str, tuple[servers.Server, Database]]]:
    """Start the three shops and the three apps without a pool, all at once."""
    settings = {"POOLKIT_DEFAULT_MAX_SIZE": str(POOL), "POOLKIT_DEFAULT_TIMEOUT": str(TIMEOUT)}
    shops, plains = [], {}
    for framework in NAMES:
        database = Database(postgres, f"shop_{framework}")
        shop = Shop(framework, servers.shop(framework, database.dsn, settings), database)
        stack.callback(shop.server.stop)
        shops.append(shop)
        database = Database(postgres, f"plain_{framework}")
        database.run(PLAIN_SCHEMA)
        server = servers.plain(framework, database.dsn)
        stack.callback(server.stop)
        plains[framework] = server, database
    for server in [shop.server for shop in shops] + [server for server, _ in plains.values()]:
        server.wait_until_ready()
    return shops, plains


# -- the tables -------------------------------------------------------------------------------------------------------


def comparison_table(results: list[Comparison]) -> Table:
    """Show requests, connections and speed, with and without poolkit."""
    title = f"The same {REQUESTS} requests, {CLIENTS} clients, {servers.WORKERS} workers: with a pool, and without"
    table = _table(title, "")
    heads = ("answered", "connected", "per s", "without pool:\nconnected", "per s", "faster")
    for head in heads:
        table.add_column(head, justify="right", style="bold" if head == "faster" else None)
    for framework, pooled, opened, plain, plain_opened in results:
        speed, plain_speed = pooled.total / pooled.seconds, plain.total / plain.seconds
        answered = f"{pooled.total - pooled.failed} of {pooled.total}"
        table.add_row(
            NAMES[framework], answered, str(opened), f"{speed:,.0f}",
            str(plain_opened), f"{plain_speed:,.0f}", f"{speed / plain_speed:.1f}x",
        )  # fmt: skip
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for head in heads:
        table.add_column(head)
    return table


def trials_table(verdicts: dict[str, list[Verdict]]) -> Table:
    """Show what was promised, tried, and found in the database."""
    table = _table("What was tried, and what the database says afterwards", "", *NAMES.values())
    for trial, found in verdicts.items():
        table.add_row(trial, *map(str, found))
    return table


def restart_table(outage: float, results: dict[str, tuple[Answers, float]]) -> Table:
    """Show who noticed the restart."""
    table = _table(f"PostgreSQL restarted under load, away for {outage:.2f} s", "")
    for head in ("requests", "not answered with 200", "back after"):
        table.add_column(head, justify="right")
    for framework, (answers, back) in results.items():
        noticed = ", ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(_bad(answers).items()))
        table.add_row(NAMES[framework], str(answers.total), noticed or "none", f"{back * 1000:.0f} ms")
    return table


def _bad(answers: Answers) -> dict[int, int]:
    return {status: count for status, count in answers.by_status.items() if status != 200}


# -- the whole --------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run every act; returns 0 where each promise was kept."""
    console = Console()
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            kept = play(console, stack)
    except (PostgresNotFound, PostgresFailed, servers.ServerFailed) as error:
        console.print(f"[bold red]The demonstration could not run:[/] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    console.print(f"{time.monotonic() - began:.0f} s in all. Look around yourself: python3 run.py serve flask")
    return 0 if kept else 1


def play(console: Console, stack: ExitStack) -> bool:
    """Start everything, play the acts, print each table as soon as it is there."""
    status = stack.enter_context(console.status("starting PostgreSQL ..."))
    postgres = stack.enter_context(LocalPostgres(max_connections=200, log_connections=True))
    status.update(f"starting three shops, and three apps without a pool, {servers.WORKERS} workers each ...")
    shops, plains = start_all(stack, postgres)
    console.print(
        comparison_table([compare(shop, *plains[shop.framework]) for shop in _each(shops, status, "requests")])
    )
    for server, _ in plains.values():
        server.stop()
    verdicts: dict[str, list[Verdict]] = {}
    for trial, attempt in TRIALS.items():
        verdicts[trial] = [attempt(shop) for shop in _each(shops, status, trial)]
    console.print(trials_table(verdicts))
    status.update("restarting PostgreSQL under load ...")
    outage, results = restart_under_load(postgres, shops)
    console.print(restart_table(outage, results))
    status.update("stopping the shops ...")
    seconds = max(shop.server.stop() for shop in shops)
    left = sum(shop.database.sessions() for shop in shops)
    farewell = Verdict(f"all shops ended by SIGTERM within {seconds:.1f} s; connections left: {left}", left == 0)
    console.print(f"\n{farewell}", highlight=False)
    return farewell.kept and all(verdict.kept for found in verdicts.values() for verdict in found)


def _each(shops: list[Shop], status: Status, what: str) -> Iterator[Shop]:
    for shop in shops:
        status.update(f"{NAMES[shop.framework]}: {what} ...")
        yield shop


if __name__ == "__main__":
    sys.exit(main())
