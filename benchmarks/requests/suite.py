"""The suite: what is measured, how often, and what becomes of it."""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Column, Report, Role, Table, Target, arguments, interleaved
from benchmarks.requests import load, servers
from benchmarks.requests.database import SERVERS, database_server, prepare
from benchmarks.requests.load import Generator, Load, generate
from benchmarks.requests.servers import Server

__all__ = ["main"]

APPS = Path(__file__).parent / "apps"
FRAMEWORKS = ("flask", "django", "fastapi")
FLOORS = {"flask": "flask_thread_local", "django": "django_persistent", "fastapi": "fastapi_floor"}
OTHER_FLOORS = {"flask_thread_local_transaction", "django_persistent_atomic"}
POOL_SIZE = 8
CONNECTIONS = 16
WARM_UP = 0.5  # seconds
CALLS = 300  # in one measurement without a server


class Route(NamedTuple):
    """What is asked for."""

    name: str
    path: str
    body: str | None = None


ROUTES = (Route("hello", "/hello"), Route("item", "/item/7"), Route("hit", "/hit"))
SHOP_ROUTES = (
    Route("hello", "/hello"),
    Route("one product", "/products/1"),
    Route("an order", "/orders", '{"product_id": 1, "quantity": 1}'),
)
UNDER_LOAD = (
    Column("rate", "req/s", 0, "req/s", "more"),
    Column("p50", "p50 ms", 1, "ms", "less"),
    Column("p99", "p99 ms", 1, "ms", "less"),
    Column("cpu", "CPU us/req", 0, "us", "less"),
    Column("ratio", "rate / floor", 3, "x", "more"),
)
CALLED = (
    Column("cpu", "CPU us", 1, "us", "less"),
    Column("wall", "us", 1, "us", "less"),
    Column("ratio", "CPU / floor", 3, "x", "less"),
)
AIMS = (  # of the requests that read one row: this app's rate is to be at least so many times that one's
    ("98 % of a connection for each thread", "flask_poolkit_autocommit", 0.98, "flask_thread_local"),
    ("98 % of the same in a transaction", "flask_poolkit", 0.98, "flask_thread_local_transaction"),
    ("more than psycopg_pool", "flask_poolkit_autocommit", 1.0, "flask_psycopg_pool"),
    ("more than psycopg_pool in a transaction", "flask_poolkit", 1.0, "flask_psycopg_pool_transaction"),
    ("1.8 times Flask-SQLAlchemy", "flask_poolkit", 1.8, "flask_sqlalchemy"),
    ("98 % of CONN_MAX_AGE=None", "django_poolkit_engine", 0.98, "django_persistent"),
    ("98 % of the same in a transaction", "django_poolkit", 0.98, "django_persistent_atomic"),
    ("Django's own pool by 4 %", "django_poolkit_engine", 1.04, "django_native_pool"),
    ("Django's own pool in a transaction by 4 %", "django_poolkit", 1.04, "django_native_pool_atomic"),
    ("asyncpg's own pool by 10 %, by dependency", "fastapi_poolkit_asyncpg", 1.1, "fastapi_asyncpg_transaction"),
    ("90 % of the floor, in the handler", "fastapi_poolkit_asyncpg_inline", 0.9, "fastapi_floor"),
)
MORE_VERSIONS = ("Flask", "Flask-SQLAlchemy", "Django", "PyMySQL", "mysqlclient", "gunicorn", "httptools", "uvloop")


class App(NamedTuple):
    """A file of `apps`, and what its row is called."""

    name: str
    label: str

    @property
    def role(self) -> Role:
        """Whose it is."""
        if "_poolkit" in self.name:
            return "ours"
        return "floor" if self.name in {*FLOORS.values(), *OTHER_FLOORS} else "peer"


def apps(framework: str, only: Sequence[str] | None = None) -> list[App]:
    """Find the apps of a framework, the floor first; of these names only, if there are any."""
    found = []
    for file in sorted(APPS.glob(f"{framework}_*.py")):
        if not only or file.stem in only:
            said = ast.get_docstring(ast.parse(file.read_text())) or file.stem
            found.append(App(file.stem, said.partition("\n")[0].rstrip(".")))
    return sorted(found, key=lambda app: app.name != FLOORS[framework])


def on(plan: Plan, found: Sequence[App]) -> list[App]:
    """Leave out what the database of a plan has none of: Django's own pool is for PostgreSQL."""
    return [app for app in found if plan.database == "postgresql" or "native_pool" not in app.name]


# -- under load --------------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """One load on one server, and the microseconds of processor time that it cost the server per request."""

    load: Load
    cpu: float


def measure(server: Server, route: Route, generator: Generator, seconds: float) -> Sample:
    """Put a load on a server."""
    before = server.cpu()
    result = generate(generator, server.url + route.path, CONNECTIONS, seconds, route.body)
    return Sample(result, 1e6 * (server.cpu() - before) / max(1, result.answered))


