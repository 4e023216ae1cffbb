"""What `manage.py check` says about poolkit, and what a server says of it when it starts.

Nothing is opened for `check_poolkit`. `check_limits` asks the databases, where a command names them (`check --database
default`, `migrate`, `test`). docs/django.md lists the ids.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import WARNING, CheckMessage, Error, Info, Warning  # noqa: A004  Django's own name
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import connections
from django.utils.module_loading import import_string

from poolkit import ConfigError
from poolkit_django import conf, limits, native
from poolkit_django.replica_settings import check_replicas
from poolkit_django.unread import check_unread

__all__ = ["check_limits", "check_poolkit", "say_at_start"]

logger = logging.getLogger("poolkit")

_OUTSIDE = (  # they look at the finished response, or keep it: it must be the one that stands after the COMMIT
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.cache.UpdateCacheMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "debug_toolbar.middleware.DebugToolbarMiddleware",
)
_INSIDE = (  # they write to the database, and that belongs to the unit of work
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
)


_LIMIT_IDS = {"server": "poolkit.W010", "role": "poolkit.W011", "database": "poolkit.W012"}
_told: set[tuple[str | None, str]] = set()


def check_poolkit(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001  Django's signature
    """Check the settings, the databases and the order of the middleware."""
    found = [*_settings(), *check_replicas(), *_contradictions()]
    _told.update((message.id, message.msg) for message in found)  # on the console already: not again at the start
    return found


def say_at_start() -> None:
    """Log what of the settings contradicts poolkit, each thing once per process: for the start of a server.

    A server runs no checks. What can't work at all is raised at its start anyway.
    """
    for message in _contradictions():
        known = (message.id, message.msg)
        if message.level < WARNING or message.is_silenced() or known in _told:
            continue
        _told.add(known)
        logger.log(message.level, "%s: %s%s", message.id, message.msg, f" {message.hint}" if message.hint else "")


def check_limits(
    app_configs: Any = None,  # noqa: ARG001  Django's signature
    databases: Sequence[str] | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> list[CheckMessage]:
    """Hold the pools of all worker processes against what the servers of these aliases allow."""
    try:
        ours = [alias for alias in conf.aliases() if alias in (databases or ())]
        return list(_limits(ours, conf.workers()))
    except ImproperlyConfigured:  # check_poolkit tells it
        return []
    except DatabaseError as error:
        return [Error(f"The server's limits can't be asked for: {error}", id="poolkit.E005")]


def _limits(aliases: Sequence[str], workers: int | None) -> Iterator[CheckMessage]:
    number = workers or 1
    for demand in limits.demands(aliases):
        room = demand.limit.most
        wants = f"{number} worker {'process' if number == 1 else 'processes'} with {_sizes(demand)}"
        if demand.least * number > room:
            yield Error(
                f"{wants} must open {demand.least * number} connections, and {room} can be had: {demand.limit.source}.",
                hint="Lower min_size, or run fewer workers.",
                id="poolkit.E006",
            )
        elif demand.most * number > room:
            yield Warning(
                f"{wants} may ask for {demand.most * number} connections, and {room} can be had: "
                f"{demand.limit.source}. Under load, connects will fail.",
                hint=_advice(demand.workers_that_fit),
                id=_LIMIT_IDS[demand.limit.kind],
            )


def _advice(fit: int) -> str:
    if not fit:
        return "Lower max_size, or raise the limit: not even one worker fits."
    return f"Lower max_size, raise the limit, or run at most {fit} {'worker' if fit == 1 else 'workers'}."


def _sizes(demand: limits.Demand) -> str:
    parts = [f"{alias} {most}" for alias, most in demand.sizes.items()]
    return f"pools of up to {demand.most} ({', '.join(parts)})"


def _contradictions() -> Iterator[CheckMessage]:
    yield from _databases()
    yield from _middleware()
    yield from check_unread()
    if not apps.is_installed("poolkit_django"):
        yield Warning(
            "poolkit_django is not in INSTALLED_APPS, so `manage.py check` and `manage.py poolkit` know nothing of it.",
            hint="Add it.",
            id="poolkit.W008",
        )


def _settings() -> Iterator[CheckMessage]:
    try:
        conf.make_registry()
    except ConfigError as error:
        yield Error(str(error), id="poolkit.E001")
    for read in (
        conf.rollback_on,
        conf.exception_handler,
        conf.stats,
        conf.stats_token,
        conf.workers,
        native.check_settings,
    ):
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
        pooled = pools.is_pooled(options)
        try:
            if pooled:
                pools.pool_for(connections[alias])
            else:
                pools.check_unpooled(alias, options)
        except ImproperlyConfigured as error:
            yield Error(str(error), id="poolkit.E003")
        for name in pools.settings_beside(connections[alias].vendor, options["OPTIONS"]):
            yield Error(
                f"DATABASES[{alias!r}]['OPTIONS']: {name} is a setting of the pool, and no connection can be opened.",
                hint="Write it into the mapping 'pool' in there.",
                id="poolkit.E003",
            )
        if pooled:
            yield from _needless(alias, options)


def _needless(alias: str, options: dict[str, Any]) -> Iterator[CheckMessage]:
    """Tell of settings that mean nothing with a pool, or work against it."""
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
    if options["ATOMIC_REQUESTS"] and _places():
        yield Warning(
            f"DATABASES[{alias!r}]['ATOMIC_REQUESTS'] is True beside PoolkitMiddleware, which already makes each "
            "request a transaction: it adds a savepoint to every view that queries, refuses async views, and keeps "
            "current_unit().commit() from committing in a view.",
            hint="Remove it.",
            id="poolkit.W006",
        )
    if options["CONN_HEALTH_CHECKS"]:
        yield Info(
            f"DATABASES[{alias!r}]['CONN_HEALTH_CHECKS'] is True and not needed: the pool sees dead connections "
            "without a round trip.",
            hint="Remove it; OPTIONS['pool']['check_after'] says when an idle connection is asked.",
            id="poolkit.I001",
        )


def _places() -> list[int]:
    """Where in MIDDLEWARE ours stands."""
    return [place for place, name in enumerate(settings.MIDDLEWARE) if _is_ours(name)]


def _middleware() -> Iterator[CheckMessage]:
    names, places = list(settings.MIDDLEWARE), _places()
    if not places:
        if _databases_are_ours() or getattr(settings, "POOLKIT", None):
            yield Warning(
                f"poolkit_django.middleware.PoolkitMiddleware is not in MIDDLEWARE, so {_without_it()}.",
                hint="Put it after SecurityMiddleware and before SessionMiddleware.",
                id="poolkit.W002",
            )
        return
    if len(places) > 1:
        yield Error("PoolkitMiddleware is in MIDDLEWARE more than once.", id="poolkit.E004")
    yield from _order(names, places[0])


def _without_it() -> str:
    if any(connections.settings[alias]["ATOMIC_REQUESTS"] for alias in connections):
        return (
            "requests have what ATOMIC_REQUESTS gives: what templates, sessions and other middleware write is outside "
            "the transaction, and so are async views"
        )
    return "requests have no unit of work: each query commits for itself"


def _databases_are_ours() -> bool:
    try:
        return bool(conf.aliases())
    except ImproperlyConfigured:  # reported by _databases
        return False


def _order(names: list[str], place: int) -> Iterator[CheckMessage]:
    wrong = [name for name in names[:place] if name in _INSIDE]
    if wrong:
        yield Warning(
            f"{_listed(wrong)} must come after PoolkitMiddleware in MIDDLEWARE: what is written there is not part of "
            "the request's unit of work.",
            id="poolkit.W003",
        )
    wrong = [name for name in names[place:] if name in _OUTSIDE]
    if wrong:
        yield Warning(
            f"{_listed(wrong)} must come before PoolkitMiddleware in MIDDLEWARE: behind it they work on, or keep, "
            "a response that a failing COMMIT still replaces.",
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
    *first, last = [name.rpartition(".")[2] for name in names]
    return f"{', '.join(first)} and {last}" if first else last
