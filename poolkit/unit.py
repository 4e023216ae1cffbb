"""What the units of work for threads and for asyncio share: their phase, their hooks, and how the outcome is told."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from poolkit import ending
from poolkit.enlisted import Enlisted
from poolkit.errors import CommitFailed, UnitOfWorkError
from poolkit.registry import Registry

__all__ = ["Unit"]

logger = logging.getLogger("poolkit")

Hook = Callable[[], object]


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

    def _forget_attempt(self) -> None:
        """Forget what belongs to work that is tried once more: its hooks, and what doomed it."""
        self._hooks_commit.clear()
        self._hooks_rollback.clear()
        self._doomed = False

    def _check_aborted(self) -> None:
        for entry in self._enlisted.values():
            if entry.transactional is not None and entry.transactional.aborted(entry.lease.resource):
                raise CommitFailed(
                    f"a failed statement aborted the transaction on {entry.name!r} and its error was ignored"
                )

    def _check_open(self, what: str) -> None:
        if self._ended:
            raise UnitOfWorkError(f"{what}() came too late: this unit of work has ended")

    def _verdict(self, error: BaseException | None, status: int | None) -> bool:
        return ending.verdict(error=error, doomed=self._doomed, status=status, rollback_on=self._rollback_on)

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

    def _conclude(self, outcome: ending.Outcome[Enlisted], *, commit: bool) -> None:
        """Run the hooks and raise what the caller has to know."""
        self._report(outcome)
        error = ending.failure(outcome, lambda target: target.name)
        self._call_hooks(commit=commit and error is None)
        if error is not None:
            raise error

    def _call_hooks(self, *, commit: bool) -> None:
        self._committed = commit
        for hook in self._hooks_commit if commit else self._hooks_rollback:
            try:
                hook()
            except Exception:
                logger.exception("unit of work %s: a hook raised", self.label)


def _called(hook: Hook) -> Hook:
    if inspect.iscoroutinefunction(hook):
        name = getattr(hook, "__qualname__", repr(hook))
        raise UnitOfWorkError(f"hook {name} is called, not awaited: give a function that starts a task")
    return hook
