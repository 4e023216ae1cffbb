"""Native async access: a driver's own async connection, on the settings of an alias of DATABASES.

    async with poolkit_django.aconnection() as conn:     # psycopg.AsyncConnection, or asyncpg.Connection
        cursor = await conn.execute("SELECT name FROM shop_product WHERE id = %s", [7])

For hot async views: no thread stands between the view and the server. The connection is leased for the block alone,
from a pool of this process, this event loop and this alias. It is set up as the ORM's are, and has nothing to do with
the request's unit of work: each statement commits for itself, and `atransaction()` makes the block a transaction.

POOLKIT_ASYNC = {"default": {"driver": "asyncpg", "max_size": 4}} sets what differs from OPTIONS["pool"] of the alias:
`driver`, "psycopg" (the default) or "asyncpg"; any setting of a pool; and `options`, arguments for the driver. Without
it the pool has the settings of OPTIONS["pool"], but keeps no connection open (min_size is 0). It is a pool of its own:
a process that uses an alias both ways may have `max_size` connections in each. Where DISABLE_SERVER_SIDE_CURSORS tells
of a pooler in between, asyncpg keeps no prepared statements; psycopg keeps none unless `prepare_threshold` says so.

Where an event loop lives for one call only (an async view under WSGI, anything else in `async_to_sync`), there is
nothing to keep a pool in: each block connects, and closes at its end.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from concurrent import futures
from types import TracebackType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from asgiref.sync import AsyncToSync, sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections

from poolkit import AsyncPool, ConfigError, PoolConfig, UnitOfWorkError, fork
from poolkit.config import nearest, overlay
from poolkit.registry import with_environ
from poolkit_django import signals
from poolkit_django.scopes import current_scope

__all__ = [
    "aclose",
    "aconnection",
    "atransaction",
    "check_settings",
    "close_database",
    "configured",
    "live",
    "of_this_loop",
    "pool_for",
    "ready_elsewhere",
    "warm_soon",
]

logger = logging.getLogger("poolkit")

_DRIVERS = {"psycopg": "NativePsycopg", "asyncpg": "NativeAsyncpg"}
_SETTING = "POOLKIT_ASYNC"
_HOOKS = ("configure", "setup", "ping", "on_close")
_PATIENCE = 0.5  # seconds beyond what a pool was given: for a loop that is busy with other things


class aconnection:  # noqa: N801  used like a function: async with aconnection() as conn
    """Lease a native async connection for a block; it is in autocommit.

    `alias`: of DATABASES, with one of poolkit's PostgreSQL engines. `timeout`: seconds to wait for a connection
    (default: the pool's). Raises what `AsyncPool.acquire` raises (the middleware makes a 503 of it),
    `ImproperlyConfigured` for settings that can't work, and `UnitOfWorkError` in a TestCase, into whose transaction it
    could not see.
    """

    def __init__(self, alias: str = DEFAULT_DB_ALIAS, *, timeout: float | None = None) -> None:
        self._alias = alias
        self._timeout = timeout
        self._own: AsyncPool[Any] | None = None

    async def __aenter__(self) -> Any:
        if _tests_run():
            await sync_to_async(_ask_the_test, thread_sensitive=True)(self._alias)
        pool = self._pool()
        try:
            conn = await self._enter(pool)
        except BaseException:
            await self._close_own()
            raise
        scope = current_scope()
        if scope is not None:
            self._lease.label(scope.label)
        return conn

    def _pool(self) -> AsyncPool[Any]:
        loop = asyncio.get_running_loop()
        if loop not in AsyncToSync.loop_thread_executors:
            return pool_for(self._alias)
        _say_that_nothing_is_pooled()
        self._own = _made(self._alias).pool
        return self._own

    async def _enter(self, pool: AsyncPool[Any]) -> Any:
        self._lease = await pool.acquire(self._timeout)
        return self._lease.resource

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self._leave(kind, error, tb)
        finally:
            await self._close_own()

    async def _leave(
        self,
        kind: type[BaseException] | None,  # noqa: ARG002  the block of a transaction wants all three
        error: BaseException | None,
        tb: TracebackType | None,  # noqa: ARG002
    ) -> None:
        if not self._lease.inherited:
            await self._lease.release(error)

    async def _close_own(self) -> None:
        if self._own is not None:
            await self._own.close()


class atransaction(aconnection):  # noqa: N801  used like a function
    """Lease a native async connection for a transaction: committed when the block ends, rolled back when it raises.

    It is no part of the request's unit of work: what it commits stays, whatever becomes of the request. The arguments
    are those of `aconnection`. Raises what that raises, the driver's own error where the COMMIT fails, and
    `CommitFailed` where a failed statement had aborted the transaction and its error was ignored.
    """

    async def _enter(self, pool: AsyncPool[Any]) -> Any:
        self._block = pool.transaction(self._timeout)
        conn = await self._block.__aenter__()
        self._lease = self._block._lease  # noqa: SLF001  for its label
        return conn

    async def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._block.__aexit__(kind, error, tb)


# -- the pools of this process: one for each loop and database ---------------------------------------------------------


class _Made(NamedTuple):
    """A pool, its driver, and the OPTIONS it was made from, which may hold anything and are compared."""

    pool: AsyncPool[Any]
    driver: Any
    options: Mapping[str, Any]


_Where = tuple[Any, ...]


class _Pools:
    def __init__(self) -> None:
        self._start()
        fork.know(self)

    def _start(self) -> None:
        self.lock = threading.Lock()
        self.by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Where, _Made]] = WeakKeyDictionary()

    def of_loop(self, loop: asyncio.AbstractEventLoop) -> dict[_Where, _Made]:
        with self.lock:
            self._leave_closed_loops()
            return self.by_loop.setdefault(loop, {})

    def all(self) -> list[tuple[asyncio.AbstractEventLoop, dict[_Where, _Made]]]:
        with self.lock:
            self._leave_closed_loops()
            return list(self.by_loop.items())

    def _leave_closed_loops(self) -> None:
        """Let go of the connections of loops that were closed before their pools."""
        for loop in [loop for loop in self.by_loop if loop.is_closed()]:
            for made in self.by_loop.pop(loop).values():
                made.pool.at_exit()

    def after_fork_in_child(self) -> None:
        """The pools know by themselves; the loops are the parent's."""
        fork.keep(self.by_loop)
        self._start()

    def at_exit(self) -> None:
        """The pools close by themselves."""


_pools = _Pools()


def pool_for(alias: str = DEFAULT_DB_ALIAS) -> AsyncPool[Any]:
    """Return the running loop's pool of an alias, made on first use. Raises `ImproperlyConfigured`."""
    loop = asyncio.get_running_loop()
    own = _pools.by_loop.get(loop)
    if own is None:
        own = _pools.of_loop(loop)
    found = connections.settings[alias] if alias in connections.settings else connections[alias].settings_dict
    where = _where(alias, found)
    made = own.get(where)
    if made is None or (made.options is not found["OPTIONS"] and made.options != found["OPTIONS"]):
        made = own[where] = _made(alias)
    return made.pool


def _where(alias: str, given: Mapping[str, Any]) -> _Where:
    # NAME is a part of it: a test database has another one
    return alias, given["HOST"], given["PORT"], given["NAME"], given["USER"]


def _made(alias: str) -> _Made:
    wrapper = connections[alias]
    if not getattr(wrapper, "leases_from_poolkit", False) or wrapper.vendor != "postgresql":
        raise ImproperlyConfigured(
            f"aconnection({alias!r}) needs one of poolkit's PostgreSQL engines, and the alias has "
            f"{wrapper.settings_dict['ENGINE']!r}; use the ORM's own async methods there"
        )
    if wrapper.settings_dict["OPTIONS"].get("pool", True) in (False, None):
        raise ImproperlyConfigured(
            f"aconnection({alias!r}) needs a pool, and DATABASES[{alias!r}]['OPTIONS']['pool'] turns it off"
        )
    try:
        return _make(alias, wrapper)
    except ConfigError as error:
        raise ImproperlyConfigured(str(error)) from error


def _make(alias: str, wrapper: Any) -> _Made:
    from poolkit_django.drivers.session import Session  # noqa: PLC0415  it needs the apps' settings

    where = f"{_SETTING}[{alias!r}]"
    kind, options, config = _read(alias, wrapper.settings_dict["OPTIONS"])
    try:
        module = importlib.import_module(f"poolkit_django.drivers.{kind}")
    except ImportError as error:
        advice = f"pip install 'poolkit[{kind}]'"
        raise ConfigError(f"the driver {kind!r} is not installed: {advice} ({error})", where) from error
    session = Session(type(wrapper), alias, wrapper.settings_dict)
    driver = getattr(module, _DRIVERS[kind])(session, options, config, where)
    pool: AsyncPool[Any] = signals.attach(AsyncPool(driver, config, name=f"{alias}:async"))
    return _Made(pool, driver, dict(wrapper.settings_dict["OPTIONS"]))


# -- settings ---------------------------------------------------------------------------------------------------------


def _given() -> Mapping[str, Any]:
    given = getattr(settings, _SETTING, None)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"must map aliases to settings, not {type(given).__name__}", f"settings.{_SETTING}")
    for alias, found in given.items():
        if alias not in connections.settings:
            guess = nearest(str(alias), connections.settings)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"{alias!r} is no alias of DATABASES{hint}", f"settings.{_SETTING}")
        if not isinstance(found, Mapping):
            raise ConfigError(f"must be a mapping, not {type(found).__name__}", f"{_SETTING}[{alias!r}]")
    return given


