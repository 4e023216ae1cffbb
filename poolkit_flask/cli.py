"""`flask poolkit status` and `flask poolkit check`."""

from __future__ import annotations

from dataclasses import fields

import click
from flask import current_app
from flask.cli import AppGroup

from poolkit import PoolConfig, PoolkitError, Registry
from poolkit.drivers import hide_password

__all__ = ["commands"]

commands = AppGroup("poolkit", help="Look at the connections of this app.")
_timeout = click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for each server.")


@commands.command()
@_timeout
def status(timeout: float) -> None:
    """Print the settings of every connection, and whether its server answers."""
    registry: Registry = current_app.extensions["poolkit"].registry
    for name in registry.names:
        click.echo(f"{name}: {_shown(registry, name)}")
        if registry.shares(name):
            click.echo("  a shared client: nothing is tried before it is used")
            continue
        for line in _settings(registry.pool(name).config):
            click.echo(f"  {line}")
        click.echo(f"  {_try(registry, name, timeout) or 'answers'}")


@commands.command()
@_timeout
def check(timeout: float) -> None:
    """Connect to every server; exit with 1 where one can't be reached. For deployments."""
    registry: Registry = current_app.extensions["poolkit"].registry
    problems = {name: _try(registry, name, timeout) for name in registry.names if not registry.shares(name)}
    for name, problem in problems.items():
        click.echo(f"{name}: {problem or 'ok'}", err=problem is not None)
    if any(problems.values()):
        raise SystemExit(1)


def _shown(registry: Registry, name: str) -> str:
    source = registry.source(name)
    if isinstance(source, str):
        return hide_password(source)
    return type(source).__name__ if hasattr(source, "open") else "(a callable)"


def _settings(config: PoolConfig) -> list[str]:
    return [f"{field.name} = {getattr(config, field.name)}" for field in fields(config)]


def _try(registry: Registry, name: str, timeout: float) -> str | None:
    """Say why a connection can't be had, or None."""
    if registry.shares(name):
        return None
    try:
        lease = registry.pool(name).acquire(timeout)
    except PoolkitError as error:
        cause = error.__cause__ or error
        return f"can't connect: {type(cause).__name__}: {' '.join(str(cause).split())}"
    lease.release()
    return None
