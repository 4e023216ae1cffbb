"""Random requests of several tenants, interleaved on a small pool: each gets the answers of a connection of its own.

A program is a list of requests, each a list of steps: statements that change the session and queries that show it, out
of `state_kinds`. The requests are opened, moved on and ended in an order that the program says, on one to three
connections. What a request is answered is compared with what the same steps are answered on a new connection. So
whatever one borrower leaves to another shows, if any later step looks at it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rigs import RIGS, Rig, _AsyncRig
from state_kinds import POSTGRES, prepare

from poolkit import AsyncPool, Pool

LONGEST = 7  # steps of a request


class Request(NamedTuple):
    """What one borrower does: each step is one or more statements, of which the last is answered."""

    steps: tuple[tuple[str, ...], ...]


class Program(NamedTuple):
    """Requests, how many connections they share, and whose turn it is, again and again."""

    size: int
    requests: tuple[Request, ...]
    turns: tuple[int, ...]


# Left out: a timeout of a millisecond, whose answers are chance; LOAD, which DO and the like imply, for good; advisory
# locks, which the connection for comparison may still hold while it closes; UPDATE pg_settings, which answers with no
# row once it is prepared. The drivers' own tests have those.
KINDS = [
    kind
    for kind in POSTGRES
    if kind.name not in {"LOAD", "UPDATE pg_settings"}
    and "advisory" not in kind.name
    and kind.dirty != ("SET statement_timeout = 1",)
]
CHANGES = [kind.dirty for kind in KINDS] + [
    ("SELECT nextval('twin_numbers') > 0",),
    ("BEGIN",),
    ("SELECT 1 / 0",),
    ("COMMIT",),
    ("ROLLBACK",),
    ("DISCARD ALL",),
    ("RESET ALL",),
    ("DEALLOCATE ALL",),
    ("CLOSE ALL",),
    ("UNLISTEN *",),
]
LOOKS = [*sorted({(kind.look,) for kind in KINDS}), ("SELECT lastval() > 0",), ("SELECT count(*) FROM twin_rows",)]
LOCKS = ("4711", "4712", "4713")

programs = st.builds(
    Program,
    st.integers(1, 3),
    st.lists(
        st.builds(
            Request,
            st.lists(st.sampled_from(CHANGES) | st.sampled_from(LOOKS), min_size=1, max_size=LONGEST).map(tuple),
        ),
        min_size=2,
        max_size=5,
    ).map(tuple),
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple),
)


class Twins:
    """Runs programs twice: on a pool, and each request on a connection of its own."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._known: dict[tuple[tuple[str, ...], ...], list[object]] = {}

    def check(self, program: Program) -> None:
        """Run one program, and compare."""
        pool_type: Any = AsyncPool if isinstance(self.rig, _AsyncRig) else Pool
        pool = pool_type(self.rig.again(), max_size=program.size, timeout=10.0)
        try:
            answers = self._interleaved(pool, program)
        finally:
            self.rig.run(pool.close())
        for number, request in enumerate(program.requests):
            steps = _own_locks(request.steps, number)
            assert answers[number] == self._alone(steps), f"request {number}: {steps}"

    def _interleaved(self, pool: Any, program: Program) -> list[list[object]]:
        answers: list[list[object]] = [[] for _ in program.requests]
        coming = list(range(len(program.requests)))
        open_now: list[tuple[int, Any]] = []
        turns = 0
        while coming or open_now:
            turn = program.turns[turns % len(program.turns)]
            turns += 1
            if coming and len(open_now) < program.size and (not open_now or turn >= len(open_now)):
                open_now.append((coming.pop(0), self.rig.run(pool.acquire())))
                continue
            number, lease = open_now[turn % len(open_now)]
            steps = _own_locks(program.requests[number].steps, number)
            done = len(answers[number])
            if done < len(steps):
                answers[number].append(self._answer(lease.resource, steps[done]))
            else:
                open_now.remove((number, lease))
                self.rig.run(lease.release())
        return answers

    def _alone(self, steps: tuple[tuple[str, ...], ...]) -> list[object]:
        if steps not in self._known:
            conn = self.rig.run(self.rig.driver.open(10))
            self._known[steps] = [self._answer(conn, step) for step in steps]
            self.rig.run(self.rig.driver.close(conn))
        return self._known[steps]

    def _answer(self, conn: Any, step: tuple[str, ...]) -> object:
        answer: object = None
        for statement in step:
            try:
                answer = [tuple(row) for row in self.rig.rows(conn, statement)]
            except (self.rig.errors, *self.rig.refusals) as error:
                answer = type(error).__name__
        return answer


def _own_locks(steps: tuple[tuple[str, ...], ...], number: int) -> tuple[tuple[str, ...], ...]:
    """Give each request advisory locks of its own: it is not to wait for another's."""

    def own(statement: str) -> str:
        for lock in LOCKS:
            statement = statement.replace(lock, f"{number}{lock}")
        return statement

    return tuple(tuple(own(statement) for statement in step) for step in steps)


@pytest.fixture(params=[name for name, rig in RIGS.items() if rig.postgres and "uvloop" not in name])
def twins(request: pytest.FixtureRequest, tables: str) -> Twins:
    kind = RIGS[request.param]

    def again(**arguments: Any) -> Any:
        return kind.kind(tables, **arguments)

    rig = kind(again(), again)
    conn = rig.open()
    prepare(lambda statement: rig.do(conn, statement))
    rig.do(conn, "CREATE SEQUENCE IF NOT EXISTS twin_numbers", "CREATE TABLE IF NOT EXISTS twin_rows (i int)")
    yield Twins(rig)
    rig.close_all()


def run(twins: Twins, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(program=programs)
    def check(program: Program) -> None:
        twins.check(program)

    check()


def test_programs_get_the_answers_of_a_connection_of_their_own(twins: Twins) -> None:
    """Whatever a borrower did to its session, the next one finds it as new."""
    run(twins, 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_programs_get_the_answers_of_a_connection_of_their_own(twins: Twins) -> None:
    """The same, many times as often."""
    run(twins, 500)
