"""AsyncUnitOfWork: the same promises as `UnitOfWork`, and what cancellation and sync connections add to them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rig import Deadlock, Rig

from poolkit import AsyncUnitOfWork, CommitFailed, UnitOfWorkError, async_unit_of_work, current, unit_of_work
from poolkit.retrying import run_retryable_async
from poolkit.testing.fakes import FakeError


@pytest.fixture
async def rig() -> Rig:
    return Rig().in_loop()


@pytest.fixture
async def unit(rig: Rig) -> AsyncUnitOfWork:
    return AsyncUnitOfWork(rig.registry, "GET /")


async def settle(rig: Rig) -> None:
    """Wait until what goes on without its caller has ended."""
    async with asyncio.timeout(10):
        while rig.out():  # noqa: ASYNC110  the pool has no event for this
            await asyncio.sleep(0.001)


# -- the way it goes -------------------------------------------------------------------------------------------------


async def test_from_the_first_use_to_one_commit(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """Nothing before the first use, the same connection after it, one COMMIT at the end."""
    async with unit:
        assert rig.servers["default"].opened == 0
        connection = await unit.get()
        assert await unit.get() is connection
        connection.execute("insert")
    assert rig.said() == ["begin", "insert", "commit"]
    assert (unit.committed, rig.out()) == (True, 0)


async def test_tasks_that_ask_at_once_get_the_same(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """Tasks of one request share its connection, whoever asks first; a second one would be outside the transaction."""
    got = await asyncio.gather(*(unit.get() for _ in range(5)))
    assert len({id(connection) for connection in got}) == 1
    await unit.finish()
    assert rig.said() == ["begin", "commit"]


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError(), SystemExit(1)])
async def test_an_end_in_any_error_rolls_back(rig: Rig, unit: AsyncUnitOfWork, error: BaseException) -> None:
    """Whatever leaves the block, a cancellation too, nothing is saved."""
    with contextlib.suppress(BaseException):
        async with unit:
            (await unit.get()).execute("insert")
            raise error
    assert rig.said() == ["begin", "insert", "rollback"]
    assert (unit.committed, rig.out()) == (False, 0)


async def test_what_comes_after_the_end_has_no_transaction(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """A streamed body asks again: it gets a connection in autocommit, given back with the unit."""
    (await unit.get()).execute("insert")
    await unit.commit()
    late = await unit.get()
    assert not late.in_transaction
    late_sync = await unit.get_sync()
    assert not late_sync.in_transaction
    assert rig.out() == 2
    await unit.close()
    assert rig.out() == 0
    with pytest.raises(UnitOfWorkError, match="too late"):
        await unit.commit()


async def test_a_unit_that_ends_while_a_task_waits(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """Who asked before the end and is served after it has no part in the transaction, which nobody would end."""
    driver = rig.async_drivers["default"]
    driver.held.add("begin")
    asking = asyncio.create_task(unit.get())
    await driver.reached.wait()
    await unit.finish()
    driver.held.clear()
    driver.gate.set()
    assert not (await asking).in_transaction
    assert rig.out() == 1
    await unit.close()
    assert rig.out() == 0


# -- sync connections in a loop ----------------------------------------------------------------------------------------


async def test_both_kinds_of_connection_in_one_unit(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """`get` and `get_sync` of one name are two connections, and both are ended by the same unit."""
    connection, of_thread = await unit.get(), await unit.get_sync()
    assert connection is not of_thread
    assert await unit.get_sync() is of_thread
    assert of_thread.in_transaction
    await unit.finish()
    assert rig.said() == ["begin", "begin", "commit", "commit"]
    assert rig.out() == 0


async def test_the_loop_does_no_round_trip_of_a_sync_connection(
    rig: Rig, unit: AsyncUnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BEGIN, COMMIT and ROLLBACK of a sync connection block a thread of poolkit's, never the loop."""
    driver: Any = rig.registry.pool().transactional
    threads: set[int] = set()
    for name in ("begin", "commit", "rollback"):
        original = getattr(driver, name)
        monkeypatch.setattr(
            driver, name, lambda c, original=original: (threads.add(threading.get_ident()), original(c))
        )
    await unit.get_sync()
    await unit.restart()
    await unit.commit_in_place()
    await unit.finish()
    assert threads
    assert threading.get_ident() not in threads
    rig.registry.close()


# -- cancellation ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_end_goes_on(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """A client that goes away in the COMMIT does not cancel it, since nobody could say what became of it."""
    committed: list[bool] = []
    unit.on_commit(lambda: committed.append(True))
    (await unit.get()).execute("insert")
    await unit.get("other")
    driver = rig.async_drivers["default"]
    driver.held.add("commit")
    ending = asyncio.create_task(unit.finish())
    await driver.reached.wait()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert rig.said() == ["begin", "insert"]
    driver.gate.set()
    await settle(rig)
    assert rig.said() == ["begin", "insert", "commit"]
    assert rig.said("other") == ["begin", "commit"]
    assert (committed, unit.committed) == ([True], True)


