"""Unit: the ORM's transactions and the resources of POOLKIT under one end.

It is a `poolkit.UnitOfWork` that enters a lazy atomic() for every alias of ours, and ends them first. The order is a
promise:

1. Everything is looked at. A transaction that a failed statement has aborted commits nothing, so nothing at all is
   committed and `CommitFailed` is raised.
2. The ORM's aliases are committed, in the order of DATABASES, and after them the resources of POOLKIT in the order of
   their first use. The first failure rolls back all that come after; the error says which did what.
3. Everything goes back to its pool.

There is one for each request (see `middleware`), and `unit_of_work()` makes one anywhere else.
"""

from __future__ import annotations

import logging
from _thread import get_ident
from collections.abc import Callable
from contextvars import Token
from time import monotonic
from types import TracebackType
from typing import Any

from django.db import connections, transaction
from django.utils.asyncio import async_unsafe

from poolkit import CommitFailed, Registry, UnitOfWork, UnitOfWorkError
from poolkit.blocks import bind, unbind
from poolkit.events import RolledBack
from poolkit_django import conf, native
from poolkit_django.backends import unvisited
from poolkit_django.replica_settings import replica_aliases
from poolkit_django.scopes import scope_var
from poolkit_django.signals import unit_ended

__all__ = ["Unit", "current_unit", "get", "unit_of_work", "warm"]

logger = logging.getLogger("poolkit")


