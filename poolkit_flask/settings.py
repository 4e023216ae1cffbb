"""What stands in `app.config`: checked as a whole when the extension meets the app."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

from poolkit import ConfigError, Registry, web
from poolkit.config import nearest, shown
from poolkit.unit_settings import UnitSettings

__all__ = ["Settings", "read"]

WHERE = "app.config"
DEFAULTS: dict[str, Any] = {
    "POOLKIT": None,
    "POOLKIT_URL_PREFIX": "/poolkit",
    "POOLKIT_STATS_TOKEN": None,
    "POOLKIT_STATS": None,
    "POOLKIT_ROLLBACK_ON": None,
    "POOLKIT_UNITS": None,
}


class Settings(NamedTuple):
    """The checked settings of one app."""

    registry: Registry
    url_prefix: str | None
    stats_token: str | None
    stats: Literal["loopback"] | None
    rollback_on: Callable[[int], bool] | None


def read(config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Check an app's settings; opens nothing. Raises one `ConfigError` with all that is wrong."""
    values = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    faults = _unknown(config, environ) + _faults(values)
    registry: Registry | None = None
    units: UnitSettings | None = None
    try:
        given = values["POOLKIT_UNITS"]
        units = UnitSettings.from_mapping({} if given is None else given)
    except ConfigError as error:
        faults += [f"POOLKIT_UNITS: {text}" for text in error.problems]
    try:
        registry = web.registry_from(values["POOLKIT"], where=f"{WHERE}['POOLKIT']", environ=environ, units=units)
        faults += _unusable(registry)
    except ConfigError as error:
        where = "POOLKIT" if error.where.startswith(WHERE) else error.where
        faults = [f"{where}: {text}" for text in error.problems] + faults
    if faults:
        raise ConfigError(faults, "Poolkit.init_app")
    return Settings(
        registry=cast("Registry", registry),
        url_prefix=values["POOLKIT_URL_PREFIX"],
        stats_token=values["POOLKIT_STATS_TOKEN"],
        stats=values["POOLKIT_STATS"],
        rollback_on=values["POOLKIT_ROLLBACK_ON"],
    )


def _unknown(config: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Name the misspelt. What only mirrors the environment (`config.from_mapping(os.environ)`) is read from there."""
    faults = []
    for name, value in config.items():
        if name.startswith("POOLKIT") and name not in DEFAULTS and environ.get(name) != value:
            guess = nearest(name, map(str.lower, DEFAULTS))
            hint = f"did you mean {guess.upper()!r}?" if guess else f"known are {', '.join(DEFAULTS)}"
            faults.append(f"unknown setting {name!r}: {hint}")
    return faults


def _faults(values: Mapping[str, Any]) -> list[str]:
    names = ("URL_PREFIX", "STATS_TOKEN", "STATS", "ROLLBACK_ON")
    prefix, token, stats, veto = (values[f"POOLKIT_{name}"] for name in names)
    faults = []
    if prefix is not None and (not isinstance(prefix, str) or not prefix.startswith("/") or prefix.endswith("/")):
        faults.append(f"POOLKIT_URL_PREFIX must begin with / and not end with it, or be None, not {shown(prefix)}")
    if token is not None and (not isinstance(token, str) or not token):
        faults.append("POOLKIT_STATS_TOKEN must be a text that is not empty, or None")
    if fault := web.stats_fault(stats):
        faults.append(f"POOLKIT_STATS {fault}")
    if veto is not None and not callable(veto):
        faults.append(f"POOLKIT_ROLLBACK_ON must be a callable that takes a status, or None, not {shown(veto)}")
    return faults


def _unusable(registry: Registry) -> list[str]:
    """Say which connections a Flask view could never use: each request of an async view has a loop of its own."""
    if not registry.names:
        return ["there are no connections: set POOLKIT in app.config, or DATABASE_URL in the environment"]
    return [
        f"POOLKIT: {name!r} is for asyncio, and Flask works in threads: use postgresql:// for instance"
        for name in registry.names
        if not registry.shares(name) and not registry.is_for_threads(name)
    ]
