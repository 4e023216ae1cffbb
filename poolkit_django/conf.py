"""Django's settings for poolkit, read in one place.

POOLKIT                    {"pricing": {"url": "https://..."}}: pools and clients that are not the ORM's
POOLKIT_ASYNC              {"default": {"driver": "asyncpg"}}: what `aconnection()` does otherwise than the ORM's pool
POOLKIT_STATS_TOKEN        the bearer token for stats.json; staff may see it in any case
POOLKIT_STATS              "loopback": so may requests from this machine; for development
POOLKIT_WORKERS            how many worker processes will run, for the check of the pools' sizes; else WEB_CONCURRENCY
                           and GUNICORN_CMD_ARGS say so
POOLKIT_ROLLBACK_ON        callable(status) -> bool, or its dotted path: which returned responses roll back
POOLKIT_UNITS              {"swallowed_error": "raise"}: how units of work behave, see `poolkit.unit_settings`
POOLKIT_REPLICAS           {"default": ["replica1", "replica2"]}: which aliases are replicas of which, see `routers`
POOLKIT_REPLICA_OPTIONS    {"max_lag": 10}: what a replica must keep to, see `replicas.Limits`
POOLKIT_EXCEPTION_HANDLER  callable(request, error) -> response or None, or its dotted path: asked for an exception that
                           left a view, and for a COMMIT that failed
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections
from django.db.utils import load_backend
from django.utils.module_loading import import_string

from poolkit import ConfigError, Pool, Registry, web
from poolkit.registry import add_finder, with_environ, with_urls
from poolkit.unit_settings import UnitSettings
from poolkit_django import native, signals
from poolkit_django.replica_settings import replica_aliases

__all__ = [
    "aliases",
    "exception_handler",
    "make_registry",
    "orm_pools",
    "registry",
    "rollback_on",
    "stats",
    "stats_token",
    "unit_settings",
    "workers",
]

T = TypeVar("T")


@cache
def _is_ours(engine: str) -> bool:
    return bool(getattr(load_backend(engine).DatabaseWrapper, "leases_from_poolkit", False))


def aliases() -> list[str]:
    """Every alias of DATABASES whose engine leases from poolkit."""
    return [alias for alias in connections if _is_ours(connections.settings[alias]["ENGINE"])]


def orm_pools() -> list[Pool[Any]]:
    """The pool of each alias of ours, made but not opened. Raises `ImproperlyConfigured`."""
    ours = aliases()
    if not ours:
        return []
    from poolkit_django.backends import pools  # noqa: PLC0415  it imports psycopg, which only the engine needs

    wrappers = [connections[alias] for alias in ours]
    return [pools.pool_for(wrapper) for wrapper in wrappers if pools.is_pooled(wrapper.settings_dict)]


class DjangoRegistry(Registry):
    """The pools of POOLKIT, and with them the engine's wherever all are meant: numbers, readiness, warming, closing."""

    def _make(self, name: str, kind: Callable[..., T]) -> T:
        made: T = signals.attach(super()._make(name, kind))
        return made

    def live_pools(self) -> Iterator[Any]:
        """Every pool that exists in this process now, the engine's first."""
        if aliases():
            from poolkit_django.backends import pools  # noqa: PLC0415

            yield from pools.live()
        yield from native.live()
        yield from super().live_pools()

    def ready(self, timeout: float = 1.0) -> bool:
        """Whether every pool can serve: the engine's, POOLKIT's, and the native ones that event loops here make use of.

        A loop that runs in this very thread can't be waited for: `await aready()` there.
        """
        replicas = replica_aliases()  # without one of them the primary serves
        mine = [pool for pool in orm_pools() if pool.name not in replicas]
        return all(pool.ready(timeout) for pool in mine) and super().ready(timeout) and native.ready_elsewhere(timeout)

    def warm(self, timeout: float | None = None) -> bool:
        """Open the first connections of every pool of threads, the engine's included; for the native ones `awarm`."""
        results = [pool.warm(timeout) for pool in orm_pools()]  # a list: every pool is to be tried
        return super().warm(timeout) and all(results)

    def close(self, timeout: float | None = None) -> None:
        """Close every pool, the engine's included."""
        _close_orm_pools(timeout)
        super().close(timeout)

    async def aready(self, timeout: float = 1.0) -> bool:
        """The same in asyncio: every pool of the engine's, asked in a thread, and the native ones of this loop."""
        own = [pool.ready(timeout) for pool in native.of_this_loop()]
        threads = [self.in_thread(pool.ready, timeout) for pool in orm_pools()]
        return all(await asyncio.gather(super().aready(timeout), *own, *threads))

    async def awarm(self, timeout: float | None = None) -> bool:
        """Open the running loop's first connections: POOLKIT's, and the native ones that POOLKIT_ASYNC names."""
        own = [pool.warm(timeout) for pool in native.of_this_loop()]
        return all(await asyncio.gather(super().awarm(timeout), *own))

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the running loop's pools and those of threads, the engine's included."""
        await native.aclose(timeout)
        await self.in_thread(_close_orm_pools, timeout)
        await super().aclose(timeout)


def _close_orm_pools(timeout: float | None) -> None:
    if aliases():
        from poolkit_django.backends import pools  # noqa: PLC0415

        pools.close_all(timeout)


def make_registry() -> DjangoRegistry:
    """Make a registry of the setting POOLKIT. Raises `ConfigError` with all that is wrong."""
    given = getattr(settings, "POOLKIT", None)
    given = {} if given is None else given
    given = with_urls(given, os.environ) if isinstance(given, Mapping) else given
    DjangoRegistry(given, where="settings.POOLKIT")  # what is wrong here is said before the environment comes in
    clash = [name for name in given if name in aliases()]
    if clash:
        raise ConfigError(
            [f"{name!r} is an alias of DATABASES as well; give it another name" for name in clash], "settings.POOLKIT"
        )
    return DjangoRegistry(with_environ(given, os.environ), where="settings.POOLKIT", units=unit_settings())


def unit_settings() -> UnitSettings:
    """POOLKIT_UNITS. Raises `ConfigError` with all that is wrong."""
    given = getattr(settings, "POOLKIT_UNITS", None)
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"must be a mapping, not {type(given).__name__}", "settings.POOLKIT_UNITS")
    return UnitSettings.from_mapping(given or {}, where="settings.POOLKIT_UNITS")


_made: dict[str, DjangoRegistry] = {}


def registry() -> DjangoRegistry:
    """Return this process's registry, made on first use. Raises `ImproperlyConfigured`."""
    found = _made.get("registry")
    if found is None:
        try:
            found = _made.setdefault("registry", make_registry())
        except ConfigError as error:
            raise ImproperlyConfigured(str(error)) from error
    return found


