"""A COMMIT that is struck from outside, by a task queue's time limit: nobody can know whether it was carried out."""

from __future__ import annotations

import pytest
from rig import Rig

from poolkit import CommitFailed, UnitOfWork
from poolkit.testing.fakes import FakeError


class TimeLimit(Exception):  # noqa: N818  as task queues name it
    """Raised by a signal handler, at whatever the thread is doing."""


@pytest.mark.parametrize(("error", "lost"), [(TimeLimit(), True), (FakeError("refused"), False)])
def test_after_another_has_committed(error, lost):
    """Only an error of the resource's own library says that the server refused."""
    rig = Rig()
    rig.faults["other"].plan("commit", error)
    with pytest.raises(CommitFailed) as raised, UnitOfWork(rig.registry, "unit") as unit:
        unit.get("default")
        unit.get("other")
    assert (raised.value.committed, raised.value.lost) == (("default",), lost)
    assert ("interrupted" in str(raised.value)) is lost
    assert raised.value.__cause__ is error


def test_alone():
    """Where nothing was committed before, the error is what its handler expects it to be."""
    rig = Rig()
    rig.faults["default"].plan("commit", TimeLimit())
    with pytest.raises(TimeLimit), UnitOfWork(rig.registry, "unit") as unit:
        unit.get("default")
