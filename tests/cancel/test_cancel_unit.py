"""AsyncUnitOfWork, the bridge to sync connections, and the registry: cancelled at every await there is."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from cancel_rig import LoopDriver, Rig, closing_at_once, every_point, turns

from poolkit import AsyncUnitOfWork, CommitFailed
from poolkit.bridge import acquire_from_loop
from poolkit.retrying import run_retryable_async
from poolkit.testing import FakeDriver
from poolkit.testing.fakes import FakeError
from poolkit.testing.schedules import cancel_at, cancel_everywhere


class Deadlock(Exception):
    sqlstate = "40P01"


def said(server):
    return [line.partition(":")[2] for line in server.log]


def check_outcome(rig, unit, committed, *, restarts):
    """Each server has all of the work or none of it, and the hooks were told which, unless a restart forgot them."""
    for server in (rig.server, rig.sync_server):
        log = said(server)
        if "insert" in log:
            after = log[log.index("insert") + 1 :]
            saved = "commit" in after and "begin" not in after  # it was not undone by a restart
            assert saved or after[:1] in (["rollback"], ["reset"], []), log
            assert saved == (unit.committed is True) or "begin" in after, (log, unit.committed)
    assert committed in ([] if unit.committed is None else [unit.committed], *([[]] if restarts else []))


def in_unit(work, *, sync_driver=FakeDriver, crowd=0, fails=False, restarts=False, **settings):
    """A request's whole life is cut off: the work in its unit, and the unit's end."""

    async def run(cut):
        rig = Rig(cut, sync_driver=sync_driver, **settings)
        unit, told = rig.unit(), []
        unit.on_commit(lambda: told.append(True))
        unit.on_rollback(lambda: told.append(False))
        others = [asyncio.create_task(_another(rig, work)) for _ in range(crowd)]

        async def request():
            async with unit:
                await work(unit)

        with contextlib.suppress(*([FakeError, CommitFailed] if fails else [])):
            await cut(request())
        await asyncio.gather(*others)
        await rig.settled()
        if not crowd:
            check_outcome(rig, unit, told, restarts=restarts)
        await rig.check()

    return run


async def _another(rig, work):
    await turns(1)
    async with rig.unit() as unit:
        await work(unit)


async def get(unit):
    (await unit.get()).execute("insert")
    await turns(1)


async def get_sync(unit):
    (await unit.get_sync()).execute("insert")
    await turns(1)


async def get_both(unit):
    (await unit.get()).execute("insert")
    (await unit.get_sync()).execute("insert")


async def get_in_tasks(unit):
    async with asyncio.TaskGroup() as group:
        group.create_task(unit.get())
        group.create_task(unit.get())
        group.create_task(unit.get_sync())


async def dirty(unit):
    (await unit.get()).dirty = True
    (await unit.get_sync()).dirty = True


async def doomed(unit):
    await get_both(unit)
    unit.doom()


async def commit(unit):
    await get_both(unit)
    await unit.commit()


async def late(unit):
    """After the commit connections are leased anew, without a transaction, and given back with the unit."""
    await get(unit)
    await unit.commit()
    assert not (await unit.get()).in_transaction
    assert not (await unit.get_sync()).in_transaction
    await turns(1)


async def stream(unit):
    """A body that keeps its transaction to its end."""
    unit.stream()

    async def body():
        connection = await unit.get()
        for _ in range(2):
            connection.execute("select")
            yield connection
            await turns(1)

    async with contextlib.aclosing(body()) as rows:
        async for _ in rows:
            pass


async def restart(unit):
    await get_both(unit)
    await unit.restart()
    (await unit.get()).execute("select")


async def failing_commit(unit):
    connection = await unit.get()
    connection.execute("insert")
    connection.server.fail_commit = True
    asyncio.get_running_loop().call_later(1, setattr, connection.server, "fail_commit", False)


async def failing_commit_in_place(unit):
    await failing_commit(unit)
    await unit.commit_in_place()


async def aborted(unit):
    with contextlib.suppress(FakeError):
        (await unit.get()).execute("bad")


def retried(get_connection):
    async def work(unit):
        attempts = []

        async def attempt():
            connection = await get_connection(unit)
            attempts.append(1)
            connection.execute("select")
            if len(attempts) == 1:
                raise Deadlock
            connection.execute("insert")

        await run_retryable_async(unit, attempt, 3)

    return work


async def lost_unit(cut):
    rig = Rig(cut)

    async def request():
        unit = AsyncUnitOfWork(rig.registry, "GET /")
        await get_both(unit)
        await unit.finish()

    await cut(request())
    gc.collect()
    for pool, _server in rig._used():
        pool.sweep()  # it finds what nobody has any more
    await rig.check()


def bridge(prepare=None, **settings):
    """The wait for a connection of a thread pool is cut off, among others who wait for it as well."""

    async def run(cut):
        rig = Rig(cut, **settings)
        if prepare is not None:
            await prepare(rig)
        others = [asyncio.create_task(_borrow(rig)) for _ in range(2)]
        await cut(_borrow(rig))
        await asyncio.gather(*others)
        await rig.check()

    return run


async def _borrow(rig):
    lease = await acquire_from_loop(rig.sync_pool, rig.registry.in_thread, 20)
    try:
        await turns(2)
    finally:
        lease.release()


async def long_idle(rig):
    await _borrow(rig)
    rig.cut.clock.advance(60)


async def bridge_timing_out(cut):
    rig = Rig(cut)
    lease = await acquire_from_loop(rig.sync_pool, rig.registry.in_thread)

    async def operation():
        with contextlib.suppress(TimeoutError):
            await acquire_from_loop(rig.sync_pool, rig.registry.in_thread, 1)

    await cut(operation())
    lease.release()
    await rig.check()


def of_registry(name, *arguments):
    async def run(cut):
        with closing_at_once():
            rig = Rig(cut)
            await rig.use()
            cut.clock.advance(60)
            await cut(getattr(rig.registry, name)(*arguments))
            await rig.registry.aclose(0)
            await rig.settled()
            await rig.close()

    return run


SCENARIOS = {
    "get": in_unit(get),
    "get, crowd": in_unit(get, crowd=2),
    "get, in tasks": in_unit(get_in_tasks),
    "get_sync": in_unit(get_sync),
    "get_sync, crowd": in_unit(get_sync, crowd=2),
    "get_sync, from the loop": in_unit(get_sync, sync_driver=LoopDriver, crowd=1),
    "both kinds": in_unit(get_both),
    "both kinds, from the loop": in_unit(get_both, sync_driver=LoopDriver),
    "reset": in_unit(dirty, crowd=1),
    "reset, from the loop": in_unit(dirty, sync_driver=LoopDriver),
    "doomed": in_unit(doomed),
    "commit": in_unit(commit),
    "late": in_unit(late),
    "stream": in_unit(stream, crowd=1),
    "restart": in_unit(restart, restarts=True),
    "restart, from the loop": in_unit(restart, restarts=True, sync_driver=LoopDriver),
    "failing commit": in_unit(failing_commit, fails=True),
    "failing commit in place": in_unit(failing_commit_in_place, fails=True),
    "aborted": in_unit(aborted, fails=True),
    "retried": in_unit(retried(AsyncUnitOfWork.get), restarts=True),
    "retried, sync": in_unit(retried(AsyncUnitOfWork.get_sync), restarts=True),
    "bridge": bridge(),
    "bridge, pinging": bridge(long_idle),
    "bridge, timeout": bridge_timing_out,
    "registry.awarm": of_registry("awarm"),
    "registry.aready": of_registry("aready"),
    "registry.aclose": of_registry("aclose"),
}


@pytest.mark.parametrize(("scenario", "point"), every_point(SCENARIOS))
def test_cancelled_at(scenario, point):
    """By task.cancel()."""
    cancel_at(scenario, point, ["cancel"])


@pytest.mark.slow
def test_a_unit_that_nobody_ends():
    """It goes with the task that was cancelled, and its connections are recovered."""
    assert cancel_everywhere(lost_unit, ["cancel"])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["timeout", "scope"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_cancelled_everywhere(name, way):
    """By an asyncio.timeout that expires; by a scope, which cancels again at every later await."""
    assert cancel_everywhere(SCENARIOS[name], [way])