def _find_registry() -> Registry | None:
    """For `poolkit.unit_of_work()` in a Django process: POOLKIT goes before what the environment names."""
    return registry() if settings.configured and getattr(settings, "POOLKIT", None) is not None else None


add_finder(_find_registry, last=True)


def _callable(name: str) -> Callable[..., Any] | None:
    value = getattr(settings, name, None)
    if isinstance(value, str) and value:
        try:
            value = import_string(value)
        except ImportError as error:
            raise ImproperlyConfigured(f"{name}: {error}") from error
    if value is not None and not callable(value):
        raise ImproperlyConfigured(f"{name} must be a callable or the dotted path of one, not {value!r}")
    found: Callable[..., Any] | None = value
    return found


def rollback_on() -> Callable[[int], bool] | None:
    """POOLKIT_ROLLBACK_ON. Raises `ImproperlyConfigured`."""
    return _callable("POOLKIT_ROLLBACK_ON")


def exception_handler() -> Callable[[Any, BaseException], Any] | None:
    """POOLKIT_EXCEPTION_HANDLER. Raises `ImproperlyConfigured`."""
    return _callable("POOLKIT_EXCEPTION_HANDLER")


def stats_token() -> str | None:
    """POOLKIT_STATS_TOKEN. Raises `ImproperlyConfigured`."""
    token = getattr(settings, "POOLKIT_STATS_TOKEN", None)
    if token is not None and not isinstance(token, str):
        raise ImproperlyConfigured(f"POOLKIT_STATS_TOKEN must be a string, not {type(token).__name__}")
    return token


def stats() -> Literal["loopback"] | None:
    """POOLKIT_STATS. Raises `ImproperlyConfigured`."""
    value: Literal["loopback"] | None = getattr(settings, "POOLKIT_STATS", None)
    fault = web.stats_fault(value)
    if fault is not None:
        raise ImproperlyConfigured(f"POOLKIT_STATS {fault}")
    return value


def workers(environ: Mapping[str, str] = os.environ) -> int | None:
    """How many worker processes will run, or None where nobody says.

    The setting POOLKIT_WORKERS, else `--workers` in GUNICORN_CMD_ARGS, else WEB_CONCURRENCY: the order of gunicorn.
    Raises `ImproperlyConfigured`.
    """
    given = getattr(settings, "POOLKIT_WORKERS", None)
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise ImproperlyConfigured(f"POOLKIT_WORKERS must be a whole number of at least 1, not {given!r}")
    if given is not None:
        return given
    return _gunicorn_workers(environ.get("GUNICORN_CMD_ARGS", "")) or _number(environ.get("WEB_CONCURRENCY", ""))


def _gunicorn_workers(arguments: str) -> int | None:
    found = re.search(r"(?:^|\s)(?:--workers(?:=|\s+)|-w\s*)(\d+)(?=\s|$)", arguments)
    return _number(found.group(1)) if found else None


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() and int(text) > 0 else None


def _forget(*, setting: str, **_: Mapping[str, Any]) -> None:
    """Tests change settings; what was made of the old ones goes."""
    if setting in {"POOLKIT", "POOLKIT_UNITS"}:
        old = _made.pop("registry", None)
        if old is not None:
            Registry.close(old, 0)


setting_changed.connect(_forget, dispatch_uid="poolkit_django.conf")
