"""The pools behind the engines of this process: one for each alias, host, port, database, user and set of options.

NAME is a part of the key because it changes when a test database is made: a pool of the real one must never serve a
test. There is no lock here: a dictionary's setdefault is atomic, and a pool that loses the race was never opened.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakSet

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg import Connection, pq

from poolkit import ConfigError, Pool, PoolConfig
from poolkit.drivers.psycopg import PooledConnection, PsycopgDriver, within
from poolkit.registry import with_environ
from poolkit_django import signals

__all__ = [
    "close_all",
    "close_database",
    "cut_off",
    "is_pooled",
    "live",
    "open_spare",
    "pool_config",
    "pool_for",
    "retire",
]


class Wrapper(Protocol):
    """What a pool needs of an engine's DatabaseWrapper."""

    alias: str
    settings_dict: dict[str, Any]
    Database: Any

    def open_physical(self, defaults: Mapping[str, Any]) -> Any:
        """Connect, and set time zone, role and isolation level."""

    def configure_physical(self, connection: Any) -> None:
        """Set time zone and role."""

    def get_connection_params(self) -> dict[str, Any]:
        """The arguments of the connect."""


class _Key:
    """What a pool belongs to. Options are compared, not hashed: they may hold anything."""

    __slots__ = ("hashed", "options", "where")

    def __init__(self, alias: str, settings_dict: Mapping[str, Any]) -> None:
        given = settings_dict  # made for each lease, so it is spelt out: a loop takes three times as long
        self.where = (alias, given["HOST"], given["PORT"], given["NAME"], given["USER"])
        self.options = given["OPTIONS"]
        self.hashed = hash(self.where)

    def __hash__(self) -> int:
        return self.hashed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Key) or self.where != other.where:
            return False
        return self.options is other.options or self.options == other.options

    @property
    def database(self) -> tuple[str, str, str]:
        _, host, port, name, _ = self.where
        return host, str(port), name


class _Psycopg:
    """psycopg as Django's backend sees it, but that its connects can be bounded."""

    connect = staticmethod(PooledConnection.connect)

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)


class BackendDriver(PsycopgDriver[Any]):
    """Opens connections as Django's backend does, and looks after them as poolkit's psycopg driver does.

    `make` makes a wrapper of the engine's; each connect has one of its own, because a wrapper is one thread's.
    """

    def __init__(self, make: Callable[[], Wrapper], config: PoolConfig, where: str, *, fold_begin: bool) -> None:
        template = make()
        params = template.get_connection_params()
        options: dict[str, Any] = {name: params[name] for name in ("row_factory", "cursor_factory") if name in params}
        options["prepare_threshold"] = params.get("prepare_threshold")
        options["isolation_level"] = template.settings_dict["OPTIONS"].get("isolation_level")
        options["fold_begin"] = fold_begin
        super().__init__("postgresql://", options=options, config=config, where=where)
        self._make = make
        self._opened: WeakSet[Connection[Any]] = WeakSet()

    def open(self, timeout: float) -> Connection[Any]:
        """Connect within `timeout` seconds, and configure once for the life of the connection."""
        wrapper = self._make()
        wrapper.Database = _Psycopg()
        conninfo = self._conninfo(timeout)
        with within(timeout, {**conninfo, **wrapper.get_connection_params()}):
            conn: Connection[Any] = wrapper.open_physical(conninfo)
        self._fit(conn)
        self._opened.add(conn)
        return conn

    def reset(self, resource: Connection[Any], *, full: bool) -> None:
        """Make as new; a full reset takes time zone and role away, so they are set again."""
        super().reset(resource, full=full)
        if full:
            self._make().configure_physical(resource)

    def cut(self) -> None:
        """End every session at once, whoever uses it: their database is about to be dropped."""
        for conn in list(self._opened):
            if conn.pgconn.status != pq.ConnStatus.BAD:
                # Not close(): another thread may be inside the connection. It finds the end of the stream.
                with socket.socket(fileno=os.dup(conn.pgconn.socket)) as line:
                    line.shutdown(socket.SHUT_RDWR)


_pools: dict[_Key, tuple[Pool[Any], BackendDriver]] = {}