class Unit(UnitOfWork):
    """A unit of work that the ORM takes part in."""

    nested_block = "transaction.atomic()"

    def __init__(self, registry: Registry, label: str = "", rollback_on: Callable[[int], bool] | None = None) -> None:
        super().__init__(registry, label, rollback_on)
        self.error: BaseException | None = None
        """What the work ended with, where that is known before the end: an exception that became a response."""
        self.thread = 0
        self.closed = False
        self.awaits = False
        """Whether the work waits between its queries, in an event loop: then none holds a connection in autocommit."""
        self.around_view: frozenset[str] = frozenset()
        """The aliases for which Django itself puts an atomic() around the view: ATOMIC_REQUESTS."""
        self.footing: Any = None
        """What it has written and must find again; see `footing`."""
        self._own: dict[str, Any] = {}  # its thread's wrappers; to look into django.db.connections takes 1 us each time
        self._blocks: dict[str, tuple[Any, Any]] = {}
        self._taken: dict[Any, None] = {}
        self._inside: frozenset[Any] = frozenset()  # wrappers with an atomic() block around the unit
        self._swallowed = False
        self._before: Unit | None = None
        self._bound: Token[Any] | None = None

    def begin(self) -> None:
        """Enter the blocks, in the thread that will leave them. No connection is taken."""
        self.thread = get_ident()
        self._own = {alias: connections[alias] for alias in conf.aliases()}
        self._give_back()
        self._inside = frozenset(wrapper for wrapper in self._own.values() if wrapper.in_atomic_block)
        self._enter_all()

    def _enter_all(self) -> None:
        replicas = replica_aliases()  # nothing is committed there, and a transaction would stop the replay
        for alias, wrapper in self._own.items():
            wrapper.forget_mode()
            if alias in replicas:
                continue
            if wrapper.get_autocommit() or wrapper.in_atomic_block:  # else its user does all transactions by hand
                self._enter(alias, wrapper)

    def _enter(self, alias: str, wrapper: Any) -> None:
        block = transaction.atomic(using=alias)
        wrapper.by_unit = True
        try:
            block.__enter__()
        except AssertionError:  # a test's word: the alias, connected because it is in memory, is not in its `databases`
            return
        finally:
            wrapper.by_unit = False
        wrapper.units_block = block
        wrapper.nobody_asked_to_roll_back()
        self._blocks[alias] = wrapper, block

    @property
    def is_outermost(self) -> bool:
        """Whether no atomic() but the unit's own is open, in its own thread."""
        return all(wrapper.atomic_blocks[-1:] == [block] for wrapper, block in self._blocks.values())

    @property
    def before(self) -> Unit | None:
        """The unit that was current before this one, where that had not ended."""
        return self._before

    def reads_freely(self, alias: str) -> bool:
        """Whether its own block is all there is around code that runs now in its thread: no atomic() of somebody's."""
        wrapper, block = self._blocks.get(alias, (None, None))
        if wrapper is None or get_ident() != self.thread:
            return not connections[alias].atomic_blocks
        blocks = wrapper.atomic_blocks
        return bool(blocks) and blocks[0] is block and len(blocks) <= (2 if alias in self.around_view else 1)

    # -- what the engine tells and asks -------------------------------------------------------------------------------

    def leased(self, wrapper: Any) -> None:
        """Hear of a wrapper, of whatever thread, that took a connection."""
        self._taken[wrapper] = None

    def owned_here(self) -> bool:
        """Whether the code that runs now is the unit's own: the thread of its blocks is, besides its owner."""
        return get_ident() == self.thread or super().owned_here()

    def visits(self, thread: int) -> bool:
        """Whether the end will come to this thread, and end there what is leased now."""
        return thread == self.thread and not self._ended

    def is_over_in(self, thread: int) -> bool:
        """Whether nothing is to be kept for the end outside of a transaction.

        Nobody will visit this thread then: it is not the unit's own, or the end is past. Or too much may happen before.
        """
        return self._ended or thread != self.thread or self.awaits

    def relabel(self, label: str) -> None:
        """Name the work more exactly, also where something was leased before the name was known."""
        self.label = label
        for wrapper in self._taken:
            lease = wrapper.lease
            if lease is not None and self._own.get(wrapper.alias) is wrapper:  # another thread may end its own now
                lease.label(label)

    @property
    def used(self) -> bool:
        """Whether anything was leased, by the ORM or from POOLKIT."""
        return bool(self._taken) or super().used

    @property
    def _used_aliases(self) -> list[str]:
        return [alias for alias, (wrapper, _) in self._blocks.items() if wrapper in self._taken]

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None = None, *, status: int | None = None) -> None:
        """End the unit: commit, or roll back after an error, doom, `set_rollback(True)`, or a veto on `status`.

        Idempotent. Raises the database's error where the only COMMIT failed, else `CommitFailed`.
        """
        if self._ended:
            return
        if get_ident() != self.thread and self._blocks:
            self._cut()
        error = self.error if error is None else error
        began = monotonic() if unit_ended.receivers else None
        committed = False
        used, told = self._used_aliases, bool(self._enlisted)
        try:
            asked = self._asked_to_roll_back()
            reason = self._verdict(error, None if asked else status) or ("doomed" if asked else None)
            if reason is None:
                self._commit()
                committed = True
            else:
                self._doomed_by = reason
                self._roll_back(error, status)
        except BaseException as failure:
            error = failure  # a COMMIT that failed is what it was rolled back for
            raise
        finally:
            if used and not committed:
                self._count_rollback(used, told=told)
            self._give_back()
            self._end_strays()
            if began is not None:
                self._tell_end(monotonic() - began, error, committed=committed)

    def _count_rollback(self, aliases: list[str], *, told: bool) -> None:
        """Count a rollback of the ORM's, unless it was `told` with what POOLKIT names; and tell the aliases' pools."""
        reason = self._reason or self._doomed_by
        if not told:
            self.registry.tally.add("rollbacks", reason)
        for alias in aliases:
            wrapper = self._own[alias]
            wrapper.tell(lambda alias=alias: RolledBack(alias, self.label, reason))

    def roll_back(self, error: BaseException) -> None:
        """Roll back now, for an error that has left the work: what handles it is on its own from here on.

        Does nothing after the end.
        """
        if self.error is None and not self.closed:
            self.error = error
        if not self._ended:
            self.finish(error)

    def _tell_end(self, took: float, error: BaseException | None, *, committed: bool) -> None:
        aliases = sorted({wrapper.alias for wrapper in self._taken})
        told = {"label": self.label, "committed": committed, "aliases": aliases, "took": took, "error": error}
        unit_ended.send_robust(type(self), unit=self, **told)

    def commit(self) -> None:
        """Commit now, and end the unit: what comes after has no transaction.

        Raises as `finish` does, and `UnitOfWorkError` inside an atomic() of the view's own (ATOMIC_REQUESTS is one).
        """
        self._check_open("commit")
        for alias, (wrapper, block) in self._blocks.items():
            if wrapper.atomic_blocks[-1:] != [block]:
                raise UnitOfWorkError(f"commit() inside an atomic() block on {alias!r}: leave that block first")
        self.finish()

    def _cut(self) -> None:
        """End the transactions from a thread that is not theirs, where nobody came to end them: undone, not lent again.

        Only a body that is never read comes here, closed by a server or a test client from its own thread.
        """
        for alias in list(self._blocks):
            wrapper, _ = self._blocks.pop(alias)
            wrapper.cut_off()
        self._doomed = True

    def _asked_to_roll_back(self) -> bool:
        return any([wrapper.asked_to_roll_back for wrapper, _ in self._blocks.values()])  # noqa: C419  a third of the time

    def _commit(self) -> None:
        committed: list[str] = []
        used = self._used_aliases
        try:
            self._check_aborted()
            self._check_left()
            for alias in list(self._blocks):
                self._leave(alias)
                if alias in used:
                    committed.append(alias)
        except BaseException as error:  # noqa: BLE001  an interrupt too leaves nothing half done
            undone = [alias for alias in used if alias not in committed]
            self._doomed_by = "swallowed_error" if self._swallowed else "commit_failed"
            self._roll_back(None, None)
            raise _commit_error(error, committed, undone)  # noqa: B904  it has its cause, or is the error itself
        try:
            super().finish()
        except Exception as error:
            if not committed:
                raise
            raise _commit_error(error, committed, []) from error

    def _spoilt(self) -> dict[str, str]:
        """Name what can't be committed any more, the ORM's first, with what is known of the cause."""
        for wrapper, _ in self._blocks.values():
            wrapper.forget_closed()
        mine = {a: wrapper.cause_of_loss for a, (wrapper, _) in self._blocks.items() if wrapper.lost_its_transaction}
        return {**mine, **super()._spoilt()}

    def _check_aborted(self) -> None:
        for alias, (wrapper, _) in self._blocks.items():
            wrapper.forget_closed()
            if wrapper.lost_its_transaction:
                self._swallowed = True
                if wrapper.closed_in_transaction:
                    raise CommitFailed(
                        f"connection.close() on {alias!r} was called before what was written was committed: nothing "
                        "was saved. Commit first (poolkit_django.current_unit().commit()), or leave the connection "
                        "open: it goes back to the pool by itself",
                        undone=self._used_aliases,
                    )
                raise CommitFailed(
                    f"the transaction on {alias!r} can't be committed: a statement or a block in it failed and the "
                    "error was ignored, so nothing was saved. Let the error leave the view, or put the statement into "
                    "an atomic() of its own; to roll back on purpose, call transaction.set_rollback(True)",
                    undone=self._used_aliases,
                )
        super()._check_aborted()

    def _check_left(self) -> None:
        """Refuse where another block than ours would be left now, or none: that commits nothing."""
        for alias, (wrapper, block) in self._blocks.items():
            if wrapper.atomic_blocks[-1:] == [block] or not (wrapper.atomic_blocks or wrapper.lease):
                continue
            if block in wrapper.atomic_blocks:
                what = (
                    f"an atomic() block on {alias!r} was entered and not left, by a generator that waits perhaps: "
                    "nothing was saved. Leave it before the work ends, or keep the transaction to the end of the body "
                    "with poolkit_django.current_unit().stream()"
                )
            else:
                what = (
                    f"the transaction on {alias!r} was ended from outside, by an atomic() block of earlier work that "
                    "was left only now: what was written before that is lost"
                )
            raise CommitFailed(what, undone=self._used_aliases)

    def _leave(self, alias: str) -> None:
        """Commit one alias. Raises the database's error, or `CommitFailed` where the server went away."""
        wrapper, block = self._blocks.pop(alias)
        wrapper.by_unit = True
        if len(wrapper.atomic_blocks) == 1:
            # Hooks run after the COMMIT: one that raises must not turn what was done into an error.
            wrapper.run_on_commit = [(sids, hook, True) for sids, hook, _ in wrapper.run_on_commit]
        wrapper.gone_in_commit = False
        try:
            block.__exit__(None, None, None)
        except Exception as error:
            if not wrapper.gone_in_commit or isinstance(error, CommitFailed):
                raise
            raise CommitFailed(
                f"the COMMIT on {alias!r} failed: {type(error).__name__}: {error}; the server went away, so whether it "
                "was carried out is unknown",
                lost=True,
            ) from error
        finally:
            wrapper.by_unit = False

    def _roll_back(self, error: BaseException | None, status: int | None = None) -> None:
        for alias in list(self._blocks):
            self._undo(alias)
        self._doomed = True
        super().finish(error, status=status)

    def _undo(self, alias: str) -> None:
        wrapper, block = self._blocks.pop(alias)
        wrapper.forget_closed()
        try:
            while wrapper.atomic_blocks and wrapper.atomic_blocks[-1] is not block and block in wrapper.atomic_blocks:
                if not wrapper.closed_in_transaction:
                    wrapper.set_rollback(True)
                wrapper.atomic_blocks[-1].__exit__(None, None, None)
            if wrapper.in_atomic_block and not wrapper.closed_in_transaction:
                wrapper.set_rollback(True)
            wrapper.by_unit = True
            block.__exit__(None, None, None)
        except Exception as error:  # noqa: BLE001  the error that led here matters more, and the server undoes the rest
            logger.warning("unit of work %s: rollback of %r failed: %r", self.label, alias, error)
        finally:
            wrapper.by_unit = False

    def _give_back(self) -> None:
        """Give back what this thread holds; in a test's transaction around all of it, it stays."""
        if get_ident() != self.thread:
            return
        for wrapper in self._own.values():
            if wrapper.lease is not None:
                wrapper.close_if_unusable_or_obsolete()

    def close(self, error: BaseException | None = None) -> None:
        """End what is left: a unit never finished is rolled back, and what was taken after the end goes back."""
        if self.closed:
            return
        try:
            super().close(error)
        finally:
            self.closed = True
            self.error = None  # its traceback would keep every frame of the request
            self._give_back()
            self._end_strays()
            self._taken.clear()
            if unvisited.leases:
                unvisited.sweep()

    def _end_strays(self) -> None:
        """End what other threads have leased for this unit; in a test's transaction around all of it, it stays."""
        for wrapper in list(self._taken):  # one that is leased in this moment sees that this unit has ended
            if wrapper.lease is not None and wrapper not in self._inside:
                wrapper.reclaim(self)

    # -- in the middle ------------------------------------------------------------------------------------------------

    def exclude(self, alias: str) -> None:
        """Commit one alias now and leave it in autocommit: for a view that asked for that."""
        if alias in self._blocks:
            self._leave(alias)

    def split(self) -> None:
        """Commit what was done so far, and begin again: for work that must be alone in its transaction."""
        self._check_aborted()
        for alias in list(self._blocks):
            self._leave(alias)
        super().commit_in_place()
        self._give_back()
        self._end_strays()
        self._taken.clear()
        self.restart()

    def commit_in_place(self) -> None:
        """Commit what is open now, for work that may be tried again; with several resources `finish` does it."""
        if len(self._used_aliases) + len(self._enlisted) > 1:
            return
        self._check_aborted()
        for alias in list(self._blocks):
            self._leave(alias)
        super().commit_in_place()

    def restart(self) -> None:
        """Roll back and begin again: for work that is tried once more."""
        self._check_open("restart")
        for alias in list(self._blocks):
            self._undo(alias)
        super().restart()
        self._enter_all()

    # -- being the current one ----------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Become the current unit of this context."""
        before = scope_var.get()
        self._before = None if before is None or before.ended else before  # an ended one is not to be kept alive
        scope_var.set(self)
        self._bound = bind(self)

    def leave(self) -> None:
        """Give way to the one before, where this is still the current one of this context."""
        if self._bound is not None:
            unbind(self._bound)
            self._bound = None
        if scope_var.get() is self:
            scope_var.set(self._before)
            self._before = None


