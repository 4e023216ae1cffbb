"""`conn.commit()` and `conn.rollback()` by the work itself: counted, told once for each place, or refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from rig import Deadlock, Rig

from poolkit import AsyncUnitOfWork, UnitOfWork, UnitOfWorkError
from poolkit.retrying import run_retryable
from poolkit.unit_settings import UnitSettings


async def started(kind: str, rig: Rig) -> tuple[Any, Any]:
    if kind == "threads":
        unit = UnitOfWork(rig.registry, "POST /")
        return unit, unit.get()
    unit_async = AsyncUnitOfWork(rig.in_loop().registry, "POST /")
    return unit_async, await (unit_async.get() if kind == "asyncio" else unit_async.get_sync())


async def finished(unit: Any) -> None:
    result = unit.finish()
    if result is not None:
        await result


KINDS = pytest.mark.parametrize("kind", ["threads", "asyncio", "sync in a loop"])


@KINDS
async def test_they_are_counted_and_each_place_is_told_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The warning names the place, the endpoint and what to do; the unit's own end is none."""
    rig = Rig()
    for _ in range(2):
        unit, connection = await started(kind, rig)
        connection.commit()
        connection.rollback()
        await finished(unit)
    assert rig.registry.tally.explicit_ends == {"commit": 2, "rollback": 2}
    first, second = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert first.startswith(f"{__file__}:")
    for part in ("commit() on a connection of 'POST /'", "uow.commit()", "explicit_commit='allow'"):
        assert part in first
    assert "rollback() on a connection" in second
    assert "savepoint" in second


@KINDS
async def test_they_can_be_refused_before_anything_is_done(kind: str) -> None:
    """`explicit_commit="refuse"` raises where it is called; the server hears nothing, and the unit commits all."""
    rig = Rig(UnitSettings(explicit_commit="refuse"))
    unit, connection = await started(kind, rig)
    with pytest.raises(UnitOfWorkError, match=r"commit\(\) on a connection of 'POST /'"):
        connection.commit()
    await finished(unit)
    assert rig.said() == ["begin", "commit"]


@KINDS
async def test_they_can_be_allowed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """`explicit_commit="allow"` asks the driver for nothing, and nothing is said."""
    rig = Rig(UnitSettings(explicit_commit="allow"))
    unit, connection = await started(kind, rig)
    assert connection.explicit_end is None
    connection.commit()
    await finished(unit)
    assert caplog.text == ""


@KINDS
async def test_an_idle_connection_keeps_no_unit(kind: str) -> None:
    """After the end, however it came, the connection has forgotten the unit: its next borrower has another."""
    rig = Rig()
    for error in (None, ValueError()):
        unit, connection = await started(kind, rig)
        result = unit.finish(error)
        if result is not None:
            await result
        assert connection.explicit_end is None


def test_a_second_try_is_watched_as_well() -> None:
    """What begins anew in the same unit tells of its ends too."""
    rig = Rig()
    errors: list[Exception] = [Deadlock()]
    unit = UnitOfWork(rig.registry)

    def work() -> None:
        connection = unit.get()
        if errors:
            raise errors.pop()
        connection.commit()

    run_retryable(unit, work, 2)
    assert rig.registry.tally.explicit_ends == {"commit": 1}
