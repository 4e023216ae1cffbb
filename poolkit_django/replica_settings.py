"""POOLKIT_REPLICAS and POOLKIT_REPLICA_OPTIONS, read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004  Django's own name
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections
from django.db.utils import load_backend
from django.utils.module_loading import import_string

from poolkit_django.replicas import Limits, limits_from

__all__ = ["check_replicas", "replica_aliases", "replica_limits", "replicas"]

_ROUTER = "poolkit_django.routers.ReplicaRouter"


@cache
def replicas() -> dict[str, tuple[str, ...]]:
    """POOLKIT_REPLICAS: the replicas of each primary. Raises `ImproperlyConfigured` with all that is wrong."""
    given = getattr(settings, "POOLKIT_REPLICAS", None) or {}
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(
            f"POOLKIT_REPLICAS must be a mapping like {{'default': ['replica1']}}, not {given!r}"
        )
    wrong = [primary for primary, names in given.items() if not isinstance(names, (str, list, tuple, set))]
    if wrong:
        raise ImproperlyConfigured(f"POOLKIT_REPLICAS[{wrong[0]!r}] must be a list of aliases, not {given[wrong[0]]!r}")
    found = {primary: (names,) if isinstance(names, str) else tuple(names) for primary, names in given.items()}
    problems = list(_faults(found))
    if problems:
        raise ImproperlyConfigured("POOLKIT_REPLICAS: " + "; ".join(problems))
    return {primary: names for primary, names in found.items() if names}


def _faults(found: Mapping[str, tuple[str, ...]]) -> list[str]:
    known = connections.settings
    named = [alias for primary, names in found.items() for alias in (primary, *names)]
    problems = [f"{alias!r} is not an alias of DATABASES" for alias in dict.fromkeys(named) if alias not in known]
    problems += [f"{alias!r} is named twice" for alias in dict.fromkeys(named) if named.count(alias) > 1]
    for primary, names in found.items():
        for alias in (primary, *names):
            if alias in known and not _is_ours(known[alias]):
                problems.append(f"{alias!r} has no engine of poolkit_django.backends, or its pool is turned off")
        for alias in names:
            if alias in known and primary in known and known[alias]["ENGINE"] != known[primary]["ENGINE"]:
                problems.append(f"{alias!r} has another ENGINE than {primary!r}, whose replica it is to be")
    return problems


def _is_ours(options: Mapping[str, Any]) -> bool:
    engine = load_backend(options["ENGINE"]).DatabaseWrapper
    return getattr(engine, "leases_from_poolkit", False) and options["OPTIONS"].get("pool", True) not in (False, None)


@cache
def replica_aliases() -> dict[str, str]:
    """Every replica, and whose. Raises `ImproperlyConfigured`."""
    return {alias: primary for primary, names in replicas().items() for alias in names}


@cache
def replica_limits() -> Limits:
    """POOLKIT_REPLICA_OPTIONS. Raises `ImproperlyConfigured`."""
    try:
        return limits_from(getattr(settings, "POOLKIT_REPLICA_OPTIONS", None) or {})
    except ValueError as error:
        raise ImproperlyConfigured(f"POOLKIT_REPLICA_OPTIONS: {error}") from None


def check_replicas() -> Iterator[CheckMessage]:
    """Say what of the settings stands in the way of replicas; `check_poolkit` asks it."""
    try:
        found = replicas()
        replica_limits()
    except ImproperlyConfigured as error:
        yield Error(str(error), id="poolkit.E020")
        return
    if not found:
        return
    if not any(_is_router(one) for one in settings.DATABASE_ROUTERS):
        yield Warning(
            f"POOLKIT_REPLICAS names replicas, but {_ROUTER} is not in DATABASE_ROUTERS, so nobody reads them.",
            hint="Put it first: it asks the other routers which primary a model lives on.",
            id="poolkit.W020",
        )
    for alias, primary in replica_aliases().items():
        if connections.settings[alias]["TEST"]["MIRROR"] != primary:
            yield Warning(
                f"DATABASES[{alias!r}]['TEST']['MIRROR'] is not {primary!r}: tests would make a database there.",
                hint=f"Set it to {primary!r}; tests then read the primary, and see what they wrote.",
                id="poolkit.W021",
            )


def _is_router(named: Any) -> bool:
    try:
        router = import_string(named) if isinstance(named, str) else type(named)
        return issubclass(router, import_string(_ROUTER))
    except (ImportError, TypeError):  # Django says so itself, as soon as it routes
        return False


def _forget(*, setting: str, **_: Any) -> None:
    if setting in ("POOLKIT_REPLICAS", "POOLKIT_REPLICA_OPTIONS", "DATABASES"):
        for read in (replicas, replica_aliases, replica_limits):
            read.cache_clear()


setting_changed.connect(_forget, dispatch_uid="poolkit_django.replica_settings")
