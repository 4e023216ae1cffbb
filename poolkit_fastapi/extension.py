"""Poolkit: what an app makes once, beside its FastAPI object."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware

from poolkit import (
    AsyncPool,
    AsyncUnitOfWork,
    ConfigError,
    Pool,
    Registry,
    UnitOfWork,
    async_unit_of_work,
    unit_of_work,
    web,
)
from poolkit.config import shown
from poolkit.unit_settings import UnitSettings
from poolkit_fastapi import custom_routes, handlers
from poolkit_fastapi.dependencies import Dependencies, Dependency
from poolkit_fastapi.lifespan import wrap_lifespan
from poolkit_fastapi.middleware import PoolkitMiddleware, current_exchange, yields
from poolkit_fastapi.retry import retryable
from poolkit_fastapi.routes import add_routes

__all__ = ["Poolkit"]

F = TypeVar("F", bound=Callable[..., Any])
logger = logging.getLogger("poolkit")

WHERE = "Poolkit(...)"
_TOO_LATE = (
    "what runs after the endpoint asks for its own: `await uow.get()` with Depends(db.unit_of_work), or `async with "
    "db.transaction() as conn`; the code after the `yield` of a dependency is in time with "
    'Depends(..., scope="function")'
)
WARM_SECONDS = 3.0  # a server that does not answer holds up the start for so long and no longer


class Poolkit:
    """The connections of a FastAPI or Starlette app.

    `settings` maps names to settings, as for `poolkit.Registry`; without them `DATABASE_URL` and `POOLKIT_<NAME>_URL`
    of the environment count. `prefix` is where health, ready and stats.json answer (None: nowhere), `stats_token` is
    the bearer token for the numbers, and `stats="loopback"` opens them to this machine, for development (neither:
    no one sees them). `rollback_on(status)` says of a returned response whether to roll back all the same. `units` is
    how units of work behave, see `poolkit.unit_settings`: {"swallowed_error": "raise"} say. Opens nothing. Raises one
    `ConfigError` with everything that is wrong.

    A connection is the endpoint's until the endpoint returns: then the unit commits and the connection is someone
    else's. A streamed body or a background task takes `Depends(db.unit_of_work)` and asks it: `await uow.get()`.
    """

    def __init__(  # noqa: PLR0913  one for each setting
        self,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        prefix: str | None = "/poolkit",
        stats_token: str | None = None,
        stats: Literal["loopback"] | None = None,
        rollback_on: Callable[[int], bool] | None = None,
        units: Mapping[str, Any] | None = None,
    ) -> None:
        self.registry = _checked(settings, units, _faults(prefix, stats_token, stats, rollback_on))
        self.registry.advice = _TOO_LATE
        self.prefix = prefix
        self.stats_token = stats_token
        self.stats = stats
        self.rollback_on = rollback_on
        self.yields = functools.lru_cache(maxsize=4096)(yields)  # it goes with the app, and so do its endpoints
        custom_routes.watch()
        self.dependencies = Dependencies(self)
        self.unit_of_work = self.dependencies.unit_of_work
        """Depend on it for the request's `AsyncUnitOfWork`; nothing is leased before `await uow.get()`."""
        self.connection: Dependency = self.dependencies.connection("default")
        """Depend on it for this request's connection, in `async def` endpoints."""
        self.sync_connection: Dependency = self.dependencies.connection("default", sync=True)
        """Depend on it for this request's connection, in `def` endpoints. No thread is blocked by who waits."""

    def __repr__(self) -> str:
        return f"<Poolkit of {', '.join(self.registry.names) or 'nothing'}>"

    def init_app(self, app: Starlette) -> None:
        """Bring this to an app, before its first request: lifespan, middleware, 503s and pages.

        The app's own lifespan and handlers stay. Raises `ConfigError` where it was done before.
        """
        if app.middleware_stack is not None:
            raise ConfigError("came too late: the app has started", "init_app")
        if any(entry.kwargs.get("kit") is self for entry in app.user_middleware):
            raise ConfigError("this Poolkit knows this app already", "init_app")
        if self.prefix is not None:
            add_routes(app, self, self.prefix)
        wrap_lifespan(app, self)
        handlers.install(app)
        app.user_middleware.append(Middleware(PoolkitMiddleware, kit=self, owner=app))

    # -- dependencies ---------------------------------------------------------------------------------------------

    def named(self, name: str) -> Dependency:
        """Return the dependency for a connection of that name: the same function each time.

        Raises `ConfigError` for a name that is not in the settings.
        """
        return self.dependencies.connection(name)

    def sync_named(self, name: str) -> Dependency:
        """Return the same for `def` endpoints."""
        return self.dependencies.connection(name, sync=True)

    def retryable(self, attempts: int = 3) -> Callable[[F], F]:
        """Decorate an endpoint so that it runs again after a serialization failure or a deadlock.

        At most `attempts` times in all; each try is committed before the endpoint's response is serialised. Goes below
        the route's decorator. Everything in the endpoint must be safe to run again; where another dependency uses the
        connection as well, the endpoint is tried once, with a warning.
        """
        return retryable(self, attempts)

    # -- anywhere -------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Any:
        """Return this process's shared client of that name, an HTTP session say.

        Raises `ConfigError` for what is leased and not shared.
        """
        if not self.registry.shares(name):
            raise ConfigError(
                f"{name!r} is a pool: depend on db.named({name!r}), or use db.transaction({name!r})", WHERE
            )
        return self.registry.client(name).get()

    def transaction(self, name: str = "default", **options: Any) -> Transaction:
        """Take a connection in a transaction of its own, wherever a loop runs: per websocket message, in a task.

        Commits when the block ends, whatever becomes of a request around it; rolls back when it raises. The options are
        the transaction's, as of `AsyncUnitOfWork.get`: `isolation_level`, `read_only`, `deferrable`, `settings`.
        """
        return Transaction(self.begin(), name, options)

    def pool(self, name: str = "default") -> AsyncPool[Any]:
        """Return the running loop's pool of that name: `async with db.pool().acquire() as conn:` has no transaction.

        The least that a connection can cost in an `async def` endpoint, for one statement that needs no transaction.
        Raises `ConfigError` for a name that is not in the settings.
        """
        return self.registry.async_pool(name)

    def begin(self) -> async_unit_of_work:
        """Take a unit of work of its own: `async with db.begin() as uow`. For several resources with one end."""
        return async_unit_of_work(self.registry, new=True, label=self._label())

    def sync_transaction(self, name: str = "default", **options: Any) -> SyncTransaction:
        """Take the same in a thread: a `def` endpoint, a `def` background task, a task of Celery.

        `with db.sync_transaction() as conn:` waits for the connection in its thread.
        """
        return SyncTransaction(self.sync_begin(), name, options)

    def sync_pool(self, name: str = "default") -> Pool[Any]:
        """Return this process's pool for threads: `with db.sync_pool().acquire() as conn:` has no transaction."""
        return self.registry.pool(name)

    def sync_begin(self) -> unit_of_work:
        """Take a unit of work of its own in a thread: `with db.sync_begin() as uow`."""
        return unit_of_work(self.registry, new=True, label=self._label())

    def _label(self) -> str:
        exchange = current_exchange(self)
        return "transaction" if exchange is None else exchange.label

    # -- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the first connections; a server that is away is no error. The lifespan does it."""
        if not self.registry.names:
            logger.warning("poolkit has no settings: give Poolkit(...) some, or set DATABASE_URL")
        await self.registry.awarm(WARM_SECONDS)

    async def close(self) -> None:
        """Close everything, waiting up to each pool's `close_timeout` for what is in use. The lifespan does it."""
        await self.registry.aclose()