async def test_a_cancelled_commit_in_place_is_not_cut_off(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """The COMMIT of retryable work is not cancelled either, and the unit's hooks are told what became of it."""
    told: list[str] = []
    unit.on_commit(lambda: told.append("committed"))
    unit.on_rollback(lambda: told.append("undone"))
    driver = rig.async_drivers["default"]

    async def work() -> None:
        (await unit.get()).execute("insert")
        driver.held.add("commit")

    async def request() -> None:
        async with unit:
            await run_retryable_async(unit, work, 3)

    task = asyncio.create_task(request())
    await driver.reached.wait()
    task.cancel()
    await asyncio.sleep(0.01)
    assert rig.said() == ["begin", "insert"]
    driver.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.out() == 0
    assert rig.said() == ["begin", "insert", "commit"]
    assert told == ["committed"]


async def test_a_cancelled_begin_costs_its_connection(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """Nobody knows whether the transaction was begun: the connection is discarded, and the unit can still end."""
    driver = rig.async_drivers["default"]
    driver.held.add("begin")
    asking = asyncio.create_task(unit.get())
    await driver.reached.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    driver.held.clear()
    assert rig.out() == 0
    (await unit.get()).execute("insert")
    await unit.finish()
    assert rig.said() == ["begin", "insert", "commit"]
    assert rig.servers["default"].opened == 2


# -- errors at the end -------------------------------------------------------------------------------------------------


async def test_a_swallowed_error_is_not_reported_as_success(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """The aborted transaction of one kind of connection keeps those of both from being saved."""
    await unit.get()
    with contextlib.suppress(FakeError):
        (await unit.get_sync("other")).execute("bad")
    with pytest.raises(CommitFailed, match=r"'other'.*nothing was saved"):
        await unit.finish()
    assert rig.said()[-1] == rig.said("other")[-1] == "rollback"
    rig.registry.close()


METHODS = st.sampled_from(["begin", "commit", "rollback", "reset", "aborted", "is_broken"])
PLANS = st.lists(st.tuples(st.sampled_from(["default", "other"]), METHODS), max_size=12)


@settings(max_examples=60, deadline=None, database=None)
@given(plans=PLANS, fail=st.booleans())
@example(plans=[("default", "commit"), ("default", "is_broken")], fail=False)
def test_whatever_a_driver_raises_everything_is_given_back(plans: list[tuple[str, str]], *, fail: bool) -> None:
    """A fault in any method of a driver, even in one that must not raise, costs at most the connection it hit."""

    async def main() -> None:
        rig = Rig().in_loop()
        for name, method in plans:
            rig.faults[name].plan(method, FakeError(method))
        unit = AsyncUnitOfWork(rig.registry)
        with contextlib.suppress(FakeError, ValueError, CommitFailed):
            async with unit:
                (await unit.get()).dirty = True
                (await unit.get("other")).dirty = True
                (await unit.get_sync("other")).dirty = True
                if fail:
                    raise ValueError
        assert unit.ended
        await settle(rig)
        await rig.registry.aclose()
        assert rig.servers["default"].open_now == rig.servers["other"].open_now == 0

    asyncio.run(main())


# -- blocks ------------------------------------------------------------------------------------------------------------


async def test_blocks_join_and_doom_and_stand_alone(rig: Rig) -> None:
    """A block joins the unit around it and dooms it by an error; `new=True` is a unit of its own."""
    with pytest.raises(CommitFailed, match="its error was handled"):  # noqa: PT012  the block and its end
        async with async_unit_of_work(rig.registry) as outer:
            assert current() is outer
            async with async_unit_of_work(rig.registry) as inner:
                assert inner is outer
            async with async_unit_of_work(rig.registry, new=True) as other:
                assert other is not outer
                (await other.get("other")).execute("insert")
            (await outer.get()).execute("insert")
            with contextlib.suppress(ValueError):
                async with async_unit_of_work(rig.registry):
                    raise ValueError
            assert outer.doomed
    assert current() is None
    assert (rig.said()[-1], rig.said("other")[-1]) == ("rollback", "commit")


async def test_a_block_for_threads_does_not_join_one_for_a_loop(rig: Rig) -> None:
    """Their connections are of different kinds: a sync block in an async unit is a unit of its own."""
    async with async_unit_of_work(rig.registry) as outer:
        with unit_of_work(rig.registry) as inner:
            assert inner is not outer
            inner.get().execute("insert")
        assert rig.said()[-1] == "commit"
        assert current() is outer


# -- trying again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
async def test_a_deadlock_in_the_commit_is_tried_again(rig: Rig, unit: AsyncUnitOfWork, sync: bool) -> None:  # noqa: FBT001
    """The COMMIT is within what is tried again, for both kinds of connection."""
    attempts = 0

    async def work() -> int:
        nonlocal attempts
        attempts += 1
        connection = await (unit.get_sync() if sync else unit.get())
        connection.execute(f"insert {attempts}")
        if attempts == 1:
            rig.faults["default"].plan("commit", Deadlock())
        return attempts

    async with unit:
        assert await run_retryable_async(unit, work, 3) == 2
    assert rig.said() == ["begin", "insert 1", "rollback", "begin", "insert 2", "commit"]
    assert rig.out() == 0
    rig.registry.close()


async def test_only_fresh_connections_are_run_again_on(rig: Rig, unit: AsyncUnitOfWork) -> None:
    """A connection that was leased for the work and not used is `fresh`; one that others used is tried once."""
    await unit.get()
    attempts: list[int] = []

    async def work() -> None:
        attempts.append(1)
        raise Deadlock

    with pytest.raises(Deadlock):
        await run_retryable_async(unit, work, 3)
    assert len(attempts) == 1
    with pytest.raises(Deadlock):
        await run_retryable_async(unit, work, 3, fresh=True)
    assert len(attempts) == 4
    await unit.close()
