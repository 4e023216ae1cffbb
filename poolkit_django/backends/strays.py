"""Stray leases: taken in a thread of a request that the end of the request does not visit, or after that end.

A view queries in threads beside each other (`sync_to_async(thread_sensitive=False)`, `asyncio.to_thread`), and a
wrapper belongs to its thread, which lives on and serves other requests. So the end of a unit ends the leases of all
threads from where it is, whatever still refers to a cursor:

- at once where nothing runs on it: the connection is closed and not lent again, for only its own thread knows for sure
  that nothing uses it;
- where a statement is running outside of a transaction, or a COMMIT, or a cursor has only just been made: as soon as
  that has ended, by its own thread;
- one inside a transaction is rolled back by hanging up, and the next statement or COMMIT of its thread fails.

The end waits for none of them. What the two threads share is changed under a lock, which is never held during I/O. The
leases of a request's own thread have no part in this.
"""

from __future__ import annotations

import logging
from _thread import RLock, get_ident
from abc import abstractmethod
from dataclasses import dataclass
from time import monotonic
from typing import Any, NoReturn

from django.db import InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from poolkit import Lease
from poolkit_django.backends import unvisited
from poolkit_django.backends.connecting import Connecting
from poolkit_django.scopes import scope_var

__all__ = ["CutShort", "Straying"]

logger = logging.getLogger("poolkit")

GRACE = 1.0  # seconds, for a cursor that was made when its unit ended, and is to be used
_close = BaseDatabaseWrapper.close

_RUNS_ON = (
    "%s: another thread of it was running a statement on %r when it ended. The connection goes back as soon as the "
    "statement has ended; wait for what you start"
)
_ROLLED_BACK = (
    "%s: another thread of it was in a transaction on %r when it ended. The transaction was rolled back; wait for what "
    "you start, or have the thread use `with poolkit_django.unit_of_work()`"
)
_WARNINGS = {"statement": _RUNS_ON, "commit": _RUNS_ON, "transaction": _ROLLED_BACK}


@dataclass(slots=True)
class CutShort:
    """A transaction that the end of its unit has cut short: whose, how many blocks are to be left, and what to say."""

    scope: Any
    blocks: int
    text: str


