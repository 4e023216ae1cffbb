"""What it takes to reach a database from here: one connect and a few pings per name, through the pools' own drivers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import connections

from poolkit import ConfigError, PoolError
from poolkit_django import conf

__all__ = ["Probe", "names", "probe"]


@dataclass
class Probe:
    """What was found: seconds of the connect and of each ping, or the error that ended it."""

    name: str
    connect: float | None = None
    pings: list[float] = field(default_factory=list)
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.name}: {self.error}"
        middle = sorted(self.pings)[len(self.pings) // 2]
        worst = f", worst {max(self.pings) * 1000:.2f} ms of {len(self.pings)}" if len(self.pings) > 1 else ""
        return f"{self.name}: connect {(self.connect or 0) * 1000:.1f} ms, ping {middle * 1000:.2f} ms{worst}"


def names() -> list[str]:
    """Everything that can be asked: the aliases of DATABASES, and the pools of POOLKIT. Shared clients have no ping."""
    registry = conf.registry()
    return [*connections, *(name for name in registry.names if not registry.shares(name))]


def probe(name: str, *, timeout: float, count: int) -> Probe:
    """Connect within `timeout` seconds, then ping `count` times, each within `timeout`. Raises nothing of the server's.

    An alias whose engine does not lease from poolkit is asked through Django, and bound by its own timeouts only.
    """
    found = Probe(name)
    began = perf_counter()
    try:
        with _opened(name, timeout) as ask:
            found.connect = perf_counter() - began
            for _ in range(count):
                began = perf_counter()
                if not ask():
                    found.error = f"no answer to a ping within {timeout:g} s"
                    break
                found.pings.append(perf_counter() - began)
    except (PoolError, DatabaseError, ConfigError, ImproperlyConfigured) as error:
        found.error = str(error).partition("\n")[0]
    return found


@contextmanager
def _opened(name: str, timeout: float) -> Iterator[Callable[[], bool]]:
    pool = _pool(name)
    if pool is None:
        with _through_django(name) as ask:
            yield ask
        return
    driver: Any = pool.transactional  # each driver of a database is; the pool's own, and so its ping
    lease = pool.acquire(timeout)
    try:
        yield lambda: driver.ping(lease.resource, timeout)
    finally:
        lease.discard("probed")


def _pool(name: str) -> Any:
    if name not in connections:
        return conf.registry().pool(name)
    return next((pool for pool in conf.orm_pools() if pool.name == name), None)


@contextmanager
def _through_django(alias: str) -> Iterator[Callable[[], bool]]:
    connection = connections[alias]
    connection.close()
    try:
        connection.ensure_connection()
        yield connection.is_usable
    finally:
        connection.close()
