"""POOLKIT_REPLICAS and POOLKIT_REPLICA_OPTIONS, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections
from django.db.utils import load_backend

from poolkit_django.replicas import Limits, limits_from

__all__ = ["replica_aliases", "replica_limits", "replicas"]


@cache
def replicas() -> dict[str, tuple[str, ...]]:
    """POOLKIT_REPLICAS: the replicas of each primary. Raises `ImproperlyConfigured` with all that is wrong."""
    given = getattr(settings, "POOLKIT_REPLICAS", None) or {}
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(
            f"POOLKIT_REPLICAS must be a mapping like {{'default': ['replica1']}}, not {given!r}"
        )
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


def _forget(*, setting: str, **_: Any) -> None:
    if setting in ("POOLKIT_REPLICAS", "POOLKIT_REPLICA_OPTIONS", "DATABASES"):
        for read in (replicas, replica_aliases, replica_limits):
            read.cache_clear()


setting_changed.connect(_forget, dispatch_uid="poolkit_django.replica_settings")
