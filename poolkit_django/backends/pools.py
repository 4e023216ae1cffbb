"""The pools behind the engines of this process: one for each alias, host, port, database, user and set of options.

NAME is a part of the key because it changes when a test database is made: a pool of the real one must never serve a
test. There is no lock here: a dictionary's setdefault is atomic, and a pool that loses the race was never opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Protocol

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS

from poolkit import ConfigError, Pool, PoolConfig
from poolkit.registry import with_environ
from poolkit_django import signals

__all__ = [
    "OURS",
    "Known",
    "check_unpooled",
    "close_all",
    "close_database",
    "copy_options",
    "cut_off",
    "is_pooled",
    "known",
    "live",
    "pool_config",
    "pool_for",
    "retire",
    "settings_beside",
    "spare",
]

OURS = ("fold_begin", "harmless_functions", "session_settings", "statement_timeout")
"""Names in OPTIONS that are for poolkit's drivers, and not for the library."""


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


class Backend(Protocol):
    """What the pools need of an engine's driver, beside what every driver is."""

    def open(self, timeout: float) -> Any:
        """Connect within `timeout` seconds."""

    def close(self, resource: Any) -> None:
        """Close a connection."""

    def cut(self) -> None:
        """End every session at once, whoever uses it."""


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


class Known:
    """A pool and what it belongs to. A wrapper remembers it, for to look it up takes a few us."""

    __slots__ = ("_key", "driver", "forgotten", "pool")

    def __init__(self, key: _Key, pool: Pool[Any], driver: Backend) -> None:
        self._key = key
        self.pool = pool
        self.driver = driver
        self.forgotten = False

    def serves(self, wrapper: Wrapper) -> bool:
        """Whether it is still there, and what the wrapper's settings ask for; tests change them in place."""
        key, given = self._key, wrapper.settings_dict
        if self.forgotten or key.where != (wrapper.alias, given["HOST"], given["PORT"], given["NAME"], given["USER"]):
            return False
        options = given["OPTIONS"]
        return key.options is options or bool(key.options == options)


_pools: dict[_Key, Known] = {}
_SETTINGS = {field.name for field in fields(PoolConfig)} | {"size", "max_overflow", "recycle", "pre_ping"}


def is_pooled(settings_dict: Mapping[str, Any]) -> bool:
    """Whether an alias leases: False or None as OPTIONS["pool"] turns that off, as in Django's own backend.

    A SQLite database in memory is never pooled: it is its connection, and gone with it.
    """
    return settings_dict["OPTIONS"].get("pool", True) not in (False, None) and not _is_in_memory(settings_dict["NAME"])


def check_unpooled(alias: str, settings_dict: Mapping[str, Any]) -> None:
    """Raise `ImproperlyConfigured` where an alias without a pool has options for the pool's driver."""
    given = sorted(settings_dict["OPTIONS"].keys() & set(OURS))
    if given and alias != NO_DB_ALIAS:  # on that, a database is made or dropped
        names = ", ".join(map(repr, given))
        raise ImproperlyConfigured(f"DATABASES[{alias!r}]['OPTIONS']: {names} can't be set, for this alias has no pool")


def _is_in_memory(name: object) -> bool:
    return isinstance(name, str) and (name == ":memory:" or (name.startswith("file:") and "mode=memory" in name))


def pool_config(alias: str, options: Mapping[str, Any]) -> PoolConfig:
    """Read OPTIONS["pool"], and `POOLKIT_<ALIAS>_<SETTING>` of the environment over it. Raises `ConfigError`."""
    where = f"DATABASES[{alias!r}]['OPTIONS']['pool']"
    given = options.get("pool", True)
    if given is True:
        given = {}
    if not isinstance(given, Mapping):
        # Its type alone: a URL in the wrong place would show its password.
        raise ConfigError(f"must be True, False or a mapping like {{'max_size': 8}}, not {type(given).__name__}", where)
    PoolConfig.from_mapping(given, where=where)
    return PoolConfig.from_mapping(with_environ({alias: given}, os.environ)[alias], where=where)


def pool_for(wrapper: Wrapper) -> Pool[Any]:
    """Return the pool of a wrapper's database, made on first use; nothing is opened yet.

    Raises `ImproperlyConfigured` for settings that can't work.
    """
    return known(wrapper).pool


