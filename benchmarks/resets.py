"""What resets cost: one with each return (`reset="full"`), or only where the session was changed (the default).

    python3 run.py bench resets [APP ...] [--rounds 5] [--before COMMIT]

Whole requests that read one row, called without a server, on PostgreSQL. For each app and way: the processor time of
client and server, what the server counts and logs, and how many requests go through three connections for thirty at a
time; without delay of the network and with one millisecond for each round trip. Then the same with a view that changes
a setting, also with another commit's library; and what it costs to read a statement's text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.against import HERE, Process, checkout
from benchmarks.requests.database import prepare
from poolkit.drivers import _mysql_statements, _sqlite_statements, _statements
from poolkit.testing.faults import FaultProxy
from poolkit.testing.postgres import LocalPostgres, PostgresFailed

__all__ = ["main"]

APPS = ("flask_poolkit", "fastapi_poolkit_asyncpg", "fastapi_poolkit", "django_poolkit_engine")
WAYS = {"only dirty": {}, "full": {"POOLKIT_DEFAULT_RESET": "full"}}
DELAYS = (0.0, 1.0)  # milliseconds of a round trip
ITEM, SET = "/item/{}", "/set"
CROWD, CONNECTIONS = 30, 3
TOLD_AFTER = 1.1  # seconds
PACKAGES = ("poolkit", "poolkit_flask", "poolkit_fastapi", "poolkit_django")
READERS: dict[str, Callable[[str], int]] = {
    "PostgreSQL": _statements.Traces().__getitem__,
    "MySQL": _mysql_statements.Traces().__getitem__,
    "SQLite": _sqlite_statements.judge,
}
TEXT = "SELECT items.id, items.name FROM items WHERE items.id = %s"


class Server:
    """A PostgreSQL, and what it counts."""

    def __init__(self, server: LocalPostgres, conn: psycopg.Connection[Any], *, statements: bool) -> None:
        self.dsn = server.dsn
        self._server = server
        self._conn = conn
        self._statements = statements
        if statements:
            self._conn.execute("CREATE EXTENSION pg_stat_statements")

    def counts(self) -> tuple[int, int | None]:
        """Return the transactions, and the calls that pg_stat_statements knows of."""
        done = self._one("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'")
        calls = None
        if self._statements:
            calls = int(
                self._one("SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query !~ 'pg_stat|pg_reload'")
            )
        return int(done), calls

    def cpu(self) -> float:
        """Return the seconds of processor time that the other sessions have used so far."""
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self._pids()) / 1e9

    def _pids(self) -> list[int]:
        asked = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        return [pid for (pid,) in self._conn.execute(asked)]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait at the end until the other sessions are gone: then they have told all that they counted."""
        yield
        while self._pids():
            time.sleep(0.05)
        time.sleep(TOLD_AFTER)  # this one tells its own once a second

    @contextmanager
    def logging(self) -> Iterator[Callable[[], int]]:
        """Log every statement meanwhile; what is yielded counts the lines."""
        self._set("ALTER SYSTEM SET log_statement = 'all'")
        before = self._lines()
        try:
            yield lambda: self._lines() - before
        finally:
            self._set("ALTER SYSTEM RESET log_statement")

    def _set(self, command: str) -> None:
        self._conn.execute(command)
        self._conn.execute("SELECT pg_reload_conf()")
        time.sleep(0.2)  # the sessions read it between two statements

    def _lines(self) -> int:
        own = ("pg_stat", "pg_reload", "ALTER SYSTEM", 'parameter "log_statement"', "SIGHUP", "DETAIL:")
        return sum(": " in line and not any(word in line for word in own) for line in self._server.log.splitlines())

    def _one(self, query: str) -> Any:
        row = self._conn.execute(query).fetchone()
        return None if row is None else row[0]


@contextmanager
def server() -> Iterator[Server]:
    """Run a server, with pg_stat_statements where its programs have it."""
    preloaded: dict[str, Any] = {"shared_preload_libraries": "pg_stat_statements"}
    for more in (preloaded, {}):
        try:
            with LocalPostgres(max_connections=300, **more) as running:
                prepare(running.dsn)
                with psycopg.connect(running.dsn, autocommit=True) as conn:
                    yield Server(running, conn, statements=bool(more))
                return
        except PostgresFailed:
            if not more:
                raise


@contextmanager
def library(tree: Path) -> Iterator[Path]:
    """Lay out this checkout's apps beside another one's library."""
    with tempfile.TemporaryDirectory(prefix="poolkit-resets-") as folder:
        mixed = Path(folder)
        (mixed / "benchmarks").symlink_to(HERE / "benchmarks")
        for name in PACKAGES:
            (mixed / name).symlink_to(tree / name)
        yield mixed


@contextmanager
def running(app: str, tree: Path, dsn: str, more: dict[str, str]) -> Iterator[Process]:
    """Start one app, and end it."""
    process = Process(app, tree, dsn, more)
    try:
        process.ask(ITEM, 50)
        yield process
    finally:
        process.end()