def _commit_error(error: BaseException, committed: list[str], undone: list[str]) -> BaseException:
    """Say what the caller has to know; where nothing was committed, that is the error itself."""
    if not isinstance(error, Exception) or not committed:
        return error
    lost = isinstance(error, CommitFailed) and error.lost
    told = list(error.committed) if isinstance(error, CommitFailed) else []
    text = f"{error}; committed before: {', '.join(committed)}"
    if undone:
        text += f"; rolled back: {', '.join(undone)}"
    failure = CommitFailed(text, [*committed, *told], undone, lost=lost)
    failure.__cause__ = error
    return failure


def current_unit() -> Unit | None:
    """Return the unit of work this code runs in: the request's, or that of a `with unit_of_work()`."""
    unit: Unit | None = scope_var.get()
    return None if unit is None or unit.closed else unit


class unit_of_work:  # noqa: N801  used like a function: with unit_of_work() as uow
    """A unit of work around a block, the ORM included: commits when the block ends, rolls back when it raises.

    For tasks, commands and scripts. Inside another one, a request's for instance, it joins that one: if the block
    fails, all of that is rolled back, and should the error be handled, its end is an error. `label` names it where
    holders are listed.
    """

    def __init__(self, label: str = "unit of work") -> None:
        self._label = label
        self._joined = False

    @async_unsafe
    def __enter__(self) -> Unit:
        outer = current_unit()
        self._joined = outer is not None and not outer.ended and outer.thread == get_ident()
        if outer is not None and self._joined:
            self._unit = outer
            return outer
        self._unit = Unit(conf.registry(), self._label, conf.rollback_on())
        self._unit.enter()
        self._unit.begin()
        return self._unit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._joined:
            if error is not None:
                self._unit.join_failed(error)
            return
        try:
            self._unit.finish(error)
        finally:
            self._unit.close(error)
            self._unit.leave()


