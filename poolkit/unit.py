"""What the units of work for threads and for asyncio share: their phase, their hooks, and how the outcome is told."""

from __future__ import annotations

import logging
import sys
import weakref
from _thread import get_ident
from asyncio import _get_running_loop, current_task
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from poolkit import ending
from poolkit.driver import TransactionOptions, check_options
from poolkit.ending import Reason
from poolkit.enlisted import Enlisted
from poolkit.errors import CommitFailed, UnitOfWorkError
from poolkit.events import RolledBack
from poolkit.hooks import Hook, Hooks
from poolkit.hooks import Kind as HookKind
from poolkit.owning import Owner, here, is_one_of, place_of
from poolkit.registry import Registry
from poolkit.uncopied import Uncopied

__all__ = ["Share", "Unit", "current_var"]

logger = logging.getLogger("poolkit")

U = TypeVar("U", bound="Unit")

current_var: ContextVar[Any] = ContextVar("poolkit_unit_of_work", default=None)
"""The unit that a context is in, which a copy of the context is in as well; see `Unit.owned_here`."""

_INSTEAD = {
    "commit": "Return and let the unit commit, or call uow.commit()",
    "rollback": "Let an error leave the work, call uow.doom(), or undo a part by a savepoint",
}
_FIRST_ERROR = 400  # statuses from here on tell the client of an error