class Straying(Connecting):
    """The part of `Leasing` that is about more than one thread."""

    running = 0
    """Statements that are running on a stray lease."""
    committing = False
    gone_in_commit = False
    """Whether the server went away in a COMMIT that failed."""
    ending: float | None = None
    """Since when the lease is to end as soon as nothing is running on it; None where it is not."""
    _closes_plainly = True
    closes_from_elsewhere = True
    """Whether another thread may close a connection while a statement is running on it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hands = RLock()  # a finalizer may end a unit in the middle of anything

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Find out whether an engine has a close() of its own, which has to hear of every end of a lease."""
        super().__init_subclass__(**kwargs)
        whose = [base.__module__ for base in cls.__mro__ if "close" in vars(base)]
        cls._closes_plainly = all(module.startswith(("django.", "poolkit_django.")) for module in whose)

    # -- an engine's own close() --------------------------------------------------------------------------------------

    @property
    def closes_plainly(self) -> bool:
        """Whether close() is not overridden: then the short way back is the same."""
        return self._closes_plainly and BaseDatabaseWrapper.close is _close and "close" not in self.__dict__

    def went(self) -> None:
        """Call an engine's own close() for a connection that is gone already, from whatever thread."""
        if self.closes_plainly:
            return
        self.inc_thread_sharing()  # type: ignore[attr-defined]
        try:
            self.close()  # type: ignore[attr-defined]
        except Exception:
            logger.exception("close() of the engine of %r raised", self.alias)
        finally:
            self.dec_thread_sharing()  # type: ignore[attr-defined]

    # -- in the thread that has it ------------------------------------------------------------------------------------

    def _begin_stray(self) -> None:
        self.running, self.committing, self.ending = 0, False, None

    def connect(self) -> None:
        """Connect, unless the thread has to hear first that its transaction was cut short."""
        if self._cut_short is not None:
            self.hear_of_the_cut()
        super().connect()
        self.fresh = False

    def get_autocommit(self) -> bool:
        """Return the mode, which a block asks for when it is entered: a moment to see whose lease this is."""
        if self._cut_short is not None:
            self.hear_of_the_cut()
        if self.lease is not None and self._scope is not scope_var.get():
            self.change_hands()
        return super().get_autocommit()

    def change_hands(self) -> None:
        """Give a lease back that work of another unit has left in this thread: the next one's is to be as new."""
        if not self.in_atomic_block and self.autocommit and not self._connecting and not self.allow_thread_sharing:
            self.give_up()

    @abstractmethod
    def give_up(self) -> None:
        """End the lease, from its own thread."""

    def _stray_cursor(self, name: str | None) -> Any:
        with self._hands:
            if self.lease is not None and self.connection is not None:
                cursor = self._new_cursor(name)
                self.fresh = True
                return cursor
        return self._cursor(name)  # it was ended between two steps

    def begin_statement(self, lease: Lease[Any]) -> None:
        """Note that a statement is running on a stray lease. Raises `InterfaceError` where the lease has ended.

        `OperationalError` is raised where it was ended in the middle of a transaction.
        """
        with self._hands:
            if self.lease is not lease:
                self.hear_of_the_cut()
                raise InterfaceError(
                    "this thread's connection went back to the pool when its unit of work ended; open a new cursor"
                )
            self.running += 1
            self.fresh = False

    def end_statement(self, lease: Lease[Any]) -> None:
        """Note that it has ended, and end the lease where its unit has ended meanwhile."""
        with self._hands:
            if self.lease is not lease:
                return
            self.running -= 1
            if self.ending is None or self.running:
                return
            if self.in_atomic_block or not self.autocommit:
                self._cut(self._scope)
                self._unusable = True
            elif self.open_cursors and not self.closes_from_elsewhere:  # its rows are still to be read, step by step
                unvisited.leases[lease] = self
                return
        self.give_up()

    def _commit(self) -> None:
        """Commit, unless the transaction was cut short; the end of the unit does not hang up meanwhile."""
        if self._cut_short is not None:
            self.hear_of_the_cut()
        if not self.stray:
            self._quiet = self.by_unit
            try:
                super()._commit()  # type: ignore[misc]
            except Exception:
                self._look_after_commit()
                raise
            finally:
                self._quiet = False
            return
        with self._hands:
            if self._cut_short is not None:
                self.hear_of_the_cut()
            self.committing = True
        try:
            super()._commit()  # type: ignore[misc]
        except Exception:
            self._look_after_commit()
            raise
        finally:
            self.committing = False

    def _look_after_commit(self) -> None:
        """Note whether the server went away in the COMMIT; soon the connection is not this one's any more."""
        connection = self.connection
        self.gone_in_commit = connection is not None and self.is_gone(connection)  # type: ignore[attr-defined]

    def _rollback(self) -> None:
        """Roll back, or leave one of the blocks that were cut short."""
        cut = self._cut_short
        if cut is None:
            self._quiet = self.by_unit
            try:
                super()._rollback()  # type: ignore[misc]
            finally:
                self._quiet = False
            return
        cut.blocks -= 1
        if cut.blocks <= 0:
            self._cut_short = None

    def hear_of_the_cut(self) -> None:
        """Raise for who was in the transaction; for other work in this thread it never was."""
        cut: CutShort | None = self._cut_short
        if cut is None:
            return
        if cut.scope is not scope_var.get():
            self._cut_short = None
            return
        self._refuse_cut(cut)

    @staticmethod
    def _refuse_cut(cut: CutShort) -> NoReturn:
        raise OperationalError(cut.text)

    # -- in the thread that ends the unit -----------------------------------------------------------------------------

    def reclaim(self, scope: Any) -> None:
        """End the lease that this wrapper has for a unit that has ended; called from the thread of that end."""
        lease = self.lease
        if lease is None or self._scope is not scope or self.allow_thread_sharing or lease.inherited:
            return
        with self._hands:
            if self.lease is not lease or self._scope is not scope or self.ending is not None:
                return
            found, connection = self._under_way(), self.connection
            waits = found in {"statement", "commit"} or (self.running and not self.closes_from_elsewhere)
            mine = False
            if waits:
                self.ending = monotonic()
            elif found == "cursor":
                self.ending = monotonic()
                unvisited.leases[lease] = self
            else:
                mine = self._take_away(lease)
                if found == "transaction":
                    self._cut(scope)
        if mine:
            lease.discard("abandoned" if found == "transaction" else "leaked")
            self.went()
        elif found == "transaction":
            self.interrupt(connection)
        self._tell(scope, found)

    def _under_way(self) -> str:
        if self.committing:
            return "commit"
        if self.in_atomic_block or not self.autocommit or self._has_begun():
            return "transaction"
        if self.running:
            return "statement"
        return "cursor" if self.fresh else "idle"

    def _tell(self, scope: Any, found: str) -> None:
        tally = scope.registry.tally
        tally.add("stray_leases", found)
        warning = _WARNINGS.get(found)
        if warning is None or self._thread_ident == get_ident():
            return
        if tally.once.due((warning, scope.label, self.alias)) is not None:
            logger.warning(warning, scope.label, self.alias)

    def _has_begun(self) -> bool:
        """Whether a transaction, or a COPY, is open that no block and no statement stands for."""
        connection = self.connection
        return not (self.running or connection is None or self.is_gone(connection) or self.is_at_rest(connection))  # type: ignore[attr-defined]

    def _take_away(self, lease: Lease[Any]) -> bool:
        self.connection = self.lease = self._scope = None
        unvisited.leases.pop(lease, None)
        return self._home is not None and self._home.pop(lease, None) is not None

    def _cut(self, scope: Any) -> None:
        """Forget the open blocks; who is in them hears of it, and other work in this thread begins afresh."""
        text = (
            f"this thread's transaction on {self.alias!r} was rolled back when its unit of work ended ({scope.label}): "
            "wait for the thread before the work ends, or have it use `with poolkit_django.unit_of_work()`"
        )
        self._cut_short = CutShort(scope, len(self.atomic_blocks) or 1, text)
        self.in_atomic_block = self.needs_rollback = False
        self.savepoint_ids, self.atomic_blocks, self.run_on_commit = [], [], []
        self.forget_mode()

    def keeps(self, lease: Lease[Any]) -> bool:
        """Whether a lease that no end comes by is in use still; it is ended where it is not."""
        with self._hands:
            if self.lease is not lease:
                return False
            busy = self.running or self.in_atomic_block or not self.autocommit
            if self.ending is None or monotonic() - self.ending < GRACE:
                busy = busy or self.fresh or self.open_cursors > 0
            if busy or self.connection is None or not self.is_at_rest(self.connection):  # type: ignore[attr-defined]
                return True
            mine = self._take_away(lease)
        if mine:
            lease.discard("leaked")
            self.went()
        return False

    def interrupt(self, connection: Any) -> None:
        """Have a running statement end soon, where `closes_from_elsewhere` is False."""
        raise NotImplementedError  # asked of such engines only; the others have no need of it
