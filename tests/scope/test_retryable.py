"""Work that is run again after a serialization failure or a deadlock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rig import Deadlock, Rig

from poolkit import AsyncUnitOfWork, CommitFailed, UnitOfWork, UnitOfWorkError, retryable, unit_of_work
from poolkit.retrying import run_retryable, run_retryable_async


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def unit(rig: Rig) -> UnitOfWork:
    return UnitOfWork(rig.registry, "GET /")


def flaky(rig: Rig, failures: int, *, at: str = "statement") -> Callable[[], int]:
    """Decorated work that deadlocks so many times before it succeeds; returns the number of its attempt."""
    attempts = 0

    @retryable(registry=rig.registry)
    def work(uow: UnitOfWork) -> int:
        nonlocal attempts
        attempts += 1
        uow.get().execute(f"insert {attempts}")
        if attempts <= failures:
            if at == "commit":
                rig.faults["default"].plan("commit", Deadlock())
            elif at == "joined":
                with unit_of_work(rig.registry):
                    raise Deadlock
            else:
                raise Deadlock
        return attempts

    return work


@pytest.mark.parametrize("at", ["statement", "commit", "joined"])
def test_a_deadlock_is_tried_again_and_saved_once(rig: Rig, at: str) -> None:
    """Wherever the deadlock shows, the work runs again on the same connection, and what succeeds is committed."""
    assert flaky(rig, 1, at=at)() == 2
    assert rig.said() == ["begin", "insert 1", "rollback", "begin", "insert 2", "commit"]
    assert (rig.servers["default"].opened, rig.out()) == (1, 0)


def test_the_attempts_are_bounded(rig: Rig) -> None:
    """After the last attempt the driver's error is raised, and nothing is saved."""
    with pytest.raises(Deadlock):
        flaky(rig, 99)()
    assert rig.said().count("begin") == 3
    assert "commit" not in rig.said()


def test_other_errors_are_not_tried_again(rig: Rig) -> None:
    """Only a serialization failure or a deadlock says that the same work may succeed."""
    calls: list[int] = []

    @retryable(registry=rig.registry)
    def work(uow: UnitOfWork) -> None:
        calls.append(1)
        raise ValueError

    with pytest.raises(ValueError):
        work()
    assert calls == [1]


def test_hooks_of_a_failed_attempt_are_forgotten(rig: Rig) -> None:
    """A hook belongs to the attempt that asked for it: one mail for one order."""
    ran: list[int] = []
    attempts = iter(range(1, 9))

    @retryable(registry=rig.registry)
    def work(uow: UnitOfWork) -> None:
        attempt = next(attempts)
        uow.on_commit(lambda: ran.append(attempt))
        uow.get()
        if attempt == 1:
            raise Deadlock

    work()
    assert ran == [2]


def test_a_doom_of_ones_own_holds_for_its_attempt(rig: Rig) -> None:
    """Each attempt begins anew: only the last one's doom counts, and it does."""
    attempts = iter(range(1, 9))

    @retryable(registry=rig.registry)
    def work(uow: UnitOfWork) -> None:
        uow.get().execute("insert")
        if next(attempts) == 1:
            uow.doom()
            raise Deadlock

    work()
    assert rig.said()[-1] == "commit"


@pytest.mark.parametrize("prepare", [lambda unit: unit.get(), lambda unit: unit.doom(), lambda unit: unit.finish()])
def test_what_others_did_in_a_unit_is_not_run_again(
    rig: Rig, unit: UnitOfWork, prepare: Callable[[UnitOfWork], object]
) -> None:
    """A unit that was used, doomed or ended before is tried once, and its state stays that of its owner."""
    prepare(unit)
    doomed = unit.doomed
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise Deadlock

    with pytest.raises(Deadlock):
        run_retryable(unit, work, 3)
    assert calls == [1]
    assert unit.doomed is doomed
    unit.close()


def test_work_on_two_servers_is_tried_once(rig: Rig) -> None:
    """One of them may have committed when the other failed: that can't be undone, so it can't be tried again."""
    calls: list[int] = []

    @retryable(registry=rig.registry)
    def work(uow: UnitOfWork) -> None:
        calls.append(1)
        uow.get()
        uow.get("other")
        rig.faults["other"].plan("commit", Deadlock())

    with pytest.raises((Deadlock, CommitFailed)):
        work()
    assert calls == [1]


@pytest.mark.parametrize("attempts", [0, -1, True, 1.5, None])
def test_attempts_that_can_not_work_are_refused_at_once(attempts: Any) -> None:
    """A wrong number is an error where it is written, not at the first deadlock."""
    with pytest.raises(ValueError, match="attempts must be a whole number of at least 1"):
        retryable(attempts)


def test_work_that_is_tried_again_has_no_stream(rig: Rig) -> None:
    """Each try is committed before a body could be sent: `stream()` says so where it is called."""
    unit = UnitOfWork(rig.registry, "GET /")
    with pytest.raises(UnitOfWorkError, match=r"GET /: retryable work can't stream\(\)"):
        run_retryable(unit, unit.stream, 3)


async def test_nor_has_it_in_asyncio(rig: Rig) -> None:
    """The rule is the same for both kinds of unit."""
    unit = AsyncUnitOfWork(rig.in_loop().registry, "GET /")

    async def work() -> None:
        unit.stream()

    with pytest.raises(UnitOfWorkError, match=r"GET /: retryable work can't stream\(\)"):
        await run_retryable_async(unit, work, 3)


def test_a_number_that_means_something_else_is_no_deadlock(rig: Rig) -> None:
    """KeyError(1213) is a missing key: it is raised at once."""
    unit = UnitOfWork(rig.registry)
    tries: list[int] = []

    def work() -> None:
        unit.get()
        tries.append(1)
        raise KeyError(1213)

    with pytest.raises(KeyError):
        run_retryable(unit, work, 3)
    assert tries == [1]