class Unit(Uncopied):
    """What both units share: their phase, their hooks, and how the outcome is told."""

    nested_block = "unit_of_work(nested=True)"
    """How a part of the work is undone alone, for errors."""
    _awaits_hooks = False
    _instead = "it has leased connections: hand over the unit itself, and `with uow.share():` in a task or thread"

    def __init__(self, registry: Registry, label: str = "", rollback_on: Callable[[int], bool] | None = None) -> None:
        self.registry = registry
        self.label = label
        self._rollback_on = rollback_on
        self._enlisted: dict[Any, Enlisted] = {}
        self._late: dict[Any, Enlisted] = {}
        self._guests: list[Owner] = []

    # The rest is set by the few units that have another value; each attribute set is 10 ns of every request.
    _hooks: Hooks | None = None
    _doomed = False
    _doomed_by: Reason = "doomed"
    _reason: Reason | None = None
    _joined_failure = ""  # of a joined block whose error was handled
    _failure: CommitFailed | None = None  # what the end has to raise though nothing went wrong in it
    _owner: Owner | None = None
    _with_options: frozenset[str] = frozenset()
    _ended_by: Owner | None = None  # known only where there were guests
    _ended = False
    _closings = 0  # who waited across one has nobody left who would give back what it gets
    _committed: bool | None = None
    _set_aside: tuple[Any, ...] = ()  # leases whose resource others have while the unit goes on
    streaming = False
    _retries = False  # whether it runs in `retrying`, which commits each try

    @property
    def ended(self) -> bool:
        """Whether the unit was finished: what is asked for from now on has no transaction."""
        return self._ended

    @property
    def doomed(self) -> bool:
        """Whether the unit will be rolled back whatever happens."""
        return self._doomed

    @property
    def is_open(self) -> bool:
        """Whether the unit may still commit: neither ended nor doomed."""
        return not (self._ended or self._doomed)

    @property
    def used(self) -> bool:
        """Whether anything was leased."""
        return bool(self._enlisted or self._late)

    @property
    def committed(self) -> bool | None:
        """After the end, whether the unit committed; None before."""
        return self._committed

    @property
    def rollback_reason(self) -> Reason | None:
        """After the end, why the unit was rolled back; None where it committed, and before."""
        return self._reason

    def doom(self, reason: str = "") -> None:
        """Roll back at the end even if the work returns normally. `reason` goes to the log."""
        self._check_open("doom")
        self._doomed = True
        self._doomed_by = "doomed"
        if reason:
            logger.info("unit of work %s doomed: %s", self.label, reason)

    def refuse_streams(self) -> None:
        """Hear that the work is tried again where that helps: each try is committed, so none is left for a body."""
        self._retries = True
        if self.streaming:
            self._refuse_stream()

    def _refuse_stream(self) -> None:
        raise UnitOfWorkError(
            f"{self.label}: retryable work can't stream(): its transaction ends with the work, before the body"
        )

    # -- whose it is --------------------------------------------------------------------------------------------------

    def owned_here(self) -> bool:
        """Whether the code that runs now is the unit's own.

        That is its owner, what a framework runs in the owner's place (see `owning`), or what it is shared with.
        """
        owner = self._owner
        if owner is None:
            return True
        thread, task = owner
        if thread == get_ident():  # asked for each use of a connection, so in line
            if task is None:
                return True
            loop = _get_running_loop()
            if loop is not None and current_task(loop) is task():
                return True
        return is_one_of((owner, *self._guests))

    def share(self) -> Share[Self]:
        """Give the running task or thread a share of the unit: `with uow.share():` inside it.

        For a task or thread that the work starts and waits for. The end of the unit does not wait: what is still
        inside then is refused, and the `with` block raises `UnitOfWorkError` at its end.
        """
        return Share(self)

    def join_failed(self, error: BaseException) -> None:
        """Hear that a joined block failed: should that error be handled, the end of the unit is an error all the same.

        The block's work can't be undone by itself, so nothing is saved, and a success must not be told.
        """
        if self.is_open:
            self._doomed = True
            self._doomed_by = "joined_block"
            trace = error.__traceback__  # in the end of a block it begins with the frame that the block stands in
            place = "" if trace is None else f" at {place_of(trace.tb_frame, trace.tb_lineno)}"
            self._joined_failure = f"the block{place} failed with {type(error).__name__}: {error}"

    def left_behind(self) -> bool:
        """Whether the unit has ended while the code that runs now, which shares it, was in the middle of something."""
        return self._ended_by is not None and self._ended_by != here()

    def _forget_given_back(self) -> None:
        """Forget what the work itself has closed with nothing open: it is back, and who asks is lent another."""
        for held in (self._enlisted, self._late):
            for key in [key for key, entry in list(held.items()) if entry.lease.given_back]:
                entry = held.pop(key, None)
                if entry is None:
                    continue
                if getattr(entry.lease, "returned_early", False):
                    self._set_aside = (*self._set_aside, entry.lease)
                else:
                    entry.lease.forget()

    def _held(self) -> dict[Any, Enlisted]:
        """What is leased in the phase that the unit is in. Whoever shares it gets nothing after its end."""
        if not self._ended:
            return self._enlisted
        if self.shared_here():
            raise UnitOfWorkError(f"{self.label}: this unit of work has ended, and shares of it get nothing more")
        return self._late

    def shared_here(self) -> bool:
        """Whether the running thread or task is inside a `share()` of this unit."""
        return bool(self._guests) and here() in self._guests

    def stream(self) -> None:
        """Keep the transaction to the end of a streamed body.

        The stream then holds its connection for as long as the client reads, and a COMMIT that fails there can only cut
        the stream short.
        """
        self._check_open("stream")
        if self._retries:
            self._refuse_stream()
        self.streaming = True

    def on_commit(self, hook: Hook) -> None:
        """Call `hook` after the COMMIT, when the connections are back; in asyncio it may be a coroutine function.

        The work is done and stays done: what a hook raises is counted and logged. One may register another.
        """
        self._add_hook("on_commit", hook)

    def on_rollback(self, hook: Hook) -> None:
        """Do the same after the unit has been rolled back."""
        self._add_hook("on_rollback", hook)

    def _add_hook(self, kind: HookKind, hook: Hook) -> None:
        hooks = self._hooks
        if hooks is None or not hooks.takes(kind):
            self._check_open(kind)
        if hooks is None:
            hooks = self._hooks = Hooks(self.label, self.registry.tally, awaits=self._awaits_hooks)
        hooks.add(kind, hook)

    def _leave_unfinished(self) -> None:
        """Have a unit that was never finished rolled back."""
        self._doomed = True
        self._doomed_by = "unfinished"

    # -- options of its transactions -----------------------------------------------------------------------------------

    def _agree(self, name: str, entry: Enlisted | None, options: TransactionOptions | None) -> None:
        """Raise where a resource is asked for with options that its transaction does not have."""
        if options is None:
            return
        if self._ended:
            raise UnitOfWorkError(
                f"{self.label}: {name!r} was asked for with options of a transaction, and after the end of the unit "
                "there is none: take a transaction with those options of its own"
            )
        if entry is not None and entry.options != options:
            raise UnitOfWorkError(
                f"{self.label}: {name!r} was asked for with other options than its transaction began with in this "
                "unit: ask with the same ones, or the second time with none"
            )

    def _prepare(self, name: str, pool: Any, options: TransactionOptions | None) -> None:
        """Check options before anything is leased; a name that had some is not lent without a transaction."""
        if self._ended:
            if name in self._with_options:
                raise UnitOfWorkError(
                    f"{self.label}: {name!r} had options in this unit, its tenant perhaps, which end with the unit. "
                    "Take a transaction with those options of its own"
                )
            return
        if options is not None:
            if pool.transactional is None:
                self._refuse_options(name, options)
            check_options(pool.transactional, options)
            self._with_options = self._with_options | {name}

    def _refuse_options(self, name: str, options: TransactionOptions | None) -> None:
        if options is not None:
            raise UnitOfWorkError(f"{self.label}: {name!r} has no transactions, and so no options of one")

    # -- what the work ends itself -------------------------------------------------------------------------------------

    def _watcher(self) -> Callable[[str], None] | None:
        """Return what is to be told of a commit or rollback that the work itself does on a connection."""
        return None if self.registry.units.explicit_commit == "allow" else _Watcher(self)

    def _explicit_end(self, op: str) -> None:
        """Hear of one before it is done."""
        if self._ended:
            return
        place = _place_outside()
        if self.registry.units.explicit_commit == "refuse":
            raise UnitOfWorkError(
                f"{place}: {op}() on a connection of {self.label!r}, whose end is decided by the unit of work "
                f"(explicit_commit='refuse'). {_INSTEAD[op]}"
            )
        tally = self.registry.tally
        tally.add("explicit_ends", op)
        if tally.once.due(("explicit end", op, place)) is not None:
            logger.warning(
                "%s: %s() on a connection of %r: what was done before is ended by itself, and the end of the unit "
                "decides over the rest alone. %s. explicit_commit='allow' says that this is meant",
                place, op, self.label, _INSTEAD[op],
            )  # fmt: skip

    def _forget_attempt(self) -> None:
        """Forget what belongs to work that is tried once more: its hooks, and what doomed it."""
        if self._hooks is not None:
            self._hooks.forget_since()
        self._doomed = False
        self._doomed_by = "doomed"
        self._joined_failure = ""

    def _check_aborted(self) -> None:
        for entry in self._enlisted.values():
            if entry.transactional is not None and entry.transactional.aborted(entry.lease.resource):
                raise CommitFailed(
                    f"a failed statement aborted the transaction on {entry.name!r} and its error was ignored"
                )

    def _check_open(self, what: str) -> None:
        if self._ended:
            raise UnitOfWorkError(f"{what}() came too late: this unit of work has ended")

    def _verdict(self, error: BaseException | None, status: int | None) -> Reason | None:
        """Say why the unit is to be rolled back, None where it commits.

        An answer that is an error itself is true though nothing was saved: a failed statement makes no other of it.
        """
        doomed = self._doomed_by if self._doomed else None
        plain = error is None and not self._doomed and self._rollback_on is None
        if plain and (status is None or status < _FIRST_ERROR):
            return None  # nearly every request
        reason = ending.verdict(error=error, doomed=doomed, status=status, rollback_on=self._rollback_on)
        if status is not None and status >= _FIRST_ERROR and self._rolls_back_swallowed():
            if reason is None and (spoilt := self._spoilt()):
                self._warn_of_swallowed(status, "a statement had failed", spoilt)
                return "swallowed_error"
            if reason == "joined_block":
                self._warn_of_swallowed(status, self._joined_failure, {})
        elif reason == "joined_block":
            self._failure = CommitFailed(
                f"{self.label}: {self._joined_failure}, and its error was handled: nothing was saved. Let the error "
                f"leave the work, or undo that block alone: `with {self.nested_block}:`"
            )
        return reason

    def depends_on_status(self) -> bool:
        """Whether the status of the answer decides how this ends: where there is a veto, or after a handled failure."""
        if self._rollback_on is not None:
            return True
        if not self._rolls_back_swallowed():
            return False
        if self._doomed:
            return self._doomed_by == "joined_block"
        for entry in self._enlisted.values():  # noqa: SIM110  each request asks, and any() would double its price
            if entry.is_aborted():
                return True
        return False

    def _rolls_back_swallowed(self) -> bool:
        return self.registry.units.swallowed_error == "rollback"

    def _spoilt(self) -> dict[str, str]:
        """Name what can't be committed any more, with what is known of the cause: the statement's error, or ""."""
        return {entry.name: entry.statement_error() for entry in self._enlisted.values() if entry.is_spoilt()}

    def _warn_of_swallowed(self, status: int, what: str, spoilt: dict[str, str]) -> None:
        unsaid = self.registry.tally.each_minute.due(("swallowed_error", self.label))
        if unsaid is None:
            return
        causes = "; ".join(f"{name!r}: {cause or 'the error is not known'}" for name, cause in spoilt.items())
        logger.warning(
            "%s: answered %d after %s and its error was handled%s. Nothing that this request wrote was saved. To keep "
            "the rest, use a savepoint%s",
            self.label, status, what, f" ({causes})" if causes else "",
            f" ({unsaid} more in the minute before)" if unsaid else "",
        )  # fmt: skip

    def _begin_end(self) -> list[Enlisted]:
        """Enter the late phase; return what has to be ended."""
        if self._guests:
            self._ended_by = here()
        self._ended = True
        for lease in self._set_aside:
            lease.forget()
        enlisted = list(self._enlisted.values())
        self._enlisted.clear()
        return enlisted

    def _report(self, outcome: ending.Outcome[Enlisted]) -> None:
        for op, target, problem in outcome.problems:
            if op != "commit":
                logger.warning("unit of work %s: %s of %r failed: %r", self.label, op, target.name, problem)

    def _judge(
        self, outcome: ending.Outcome[Enlisted], reason: Reason | None
    ) -> tuple[Reason | None, BaseException | None]:
        """Say why it was rolled back, if it was, and what the caller has to know; `reason`: why it was to be."""
        self._report(outcome)
        error = ending.failure(outcome, lambda target: target.name)
        if error is not None and reason is None:
            reason = "swallowed_error" if outcome.aborted else "commit_failed"
        if reason is not None:
            self._tell_rollback(reason, outcome.undone)
        return reason, error

    def _note_outcome(self, reason: Reason | None) -> HookKind:
        self._committed = reason is None
        self._reason = reason
        return "on_commit" if reason is None else "on_rollback"

    def _raise(self, error: BaseException | None = None) -> None:
        """Raise what the end has to tell, if anything."""
        error = self._failure if error is None else error
        if error is not None:
            raise error

    def _tell_rollback(self, reason: Reason, undone: Sequence[Enlisted] = ()) -> None:
        """Count a rollback of work that used a connection, and tell the listeners of its pools."""
        self.registry.tally.add("rollbacks", reason)
        for entry in undone:
            entry.tell(lambda entry=entry: RolledBack(entry.pool.name, self.label, reason))  # type: ignore[misc]


