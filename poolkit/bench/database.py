"""Somebody's own database: what it allows, what may be asked of it, and the suites run against it.

Nothing is written. PostgreSQL is sent SELECT 1, pg_sleep, BEGIN and COMMIT, and a question about its settings; a file
of SQLite is opened to be read only.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from poolkit import AsyncPool, ConfigError, Pool, PoolError
from poolkit.bench import async_peers, contention, micro, query, round_trips, sync_peers
from poolkit.bench.advice import Limits
from poolkit.bench.peers import AsyncPeer, Peer, Settings, with_scheme
from poolkit.bench.report import Report
from poolkit.bench.sampling import Plan, used
from poolkit.drivers import hide_password

__all__ = ["LIBRARIES", "Database", "Facts", "examine", "room", "run", "understood", "usable"]

LIBRARIES = ("psycopg", "psycopg2", "asyncpg")
NAMED = {"postgresql": LIBRARIES, "postgres": LIBRARIES, **{f"postgresql+{name}": (name,) for name in LIBRARIES}}
QUESTION = """
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT sum(numbackends)::int FROM pg_stat_database)
"""


class Database(NamedTuple):
    """A URL that every library understands, and the libraries that fit it and are installed."""

    url: str
    drivers: Sequence[str]

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return hide_password(self.url)


def understood(url: str, installed: Callable[[str], bool] | None = None) -> Database:
    """Say what a URL means. Raises ConfigError for what can't be measured here."""
    there = installed or (lambda name: importlib.util.find_spec(name) is not None)
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        return Database(_read_only(url), ("sqlite",))
    if scheme not in NAMED:
        raise ConfigError(f"{scheme or 'this'}: can't be measured; give a URL of postgresql:// or sqlite:///", "bench")
    drivers = tuple(name for name in NAMED[scheme] if there(name))
    if not drivers:
        wanted = " or ".join(f"poolkit[{name}]" for name in NAMED[scheme])
        raise ConfigError(f"{scheme}: no library for it is installed; pip install '{wanted}'", "bench")
    return Database(with_scheme(url, "postgresql"), drivers)


def _read_only(url: str) -> str:
    path = urlsplit(url).path.removeprefix("/")
    if not path or path == ":memory:":
        raise ConfigError("sqlite: a database in memory belongs to one connection; give a file", "bench")
    if not Path(path).is_file():
        raise ConfigError(f"sqlite: there is no file {path}", "bench")
    return f"sqlite:///{path}?mode=ro"


def room(limits: Limits | None, size: int) -> str:
    """Say why so many connections can't be had; empty where they can.

    A server ends a session a moment after its client has left: so twice the size must be free.
    """
    if limits is None or limits.free >= 2 * size:
        return ""
    if limits.free < 2:
        return f"the server has {limits.free} connections free: too few to measure anything"
    return (
        f"--size {size} may take {2 * size} connections for moments, and {limits.free} are free: "
        f"{limits.max_connections} (max_connections) - {limits.reserved} (reserved) - {limits.used} (in use). "
        f"Give --size {limits.free // 2} or less"
    )


def usable(database: Database) -> tuple[Database, dict[str, str]]:
    """Open one connection by each library; return the database without those that can't, and what they failed with.

    A URL may hold what only one of them knows. Raises the first one's error where none can.
    """
    errors: dict[str, PoolError | ConfigError] = {}
    for driver in database.drivers:
        peer = next(row for row in _ours(database) if row.driver == driver)
        try:
            used(Settings(database.url), 0.0)(peer)
        except (PoolError, ConfigError) as error:
            errors[driver] = error
    left = tuple(driver for driver in database.drivers if driver not in errors)
    if not left:
        raise next(iter(errors.values()))
    kinds = {driver: type(error.__cause__ or error).__name__ for driver, error in errors.items()}
    return database._replace(drivers=left), kinds


class Facts(NamedTuple):
    """What the database says of itself, and what a transaction and a statement take: seconds."""

    limits: Limits | None
    transaction: float
    round_trip: float


def examine(database: Database) -> Facts:
    """Ask for the limits, then measure. Raises what connecting raises."""
    limits = None if database.drivers == ("sqlite",) else _limits(database)
    peer = _ours(database)[0]
    one, seconds = Settings(database.url), 0.05
    transaction = used(one._replace(transaction=True), seconds)(peer) / 1e6
    return Facts(limits, transaction, used(one, seconds)(peer) / 1e6)


def _ours(database: Database) -> list[Peer | AsyncPeer]:
    rows: list[Peer | AsyncPeer] = [*sync_peers.SYNC, *async_peers.ASYNC]
    return [row for row in rows if row.driver in database.drivers and row.name.startswith("poolkit")]


def _limits(database: Database) -> Limits:
    answer = asyncio.run(_asked_asyncpg(database.url)) if database.drivers == ("asyncpg",) else _asked(database)
    most, reserved, used_now = answer
    return Limits(most, reserved, max(0, used_now - 1))  # the connection that asked is ours


def _asked(database: Database) -> Sequence[int]:
    scheme = "postgresql" if "psycopg" in database.drivers else "postgresql+psycopg2"
    pool: Pool[Any] = Pool(with_scheme(database.url, scheme), max_size=1)
    try:
        with pool.acquire() as connection:
            cursor = connection.cursor()
            cursor.execute(QUESTION)
            row: Sequence[int] = cursor.fetchone()
            return row
    finally:
        pool.close(1)


async def _asked_asyncpg(url: str) -> Sequence[int]:
    pool: AsyncPool[Any] = AsyncPool(with_scheme(url, "postgresql+asyncpg"), max_size=1)
    try:
        async with pool.acquire() as connection:
            row: Sequence[int] = await connection.fetchrow(QUESTION)
            return row
    finally:
        await pool.close(1)


def run(database: Database, suites: Sequence[str], plan: Plan, size: int, told: Callable[[str], object]) -> Report:
    """Run these suites, and tell when each begins and what can't be measured."""
    report = Report(f"poolkit bench {database.shown}")
    report.conditions.update({"database": database.shown, "size": size, "cpus": os.cpu_count()})
    began = time.monotonic()
    ways: dict[str, Callable[[], object]] = {
        "micro": lambda: micro.run(report, database.url, database.drivers, plan),
        "query": lambda: _query(report, database, plan, size),
        "round_trips": lambda: round_trips.run(report, database.url, database.drivers),
        "contention": lambda: contention.run(report, database.url, database.drivers, plan, size=size),
    }
    for suite in suites:
        why = round_trips.countable(database.url) if suite == "round_trips" else ""
        told(why or f"{suite} ...")
        ways[suite]()
    for table in report.tables:
        table.targets.clear()  # they are the project's, for its own server on one processor with the client
    report.conditions["seconds"] = round(time.monotonic() - began, 1)
    return report


def _query(report: Report, database: Database, plan: Plan, size: int) -> None:
    query.run(report, {"your database": database.url}, database.drivers, plan)
    if "psycopg" in database.drivers:
        query.orders(report, database.url, plan, most=size)
