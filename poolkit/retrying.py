"""Run a unit of work again where the server asks for that: after a serialization failure or a deadlock."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from poolkit import ending
from poolkit.blocks import unit_of_work
from poolkit.registry import Registry
from poolkit.scope import AsyncUnitOfWork, UnitOfWork

__all__ = ["retryable", "run_retryable", "run_retryable_async"]

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("poolkit")


def run_retryable(unit: UnitOfWork, work: Callable[[], T], attempts: int) -> T:
    """Run `work` and commit `unit`; on a serialization failure or deadlock roll back and run it again.

    At most `attempts` times in all. A unit that was used or doomed before, or that holds several resources, is tried
    once: what others did in it can't be run again.
    """
    unit.refuse_streams()
    if unit.used or not unit.is_open:
        return work()
    for left in range(attempts - 1, -1, -1):
        try:
            result = work()
            if unit.is_open:
                unit.commit_in_place()
                unit.finish()
        except Exception as error:
            if not left or not _may_retry(unit, error):
                raise
            logger.info("unit of work %s: trying again after %r", unit.label, error)
            unit.restart()
        else:
            return result
    raise ValueError(f"attempts must be at least 1, not {attempts}")


async def run_retryable_async(
    unit: AsyncUnitOfWork, work: Callable[[], Awaitable[T]], attempts: int, *, fresh: bool = False
) -> T:
    """The same for asyncio. `fresh`: what the unit has leased already was not used yet."""
    unit.refuse_streams()
    if not unit.is_open or (unit.used and not fresh):
        return await work()
    for left in range(attempts - 1, -1, -1):
        try:
            result = await work()
            if unit.is_open:
                await unit.commit_in_place()
                await unit.finish()
        except Exception as error:
            if not left or not _may_retry(unit, error):
                raise
            logger.info("unit of work %s: trying again after %r", unit.label, error)
            await unit.restart()
        else:
            return result
    raise ValueError(f"attempts must be at least 1, not {attempts}")


def _may_retry(unit: UnitOfWork | AsyncUnitOfWork, error: Exception) -> bool:
    if unit.ended or len(unit._enlisted) > 1:
        return False
    return ending.is_retryable(error, [entry.pool.transactional for entry in unit._enlisted.values()])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def retryable(
    attempts: int = 3, *, registry: Registry | None = None
) -> Callable[[Callable[Concatenate[UnitOfWork, P], T]], Callable[P, T]]:
    """Decorate `work(uow, ...)` so that each call is a unit of work, run again on a serialization failure or deadlock.

    At most `attempts` times in all; then the driver's error is raised. Everything in `work` must be safe to run again.
    Raises `ValueError` for less than one attempt.
    """
    if not _is_count(attempts):
        raise ValueError(f"retryable: attempts must be a whole number of at least 1, not {attempts!r}")

    def decorate(work: Callable[Concatenate[UnitOfWork, P], T]) -> Callable[P, T]:
        @functools.wraps(work)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with unit_of_work(registry, new=True, label=work.__qualname__) as unit:
                return run_retryable(unit, lambda: work(unit, *args, **kwargs), attempts)

        return call

    return decorate
