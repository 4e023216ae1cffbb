"""retryable: run a view, or any function of the ORM's, again on a serialization failure or a deadlock."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast

from asgiref.sync import sync_to_async

from poolkit import AsyncUnitOfWork
from poolkit.retrying import run_retryable, run_retryable_async
from poolkit_django.units import Unit, current_unit, unit_of_work

__all__ = ["retryable"]

F = TypeVar("F", bound=Callable[..., Any])


def retryable(attempts: int = 3) -> Callable[[F], F]:
    """Decorate a view so that it runs again, at most `attempts` times in all, on 40001 and 40P01.

    The unit of work is committed when the view returns, so that a COMMIT that fails this way is tried again too; what
    middleware did before the view is committed before it runs. Everything in the view must be safe to run again.
    Works for sync and async views, and outside a request for functions: each call is a unit of work then. Raises
    `ValueError` for less than one attempt.
    """
    if not _is_count(attempts):
        raise ValueError(f"retryable: attempts must be a whole number of at least 1, not {attempts!r}")

    def decorate(view: F) -> F:
        wrapped: Any = _async(view, attempts) if iscoroutinefunction(view) else _sync(view, attempts)
        wrapped.poolkit_retryable = True  # the middleware looks for it
        return cast("F", wrapped)

    return decorate


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _sync(view: Callable[..., Any], attempts: int) -> Callable[..., Any]:
    @functools.wraps(view)
    def call(*args: Any, **kwargs: Any) -> Any:
        with unit_of_work(view.__qualname__) as unit:
            return run_retryable(unit, lambda: view(*args, **kwargs), attempts)

    return call


def _async(view: Callable[..., Awaitable[Any]], attempts: int) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(view)
    async def call(*args: Any, **kwargs: Any) -> Any:
        unit = current_unit()
        if unit is None:
            raise RuntimeError("an async retryable view needs PoolkitMiddleware in MIDDLEWARE")
        facade = cast("AsyncUnitOfWork", _Awaited(unit))
        return await run_retryable_async(facade, lambda: view(*args, **kwargs), attempts)

    return call


class _Awaited:
    """A unit whose steps are awaited: each runs in the request's own thread, where its connections are."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._unit, name)
        if name in {"commit_in_place", "finish", "restart"}:
            return sync_to_async(value, thread_sensitive=True)
        return value
