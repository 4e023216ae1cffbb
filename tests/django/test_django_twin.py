"""Random programs of transactions come to the same on poolkit's engine and on Django's own, step by step.

What differs on purpose is left out: a block without a query that is closed in the middle has no connection here, and to
ask for a mode that the connection has is no error here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import Error, close_old_connections, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django_rig import run
from hypothesis import example, given, settings
from hypothesis import strategies as st

Program = list[tuple[Any, ...]]
THEIRS = "theirs"

create_savepoint: Callable[..., Any] = (
    getattr(transaction, "savepoint_create", None) or transaction.savepoint
)  # Django 5

_step = st.one_of(
    st.tuples(
        st.sampled_from(["query", "write", "fail", "hook", "hook that fails", "commit", "rollback", "doom", "undoom"])
    ),
    st.tuples(st.sampled_from(["savepoint", "back to it", "let it go", "manual", "automatic"])),
)


def _blocks(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    block = st.tuples(
        st.just("block"),
        st.booleans(),  # savepoint
        st.booleans(),  # durable
        st.sampled_from(["end", "raise", "raise a database error"]),
        inner,
    )
    return st.lists(st.one_of(_step, block), max_size=5)


programs = st.recursive(st.lists(_step, max_size=4), _blocks, max_leaves=6)


class Interpreter:
    """Runs a program on one alias, and notes what it sees after every step."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.wrapper = connections[alias]
        self.seen: list[Any] = []
        self.savepoints: list[Any] = []
        self.words = 0

    def run(self, program: Program) -> None:
        """Take one step after the other; what a step raises is noted, and the next one is taken all the same."""
        for step in program:
            name, *rest = step
            try:
                getattr(self, "do_" + name.replace(" ", "_"))(*rest)
                outcome: Any = None
            except (Error, TransactionManagementError, RuntimeError, ZeroDivisionError) as error:
                outcome = type(error).__name__
            self.seen.append((name, outcome, *self.state()))

    def state(self) -> tuple[Any, ...]:
        wrapper = self.wrapper
        inside = wrapper.in_atomic_block
        return (
            wrapper.get_autocommit(),
            inside,
            len(wrapper.savepoint_ids),
            wrapper.needs_rollback,
            len(wrapper.run_on_commit),
        )

    def do_query(self) -> None:
        run("SELECT 1", using=self.wrapper)

    def do_write(self) -> None:
        self.words += 1
        run("INSERT INTO django_notes VALUES (%s)", f"{self.alias} {self.words}", using=self.wrapper)

    def do_fail(self) -> None:
        run("SELECT 1 / 0", using=self.wrapper)

    def do_hook(self) -> None:
        transaction.on_commit(lambda: self.seen.append("hook"), using=self.alias)

    def do_hook_that_fails(self) -> None:
        def hook() -> None:
            self.seen.append("a hook that fails")
            raise RuntimeError

        transaction.on_commit(hook, using=self.alias)

    def do_commit(self) -> None:
        transaction.commit(using=self.alias)

    def do_rollback(self) -> None:
        transaction.rollback(using=self.alias)

    def do_doom(self) -> None:
        transaction.set_rollback(True, using=self.alias)

    def do_undoom(self) -> None:
        transaction.set_rollback(False, using=self.alias)

    def do_savepoint(self) -> None:
        made = create_savepoint(using=self.alias)
        if made is not None:  # in autocommit there is none
            self.savepoints.append(made)

    def do_back_to_it(self) -> None:
        if self.savepoints:
            transaction.savepoint_rollback(self.savepoints[-1], using=self.alias)

    def do_let_it_go(self) -> None:
        if self.savepoints:
            transaction.savepoint_commit(self.savepoints.pop(), using=self.alias)

    def do_manual(self) -> None:
        if self.wrapper.get_autocommit():
            transaction.set_autocommit(False, using=self.alias)

    def do_automatic(self) -> None:
        if not self.wrapper.get_autocommit():
            transaction.set_autocommit(True, using=self.alias)

    def do_block(self, savepoint: bool, durable: bool, end: str, inner: Program) -> None:  # noqa: FBT001
        with transaction.atomic(using=self.alias, savepoint=savepoint, durable=durable):
            self.run(inner)
            if end == "raise":
                raise ZeroDivisionError
            if end != "end":
                run("SELECT 1 / 0", using=self.wrapper)

    def finish(self) -> None:
        """Come to rest as at the end of a request."""
        self.wrapper.close()
        close_old_connections()
        self.seen.append((self.wrapper.get_autocommit(), self.wrapper.in_atomic_block))
        self.wrapper.close()  # Django connects to answer that


@pytest.fixture(scope="module")
def theirs(dsn: str, _django: None) -> Iterator[None]:
    """An alias on Django's own engine, on the same database."""
    given = copy.deepcopy(connection.settings_dict)
    given["ENGINE"] = "django.db.backends.postgresql"
    given["OPTIONS"] = {}
    connections.settings[THEIRS] = given
    yield
    connections[THEIRS].close()
    del connections[THEIRS], connections.settings[THEIRS]


Outcome = tuple[list[Any], list[str]]


@pytest.fixture(scope="module")
def outcome(monitor: psycopg.Connection[Any], theirs: None) -> Callable[[str, Program], Outcome]:
    """Run a program on an alias: what was seen, and what is committed."""

    def run_on(alias: str, program: Program) -> Outcome:
        interpreter = Interpreter(alias)
        try:
            interpreter.run(program)
        finally:
            interpreter.finish()
            del connections[alias]  # the next program is to begin as a new thread does
        rows = monitor.execute("DELETE FROM django_notes RETURNING word").fetchall()
        return interpreter.seen, sorted(word.removeprefix(f"{alias} ") for (word,) in rows)

    return run_on


@given(program=programs)
@example(program=[("block", True, False, "end", [("savepoint",)]), ("query",)])
@example(program=[("block", True, False, "end", [("doom",), ("savepoint",)])])
@example(program=[("block", True, False, "end", [("savepoint",), ("doom",), ("back to it",)])])
@example(program=[("block", True, False, "end", [("block", True, False, "raise a database error", [("doom",)])])])
@settings(max_examples=60, deadline=None)
def test_it_is_djangos(outcome: Callable[[str, Program], Outcome], program: Program) -> None:
    """The same errors at the same steps, the same state after each, the same hooks in the same order, the same rows."""
    assert outcome("default", program) == outcome(THEIRS, program)