def _read(alias: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], PoolConfig]:
    """Return the driver's name, its options, and the pool's settings: POOLKIT_ASYNC over OPTIONS["pool"].

    `POOLKIT_ASYNC_<ALIAS>_<SETTING>` of the environment goes over both. Raises `ConfigError`.
    """
    from poolkit_django.backends import pools  # noqa: PLC0415  it imports a driver, which only the engine needs

    where = f"{_SETTING}[{alias!r}]"
    over = dict(_given().get(alias, {}))
    kind, given = over.pop("driver", "psycopg"), over.pop("options", {})
    problems = _misspelt(over)
    if kind not in _DRIVERS:
        problems.append(f"driver must be one of {', '.join(map(repr, _DRIVERS))}, not {kind!r}")
    if not isinstance(given, Mapping):
        problems.append(f"options must be a mapping of driver settings, not {type(given).__name__}")
    if problems:
        raise ConfigError(problems, where)
    base = pools.pool_config(alias, options)
    PoolConfig.from_mapping(over, where=where)
    foreign = [name for name in _HOOKS if getattr(base, name) is not None and name not in over]
    if foreign:
        advice = "set it here, for native connections, or to None"
        raise ConfigError(
            [f"OPTIONS['pool'][{name!r}] is for the ORM's connections: {advice}" for name in foreign], where
        )
    name = f"async_{alias}"
    over = with_environ({name: over}, os.environ)[name]
    inherited = {setting: getattr(base, setting) for setting in PoolConfig.names() if setting != "min_size"}
    return kind, given, PoolConfig.from_mapping(overlay(inherited, over), where=where)


