"""Endpoints that run again after a serialization failure or a deadlock."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.concurrency import run_in_threadpool

from poolkit import ConfigError
from poolkit.retrying import run_retryable_async
from poolkit_fastapi.middleware import Exchange, current_exchange

if TYPE_CHECKING:
    from poolkit_fastapi.extension import Poolkit

__all__ = ["retryable"]

F = TypeVar("F", bound=Callable[..., Any])
logger = logging.getLogger("poolkit")


def retryable(kit: Poolkit, attempts: int) -> Callable[[F], F]:
    """Make the decorator; see `Poolkit.retryable`."""
    if not _is_count(attempts):
        raise ConfigError(f"attempts must be a whole number of at least 1, not {attempts!r}", "retryable")

    def decorate(endpoint: F) -> F:
        if inspect.isgeneratorfunction(endpoint) or inspect.isasyncgenfunction(endpoint):
            raise ConfigError(f"{endpoint.__qualname__} yields its body and can't run again", "retryable")
        is_async = inspect.iscoroutinefunction(endpoint)
        warn = functools.cache(_warn)

        @functools.wraps(endpoint)
        async def call(*args: Any, **kwargs: Any) -> Any:
            def work() -> Awaitable[Any]:
                return endpoint(*args, **kwargs) if is_async else run_in_threadpool(endpoint, *args, **kwargs)

            exchange = current_exchange(kit)
            unit = None if exchange is None else exchange.unit
            if exchange is None or unit is None:  # nothing of ours in it: overridden, or called by hand
                return await work()
            alone = _is_alone(kit, exchange)
            if not alone and unit.used:
                warn(exchange.label)
            return await run_retryable_async(unit, work, attempts, fresh=alone)

        return call  # type: ignore[return-value]

    return decorate


def _is_count(attempts: object) -> bool:
    return isinstance(attempts, int) and not isinstance(attempts, bool) and attempts >= 1


def _is_alone(kit: Poolkit, exchange: Exchange) -> bool:
    """Whether only the endpoint itself was given a connection: then nothing was done on it before the endpoint ran."""
    route: Any = exchange.scope.get("route")
    dependant = getattr(route, "dependant", None)
    if dependant is None:
        return False
    return not any(_takes_part(kit, below) for below in dependant.dependencies)


def _takes_part(kit: Poolkit, dependant: Any) -> bool:
    if kit.dependencies.take_part(dependant.call):
        return False
    return any(kit.dependencies.take_part(below.call) or _takes_part(kit, below) for below in dependant.dependencies)


def _warn(label: str) -> None:
    logger.warning(
        "%s is retryable, but another dependency takes the connection too: what that does can't be run again, "
        "so this endpoint is tried once",
        label,
    )