def known(wrapper: Wrapper) -> Known:
    """Return what `pool_for` does, for a wrapper to remember."""
    found = _pools.get(_Key(wrapper.alias, wrapper.settings_dict))
    if found is None:
        key, made = _make(wrapper)
        found = _pools.setdefault(key, made)
    return found


def copy_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copy OPTIONS with what is nested in it."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}


def _make(wrapper: Wrapper) -> tuple[_Key, Known]:
    # A copy: the test runner changes NAME in place, and this pool stays with its database.
    fixed = {**wrapper.settings_dict, "OPTIONS": copy_options(wrapper.settings_dict["OPTIONS"])}
    connects = {**fixed, "OPTIONS": dict(fixed["OPTIONS"])}
    connects["OPTIONS"].pop("pool", None)  # each of these wrappers connects by itself
    options = dict(connects["OPTIONS"])
    for name in OURS:
        connects["OPTIONS"].pop(name, None)
    kind: Any = type(wrapper)
    alias = wrapper.alias  # not the wrapper, which is a thread's
    try:
        _check_name(kind, alias, fixed["NAME"])
        config = pool_config(wrapper.alias, fixed["OPTIONS"])
        where = f"DATABASES[{wrapper.alias!r}]['OPTIONS']"
        driver = kind.driver_class(lambda: kind(connects, alias), options, config, where)
        pool: Pool[Any] = signals.attach(Pool(driver, config, name=wrapper.alias))
    except ConfigError as error:
        raise ImproperlyConfigured(str(error)) from error
    except ImproperlyConfigured as error:  # Django's own does not say which of them
        raise ImproperlyConfigured(f"DATABASES[{alias!r}]: {error}") from error
    key = _Key(wrapper.alias, fixed)
    return key, Known(key, pool, driver)


def _check_name(kind: Any, alias: str, name: object) -> None:
    """Refuse the path of a new project's SQLite file where the engine was changed to a server's, and NAME was not."""
    if isinstance(name, os.PathLike) and kind.vendor != "sqlite":
        raise ConfigError(
            f"is a path ({os.fspath(name)}), and {kind.display_name} needs the name of a database; for a file, "
            "ENGINE is 'poolkit_django.backends.sqlite3'",
            f"DATABASES[{alias!r}]['NAME']",
        )


def settings_beside(vendor: str, options: Mapping[str, Any]) -> list[str]:
    """Name the settings of the pool that stand beside "pool", where a URL's `?max_size=8` puts them.

    The client library refuses them, at each connect.
    """
    of_sqlite = {"timeout"} if vendor == "sqlite" else set()
    return [name for name in options if str(name).removeprefix("pool_") in _SETTINGS - of_sqlite]


def live() -> list[Pool[Any]]:
    """Every pool that exists in this process now."""
    return [known.pool for known in list(_pools.values())]


def _forget(key: _Key) -> Known | None:
    found = _pools.pop(key, None)
    if found is not None:
        found.forgotten = True
    return found


def retire(wrapper: Wrapper) -> None:
    """Close a wrapper's pool without hurry; the next connection comes from a new one."""
    found = _forget(_Key(wrapper.alias, wrapper.settings_dict))
    if found is not None:
        found.pool.close(timeout=0)


def close_database(wrapper: Wrapper) -> None:
    """Close every pool on a wrapper's database, whatever its alias, and cut off who still uses it.

    For databases that are about to be dropped or copied: one forgotten connection would make the server refuse.
    """
    database = _Key(wrapper.alias, wrapper.settings_dict).database
    for key in [key for key in list(_pools) if key.database == database]:
        found = _forget(key)
        if found is not None and not found.pool.close(timeout=0):
            found.driver.cut()


def cut_off(wrapper: Wrapper) -> None:
    """End every session of a wrapper's pool, whoever uses it: their server is silent. New ones are opened as needed."""
    found = _pools.get(_Key(wrapper.alias, wrapper.settings_dict))
    if found is not None:
        found.driver.cut()
        found.pool.drain()


@contextmanager
def spare(wrapper: Wrapper, timeout: float) -> Iterator[Any]:
    """Open a connection beside a wrapper's pool, within `timeout` seconds, and close it at the end of the block."""
    driver = known(wrapper).driver
    connection = driver.open(timeout)
    try:
        yield connection
    finally:
        driver.close(connection)  # its own `close` keeps the session, for a pool


def close_all(timeout: float | None = None) -> None:
    """Close every pool; they are made anew if asked for."""
    for key in list(_pools):
        found = _forget(key)
        if found is not None:
            found.pool.close(timeout)
