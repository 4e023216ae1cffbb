"""Poolkit: what an app has once, beside its Flask object."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import flask.globals
from flask import Flask, current_app, has_app_context

from poolkit import ConfigError, Pool, Registry, UnitOfWork, UnitOfWorkError, blocks, current, retrying
from poolkit import registry as registries
from poolkit_flask import settings
from poolkit_flask.binding import Binding
from poolkit_flask.cli import commands
from poolkit_flask.unit import RequestUnit, Transaction, body_unit

__all__ = ["Poolkit"]

F = TypeVar("F", bound=Callable[..., Any])
logger = logging.getLogger("poolkit")

KEY = "poolkit"
_TOO_LATE = (
    "what runs after the view asks again: `db.connection` in a streamed body, `with db.transaction() as conn:` in a "
    "thread or task"
)

# Each use of the connection asks which app this is; has_app_context() and current_app would take four times as long.
_app_contexts: ContextVar[Any] = flask.globals._cv_app  # noqa: SLF001


class Poolkit:
    """The connections of Flask apps: `db = Poolkit(app)`, or `db = Poolkit()` and later `db.init_app(app)`.

    Settings stand in `app.config`: `POOLKIT` maps names to settings, as for `poolkit.Registry` (without it
    `DATABASE_URL` and `POOLKIT_<NAME>_URL` of the environment count); `POOLKIT_URL_PREFIX` is where health, ready and
    stats.json answer ("/poolkit"; None: nowhere); `POOLKIT_STATS_TOKEN` is the bearer token for the numbers,
    and `POOLKIT_STATS = "loopback"` opens them to this machine, for development (neither: no one sees them);
    `POOLKIT_ROLLBACK_ON(status)` says of a returned response whether to roll back all the same;
    `POOLKIT_UNITS` is how units of work behave, see `poolkit.unit_settings`: {"swallowed_error": "raise"} say.

    A view that returns has committed before the first byte of its response; one that raises has rolled back, before
    any error handler runs. What an error handler or a streamed body asks for has no transaction.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Bring this to an app, before its first request. Opens nothing.

        Raises one `ConfigError` with everything that is wrong in the settings, or where the app has a Poolkit already.
        """
        if KEY in app.extensions:
            raise ConfigError(
                f"the app {app.name!r} has a Poolkit already. One holds any number of connections, by name: "
                'app.config["POOLKIT"] = {"default": {...}, "replica": {...}}',
                "init_app",
            )
        binding = Binding(app, settings.read(app.config), self)
        binding.registry.advice = _TOO_LATE
        for name, default in settings.DEFAULTS.items():
            app.config.setdefault(name, default)
        binding.install()
        app.cli.add_command(commands)
        app.extensions[KEY] = binding
        self._bindings.add(binding)
        # An app that a test made and dropped keeps no connections; at exit the pools close by themselves.
        weakref.finalize(app, binding.registry.close, 0).atexit = False

    # -- in a request ---------------------------------------------------------------------------------------------

    @property
    def connection(self) -> Any:
        """This request's connection named "default", the driver's own object.

        It is taken, and a transaction begun, on first use. Outside a request it belongs to the `with db.begin()` around
        the code; where there is neither, this raises `UnitOfWorkError`, for nothing would say when to commit. Raises
        what `Pool.acquire` raises; that makes a 503 by itself.
        """
        return self.unit_of_work.get()

    def get(self, name: str = "default", **options: Any) -> Any:
        """Return this request's connection of that name, or this process's shared client, which needs no request.

        The options are the transaction's, as of `UnitOfWork.get`: `db.get(read_only=True)`.
        """
        unit = self._unit()
        if unit is not None:
            return unit.get(name, **options)
        registry = self.registry
        if registry.shares(name):
            return registry.client(name).get()
        raise _no_request()

    @property
    def unit_of_work(self) -> UnitOfWork:
        """The unit of work this code runs in: `doom()`, `commit()`, `on_commit(hook)`, `stream()`; see `connection`."""
        unit = self._unit()
        if unit is None:
            raise _no_request()
        return unit

    def _unit(self) -> UnitOfWork | None:
        """Find the unit: a block's inside the request, else the request's (though it has ended), else the body's."""
        binding = self._binding()
        unit = current()
        if isinstance(unit, UnitOfWork) and unit.registry is binding.registry:
            return unit
        found = binding.find()
        if found is not None and not found.ended and not found.owned_here():
            raise UnitOfWorkError(
                f"{found.label}: this task or thread only copied the context of the request, whose connection is not "
                "its own. It takes one for itself, `with db.transaction() as conn:`, or a share of the request's: "
                "`with uow.share():` inside it, where uow is db.unit_of_work, taken by the view"
            )
        return found

    def retryable(self, attempts: int = 3) -> Callable[[F], F]:
        """Decorate a view so that it runs again after a serialization failure or a deadlock.

        At most `attempts` times in all; each try is committed before the response is finished. Goes right below the
        route's decorator. Everything in the view must be safe to run again. Where the connection was used before the
        view (in `before_request`, say), the view is tried once, with a warning.
        """
        if type(attempts) is not int or attempts < 1:
            raise ConfigError(f"attempts must be a whole number from 1 up, not {attempts!r}", "retryable")

        def decorate(view: F) -> F:
            @functools.wraps(view)
            def call(*args: Any, **kwargs: Any) -> Any:
                unit = self.unit_of_work
                if unit.used:
                    logger.warning("%s: tried once only, its connection was in use before the view", unit.label)
                return retrying.run_retryable(unit, lambda: _once(view, unit, args, kwargs), attempts)

            return call  # type: ignore[return-value]

        return decorate

    # -- anywhere -------------------------------------------------------------------------------------------------

    def begin(self, *, new: bool = False, label: str = "") -> blocks.unit_of_work:
        """Take a unit of work for a command, a script or a test: `with db.begin() as uow: db.connection.execute(...)`.

        It commits when the block ends and rolls back when it raises. Inside a request it is part of the request's,
        unless `new`. `label` is what the numbers call it.
        """
        return blocks.unit_of_work(self.registry, new=new, label=label or "db.begin()")

    def transaction(self, name: str = "default", **options: Any) -> Transaction:
        """Take a connection in a transaction of its own, whatever becomes of a request around it.

        `with db.transaction() as conn:` commits when the block ends and rolls back when it raises. In a streamed body:
        one per page, so that nothing is held while the client reads. In a thread: it needs no request. The options are
        the transaction's, as of `UnitOfWork.get`: `isolation_level`, `read_only`, `deferrable`, `settings`.
        """
        binding = self._binding()
        return Transaction(UnitOfWork(binding.registry, binding.label("db.transaction()")), name, options)

    def pool(self, name: str = "default") -> Pool[Any]:
        """Return this process's pool of that name: `with db.pool().acquire() as conn:` has no transaction."""
        return self.registry.pool(name)

    @property
    def registry(self) -> Registry:
        """The pools of the current app; of the only one there is where no app is current, as in a thread."""
        return self._binding().registry

    def warm(self, app: Flask | None = None, timeout: float | None = None) -> bool:
        """Open the first connections; return whether all are there. Never raises because a server is away.

        WSGI has no event for the start of a worker, but gunicorn has; call it there, in the worker, never in a master:

            def post_worker_init(worker):       # in gunicorn.conf.py
                db.warm()

        `app` is needed where there are several. `timeout` is in seconds, for each pool; the pool's own by default.
        """
        return self._binding(app).registry.warm(timeout)

    def close(self, app: Flask | None = None, timeout: float | None = None) -> None:
        """Close every pool, waiting up to `timeout` seconds for what is in use: for tests that make many apps.

        At exit it happens by itself. Pools are made anew if asked for.
        """
        self._binding(app).registry.close(timeout)

    def _binding(self, app: Flask | None = None) -> Binding:
        context = _app_contexts.get(None) if app is None else None
        if context is not None:
            app = context.app
        if app is not None:
            return self._of(app)
        body = body_unit()
        bindings = [one for one in self._bindings if body is None or body.registry is one.registry]
        if len(bindings) == 1:
            return bindings[0]
        if bindings:
            raise RuntimeError(f"{len(bindings)} apps have this Poolkit: say which by `with app.app_context():`")
        raise RuntimeError("this Poolkit has no app yet: call db.init_app(app)")

    def _of(self, app: Flask) -> Binding:
        binding: Binding | None = app.extensions.get(KEY)
        if binding is None or binding.owner is not self:
            other = "no Poolkit" if binding is None else "another Poolkit than this one"
            raise RuntimeError(f"the app {app.name!r} has {other}: call db.init_app(app)")
        return binding


def _no_request() -> UnitOfWorkError:
    return UnitOfWorkError(
        "there is no request here, so nothing says when to commit. Around this code write `with db.begin() as uow:` "
        "for one transaction, or `with db.pool().acquire() as conn:` for none"
    )


def _once(view: Callable[..., Any], unit: UnitOfWork, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a retryable view; the veto on the status has to be asked here, because the unit ends with the view."""
    response = current_app.make_response(current_app.ensure_sync(view)(*args, **kwargs))
    if isinstance(unit, RequestUnit) and unit.is_open and unit.vetoes(response.status_code):
        unit.doom(f"POOLKIT_ROLLBACK_ON({response.status_code})")
    return response


def _find_registry() -> Registry | None:
    binding = current_app.extensions.get(KEY) if has_app_context() else None
    return None if binding is None else binding.registry


registries.add_finder(_find_registry)
