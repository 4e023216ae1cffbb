"""A failed statement whose error was handled: what its unit saves, which answer is sent, and who is told."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Literal

import pytest
from rig import Rig

from poolkit import AsyncUnitOfWork, CommitFailed, ConfigError, UnitOfWork
from poolkit.events import Event, RolledBack
from poolkit.testing.fakes import FakeError
from poolkit.unit_settings import UnitSettings

Kind = Literal["threads", "asyncio"]


class Ends:
    """One unit over two servers, for threads or for asyncio, whose first statement on "default" has failed."""

    def __init__(self, kind: Kind, units: UnitSettings | None = None) -> None:
        self.rig = Rig(units)
        self.kind = kind
        self.hooks: list[str] = []
        self.events: list[Event] = []

    async def end(self, status: int | None, statement: str = "bad", label: str = "POST /orders") -> Any:
        """Let a unit answer with `status` after `statement`; return it."""
        registry = self.rig.registry
        unit: Any = UnitOfWork(registry, label)
        if self.kind == "asyncio":
            unit = AsyncUnitOfWork(self.rig.in_loop().registry, label)
        unit.on_commit(lambda: self.hooks.append("committed"))
        unit.on_rollback(lambda: self.hooks.append("rolled back"))
        other, default = await self.asked(unit.get("other")), await self.asked(unit.get())
        for pool in registry.live_pools():
            pool.listen(self.events.append, borrowings=False)
        other.execute("insert")
        with contextlib.suppress(FakeError):
            default.execute(statement)
        await self.asked(unit.finish(status=status))
        return unit

    async def asked(self, result: Any) -> Any:
        return await result if self.kind == "asyncio" else result


@pytest.fixture(params=["threads", "asyncio"])
def ends(request: pytest.FixtureRequest) -> Ends:
    return Ends(request.param)


@pytest.mark.parametrize("status", [400, 409, 500, 599])
async def test_an_answer_that_is_an_error_is_sent_and_nothing_is_saved(
    ends: Ends, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With a status of 400 or more nothing is raised; all resources are rolled back, and a warning says so."""
    unit = await ends.end(status)
    assert (unit.committed, unit.rollback_reason) == (False, "swallowed_error")
    assert ends.rig.said()[-1] == ends.rig.said("other")[-1] == "rollback"
    assert ends.rig.out() == 0
    assert ends.hooks == ["rolled back"]
    assert ends.rig.registry.tally.rollbacks == {"swallowed_error": 1}
    told = [event for event in ends.events if isinstance(event, RolledBack)]
    expected = [RolledBack(name, "POST /orders", "swallowed_error") for name in ("default", "other")]
    assert sorted(told, key=lambda event: event.pool) == expected
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("POST /orders", str(status), "'default': FakeError: bad statement", "was saved", "savepoint"):
        assert part in warning.getMessage()


@pytest.mark.parametrize("status", [None, 200, 304, 399])
async def test_a_success_is_never_sent_for_what_was_not_saved(ends: Ends, status: int | None) -> None:
    """Without a status, and below 400, the end raises: the client must not be told of a success."""
    with pytest.raises(CommitFailed, match="its error was ignored"):
        await ends.end(status)
    assert ends.hooks == ["rolled back"]
    assert ends.rig.registry.tally.rollbacks == {"swallowed_error": 1}


async def test_an_error_without_a_failed_statement_is_committed(ends: Ends) -> None:
    """A returned 401 keeps its counter of failed logins: the status alone rolls nothing back."""
    unit = await ends.end(401, statement="insert")
    assert unit.committed
    assert ends.rig.registry.tally.rollbacks == {}


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
async def test_the_setting_makes_it_an_error_whatever_the_status(kind: Kind) -> None:
    """`swallowed_error="raise"` is for who wants to hear of each one."""
    ends = Ends(kind, UnitSettings(swallowed_error="raise"))
    with pytest.raises(CommitFailed):
        await ends.end(409)


async def test_a_lost_connection_is_told_in_the_same_way(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    """A statement that lost its connection saved nothing either: the view's own 502 is sent."""
    ends.rig.servers["default"].log = _Killing(ends.rig)
    unit = await ends.end(502)
    assert unit.rollback_reason == "swallowed_error"
    assert "nothing that this request wrote" in caplog.text.lower()


class _Killing(list[str]):
    """The log of a server that ends every session when it is told to do "bad"."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self._rig = rig

    def append(self, line: str) -> None:
        super().append(line)
        if line.endswith(":bad"):
            self._rig.servers["default"].kill()


async def test_a_transaction_that_cannot_be_looked_at_is_not_saved(ends: Ends) -> None:
    """A driver that fails to say whether a transaction is aborted leaves doubt, and doubt commits nothing."""
    ends.rig.faults["default"].plan("aborted", RuntimeError("?"))
    unit = await ends.end(404, statement="insert")
    assert unit.rollback_reason == "swallowed_error"


async def test_a_driver_that_fails_to_name_the_error_changes_nothing(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    """What is told beside the warning must not decide over the end."""
    ends.rig.faults["default"].plan("statement_error", RuntimeError("?"))
    await ends.end(409)
    assert "the error is not known" in caplog.text


async def test_each_endpoint_is_named_once_a_minute(
    ends: Ends, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of them is one line a minute and endpoint, which says how many it stands for."""
    now = 1000.0
    monkeypatch.setattr("poolkit.tally.monotonic", lambda: now)
    for label in ("A", "A", "B", "A"):
        await ends.end(409, label=label)
    assert [record.getMessage()[:2] for record in caplog.records] == ["A:", "B:"]
    now += 61
    await ends.end(409, label="A")
    assert "2 more" in caplog.records[-1].getMessage()
    assert ends.rig.registry.tally.rollbacks == {"swallowed_error": 5}


async def test_every_rollback_is_counted_by_its_reason(ends: Ends) -> None:
    """Errors, dooms, vetoes, units nobody finished and refused COMMITs can be told apart in the numbers."""
    make: Any = UnitOfWork if ends.kind == "threads" else AsyncUnitOfWork
    registry = ends.rig.registry if ends.kind == "threads" else ends.rig.in_loop().registry

    async def unit(**given: Any) -> Any:
        made = make(registry, **given)
        await ends.asked(made.get())
        return made

    await ends.asked((await unit()).finish(ValueError()))
    doomed = await unit()
    doomed.doom()
    await ends.asked(doomed.finish())
    await ends.asked((await unit(rollback_on=lambda status: status == 418)).finish(status=418))
    await ends.asked((await unit()).close())
    refused = await unit()
    ends.rig.servers["default"].fail_commit = True
    with pytest.raises(FakeError):
        await ends.asked(refused.finish())
    await ends.asked(make(registry).finish(ValueError()))  # used nothing: nothing was rolled back
    counts = {"error": 1, "doomed": 1, "veto": 1, "unfinished": 1, "commit_failed": 1}
    assert registry.tally.rollbacks == counts


def test_settings_are_checked_at_once() -> None:
    """Every fault of the settings is in one error, with the nearest right name."""
    with pytest.raises(ConfigError) as caught:
        UnitSettings.from_mapping(
            {"swallowed_errors": "raise", "explicit_commit": "never", "hook_timeout": float("nan")}, where="here"
        )
    text = str(caught.value)
    assert "did you mean 'swallowed_error'?" in text
    assert "explicit_commit must be one of 'allow', 'warn', 'refuse', not 'never'" in text
    assert "hook_timeout must be a number of seconds" in text
    assert UnitSettings.from_mapping({"hook_timeout": 1}).hook_timeout == 1