class Transaction:
    """What `Poolkit.transaction` returns: `async with` it for the connection, once."""

    __slots__ = ("_block", "_name", "_options")

    def __init__(self, block: async_unit_of_work, name: str, options: dict[str, Any]) -> None:
        self._block = block
        self._name = name
        self._options = options

    async def __aenter__(self) -> Any:
        unit: AsyncUnitOfWork = await self._block.__aenter__()
        try:
            return await unit.get(self._name, **self._options)
        except BaseException as error:
            await self._block.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._block.__aexit__(kind, error, tb)


class SyncTransaction:
    """What `Poolkit.sync_transaction` returns: `with` it for the connection, once."""

    __slots__ = ("_block", "_name", "_options")

    def __init__(self, block: unit_of_work, name: str, options: dict[str, Any]) -> None:
        self._block = block
        self._name = name
        self._options = options

    def __enter__(self) -> Any:
        unit: UnitOfWork = self._block.__enter__()
        try:
            return unit.get(self._name, **self._options)
        except BaseException as error:
            self._block.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._block.__exit__(kind, error, tb)


def _checked(
    settings: Mapping[str, Mapping[str, Any]] | None, units: Mapping[str, Any] | None, faults: list[str]
) -> Registry:
    behaviour = None
    try:
        behaviour = UnitSettings.from_mapping({} if units is None else units)
    except ConfigError as error:
        faults += [f"units: {text}" for text in error.problems]
    try:
        registry = web.registry_from(settings, where=WHERE, units=behaviour)
    except ConfigError as error:
        raise ConfigError([*error.problems, *faults], error.where) from None
    if faults:
        raise ConfigError(faults, WHERE)
    return registry


def _faults(prefix: object, stats_token: object, stats: object, rollback_on: object) -> list[str]:
    faults = []
    if prefix is not None and (not isinstance(prefix, str) or not prefix.startswith("/") or prefix.endswith("/")):
        faults.append(f"prefix must begin with / and not end with it, or be None, not {shown(prefix)}")
    if stats_token is not None and (not isinstance(stats_token, str) or not stats_token):
        faults.append("stats_token must be a text that is not empty, or None")
    if fault := web.stats_fault(stats):
        faults.append(f"stats {fault}")
    if rollback_on is not None and not callable(rollback_on):
        faults.append(f"rollback_on must be a callable that takes a status, not {shown(rollback_on)}")
    return faults
