"""A block within a unit of work that can be undone alone: a savepoint on each connection that the unit has leased.

What the block itself leases has no savepoint: all of its transaction is the block's, so it is rolled back and begun
anew. What the block closes with nothing written on it is back in its pool, and its savepoint with it. PostgreSQL, MySQL
and SQLite spell savepoints alike.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

from poolkit.enlisted import Enlisted
from poolkit.errors import CommitFailed, UnitOfWorkError
from poolkit.scope import AsyncUnitOfWork, UnitOfWork
from poolkit.threads import Lease
from poolkit.unit import Unit

__all__ = ["AsyncSavepoint", "Savepoint"]

_numbers = itertools.count(1)


class _Savepoint:
    """What both have: the name, what it stands on, and how many hooks were there before."""

    def __init__(self, unit: Unit) -> None:
        self._name = f"poolkit_{next(_numbers)}"
        self._before: list[Enlisted] = []
        self._before = self._later(unit)
        self._hooks = (0, 0) if unit._hooks is None else unit._hooks.mark()

    def _later(self, unit: Unit) -> list[Enlisted]:
        """List what was leased in the block."""
        leased = [entry for entry in unit._enlisted.values() if entry.transactional is not None]
        return [entry for entry in leased if not (entry.lease.given_back or entry in self._before)]

    def _standing(self) -> list[Enlisted]:
        """List what has the savepoint."""
        return [entry for entry in self._before if not entry.lease.given_back]

    def _forget_hooks(self, unit: Unit) -> None:
        """Forget the hooks of work that is undone."""
        if unit._hooks is not None:
            unit._hooks.forget_since(self._hooks)

    def _aborted(self, unit: Unit) -> list[str]:
        entries = [*self._standing(), *self._later(unit)]
        return [entry.name for entry in entries if entry.transactional.aborted(entry.lease.resource)]


class Savepoint(_Savepoint):
    """For threads."""

    def __init__(self, unit: UnitOfWork) -> None:
        super().__init__(unit)
        self._unit = unit
        self._on_each("SAVEPOINT")

    def _on_each(self, verb: str) -> None:
        for entry in self._standing():
            try:
                _execute(entry.lease.resource, f"{verb} {self._name}")
            except Exception as error:
                if verb == "SAVEPOINT" or entry.lost(error):
                    raise
                raise _gone(entry) from error

    def end(self, error: BaseException | None) -> None:
        """Keep what the block did, or undo it after `error`. Raises `CommitFailed` where it can't be kept."""
        if self._unit.ended:
            return
        aborted = self._aborted(self._unit)
        if error is None and not aborted:
            self._on_each("RELEASE SAVEPOINT")
            return
        self._forget_hooks(self._unit)
        for entry in self._later(self._unit):
            entry.transactional.rollback(entry.lease.resource)
            entry.begin()
            entry.watch()
        self._on_each("ROLLBACK TO SAVEPOINT")
        self._on_each("RELEASE SAVEPOINT")
        if error is None:
            raise _swallowed(aborted)


class AsyncSavepoint(_Savepoint):
    """For asyncio."""

    def __init__(self, unit: AsyncUnitOfWork) -> None:
        super().__init__(unit)
        self._unit = unit

    async def begin(self) -> None:
        """Set it."""
        await self._on_each("SAVEPOINT")

    async def _on_each(self, verb: str) -> None:
        for entry in self._standing():
            text = f"{verb} {self._name}"
            try:
                if isinstance(entry.lease, Lease):
                    await self._unit.registry.in_thread(_execute, entry.lease.resource, text)
                else:
                    await _execute_async(entry.lease.resource, text)
            except Exception as error:
                if verb == "SAVEPOINT" or entry.lost(error):
                    raise
                raise _gone(entry) from error

    async def end(self, error: BaseException | None) -> None:
        """Keep what the block did, or undo it after `error`. Raises `CommitFailed` where it can't be kept."""
        if self._unit.ended:
            return
        aborted = self._aborted(self._unit)
        if error is None and not aborted:
            await self._on_each("RELEASE SAVEPOINT")
            return
        self._forget_hooks(self._unit)
        for entry in self._later(self._unit):
            await self._unit._carry_out(entry, "rollback")
            await self._unit._carry_out(entry, "begin")
        await self._on_each("ROLLBACK TO SAVEPOINT")
        await self._on_each("RELEASE SAVEPOINT")
        if error is None:
            raise _swallowed(aborted)


def _swallowed(names: list[str]) -> CommitFailed:
    which = ", ".join(map(repr, names))
    return CommitFailed(
        f"a statement failed on {which} in this nested block and its error was handled: the block is undone. Let the "
        "error leave the block"
    )


def _gone(entry: Enlisted) -> UnitOfWorkError:
    return UnitOfWorkError(
        f"the savepoint of this nested block on {entry.name!r} is gone: the block ended the transaction around it, by "
        "commit() or rollback() on the connection. Leave that to the unit of work; an error undoes the block alone"
    )


def _execute(connection: Any, statement: str) -> None:
    execute = getattr(connection, "execute", None)
    if execute is not None:
        execute(statement)
        return
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


async def _execute_async(connection: Any, statement: str) -> None:
    result = connection.execute(statement)
    if inspect.isawaitable(result):
        await result
