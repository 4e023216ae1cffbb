"""How a unit ends, as pure steps: whatever of them fails, the books balance and everything is given back."""

from __future__ import annotations

import sys
import types
from typing import Any

import asyncpg
import psycopg
import pymysql
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit import CommitFailed
from poolkit.ending import Answer, Failure, Outcome, Step, failure, finish, is_retryable, verdict

ERRORS = st.sampled_from([ValueError("refused"), KeyboardInterrupt(), SystemExit(1)])
ANSWERS = st.one_of(st.none(), st.builds(Failure, ERRORS, st.booleans()))


class Script:
    """Answers each step as told, and keeps what was asked."""

    def __init__(self, answers: dict[tuple[str, str], Answer]) -> None:
        self.answers = answers
        self.steps: list[Step[str]] = []

    def run(self, targets: list[str], *, commit: bool) -> Outcome[str]:
        steps = finish(targets, commit=commit)
        answer: Answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                outcome: Outcome[str] = stop.value
                return outcome
            self.steps.append(step)
            answer = self.answers.get((step.op, step.target))

    def targets(self, *ops: str) -> list[str]:
        return [step.target for step in self.steps if step.op in ops]

    def failed(self, *ops: str) -> list[BaseException]:
        asked = [self.answers.get((step.op, step.target)) for step in self.steps if step.op in ops]
        return [answer.error for answer in asked if isinstance(answer, Failure)]


@st.composite
def endings(draw: st.DrawFn) -> tuple[list[str], bool, Script]:
    targets = [f"t{number}" for number in range(draw(st.integers(0, 4)))]
    answers: dict[tuple[str, str], Answer] = {}
    for target in targets:
        answers["check", target] = draw(st.one_of(st.just(False), st.just(True), ANSWERS))
        for op in ("commit", "rollback", "release"):
            answers[op, target] = draw(ANSWERS)
    return targets, draw(st.booleans()), Script(answers)


@given(endings())
def test_everything_is_ended_once_and_then_released_once(ending: tuple[list[str], bool, Script]) -> None:
    """Each resource is committed or rolled back, never both, and released after that, whatever else fails."""
    targets, commit, script = ending
    outcome = script.run(targets, commit=commit)
    assert script.targets("commit", "rollback") == targets
    assert [step.op for step in script.steps[len(script.steps) - len(targets) :]] == ["release"] * len(targets)
    assert script.targets("release") == targets
    failed = [] if outcome.failed is None or outcome.failed in outcome.undone else [outcome.failed]
    assert sorted([*outcome.committed, *outcome.undone, *failed]) == targets


@given(endings())
def test_nothing_is_committed_after_a_failure(ending: tuple[list[str], bool, Script]) -> None:
    """One that is aborted, or can't be looked at, keeps all from being committed; a failed COMMIT all after it."""
    targets, commit, script = ending
    outcome = script.run(targets, commit=commit)
    if not commit:
        assert script.targets("check", "commit") == []
        return
    assert [step.op for step in script.steps[: len(targets)]] == ["check"] * len(targets)
    if outcome.aborted or script.failed("check"):
        assert script.targets("commit") == []
    committed = script.targets("commit")
    assert all(script.answers["commit", target] is None for target in committed[:-1])
    assert outcome.committed == [target for target in committed if script.answers["commit", target] is None]


@given(endings())
def test_each_release_is_told_its_own_error(ending: tuple[list[str], bool, Script]) -> None:
    """A connection that died in its COMMIT or ROLLBACK is told so when it is given back, and no other."""
    targets, commit, script = ending
    script.run(targets, commit=commit)
    ended = {
        step.target: script.answers[step.op, step.target] for step in script.steps if step.op in {"commit", "rollback"}
    }
    for step in script.steps:
        if step.op == "release":
            answer = ended[step.target]
            assert step.error is (answer.error if isinstance(answer, Failure) else None)


@given(endings())
def test_no_failure_is_lost(ending: tuple[list[str], bool, Script]) -> None:
    """What went wrong is noted in its order; the caller is told unless all was committed, or nothing was to be."""
    targets, commit, script = ending
    outcome = script.run(targets, commit=commit)
    noted = [error for _, _, error in outcome.problems]
    assert noted == script.failed("check", "commit", "rollback", "release")
    error = failure(outcome, str)
    interrupts = [problem for problem in noted if not isinstance(problem, Exception)]
    if interrupts:
        assert error is interrupts[0]
    else:
        assert (error is None) == (not commit or outcome.committed == targets)


def end(answers: dict[tuple[str, str], Answer], targets: str = "abc") -> tuple[BaseException | None, Outcome[str]]:
    outcome = Script(answers).run(list(targets), commit=True)
    return failure(outcome, lambda target: f"db-{target}"), outcome


def test_the_error_of_the_only_commit_is_the_drivers_own() -> None:
    """A handler for the driver's unique violation works whether the statement or the COMMIT raises it."""
    error = ValueError("duplicate")
    assert end({("commit", "a"): Failure(error)}, "a")[0] is error
    assert end({("commit", "a"): Failure(error)}, "ab")[0] is error, "nothing was committed before it"


def test_a_partial_commit_says_which_did_what() -> None:
    """What was committed before the failure stays so, and the error names it and what was rolled back."""
    cause = ValueError("disk full")
    error, _ = end({("commit", "b"): Failure(cause)})
    assert isinstance(error, CommitFailed)
    assert (error.committed, error.undone, error.lost) == (("db-a",), ("db-c",), False)
    assert error.__cause__ is cause
    assert str(error) == (
        "the COMMIT on 'db-b' failed: ValueError: disk full; committed before: db-a; rolled back: db-c"
    )


