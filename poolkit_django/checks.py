"""What `manage.py check` says about poolkit. Nothing is opened for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004  Django's own name
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.module_loading import import_string

from poolkit import ConfigError
from poolkit_django import conf

__all__ = ["check_poolkit"]

_OUTSIDE = (  # they look at the finished response, or keep it: it must be the one that stands after the COMMIT
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.cache.UpdateCacheMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
)
_INSIDE = (  # they write to the database, and that belongs to the unit of work
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
)


def check_poolkit(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001  Django's signature
    """Check the settings, the databases and the order of the middleware."""
    return [*_settings(), *_databases(), *_middleware()]


def _settings() -> Iterator[CheckMessage]:
    try:
        conf.make_registry()
    except ConfigError as error:
        yield Error(str(error), id="poolkit.E001")
    for read in (conf.rollback_on, conf.exception_handler, conf.stats_token):
        yield from _said(read)


def _said(read: Callable[[], object]) -> Iterator[CheckMessage]:
    try:
        read()
    except ImproperlyConfigured as error:
        yield Error(str(error), id="poolkit.E002")


def _databases() -> Iterator[CheckMessage]:
    try:
        ours = conf.aliases()
    except ImproperlyConfigured as error:  # an engine that can't be loaded
        yield Error(str(error), id="poolkit.E003")
        return
    for alias in ours:
        from poolkit_django.backends import pools  # noqa: PLC0415  it imports psycopg

        options = connections.settings[alias]
        if not pools.is_pooled(options):
            continue
        try:
            pools.pool_for(connections[alias])
        except ImproperlyConfigured as error:
            yield Error(str(error), id="poolkit.E003")
        if not options["AUTOCOMMIT"]:
            yield Warning(
                f"DATABASES[{alias!r}]['AUTOCOMMIT'] is False, so requests have no unit of work on it: what a "
                "view does not commit by hand is rolled back.",
                hint="Remove it; PoolkitMiddleware makes each request a transaction.",
                id="poolkit.W005",
            )
        if options["CONN_MAX_AGE"] != 0:
            yield Warning(
                f"DATABASES[{alias!r}]['CONN_MAX_AGE'] is {options['CONN_MAX_AGE']!r} and means nothing here: "
                "connections go back to the pool at the end of each request, and the pool keeps them open.",
                hint="Remove it; how long a connection lives is OPTIONS['pool']['max_lifetime'].",
                id="poolkit.W001",
            )


def _middleware() -> Iterator[CheckMessage]:
    names = list(settings.MIDDLEWARE)
    places = [place for place, name in enumerate(names) if _is_ours(name)]
    if not places:
        if _databases_are_ours() or getattr(settings, "POOLKIT", None):
            yield Warning(
                "poolkit_django.middleware.PoolkitMiddleware is not in MIDDLEWARE, so requests have no unit of work: "
                "each query commits for itself.",
                hint="Put it after SecurityMiddleware and before SessionMiddleware.",
                id="poolkit.W002",
            )
        return
    if len(places) > 1:
        yield Error("PoolkitMiddleware is in MIDDLEWARE more than once.", id="poolkit.E004")
    yield from _order(names, places[0])


def _databases_are_ours() -> bool:
    try:
        return bool(conf.aliases())
    except ImproperlyConfigured:  # reported by _databases
        return False


def _order(names: list[str], place: int) -> Iterator[CheckMessage]:
    wrong = [name for name in names[:place] if name in _INSIDE]
    if wrong:
        yield Warning(
            f"{_listed(wrong)} must come after PoolkitMiddleware in MIDDLEWARE: what it writes is not part of the "
            "request's unit of work.",
            id="poolkit.W003",
        )
    wrong = [name for name in names[place:] if name in _OUTSIDE]
    if wrong:
        yield Warning(
            f"{_listed(wrong)} must come before PoolkitMiddleware in MIDDLEWARE: it would work on, or keep, a response "
            "that a failing COMMIT still replaces.",
            id="poolkit.W004",
        )


def _is_ours(name: str) -> bool:
    try:
        middleware = import_string(name)
    except ImportError:  # Django says that itself, when it loads it
        return False
    from poolkit_django.middleware import PoolkitMiddleware  # noqa: PLC0415  only looked at once apps are loaded

    return isinstance(middleware, type) and issubclass(middleware, PoolkitMiddleware)


def _listed(names: list[str]) -> str:
    return " and ".join(name.rpartition(".")[2] for name in names)