def costs(app: str, way: str, on: Server, rounds: int, count: int) -> list[str]:
    """Measure one request after the other: processor time, and what the server counts for each."""
    with on.alone(), running(app, HERE, on.dsn, WAYS[way]) as process:
        clients, servers = [], []
        for _ in range(rounds):
            before = on.cpu()
            clients.append(1e6 * process.ask(ITEM, count)[1])
            servers.append(1e6 * (on.cpu() - before) / count)
        with on.logging() as lines:
            process.ask(ITEM, count)
            logged = lines()
    few, many = counted(app, way, on, 1), counted(app, way, on, 1 + count)
    done, calls = (None if a is None or b is None else (b - a) / count for a, b in zip(few, many, strict=True))
    told = ["not there" if each is None else f"{each:.2f}" for each in (done, logged / count, calls)]
    return [f"{statistics.median(clients):.0f}", f"{statistics.median(servers):.0f}", *told]


def counted(app: str, way: str, on: Server, count: int) -> tuple[int, int | None]:
    """Count what a process does in its whole life, with so many requests."""
    before, calls_before = on.counts()
    with on.alone(), running(app, HERE, on.dsn, WAYS[way]) as process:
        process.ask(ITEM, count)
    after, calls_after = on.counts()
    return after - before, None if calls_before is None or calls_after is None else calls_after - calls_before


def throughput(app: str, on: Server, delay: float, rounds: int, count: int) -> list[str]:
    """Measure how many requests a second go through three connections, thirty at a time: each way, by turns."""
    with ExitStack() as stack:
        dsn = stack.enter_context(delayed(on.dsn, delay))
        more = {"BENCH_POOL_SIZE": str(CONNECTIONS)}
        processes = [stack.enter_context(running(app, HERE, dsn, {**more, **way})) for way in WAYS.values()]
        rates: list[list[float]] = [[] for _ in processes]
        for number in range(rounds):
            for place in (range(len(processes)), reversed(range(len(processes))))[number % 2]:
                rates[place].append(1 / processes[place].ask(ITEM, count, CROWD)[0])
    return [f"{statistics.median(taken):.0f}" for taken in rates]


def changing(app: str, on: Server, delay: float, plan: tuple[int, int], before: Path | None) -> list[str]:
    """Measure the milliseconds of a request that changes a setting: before, where that is given, and each way."""
    rounds, count = plan
    kinds = [(HERE, way) for way in WAYS.values()]
    with ExitStack() as stack:
        if before is not None:
            kinds.insert(0, (stack.enter_context(library(before)), {}))
        dsn = stack.enter_context(delayed(on.dsn, delay))
        processes = [stack.enter_context(running(app, tree, dsn, way)) for tree, way in kinds]
        took: list[list[float]] = [[] for _ in processes]
        for _ in range(rounds):
            for process, samples in zip(processes, took, strict=True):
                samples.append(1e3 * process.ask(SET, count)[0])
    return ([] if before is not None else ["-"]) + [f"{statistics.median(samples):.2f}" for samples in took]


@contextmanager
def delayed(dsn: str, delay: float) -> Iterator[str]:
    """Put so many milliseconds between client and server."""
    with FaultProxy(dsn) if delay else nullcontext() as proxy:
        if proxy is not None:
            proxy.delay(delay / 2000)
        yield dsn if proxy is None else proxy.url(dsn)


def reading(repeat: int) -> Iterator[tuple[str, float, float]]:
    """Measure how many nanoseconds it takes to judge a text that is known, and one that is not."""
    for name, judge in READERS.items():
        known = min(timeit.repeat("judge(text)", number=repeat, globals={"judge": judge, "text": TEXT})) / repeat
        news = [f"{TEXT} AND {number} = {number}" for number in range(repeat)]
        began = time.perf_counter()
        for new in news:
            judge(new)
        yield name, 1e9 * known, 1e9 * (time.perf_counter() - began) / repeat


def main(argv: Sequence[str]) -> int:
    """Measure, and print each table as it comes."""
    parser = argparse.ArgumentParser(prog="run.py bench resets", description="What resets cost, each way.")
    parser.add_argument("apps", nargs="*", default=list(APPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=400, help="requests in one measurement (400)")
    parser.add_argument("--before", metavar="COMMIT", help="measure the view that changes a setting with it, too")
    parser.add_argument("--quick", action="store_true", help="once through")
    asked = parser.parse_intermixed_args(argv)
    rounds = 1 if asked.quick else asked.rounds
    apps = asked.apps or list(APPS)
    with server() as on, checkout(asked.before) if asked.before else nullcontext() as before:
        head = ["app", "reset", "client us", "server us", "transactions", "log lines", "pg_stat_statements"]
        write(*head)
        for app in apps:
            for way in WAYS:
                write(app, way, *costs(app, way, on, rounds, asked.count))
        write("\napp", "delay ms", *(f"req/s {way}" for way in WAYS))
        for app in apps:
            for delay in DELAYS:
                write(app, f"{delay:g}", *throughput(app, on, delay, rounds, asked.count))
        write("\napp with SET", "delay ms", "ms before", *(f"ms {way}" for way in WAYS))
        for app in apps:
            for delay in DELAYS:
                write(app, f"{delay:g}", *changing(app, on, delay, (rounds, max(1, asked.count // 4)), before))
    write("\na statement's text", "ns known", "ns new")
    for name, known, new in reading(1_000):
        write(name, f"{known:.0f}", f"{new:.0f}")
    return 0


def write(first: str, *more: str) -> None:
    """Print one row of a table."""
    sys.stdout.write(f"{first:26}{''.join(f'{cell:>20}' for cell in more)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
