"""The random programs of `test_session_twins`, on MySQL: each request gets the answers of a connection of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mysql_kinds import KINDS, prepare
from rigs import MYSQL, RIGS
from test_session_twins import LONGEST, Program, Request, Twins

# Left out: what would have the requests wait for each other, and what is not SQL.
WAITING = {"FLUSH TABLES WITH READ LOCK", "LOCK TABLES item READ", "an open transaction", "a trigger"}
LOCK = "SELECT get_lock('kind_4711', 9)"  # each request has its own, by the number
CHANGES = [
    tuple(step for step in kind.dirty if isinstance(step, str))
    for kind in KINDS
    if kind.name not in WAITING and "_lock" not in kind.name and all(isinstance(step, str) for step in kind.dirty)
] + [
    (LOCK,),
    ("INSERT INTO kind_table VALUES (1)",),  # a trigger changes the session
    ("BEGIN",),
    ("SELECT nothing",),
    ("COMMIT",),
    ("ROLLBACK",),
    ("SET autocommit = 1",),
    ("DEALLOCATE PREPARE kind_mine",),
    ("DROP TEMPORARY TABLE kind_mine",),
]
LOOKS = [
    *sorted({(kind.look,) for kind in KINDS if isinstance(kind.look, str) and "lock" not in kind.look}),
    ("SELECT coalesce(is_used_lock('kind_4711') = connection_id(), 0)",),
    ("SELECT count(*) FROM kind_mine",),
    ("EXECUTE kind_mine",),
    ("HANDLER item READ FIRST",),
    ('SELECT "id" FROM item WHERE id = 0',),
]

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


@pytest.fixture(params=MYSQL)
def twins(request: pytest.FixtureRequest, mysql_tables: str) -> Iterator[Twins]:
    kind = RIGS[request.param]
    rig = kind(kind.kind(mysql_tables), lambda **arguments: kind.kind(mysql_tables, **arguments))
    prepare(rig.open())
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
    """The same, a hundred times as often."""
    run(twins, 2000)
