"""A statement that failed, its error ignored: the log names that error, whichever driver it was."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from rigs import RIGS, Rig

# In MySQL a statement that fails aborts nothing, but for a deadlock: test_mysql_units has that.
NAMES = [name for name, rig in RIGS.items() if not rig.mysql and "uvloop" not in name]


@pytest.fixture(params=NAMES)
def rig_name(request: pytest.FixtureRequest) -> str:
    """Every driver whose transactions a statement can abort."""
    name: str = request.param
    return name


@pytest.mark.parametrize("later", [False, True])
def test_the_warning_names_the_error_that_aborted_the_transaction(
    rig: Rig,
    unit: Any,
    caplog: pytest.LogCaptureFixture,
    later: bool,  # noqa: FBT001
) -> None:
    """Not that of a later statement, which only hears that the transaction is aborted; and no value of a row."""
    work = unit()
    conn = rig.run(work.get())
    rig.do(conn, "INSERT INTO item VALUES (41)")
    failing = "INSERT INTO item VALUES (41)" if rig.postgres else "INSERT OR ROLLBACK INTO item VALUES (41)"
    for statement in (failing, *(["SELECT 1"] if later else [])):
        with pytest.raises((rig.errors, *rig.refusals)):
            rig.do(conn, statement)
    with caplog.at_level(logging.WARNING, "poolkit"):
        rig.run(work.finish(status=409))
    said = [record.getMessage() for record in caplog.records if "answered 409" in record.getMessage()]
    assert len(said) == 1
    cause = "duplicate key value violates unique constraint" if rig.postgres else "UNIQUE constraint failed: item.id"
    assert f"'default': {cause}" in said[0]
    assert "41" not in said[0]
    assert work.rollback_reason == "swallowed_error"
    again = unit()  # the next borrower's failure has no part in it
    assert rig.value(rig.run(again.get()), "SELECT count(*) FROM item") == 0
    rig.run(again.finish())