def test_a_lost_commit_says_that_its_outcome_is_unknown() -> None:
    """Where the server went away in the COMMIT, even the only one is told apart from one that was refused."""
    error, _ = end({("commit", "a"): Failure(OSError("reset"), lost=True)}, "a")
    assert isinstance(error, CommitFailed)
    assert error.lost
    assert "unknown" in str(error)


def test_an_aborted_transaction_keeps_all_from_being_saved() -> None:
    """PostgreSQL would answer its COMMIT with a silent ROLLBACK: nothing is committed, and the error names it."""
    error, outcome = end({("check", "b"): True})
    assert isinstance(error, CommitFailed)
    assert outcome.committed == []
    assert error.undone == ("db-a", "db-b", "db-c")
    assert "'db-b'" in str(error)
    assert "nothing was saved" in str(error)


def test_a_check_that_fails_keeps_all_from_being_saved() -> None:
    """Of a transaction that can't be looked at, nobody knows whether its COMMIT would be one."""
    cause = ValueError("no such thing")
    error, outcome = end({("check", "b"): Failure(cause)})
    assert error is cause
    assert outcome.undone == ["a", "b", "c"]


@pytest.mark.parametrize("op", ["check", "commit", "rollback", "release"])
def test_an_interrupt_is_told_after_all_is_ended(op: str) -> None:
    """Ctrl-C in the middle of the end is raised, and only after everything was given back."""
    interrupt = KeyboardInterrupt()
    answers: dict[tuple[str, str], Answer] = {(op, "b"): Failure(interrupt)}
    if op == "rollback":
        answers["commit", "a"] = Failure(ValueError())
    assert end(answers)[0] is interrupt


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"error": ValueError()}, "error"),
        ({"error": KeyboardInterrupt()}, "error"),
        ({"error": ValueError(), "doomed": "doomed"}, "error"),
        ({"doomed": "joined_block"}, "joined_block"),
        ({"status": 500}, None),
        ({"status": 500, "rollback_on": lambda status: status >= 500}, "veto"),
        ({"status": 404, "rollback_on": lambda status: status >= 500}, None),
        ({"rollback_on": lambda status: True}, None),
    ],
)
def test_the_verdict(given: dict[str, Any], expected: str | None) -> None:
    """An error or a doom rolls back; a status does only where the app says so, and only where there is one."""
    facts: dict[str, Any] = {"error": None, "doomed": None, "status": None, "rollback_on": None} | given
    assert verdict(**facts) == expected


class Sql(Exception):
    """An error of a library that follows PEP 249; see `library`."""

    __module__ = "poolkit_test_sql.errors"

    def __init__(self, *args: object, sqlstate: str | None = None) -> None:
        super().__init__(*args)
        self.sqlstate = sqlstate


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("poolkit_test_sql")
    vars(module).update(apilevel="2.0", paramstyle="format")
    monkeypatch.setitem(sys.modules, "poolkit_test_sql", module)


def test_only_errors_of_a_database_library_count() -> None:
    """A number or an attribute of an error that means something else makes no deadlock of it."""

    class Http404(Exception):
        sqlstate = "40001"

    for error in (KeyError(1213), ValueError(1213), Http404(1213)):
        assert not is_retryable(error)
    for library_error in (
        psycopg.errors.SerializationFailure(), psycopg.errors.DeadlockDetected(),
        asyncpg.SerializationError(), asyncpg.DeadlockDetectedError(), pymysql.err.OperationalError(1213, "Deadlock"),
    ):  # fmt: skip
        assert is_retryable(library_error), library_error
    assert not is_retryable(psycopg.errors.UniqueViolation())


def test_the_units_drivers_are_asked_first() -> None:
    """A driver of one's own knows its errors, whatever they look like."""

    class Own:
        def is_retryable(self, error: BaseException) -> bool:
            return isinstance(error, LookupError)

    wrapped = ValueError()
    wrapped.__cause__ = KeyError()
    assert is_retryable(wrapped, [object(), Own()])
    assert not is_retryable(ValueError(), [Own()])


def test_what_is_worth_another_try() -> None:
    """Serialization failures and deadlocks, also where they are the cause of what arrived; nothing else."""
    assert is_retryable(Sql(sqlstate="40001"))
    assert is_retryable(Sql(sqlstate="40P01"))
    assert is_retryable(Sql(1213, "Deadlock found"))
    assert not is_retryable(Sql(sqlstate="23505"))
    assert not is_retryable(Sql(1062, "Duplicate entry"))
    assert not is_retryable(Sql("1213"))
    assert not is_retryable(None)
    wrapped = ValueError()
    wrapped.__cause__ = Sql(sqlstate="40001")
    assert is_retryable(wrapped)
    in_handler = ValueError()
    in_handler.__context__ = Sql(sqlstate="40001")
    assert is_retryable(in_handler)


def test_causes_in_a_circle_end() -> None:
    """Errors that name each other as cause are looked at once."""
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert not is_retryable(first)


def test_a_cause_that_was_disowned_does_not_count() -> None:
    """`raise Other from None` says that the failure before has nothing to do with it."""
    error = ValueError()
    error.__context__ = Sql(sqlstate="40001")
    error.__suppress_context__ = True
    assert not is_retryable(error)
