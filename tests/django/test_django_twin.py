"""Random programs of transactions come to the same on poolkit's engine and on Django's own, step by step.

What differs on purpose is left out: a block without a query that is closed in the middle has no connection here, and to
ask for a mode that the connection has is no error here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import Error, close_old_connections, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django_rig import run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from poolkit_django.backends import pools

Program = list[tuple[Any, ...]]
OURS, THEIRS = "ours", "theirs"
WRONG = "SELECT * FROM no_such_table"

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
        run(WRONG, using=self.wrapper)

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
                run(WRONG, using=self.wrapper)

    def finish(self) -> None:
        """Come to rest as at the end of a request."""
        self.wrapper.close()
        close_old_connections()
        self.seen.append((self.wrapper.get_autocommit(), self.wrapper.in_atomic_block))
        self.wrapper.close()  # Django connects to answer that


def settings_of(engine: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """An entry of DATABASES, less its engine."""
    if engine == "postgresql":
        request.getfixturevalue("_django")
        return {**copy.deepcopy(connection.settings_dict), "OPTIONS": {}}
    if engine == "sqlite3":
        return {"NAME": str(request.getfixturevalue("tmp_path_factory").mktemp("twin") / "twin.db")}
    parts = urlsplit(request.getfixturevalue("mysql_dsn"))
    given = {"USER": parts.username, "PASSWORD": parts.password, "HOST": parts.hostname, "PORT": parts.port}
    return {"NAME": parts.path[1:], **{name: value or "" for name, value in given.items()}}


@pytest.fixture(scope="module", params=["postgresql", "sqlite3", "mysql"])
def twins(request: pytest.FixtureRequest, _django: None) -> Iterator[None]:
    """Two aliases on one database: on poolkit's engine, and on Django's own."""
    given = settings_of(request.param, request)
    for alias, package in ((OURS, "poolkit_django.backends"), (THEIRS, "django.db.backends")):
        made = {**given, "ENGINE": f"{package}.{request.param}"}
        connections.settings[alias] = connections.configure_settings({"default": {}, alias: made})[alias]
        connections[alias].close()
    if request.param != "postgresql":
        run("CREATE TABLE django_notes (word varchar(40))", using=connections[OURS])
    run("DELETE FROM django_notes", using=connections[OURS])  # another file's tests may have left some
    connections[OURS].close()
    yield
    if request.param != "postgresql":
        run("DROP TABLE django_notes", using=connections[OURS])
    connections[OURS].close()
    pools.close_database(connections[OURS])  # type: ignore[arg-type]
    for alias in (OURS, THEIRS):
        connections[alias].close()
        del connections[alias], connections.settings[alias]


Outcome = tuple[list[Any], list[str]]


@pytest.fixture(scope="module")
def outcome(twins: None) -> Callable[[str, Program], Outcome]:
    """Run a program on an alias: what was seen, and what is committed."""

    def run_on(alias: str, program: Program) -> Outcome:
        interpreter = Interpreter(alias)
        try:
            interpreter.run(program)
        finally:
            interpreter.finish()
            del connections[alias]  # the next program is to begin as a new thread does
        words = [word for (word,) in run("SELECT word FROM django_notes", using=connections[OURS])]
        run("DELETE FROM django_notes", using=connections[OURS])
        connections[OURS].close()
        return interpreter.seen, sorted(word.removeprefix(f"{alias} ") for word in words)

    return run_on


@given(program=programs)
@example(program=[("block", True, False, "end", [("savepoint",)]), ("query",)])
@example(program=[("block", True, False, "end", [("doom",), ("savepoint",)])])
@example(program=[("block", True, False, "end", [("savepoint",), ("doom",), ("back to it",)])])
@example(program=[("block", True, False, "end", [("block", True, False, "raise a database error", [("doom",)])])])
@settings(max_examples=15, deadline=None)
def test_it_is_djangos(outcome: Callable[[str, Program], Outcome], program: Program) -> None:
    """The same errors at the same steps, the same state after each, the same hooks in the same order, the same rows."""
    assert outcome(OURS, program) == outcome(THEIRS, program)


@pytest.mark.slow
@given(program=programs)
@settings(max_examples=200, deadline=None)
def test_it_is_djangos_for_long(outcome: Callable[[str, Program], Outcome], program: Program) -> None:
    """The same, for more programs."""
    assert outcome(OURS, program) == outcome(THEIRS, program)
