"""Random requests of several tenants, interleaved on a small pool: each gets the answers of a connection of its own.

The statements change the session or show it, out of `state_kinds`. Whatever one borrower leaves to another shows, if
any later step looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rigs import RIGS
from state_kinds import POSTGRES, prepare
from twins import LOCK, Step, Steps, Twins

# Left out: a timeout of a millisecond, whose answers are chance; LOAD, which DO and the like imply, for good. The
# drivers' own tests have both.
KINDS = [kind for kind in POSTGRES if kind.name != "LOAD" and kind.dirty != ("SET statement_timeout = 1",)]
UPDATE = "UPDATE pg_settings SET setting = '78' WHERE name = 'work_mem'"
LOCKS = next(kind.look for kind in KINDS if "advisory" in kind.name)
KEYS = ("4712", "4713")  # of the kinds' advisory locks, beside LOCK


def with_own_keys(step: Step) -> Step:
    """Give all locks of a step keys that only its request has: it is not to wait for another's."""
    for key in KEYS:
        step = tuple(statement.replace(key, LOCK) for statement in step)
    return step


TOPICS: list[tuple[Step, ...]] = [(with_own_keys(kind.dirty), (kind.look,)) for kind in KINDS] + [
    ((UPDATE,) * 6, ("SELECT current_setting('work_mem')",)),  # psycopg prepares the sixth
    ((f"PREPARE kind_update AS {UPDATE}",), ("EXECUTE kind_update",), ("SELECT current_setting('work_mem')",)),
    ((f"SELECT pg_advisory_xact_lock({LOCK})",), (f"SELECT pg_advisory_unlock({LOCK})",), (LOCKS,)),
    (("SELECT nextval('twin_numbers') > 0",), ("SELECT lastval() > 0",)),
    (("CREATE TEMP TABLE kind_mine (i int)",), ("INSERT INTO kind_mine VALUES (1)",), ("SELECT * FROM kind_mine",)),
    (("PREPARE kind_mine AS SELECT 1",), ("EXECUTE kind_mine",)),
    (("BEGIN", "DECLARE kind_mine CURSOR WITH HOLD FOR SELECT 1"), ("FETCH kind_mine",), ("CLOSE kind_mine",)),
    (("SET search_path = pg_catalog",), ("SELECT count(*) FROM twin_rows",)),
    (("SAVEPOINT kind_mine",), ("ROLLBACK TO SAVEPOINT kind_mine",), ("RELEASE SAVEPOINT kind_mine",)),
]
COMMON: list[Step] = [
    ("BEGIN",),
    ("COMMIT",),
    ("ROLLBACK",),
    ("SELECT 1 / 0",),
    ("DISCARD ALL",),
    ("RESET ALL",),
    ("DEALLOCATE ALL",),
    ("CLOSE ALL",),
    ("UNLISTEN *",),
    ("SELECT count(*) FROM twin_rows",),
]
STEPS = Steps(TOPICS, COMMON)


def unsteady(statement: str) -> bool:
    """Say whether it updates pg_settings, which answers with a row until it is prepared, and then with none."""
    return statement == UPDATE or "UPDATE pg_settings" in statement or statement == "EXECUTE kind_update"


@pytest.fixture(params=[name for name, rig in RIGS.items() if rig.postgres and "uvloop" not in name])
def twins(request: pytest.FixtureRequest, tables: str) -> Iterator[Twins]:
    kind = RIGS[request.param]

    def again(**arguments: Any) -> Any:
        return kind.kind(tables, **arguments)

    rig = kind(again(), again)
    conn = rig.open()
    prepare(lambda statement: rig.do(conn, statement))
    rig.do(conn, "CREATE SEQUENCE IF NOT EXISTS twin_numbers", "CREATE TABLE IF NOT EXISTS twin_rows (i int)")
    yield Twins(rig, unsteady=unsteady)
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