class _Watcher(weakref.ref[Unit]):
    """Tells a unit, which it does not keep: a connection that did would never be found lost with its unit."""

    __slots__ = ()

    def __call__(self, op: str) -> None:  # type: ignore[override]
        unit = super().__call__()
        if unit is not None:
            unit._explicit_end(op)


def _place_outside() -> str:
    """Say where the code stands that called a connection's method: the first frame that is no library's around it."""
    frame = sys._getframe(3)
    inner = {"poolkit", "contextlib"}
    resource = frame.f_locals.get("self")
    inner |= {kind.__module__.partition(".")[0] for kind in type(resource).__mro__} - {"builtins"}
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] in inner:
        frame = frame.f_back
    return place_of(frame)


class Share(Generic[U]):
    """What `Unit.share` returns: `with` it for the unit, once in each task or thread."""

    __slots__ = ("_guest", "_token", "_unit")

    def __init__(self, unit: U) -> None:
        self._unit = unit
        self._token: Token[Any] | None = None

    def __enter__(self) -> U:
        unit = self._unit
        unit._check_open("share")
        if self._token is not None:
            raise UnitOfWorkError("this share is in use: ask for one with uow.share() in each task or thread")
        self._guest = here()
        unit._guests.append(self._guest)
        self._token = current_var.set(unit)
        return unit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        unit = self._unit
        left_behind = unit.left_behind()
        unit._guests.remove(self._guest)
        if self._token is not None:
            current_var.reset(self._token)
            self._token = None
        if error is None and left_behind:
            raise UnitOfWorkError(
                f"{unit.label}: this unit of work ended while a task or thread had a share of it. What that did before "
                "the end belongs to the unit, what it did after is not saved: wait for it before the unit ends"
            )