def fill(table: Table, labels: Mapping[str, str], samples: Mapping[str, Sequence[Sample]], floor: str | None) -> None:
    """Write the samples into a table. A row with an error in any of them is void, and says how many there were."""
    sound = {name: taken for name, taken in samples.items() if not _errors(taken)}
    base = [sample.load.rate for sample in sound.get(floor or "", ())]
    for name, taken in samples.items():
        if name not in sound:
            void = f"{labels[name]}: VOID, {_errors(taken)} errors in {_answered(taken)} answers"
            table.roles[void] = table.role(labels[name])
            table.add(void)
            continue
        for number, (result, cpu) in enumerate(taken):
            cells = {"rate": result.rate, "p50": result.p50, "p99": result.p99, "cpu": cpu}
            if number < len(base):
                cells["ratio"] = result.rate / base[number]  # of the same round
            table.add(labels[name], **cells)


def _errors(samples: Sequence[Sample]) -> int:
    return sum(sample.load.errors for sample in samples)


def _answered(samples: Sequence[Sample]) -> int:
    return sum(sample.load.answered for sample in samples)


class Plan(NamedTuple):
    """How much of it, and with what."""

    rounds: int
    seconds: float
    generator: Generator
    processors: set[int] | None
    routes: Sequence[Route] = ROUTES
    database: str = "postgresql"

    @property
    def where(self) -> str:
        """What a title says of the database where it is not the usual one."""
        return "" if self.database == "postgresql" else f" on {SERVERS[self.database]}"

    def key(self, *parts: str) -> str:
        """The key of a table of this plan."""
        return "_".join([*parts, *([] if self.database == "postgresql" else [self.database])])


def under_load(report: Report, framework: str, chosen: Sequence[App], dsn: str, plan: Plan) -> None:
    """Serve every app of a framework, and put each under load in turn."""
    labels = {app.name: app.label for app in chosen}
    with ExitStack() as stack:
        running = [stack.enter_context(servers.serve(app.name, dsn, POOL_SIZE, plan.processors)) for app in chosen]
        for route in plan.routes:
            samples = rounds(running, route, plan)
            title = f"{framework}{plan.where}, {route.name}: {CONNECTIONS} connections on {_server_of(framework)}"
            table = report.table(title, *UNDER_LOAD, note=_note(plan), key=plan.key(framework, route.name))
            describe(table, chosen, aims=route.name == "item")
            fill(table, labels, samples, FLOORS[framework])


def describe(table: Table, chosen: Sequence[App], *, aims: bool) -> None:
    """Say whose each row is, which one all are compared with, and what is aimed at."""
    labels = {app.name: app.label for app in chosen}
    table.roles = {app.label: app.role for app in chosen}
    table.baseline = next((app.label for app in chosen if app.name in FLOORS.values()), None)
    for text, name, least, of in AIMS if aims else ():
        if name in labels and of in labels:
            target = Target(text, labels[name], "rate", at_least=least, how="ratio", of=labels[of])
            table.targets.append(target)


def rounds(running: Sequence[Server], route: Route, plan: Plan) -> dict[str, list[Sample]]:
    """Warm every server up, then measure them by turns."""
    for server in running:
        generate("own", server.url + route.path, CONNECTIONS, WARM_UP, route.body)
    samples: dict[str, list[Sample]] = {server.name: [] for server in running}
    for _, server in interleaved(running, plan.rounds):
        samples[server.name].append(measure(server, route, plan.generator, plan.seconds))
    return samples


def shops(report: Report, frameworks: Sequence[str], dsn: str, plan: Plan) -> None:
    """Put each of the example projects under load, as it is served by `run.py serve` with one worker."""
    for framework in frameworks:
        with servers.serve_shop(framework, dsn, plan.processors) as server:
            table = report.table(f"the {framework} shop{plan.where}, one worker", *UNDER_LOAD, note=_note(plan))
            for route in SHOP_ROUTES:
                taken = rounds([server], route, plan)[server.name]
                fill(table, {route.name: route.name}, {route.name: taken}, None)


def _server_of(framework: str) -> str:
    if framework == "fastapi":
        return "uvicorn, 1 worker"
    return f"gunicorn gthread, 1 worker of {servers.THREADS} threads"


def _note(plan: Plan) -> str:
    where = "not pinned: one processor, or none can be chosen here"
    if plan.processors is not None:
        where = f"server on one processor, {SERVERS[plan.database]} and the load on another"
    generator = "wrk" if plan.generator == "wrk" else "a generator of our own, in Python"
    return f"pool of {POOL_SIZE}; load by {generator}; {where}. More is better for req/s, less for all else."


# -- without a server --------------------------------------------------------------------------------------------------


