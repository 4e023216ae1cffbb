"""The random programs of `test_session_twins`, on MySQL: each request gets the answers of a connection of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mysql_kinds import KINDS, prepare
from rigs import MYSQL, RIGS
from twins import LOCK, Step, Steps, Twins

# Left out: what would have the requests wait for each other, and what is not SQL.
WAITING = {"FLUSH TABLES WITH READ LOCK", "LOCK TABLES item READ", "an open transaction", "a trigger"}
MINE = f"SELECT get_lock('kind_{LOCK}', 9)"
TOPICS: list[tuple[Step, ...]] = [
    (tuple(step for step in kind.dirty if isinstance(step, str)), (kind.look,))
    for kind in KINDS
    if kind.name not in WAITING
    and "_lock" not in kind.name
    and isinstance(kind.look, str)
    and all(isinstance(step, str) for step in kind.dirty)
] + [
    ((MINE,), (f"SELECT coalesce(is_used_lock('kind_{LOCK}') = connection_id(), 0)",)),
    (("INSERT INTO kind_table VALUES (1)",), ("SELECT @@wait_timeout",)),  # a trigger changes the session
    (
        ("CREATE TEMPORARY TABLE kind_mine (id integer)",),
        ("DROP TEMPORARY TABLE kind_mine",),
        ("INSERT INTO kind_mine VALUES (1)",),
        ("SELECT * FROM kind_mine",),
    ),
    (("PREPARE kind_mine FROM 'SELECT 1'",), ("DEALLOCATE PREPARE kind_mine",), ("EXECUTE kind_mine",)),
    (("HANDLER item OPEN",), ("HANDLER item CLOSE",), ("HANDLER item READ FIRST",)),
    (("SET sql_mode = 'ANSI_QUOTES'",), ('SELECT "id" FROM item WHERE id = 0',)),
    (("USE information_schema",), ("SELECT count(*) FROM item",)),
]
COMMON: list[Step] = [
    ("BEGIN",),
    ("SELECT nothing",),
    ("COMMIT",),
    ("ROLLBACK",),
    ("SET autocommit = 1",),
    ("SAVEPOINT kind_mine",),
    ("ROLLBACK TO SAVEPOINT kind_mine",),
]
STEPS = Steps(TOPICS, COMMON)


@pytest.fixture(params=MYSQL)
def twins(request: pytest.FixtureRequest, mysql_tables: str) -> Iterator[Twins]:
    kind = RIGS[request.param]
    rig = kind(kind.kind(mysql_tables), lambda **arguments: kind.kind(mysql_tables, **arguments))
    prepare(rig.open())
    yield Twins(rig)
    rig.close_all()


def test_programs_get_the_answers_of_a_connection_of_their_own(twins: Twins) -> None:
    """Whatever a borrower did to its session, the next one finds it as new."""
    STEPS.run(twins, 50, fixed=True)


def test_without_resets_they_do_not(twins: Twins) -> None:
    """The programs tell a pool apart that passes sessions on as they are."""
    STEPS.fail_without_resets(twins)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_programs_get_the_answers_of_a_connection_of_their_own(twins: Twins) -> None:
    """The same as the first, many times as often."""
    STEPS.run(twins, 2000)
