"""What the units of work for threads and for asyncio share: their phase, their hooks, and how the outcome is told."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from poolkit import ending
from poolkit.ending import Reason
from poolkit.enlisted import Enlisted
from poolkit.errors import CommitFailed, UnitOfWorkError
from poolkit.events import RolledBack
from poolkit.registry import Registry

__all__ = ["Unit"]

logger = logging.getLogger("poolkit")

Hook = Callable[[], object]

_FIRST_ERROR = 400  # statuses from here on tell the client of an error


class Unit:
    """What both units share: their phase, their hooks, and how the outcome is told."""

    def __init__(self, registry: Registry, label: str = "", rollback_on: Callable[[int], bool] | None = None) -> None:
        self.registry = registry
        self.label = label
        self._rollback_on = rollback_on
        self._enlisted: dict[Any, Enlisted] = {}
        self._late: dict[Any, Enlisted] = {}
        self._hooks_commit: list[Hook] = []
        self._hooks_rollback: list[Hook] = []
        self._doomed = False
        self._doomed_by: Reason = "doomed"
        self._reason: Reason | None = None
        self._ended = False
        self._closings = 0  # who waited across one has nobody left who would give back what it gets
        self._committed: bool | None = None
        self.streaming = False

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
        if reason:
            logger.info("unit of work %s doomed: %s", self.label, reason)

    def stream(self) -> None:
        """Keep the transaction to the end of a streamed body.

        The stream then holds its connection for as long as the client reads, and a COMMIT that fails there can only cut
        the stream short.
        """
        self._check_open("stream")
        self.streaming = True

    def on_commit(self, hook: Hook) -> None:
        """Call `hook` after the unit has committed. What it raises is logged: the work is done and stays done."""
        self._check_open("on_commit")
        self._hooks_commit.append(_called(hook))

    def on_rollback(self, hook: Hook) -> None:
        """Call `hook` after the unit has been rolled back."""
        self._check_open("on_rollback")
        self._hooks_rollback.append(_called(hook))

    def _leave_unfinished(self) -> None:
        """Have a unit that nobody finished rolled back."""
        self._doomed = True
        self._doomed_by = "unfinished"

    def _forget_attempt(self) -> None:
        """Forget what belongs to work that is tried once more: its hooks, and what doomed it."""
        self._hooks_commit.clear()
        self._hooks_rollback.clear()
        self._doomed = False
        self._doomed_by = "doomed"

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
        reason = ending.verdict(error=error, doomed=doomed, status=status, rollback_on=self._rollback_on)
        if reason is None and status is not None and status >= _FIRST_ERROR and self._rolls_back_swallowed():
            spoilt = self._spoilt()
            if spoilt:
                self._warn_of_swallowed(status, spoilt)
                return "swallowed_error"
        return reason

    def depends_on_status(self) -> bool:
        """Whether the status of the answer decides how this ends: after a failed statement, or where there is a veto."""
        if self._rollback_on is not None:
            return True
        return self._rolls_back_swallowed() and any(entry.is_spoilt() for entry in self._enlisted.values())

    def _rolls_back_swallowed(self) -> bool:
        return self.registry.units.swallowed_error == "rollback"

    def _spoilt(self) -> dict[str, str]:
        """Name what can't be committed any more, with what is known of the cause: the statement's error, or ""."""
        return {entry.name: entry.statement_error() for entry in self._enlisted.values() if entry.is_spoilt()}

    def _warn_of_swallowed(self, status: int, spoilt: dict[str, str]) -> None:
        unsaid = self.registry.tally.each_minute.due(("swallowed_error", self.label))
        if unsaid is None:
            return
        causes = "; ".join(f"{name!r}: {cause or 'the error is not known'}" for name, cause in spoilt.items())
        logger.warning(
            "%s: answered %d after a statement had failed whose error was handled (%s). Nothing that this request "
            "wrote was saved. To keep the rest, put such a statement into a savepoint%s",
            self.label, status, causes, f" ({unsaid} more in the minute before)" if unsaid else "",
        )  # fmt: skip

    def _begin_end(self) -> list[Enlisted]:
        """Enter the late phase; return what has to be ended."""
        self._ended = True
        enlisted = list(self._enlisted.values())
        self._enlisted.clear()
        return enlisted

    def _report(self, outcome: ending.Outcome[Enlisted]) -> None:
        for op, target, problem in outcome.problems:
            if op != "commit":
                logger.warning("unit of work %s: %s of %r failed: %r", self.label, op, target.name, problem)

    def _conclude(self, outcome: ending.Outcome[Enlisted], reason: Reason | None) -> None:
        """Run the hooks and raise what the caller has to know. `reason`: why it was to be rolled back, if it was."""
        self._report(outcome)
        error = ending.failure(outcome, lambda target: target.name)
        if error is not None and reason is None:
            reason = "swallowed_error" if outcome.aborted else "commit_failed"
        if reason is not None:
            self._tell_rollback(reason, outcome.undone)
        self._call_hooks(reason)
        if error is not None:
            raise error

    def _tell_rollback(self, reason: Reason, undone: Sequence[Enlisted] = ()) -> None:
        """Count a rollback of work that used a connection, and tell the listeners of its pools."""
        self.registry.tally.add("rollbacks", reason)
        for entry in undone:
            entry.tell(lambda entry=entry: RolledBack(entry.pool.name, self.label, reason))  # type: ignore[misc]

    def _call_hooks(self, reason: Reason | None) -> None:
        self._committed = reason is None
        self._reason = reason
        for hook in self._hooks_commit if reason is None else self._hooks_rollback:
            try:
                hook()
            except Exception:
                self.registry.tally.add("hook_failures", "on_commit" if reason is None else "on_rollback")
                logger.exception("unit of work %s: a hook raised", self.label)


def _called(hook: Hook) -> Hook:
    if inspect.iscoroutinefunction(hook):
        name = getattr(hook, "__qualname__", repr(hook))
        raise UnitOfWorkError(f"hook {name} is called, not awaited: give a function that starts a task")
    return hook