class Worker:
    """A process that calls one app."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, path: str, count: int) -> tuple[float, float]:
        """Have the app answer so often; return the microseconds each took, by the clock and of the processor."""
        told, heard = self._process.stdin, self._process.stdout
        if told is None or heard is None:
            raise RuntimeError("this worker was started without pipes")
        with suppress(BrokenPipeError):  # it has ended; then it says nothing either
            told.write(f"{path} {count}\n")
            told.flush()
        answer = heard.readline().split()
        if len(answer) != 2:
            raise RuntimeError(f"the app failed, called without a server; its own words stand above: {path}")
        return 1e6 * float(answer[0]), 1e6 * float(answer[1])


@contextmanager
def working(app: App, dsn: str, processors: set[int] | None) -> Iterator[Worker]:
    """Start a process for an app."""
    variables = {**os.environ, "BENCH_DSN": dsn, "BENCH_POOL_SIZE": str(POOL_SIZE)}
    line = [sys.executable, "-m", "benchmarks.requests.in_process", app.name]
    with servers.on_processors(processors):
        process = subprocess.Popen(
            line, env=variables, cwd=servers.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    with process:
        try:
            yield Worker(process)
        finally:
            process.kill()
            if process.stdin is not None:
                with suppress(BrokenPipeError):  # what it was told too late
                    process.stdin.close()


def called(report: Report, framework: str, chosen: Sequence[App], plan: Plan) -> None:
    """Call every app of a framework without a server; the database shares the processor, so no wake-up is a lottery."""
    with ExitStack() as stack:
        with servers.on_processors(plan.processors):
            server = stack.enter_context(database_server(plan.database))
        prepare(server.socket_dsn)
        workers = {app: stack.enter_context(working(app, server.socket_dsn, plan.processors)) for app in chosen}
        for route in plan.routes:
            title = f"{framework}{plan.where}, {route.name}: called without a server"
            note = f"one processor for all, {SERVERS[plan.database]} included; less is better"
            table = report.table(title, *CALLED, note=note, key=plan.key(framework, route.name, "called"))
            describe(table, chosen, aims=False)
            _fill_called(table, workers, route, 5 * plan.rounds)


def _fill_called(table: Table, workers: Mapping[App, Worker], route: Route, number: int) -> None:
    path = route.path.replace("7", "{}")
    for worker in workers.values():
        worker.call(path, CALLS)
    taken: dict[App, list[tuple[float, float]]] = {app: [] for app in workers}
    for _, (app, worker) in interleaved(list(workers.items()), number):
        taken[app].append(worker.call(path, CALLS))
    floor = taken[next(iter(taken))]
    for app, pairs in taken.items():
        for (wall, cpu), (_, least) in zip(pairs, floor, strict=True):
            table.add(app.label, wall=wall, cpu=cpu, ratio=cpu / least)


# -- the command -------------------------------------------------------------------------------------------------------


PARTS = ("load", "called", "shops")


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = _parser()
    options = parser.parse_args(argv)
    frameworks = options.framework or (FRAMEWORKS if options.database == "postgresql" else ["django"])
    if options.database == "mariadb" and set(frameworks) != {"django"}:
        parser.error("--database mariadb is for Django: the other apps are written with PostgreSQL's drivers")
    number, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    processors, others = servers.halves() or (None, None)
    routes = [route for route in ROUTES if not options.route or route.name in options.route]
    plan = Plan(number, seconds, load.chosen(options.generator), processors, routes, options.database)
    report = Report("requests")
    report.conditions["versions"].update(_versions())
    parts = options.part or PARTS
    chosen = {framework: on(plan, apps(framework, options.app)) for framework in frameworks}
    for framework in frameworks if "called" in parts else ():
        called(report, framework, chosen[framework], plan)
    if {"load", "shops"} & set(parts):
        with servers.on_processors(others), database_server(plan.database) as server:
            prepare(server.dsn)
            for framework in frameworks if "load" in parts else ():
                under_load(report, framework, chosen[framework], server.dsn, plan)
            if "shops" in parts:
                shops(report, frameworks, server.dsn, plan)
    report.finish(options.json)
    return 0


def _versions() -> Iterator[tuple[str, str]]:
    for name in MORE_VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def _parser() -> argparse.ArgumentParser:
    parser = arguments("requests", "Whole requests, under a real server and without one.", rounds=3)
    parser.add_argument("--database", choices=tuple(SERVERS), default="postgresql", help="what they ask (postgresql)")
    parser.add_argument("--framework", action="append", choices=FRAMEWORKS, help="only this one; may be repeated")
    parser.add_argument("--app", action="append", metavar="NAME", help="only this file of apps; may be repeated")
    parser.add_argument("--route", action="append", choices=[route.name for route in ROUTES], help="only this one")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--generator", choices=("wrk", "own"), help="what makes the load (wrk, where it is installed)")
    parser.add_argument("--seconds", type=_seconds, default=4.0, help="how long each load lasts (4)")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 600")
    return seconds