def _misspelt(over: Mapping[str, Any]) -> list[str]:
    """What was meant for `driver` or `options`, which no pool knows; the pool's own settings it tells itself."""
    unknown = [name for name in over if isinstance(name, str) and not nearest(name, PoolConfig.names())]
    guesses = [(name, nearest(name, ("driver", "options"))) for name in unknown]
    return [f"unknown setting {name!r}: did you mean {guess!r}?" for name, guess in guesses if guess]


def check_settings() -> None:
    """Make every pool that POOLKIT_ASYNC names, and open none. Raises `ImproperlyConfigured`."""
    try:
        named = list(_given())
    except ConfigError as error:
        raise ImproperlyConfigured(str(error)) from error
    for alias in named:
        _made(alias)


def configured() -> dict[str, PoolConfig]:
    """The settings of the pools that POOLKIT_ASYNC names, by alias. Raises `ConfigError`."""
    return {alias: _read(alias, connections.settings[alias]["OPTIONS"])[2] for alias in _given()}


# -- life -------------------------------------------------------------------------------------------------------------


def live() -> list[AsyncPool[Any]]:
    """Every native pool that exists in this process now, of all loops."""
    return [made.pool for _, pools in _pools.all() for made in list(pools.values())]


def of_this_loop() -> list[AsyncPool[Any]]:
    """The running loop's pools: those that are there, and one for each alias that POOLKIT_ASYNC names."""
    for alias in _given():
        pool_for(alias)
    return [made.pool for made in _pools.of_loop(asyncio.get_running_loop()).values()]