def get(name: str) -> Any:
    """Return what POOLKIT names: this process's shared client, or the unit of work's own leased resource.

    Raises `ConfigError` for an unknown name, `UnitOfWorkError` where something leased is asked for outside a unit of
    work, and what `Pool.acquire` raises. In an async view use it as `await sync_to_async(get)(name)`, unless the name
    is a shared client's.
    """
    registry = conf.registry()
    return registry.client(name).get() if registry.shares(name) else _leased(name)


@async_unsafe
def _leased(name: str) -> Any:
    unit = current_unit()
    if unit is None:
        raise UnitOfWorkError(
            f"get({name!r}) leases, and there is no unit of work here to give it back: put PoolkitMiddleware into "
            "MIDDLEWARE, or use `with poolkit_django.unit_of_work() as uow: uow.get(...)`"
        )
    return unit.get(name)


def warm(timeout: float | None = None) -> bool:
    """Open this process's first connections now, waiting up to `timeout` seconds; whether all pools have one.

    Those are the ORM's and POOLKIT's. The native pools that POOLKIT_ASYNC names belong to an event loop: where one runs
    in this thread (a worker of uvicorn's imports asgi.py in its own) they are opened as soon as it goes on, else on
    first use. Call it where a worker starts: at the end of wsgi.py or asgi.py, or in gunicorn's post_worker_init. It
    never raises because a server is away.
    """
    native.warm_soon(timeout)
    return conf.registry().warm(timeout)
