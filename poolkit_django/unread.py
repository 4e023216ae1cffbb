"""What is written like a setting of poolkit's and read by nobody: a typing error that would go unseen.

Told as a warning, and not refused: a project may have a POOLKIT_... of its own, and several share an environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from django.conf import settings
from django.core.checks import CheckMessage, Warning  # noqa: A004  Django's own name
from django.db import connections

from poolkit import PoolConfig
from poolkit.config import nearest
from poolkit.registry import unread_urls

__all__ = ["check_unread"]

_PREFIX = "POOLKIT_"
_SETTINGS = (
    "POOLKIT_ASYNC",
    "POOLKIT_EXCEPTION_HANDLER",
    "POOLKIT_REPLICAS",
    "POOLKIT_REPLICA_OPTIONS",
    "POOLKIT_ROLLBACK_ON",
    "POOLKIT_STATS",
    "POOLKIT_STATS_TOKEN",
    "POOLKIT_UNITS",
    "POOLKIT_WORKERS",
)


def check_unread(environ: Mapping[str, str] = os.environ) -> Iterator[CheckMessage]:
    """Say which names of the settings and of the environment nobody reads, and what may have been meant."""
    for name in dir(settings):
        if name.startswith(_PREFIX) and name not in _SETTINGS:
            guess = nearest(name.removeprefix(_PREFIX), [known.removeprefix(_PREFIX).lower() for known in _SETTINGS])
            yield _warning(f"The setting {name} is none of poolkit's, and is not read.", guess)
    pools = _pools()
    named = getattr(settings, "POOLKIT", None)
    for variable in unread_urls(named if isinstance(named, Mapping) else {}, environ):
        yield _warning(f"{variable} in the environment is not read: nothing in POOLKIT is named so.", None)
    for name in sorted(environ):
        owners = list(_owners(name))
        if owners and not set(owners) & set(pools) and owners[0].partition("_")[0] != "test":  # poolkit's own tests'
            text = f"{name} in the environment is not read: no alias of DATABASES and nothing in POOLKIT is named so."
            guess = nearest(owners[0], pools)
            yield _warning(text, guess and name.lower().replace(f"{_PREFIX.lower()}{owners[0]}", guess, 1))


def _warning(text: str, guess: str | None) -> CheckMessage:
    return Warning(text, hint=f"Did you mean {_PREFIX}{guess.upper()}?" if guess else None, id="poolkit.W007")


def _pools() -> list[str]:
    """Every name that a variable may have in the middle."""
    given = getattr(settings, "POOLKIT", None)
    named = [name.lower() for name in given if isinstance(name, str)] if isinstance(given, Mapping) else []
    aliases = [alias.lower() for alias in connections]
    return [*aliases, *named, *(f"async_{alias}" for alias in aliases)]


def _owners(variable: str) -> Iterator[str]:
    """Whose a variable may be, the likeliest first: `POOLKIT_A_OPEN_TIMEOUT` is a's, or a_open's."""
    rest = variable.removeprefix(_PREFIX).lower()
    if variable.startswith(_PREFIX):
        for field in sorted(PoolConfig.names(), key=len, reverse=True):
            if rest.endswith(f"_{field}"):
                yield rest.removesuffix(f"_{field}")
