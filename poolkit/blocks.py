"""The unit of work that code runs in: of a `with` block, of the framework's request, or none."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from poolkit.registry import Registry, default_registry
from poolkit.scope import AsyncUnitOfWork, UnitOfWork

__all__ = ["add_finder", "async_unit_of_work", "bind", "current", "unbind", "unit_of_work"]

_current: ContextVar[UnitOfWork | AsyncUnitOfWork | None] = ContextVar("poolkit_unit_of_work", default=None)
_finders: list[Callable[[], UnitOfWork | AsyncUnitOfWork | None]] = []


def current() -> UnitOfWork | AsyncUnitOfWork | None:
    """Return the unit of work this code runs in, if any: of a `with` block, or of the framework's request."""
    unit = _current.get()
    if unit is not None and not unit.ended:
        return unit
    for find in _finders:
        unit = find()
        if unit is not None and not unit.ended:
            return unit
    return None


def add_finder(find: Callable[[], UnitOfWork | AsyncUnitOfWork | None]) -> None:
    """For integrations: where to look for the current request's unit."""
    if find not in _finders:
        _finders.append(find)


def bind(unit: UnitOfWork | AsyncUnitOfWork) -> Token[UnitOfWork | AsyncUnitOfWork | None]:
    """For integrations: let `unit` be the current one, over that of a block around it. End it with `unbind`."""
    return _current.set(unit)


def unbind(token: Token[UnitOfWork | AsyncUnitOfWork | None]) -> None:
    """End what `bind` began; in another context (a generator finalised elsewhere) nothing was begun."""
    try:
        _current.reset(token)
    except ValueError:
        return


def _to_join(registry: Registry | None) -> UnitOfWork | AsyncUnitOfWork | None:
    """The unit around, unless its connections are not the ones that were asked for."""
    outer = current()
    return outer if outer is None or registry is None or outer.registry is registry else None


class unit_of_work:  # noqa: N801  used like a function: with unit_of_work() as uow
    """A unit of work around a block: commits when the block ends, rolls back when it raises.

    Inside another unit it joins that one, and an error in the block dooms it; `new=True` makes an independent one.
    `registry` is the process's own where none is given.
    """

    def __init__(self, registry: Registry | None = None, *, new: bool = False, label: str = "") -> None:
        self._registry = registry
        self._new = new
        self._label = label
        self._token: Token[Any] | None = None

    def __enter__(self) -> UnitOfWork:
        outer = None if self._new else _to_join(self._registry)
        if isinstance(outer, UnitOfWork):
            self._unit = outer
            return outer
        self._unit = UnitOfWork(self._registry or default_registry(), self._label or "unit of work")
        self._token = _current.set(self._unit)
        return self._unit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._token is None:
            if error is not None and not self._unit.ended:
                self._unit.doom(f"{type(error).__name__} in a joined block")
            return
        unbind(self._token)
        self._unit.__exit__(kind, error, tb)


class async_unit_of_work:  # noqa: N801
    """The same for asyncio: `async with async_unit_of_work() as uow`."""

    def __init__(self, registry: Registry | None = None, *, new: bool = False, label: str = "") -> None:
        self._registry = registry
        self._new = new
        self._label = label
        self._token: Token[Any] | None = None

    async def __aenter__(self) -> AsyncUnitOfWork:
        outer = None if self._new else _to_join(self._registry)
        if isinstance(outer, AsyncUnitOfWork):
            self._unit = outer
            return outer
        self._unit = AsyncUnitOfWork(self._registry or default_registry(), self._label or "unit of work")
        self._token = _current.set(self._unit)
        return self._unit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._token is None:
            if error is not None and not self._unit.ended:
                self._unit.doom(f"{type(error).__name__} in a joined block")
            return
        unbind(self._token)
        await self._unit.__aexit__(kind, error, tb)
