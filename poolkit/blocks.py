"""The unit of work that code runs in: of a `with` block, of the framework's request, or none.

A task or thread that only copied the context of a unit's owner is not in that unit (see `owning`): `current()` is None
there, and a block is a unit of its own, of which a warning tells once for each place.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextvars import Token
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

from poolkit.errors import UnitOfWorkError
from poolkit.nesting import AsyncSavepoint, Savepoint
from poolkit.owning import here, place_of
from poolkit.registry import Registry, default_registry
from poolkit.scope import AsyncUnitOfWork, UnitOfWork
from poolkit.unit import current_var

__all__ = ["add_finder", "async_unit_of_work", "bind", "current", "unbind", "unit_of_work"]

logger = logging.getLogger("poolkit")

U = TypeVar("U", UnitOfWork, AsyncUnitOfWork)

_finders: list[Callable[[], UnitOfWork | AsyncUnitOfWork | None]] = []


def current() -> UnitOfWork | AsyncUnitOfWork | None:
    """Return the unit of work this code runs in, if any: of a `with` block, or of the framework's request.

    None in a task or thread that only copied the context of one that has a unit; see `UnitOfWork.share`.
    """
    unit: UnitOfWork | AsyncUnitOfWork | None = current_var.get()
    if unit is None or unit._ended:
        unit = _found()
    return unit if unit is not None and unit.owned_here() else None


def _found() -> UnitOfWork | AsyncUnitOfWork | None:
    """Return the unit that an integration finds, whose ever it is."""
    for find in _finders:
        unit = find()
        if unit is not None and not unit.ended:
            return unit
    return None


def add_finder(find: Callable[[], UnitOfWork | AsyncUnitOfWork | None]) -> None:
    """For integrations: where to look for the current request's unit."""
    if find not in _finders:
        _finders.append(find)


def bind(unit: UnitOfWork | AsyncUnitOfWork) -> Token[Any]:
    """For integrations: let `unit` be the current one, over that of a block around it. End it with `unbind`.

    The running thread or task is its owner from now on. One that an integration starts to serve the request, binds
    the unit in its turn.
    """
    unit._owner = here()
    return current_var.set(unit)


def unbind(token: Token[Any]) -> None:
    """End what `bind` began; in another context (a generator finalised elsewhere) nothing was begun."""
    try:
        current_var.reset(token)
    except ValueError:
        return


class _Block(Generic[U]):
    """What both blocks share: which unit they are, and what becomes of one that was joined."""

    _kind: type[U]

    def __init__(
        self, registry: Registry | None = None, *, new: bool = False, nested: bool = False, label: str = ""
    ) -> None:
        if new and nested:
            raise ValueError("a block is either new (independent) or nested (a savepoint in the unit around it)")
        self._registry = registry
        self._new = new
        self._nested = nested
        self._label = label or "unit of work"
        self._token: Token[Any] | None = None

    def _enter(self, frame: FrameType) -> U:
        """Join the unit around, or begin one; `frame` is where the block stands."""
        outer = None if self._new else self._to_join(frame)
        if outer is not None:
            self._unit: U = outer
            return outer
        self._unit = self._kind(self._registry or default_registry(), self._label)
        self._token = bind(self._unit)
        return self._unit

    def _to_join(self, frame: FrameType) -> U | None:
        """Return the unit around, unless its connections are not the ones that were asked for."""
        outer = current_var.get()
        if outer is None or outer._ended:
            if outer is not None and outer.shared_here():
                raise UnitOfWorkError(f"{outer.label}: this unit of work has ended, and shares of it get nothing more")
            outer = _found()
        if not isinstance(outer, self._kind) or (self._registry is not None and outer.registry is not self._registry):
            return None
        if outer.owned_here():
            return outer
        self._registry = outer.registry
        place = place_of(frame)
        if outer.registry.tally.once.due(("stands alone", place)) is not None:
            logger.warning(
                "%s: this block is a unit of work of its own and no part of %r: it runs in a task or thread that only "
                "copied the context of that unit. To take part in it, enter `with uow.share():` there; `new=True` says "
                "that the block is to stand alone",
                place, outer.label,
            )  # fmt: skip
        return None

    def _leave_joined(self, error: BaseException | None, frame: FrameType) -> None:
        """End a joined block whose work is the unit's to end."""
        unit = self._unit
        if error is not None:
            unit.join_failed(error)
        elif unit.left_behind():
            raise UnitOfWorkError(
                f"{unit.label}: this unit of work ended while the block at {place_of(frame)}, which had joined it, was "
                "running: what the block did after that is not saved"
            )


class unit_of_work(_Block[UnitOfWork]):  # noqa: N801  used like a function: with unit_of_work() as uow
    """A unit of work around a block: commits when the block ends, rolls back when it raises.

    Inside another unit it joins that one: if the block fails, all of that unit is rolled back, and should the error be
    handled, the end of that unit is an error. `nested=True` makes it a savepoint, which is undone alone; `new=True`
    makes an independent unit. `registry` is the process's own where none is given.
    """

    _kind = UnitOfWork
    _savepoint: Savepoint | None = None

    def __enter__(self) -> UnitOfWork:
        unit = self._enter(sys._getframe(1))
        if self._nested and self._token is None:
            self._savepoint = Savepoint(unit)
        return unit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._token is not None:
            unbind(self._token)
            self._unit.__exit__(kind, error, tb)
        elif self._savepoint is not None:
            self._savepoint.end(error)
        else:
            self._leave_joined(error, sys._getframe(1))


class async_unit_of_work(_Block[AsyncUnitOfWork]):  # noqa: N801
    """The same for asyncio: `async with async_unit_of_work() as uow`."""

    _kind = AsyncUnitOfWork
    _savepoint: AsyncSavepoint | None = None

    async def __aenter__(self) -> AsyncUnitOfWork:
        unit = self._enter(sys._getframe(1))
        if self._nested and self._token is None:
            self._savepoint = AsyncSavepoint(unit)
            await self._savepoint.begin()
        return unit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._token is not None:
            unbind(self._token)
            await self._unit.__aexit__(kind, error, tb)
        elif self._savepoint is not None:
            await self._savepoint.end(error)
        else:
            self._leave_joined(error, sys._getframe(1))
