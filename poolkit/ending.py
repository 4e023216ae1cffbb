"""How a unit of work ends. Pure: a generator of steps, run by a sync and an async runner that do what each step says.

The order is a promise:
1. *Check.* Before anything is committed, every transaction is looked at: one that a failed statement has aborted would
   answer COMMIT with a silent ROLLBACK. If one is aborted or can't be looked at, nothing at all is committed.
2. *Commit* in the order in which the resources were first used. The first failure rolls back all that come after it;
   what was committed before stays committed, and the error says which did what.
3. *Release* every resource, whatever happened. Releasing gets the error of its own resource, so that a connection that
   died in its COMMIT is discarded and not reset.

A unit that is not to be committed skips 1 and rolls back in 2. A rollback that fails is reported, never raised: the
error that led here matters more, and the server rolls back what loses its connection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from poolkit.errors import CommitFailed

__all__ = ["Failure", "Outcome", "Reason", "Step", "failure", "finish", "is_retryable", "verdict"]

E = TypeVar("E")
Op: TypeAlias = Literal["check", "commit", "rollback", "release"]
Reason: TypeAlias = Literal[
    "error", "doomed", "veto", "swallowed_error", "joined_block", "unfinished", "commit_failed"
]  # fmt: skip
"""Why a unit was rolled back: an error left the work; `doom()`; the veto on the status; a failed statement whose error
was handled; a failed joined block whose error was handled; it was never finished; its COMMIT failed."""


class Failure(NamedTuple):
    """A step went wrong: the error, and whether the resource is lost with it.

    `foreign`: the error is not the library's own. It struck from outside (a task queue's time limit, raised by a signal
    handler), perhaps when the server had done its part.
    """

    error: BaseException
    lost: bool = False
    foreign: bool = False


Answer: TypeAlias = bool | Failure | None


class Step(NamedTuple, Generic[E]):
    """What the runner has to do next. It answers with None, with True for "aborted" after a check, or a `Failure`."""

    op: Op
    target: E
    error: BaseException | None = None


@dataclass(slots=True)
class Outcome(Generic[E]):
    """What happened, in order."""

    committed: list[E] = field(default_factory=list)
    undone: list[E] = field(default_factory=list)
    aborted: list[E] = field(default_factory=list)
    failed: E | None = None
    failure: Failure | None = None
    problems: list[tuple[Op, E, BaseException]] = field(default_factory=list)

    def note(self, op: Op, target: E, answer: Answer) -> None:
        """Write down how a step went."""
        if isinstance(answer, Failure):
            self.problems.append((op, target, answer.error))
            if op in {"check", "commit"} and self.failure is None:
                self.failed, self.failure = target, answer
        elif op == "commit":
            self.committed.append(target)
        if op == "rollback":
            self.undone.append(target)

    @property
    def interrupt(self) -> BaseException | None:
        """A KeyboardInterrupt, SystemExit or the like that hit one of the steps."""
        return next((error for _, _, error in self.problems if not isinstance(error, Exception)), None)


def verdict(
    *, error: BaseException | None, doomed: Reason | None, status: int | None,
    rollback_on: Callable[[int], bool] | None,
) -> Reason | None:  # fmt: skip
    """Say why a unit is rolled back: after an error, when doomed, where the app's veto says so. None: it commits."""
    if error is not None:
        return "error"
    if doomed is not None:
        return doomed
    return "veto" if rollback_on is not None and status is not None and rollback_on(status) else None


def finish(enlisted: Sequence[E], *, commit: bool) -> Generator[Step[E], Answer, Outcome[E]]:
    """Yield the steps that end a unit of work; the return value is what happened."""
    outcome: Outcome[E] = Outcome()
    errors: dict[int, BaseException] = {}
    if commit:
        for target in enlisted:
            answer = yield Step("check", target)
            outcome.note("check", target, answer)
            if answer is True:
                outcome.aborted.append(target)
    for number, target in enumerate(enlisted):
        op: Op = "commit" if commit and not outcome.aborted and outcome.failure is None else "rollback"
        answer = yield Step(op, target)
        if isinstance(answer, Failure):
            errors[number] = answer.error
        outcome.note(op, target, answer)
    for number, target in enumerate(enlisted):
        answer = yield Step("release", target, errors.get(number))
        if isinstance(answer, Failure):
            outcome.note("release", target, answer)
    return outcome


def failure(outcome: Outcome[E], name: Callable[[E], str]) -> BaseException | None:
    """Say what the caller has to be told, or None where all went as it should.

    A failing COMMIT of the only resource is the driver's own error, unchanged, so that handlers for it work.
    """
    if outcome.interrupt is not None:
        return outcome.interrupt
    committed = [name(target) for target in outcome.committed]
    undone = [name(target) for target in outcome.undone]
    if outcome.aborted:
        which = ", ".join(repr(name(target)) for target in outcome.aborted)
        return CommitFailed(
            f"a failed statement aborted the transaction on {which} and its error was ignored: nothing was saved. "
            "Let the error leave the view, or put the statement into a savepoint",
            undone=undone,
        )
    if outcome.failure is None or outcome.failed is None:
        return None
    error, lost, _ = outcome.failure
    if not committed and not lost:
        return error
    return _partly(name(outcome.failed), outcome.failure, committed, undone)


def _partly(failed: str, failure: Failure, committed: list[str], undone: list[str]) -> CommitFailed:
    error, lost, foreign = failure
    text = f"the COMMIT on {failed!r} failed: {type(error).__name__}: {error}"
    if lost:
        text += "; the server went away, so whether it was carried out is unknown"
    elif foreign:
        text += "; it was interrupted, so whether it was carried out is unknown"
    if committed:
        text += f"; committed before: {', '.join(committed)}"
    if undone:
        text += f"; rolled back: {', '.join(undone)}"
    result = CommitFailed(text, committed, undone, lost=lost or foreign)
    result.__cause__ = error
    return result


_RETRYABLE_STATES = {"40001", "40P01"}  # serialization failure, deadlock
_RETRYABLE_NUMBERS = {1213}  # MySQL: deadlock


def is_retryable(error: BaseException | None, drivers: Iterable[Any] = ()) -> bool:
    """Whether running the same unit again may well succeed: a serialization failure or a deadlock, or caused by one.

    The `drivers` of the unit know their own errors. Others count where a database library raised them.
    """
    asked = [ask for driver in drivers if (ask := getattr(driver, "is_retryable", None)) is not None]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if any(ask(error) for ask in asked) or (_is_of_a_database(error) and _says_retry(error)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _says_retry(error: BaseException) -> bool:
    if {getattr(error, "sqlstate", None), getattr(error, "pgcode", None)} & _RETRYABLE_STATES:  # psycopg2: pgcode
        return True
    number = error.args[0] if error.args else None
    return isinstance(number, int) and number in _RETRYABLE_NUMBERS


def _is_of_a_database(error: BaseException) -> bool:
    """Whether the class of an error, or a base of it, comes with a library that follows PEP 249, or with asyncpg."""
    for kind in type(error).__mro__:
        parts = kind.__module__.split(".")
        for end in range(1, len(parts) + 1):
            module = sys.modules.get(".".join(parts[:end]))
            if parts[0] == "asyncpg" or (hasattr(module, "apilevel") and hasattr(module, "paramstyle")):
                return True
    return False