def is_pooled(settings_dict: Mapping[str, Any]) -> bool:
    """Whether an alias leases: False or None as OPTIONS["pool"] turns that off, as in Django's own backend."""
    return settings_dict["OPTIONS"].get("pool", True) not in (False, None)


def pool_config(alias: str, options: Mapping[str, Any]) -> PoolConfig:
    """Read OPTIONS["pool"], and `POOLKIT_<ALIAS>_<SETTING>` of the environment over it. Raises `ConfigError`."""
    where = f"DATABASES[{alias!r}]['OPTIONS']['pool']"
    given = options.get("pool", True)
    if given is True:
        given = {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"must be True, False or a mapping of pool settings, not {given!r}", where)
    PoolConfig.from_mapping(given, where=where)
    return PoolConfig.from_mapping(with_environ({alias: given}, os.environ)[alias], where=where)


def pool_for(wrapper: Wrapper) -> Pool[Any]:
    """Return the pool of a wrapper's database, made on first use; nothing is opened yet.

    Raises `ImproperlyConfigured` for settings that can't work.
    """
    key = _Key(wrapper.alias, wrapper.settings_dict)
    entry = _pools.get(key)
    if entry is None:
        made = _make(wrapper)
        entry = _pools.setdefault(made[0], made[1])
    return entry[0]


def _make(wrapper: Wrapper) -> tuple[_Key, tuple[Pool[Any], BackendDriver]]:
    # A copy: the test runner changes NAME in place, and this pool stays with its database.
    fixed = {**wrapper.settings_dict, "OPTIONS": dict(wrapper.settings_dict["OPTIONS"])}
    connects = {**fixed, "OPTIONS": dict(fixed["OPTIONS"])}
    fold_begin = connects["OPTIONS"].pop("fold_begin", True)  # not for libpq
    kind: Callable[..., Wrapper] = type(wrapper)
    alias = wrapper.alias  # not the wrapper, which is a thread's
    try:
        config = pool_config(wrapper.alias, fixed["OPTIONS"])
        where = f"DATABASES[{wrapper.alias!r}]['OPTIONS']"
        driver = BackendDriver(lambda: kind(connects, alias), config, where, fold_begin=fold_begin)
        pool: Pool[Any] = signals.attach(Pool(driver, config, name=wrapper.alias))
    except ConfigError as error:
        raise ImproperlyConfigured(str(error)) from error
    return _Key(wrapper.alias, fixed), (pool, driver)


def live() -> list[Pool[Any]]:
    """Every pool that exists in this process now."""
    return [pool for pool, _ in list(_pools.values())]


def retire(wrapper: Wrapper) -> None:
    """Close a wrapper's pool without hurry; the next connection comes from a new one."""
    entry = _pools.pop(_Key(wrapper.alias, wrapper.settings_dict), None)
    if entry is not None:
        entry[0].close(timeout=0)


def close_database(wrapper: Wrapper) -> None:
    """Close every pool on a wrapper's database, whatever its alias, and cut off who still uses it.

    For databases that are about to be dropped or copied: one forgotten connection would make the server refuse.
    """
    database = _Key(wrapper.alias, wrapper.settings_dict).database
    for key in [key for key in list(_pools) if key.database == database]:
        entry = _pools.pop(key, None)
        if entry is not None:
            pool, driver = entry
            if not pool.close(timeout=0):
                driver.cut()


def cut_off(wrapper: Wrapper) -> None:
    """End every session of a wrapper's pool, whoever uses it: their server is silent. New ones are opened as needed."""
    entry = _pools.get(_Key(wrapper.alias, wrapper.settings_dict))
    if entry is not None:
        pool, driver = entry
        driver.cut()
        pool.drain()


def open_spare(wrapper: Wrapper, timeout: float) -> Any:
    """Open a connection beside a wrapper's pool, within `timeout` seconds: to find out why all of that are out."""
    pool_for(wrapper)
    return _pools[_Key(wrapper.alias, wrapper.settings_dict)][1].open(timeout)


def close_all(timeout: float | None = None) -> None:
    """Close every pool; they are made anew if asked for."""
    for key in list(_pools):
        entry = _pools.pop(key, None)
        if entry is not None:
            entry[0].close(timeout)