def warm_soon(timeout: float | None = None) -> None:
    """Have the running loop open the first connections of the pools that POOLKIT_ASYNC names, when it goes on.

    Where no loop runs, or one that lives for one call only, there is nothing to open.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if loop not in AsyncToSync.loop_thread_executors:
        for pool in of_this_loop():
            task = loop.create_task(pool.warm(timeout))
            _warming.add(task)
            task.add_done_callback(_warming.discard)


_warming: set[asyncio.Task[bool]] = set()  # a loop keeps no task from being collected


def ready_elsewhere(timeout: float = 1.0) -> bool:
    """Whether every native pool of a loop that runs in another thread can serve; one that is stuck can't."""
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    loops = [(loop, pools) for loop, pools in _pools.all() if loop is not here and loop.is_running()]
    asked = [
        asyncio.run_coroutine_threadsafe(made.pool.ready(timeout), loop)
        for loop, pools in loops
        for made in list(pools.values())
    ]
    _, late = futures.wait(asked, timeout + _PATIENCE)
    for future in late:
        future.cancel()
    return not late and all(future.result() for future in asked)


async def aclose(timeout: float | None = None) -> None:
    """Close the running loop's pools; they are made anew if asked for."""
    own = _pools.of_loop(asyncio.get_running_loop())
    pools = [own.pop(where).pool for where in list(own)]
    await asyncio.gather(*(pool.close(timeout) for pool in pools))


def close_database(given: Mapping[str, Any]) -> None:
    """Cut off every native connection to the database of these settings, of whatever loop, and forget its pools.

    For databases that are about to be dropped or copied. May be called from any thread.
    """
    database = given["HOST"], given["PORT"], given["NAME"]
    for loop, pools in _pools.all():
        for where in [where for where in list(pools) if where[1:4] == database]:
            made = pools.pop(where, None)
            if made is not None:
                _end(loop, made)


def _end(loop: asyncio.AbstractEventLoop, made: _Made) -> None:
    made.driver.cut()
    if loop.is_running():
        loop.call_soon_threadsafe(lambda: loop.create_task(made.pool.close(0)))
    else:
        made.pool.at_exit()


def _forget(*, setting: str, **_: Any) -> None:
    """Tests change settings; what was made of the old ones goes."""
    if setting in {_SETTING, "DATABASES", "TIME_ZONE", "USE_TZ"}:
        for loop, pools in _pools.all():
            for where in list(pools):
                made = pools.pop(where, None)
                if made is not None:
                    _end(loop, made)


setting_changed.connect(_forget, dispatch_uid="poolkit_django.native")


# -- tests ------------------------------------------------------------------------------------------------------------


def _tests_run() -> bool:
    """Whether Django's test environment is set up. Not imported for that: it is not for production."""
    utils = sys.modules.get("django.test.utils")
    return utils is not None and hasattr(utils._TestState, "saved_data")  # noqa: SLF001  there is no other way to ask


def _ask_the_test(alias: str) -> None:
    """Raise where a test forbids the database, or has a transaction around it. Runs in the test's own thread."""
    connection = connections[alias]
    if connection.connection is None:
        connection.ensure_connection()  # Django and pytest-django say their no here
    if any(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks):
        raise UnitOfWorkError(
            f"aconnection({alias!r}) is a connection of its own, and would see nothing of what this TestCase has "
            "written in its transaction: use TransactionTestCase (in pytest-django: django_db(transaction=True))"
        )
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


_said: set[str] = set()


def _say_that_nothing_is_pooled() -> None:
    if not _said and not _tests_run():
        _said.add("once")
        logger.warning(
            "aconnection() in an event loop that lives for one call (an async view under WSGI, async_to_sync): each "
            "block connects anew. Serve async views with ASGI, or use the ORM"
        )
