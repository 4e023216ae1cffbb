"""A COMMIT that is struck from outside, by a task queue's time limit: nobody can know whether it was carried out."""

from __future__ import annotations

import pytest
from rig import Rig

from poolkit import AsyncUnitOfWork, CommitFailed, UnitOfWork
from poolkit.retrying import run_retryable, run_retryable_async
from poolkit.testing.fakes import FakeError


class TimeLimit(Exception):
    """Raised by a signal handler, at whatever the thread is doing."""


@pytest.mark.parametrize(("error", "lost"), [(TimeLimit(), True), (FakeError("refused"), False)])
def test_after_another_has_committed(error, lost):
    """Only an error of the resource's own library says that the server refused."""
    rig = Rig()
    rig.faults["other"].plan("commit", error)
    unit = UnitOfWork(rig.registry, "unit")
    unit.get("default")
    unit.get("other")
    with pytest.raises(CommitFailed) as raised:
        unit.finish()
    assert (raised.value.committed, raised.value.lost) == (("default",), lost)
    assert ("interrupted" in str(raised.value)) is lost
    assert raised.value.__cause__ is error


def test_what_is_tried_again_commits_several_as_any_other_unit():
    """With two resources nothing is tried again: the error says what was committed before the one that failed."""
    rig = Rig()
    rig.faults["other"].plan("commit", FakeError("refused"))
    unit = UnitOfWork(rig.registry, "unit")
    with pytest.raises(CommitFailed) as raised, unit:
        run_retryable(unit, lambda: (unit.get("default"), unit.get("other")), 3)
    assert raised.value.committed == ("default",)
    assert rig.out() == 0


async def test_the_same_for_asyncio():
    """Two resources are committed by the end of the unit."""
    rig = Rig().in_loop()
    rig.faults["other"].plan("commit", FakeError("refused"))
    unit = AsyncUnitOfWork(rig.registry, "unit")

    async def work() -> None:
        await unit.get("default")
        await unit.get("other")

    with pytest.raises(CommitFailed) as raised:
        async with unit:
            await run_retryable_async(unit, work, 3)
    assert raised.value.committed == ("default",)
    assert rig.out() == 0


def test_alone():
    """Where nothing was committed before, the error is what its handler expects it to be."""
    rig = Rig()
    rig.faults["default"].plan("commit", TimeLimit())
    with pytest.raises(TimeLimit), UnitOfWork(rig.registry, "unit") as unit:
        unit.get("default")
