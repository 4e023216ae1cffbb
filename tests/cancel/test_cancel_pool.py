"""AsyncPool: whoever is cancelled wherever, nothing is lost, nobody forgotten, and no COMMIT cut in half."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from cancel_rig import Rig, every_point, turns

from poolkit import CommitFailed, PoolClosed
from poolkit.testing.fakes import FakeError
from poolkit.testing.schedules import cancel_at, cancel_everywhere


async def block(pool):
    async with pool.acquire() as connection:
        await turns(1)
        connection.execute("select")


async def dirty_block(pool):
    async with pool.acquire() as connection:
        connection.execute("dirty")
        await turns(1)


async def by_hand(pool):
    lease = await pool.acquire()
    try:
        lease.resource.execute("dirty")
        await turns(1)
    finally:
        await lease.release()


async def urgent(pool):
    async with pool.acquire(urgent=True):
        await turns(1)


async def commit(pool):
    async with pool.transaction() as connection:
        connection.execute("insert")
        await turns(1)


async def rollback(pool):
    with contextlib.suppress(KeyError):
        async with pool.transaction() as connection:
            connection.execute("insert")
            await turns(1)
            raise KeyError


async def aborted(pool):
    with contextlib.suppress(CommitFailed):
        async with pool.transaction() as connection:
            with contextlib.suppress(FakeError):
                connection.execute("bad")


async def failing_commit(pool):
    with contextlib.suppress(FakeError):
        async with pool.transaction() as connection:
            connection.server.fail_commit = True
            connection.execute("insert")
    connection.server.fail_commit = False


async def nothing(rig):
    """The pool is empty: the operation has something opened."""


async def idle(rig):
    await rig.use()


async def long_idle(rig):
    await rig.use()
    rig.cut.clock.advance(60)


async def dead(rig):
    """What lies idle is gone, and only a ping tells."""
    await long_idle(rig)
    for connection in rig.server.connections:
        connection.mute = True


def scenario(operation, prepare=nothing, *, crowd=0, **settings):
    """One borrower is cut off, among others who came before and after it and have to be served all the same."""

    async def run(cut):
        rig = Rig(cut, **settings)
        await prepare(rig)
        before = [asyncio.create_task(block(rig.pool)) for _ in range(crowd)]
        if crowd:
            await turns(1)
        after = [asyncio.create_task(_later(commit, rig.pool)) for _ in range(crowd)]
        await cut(operation(rig.pool))
        rig.server.fail_commit = False
        await asyncio.gather(*before, *after)
        await rig.check()

    return run


async def _later(operation, pool):
    await turns(2)
    return await operation(pool)


async def warm(cut):
    rig = Rig(cut, min_size=2, max_size=2)
    await cut(rig.pool.warm())
    await rig.check()


async def warm_in_an_outage(cut):
    rig = Rig(cut)
    rig.server.down = True
    await cut(rig.pool.warm(3))
    rig.server.down = False
    await asyncio.sleep(1)
    await rig.check()


async def ready(cut):
    rig = Rig(cut, max_size=2)
    await rig.use(2)
    cut.clock.advance(60)
    for connection in rig.server.connections:
        connection.mute = True
    await cut(rig.pool.ready(5))
    await rig.check()


async def waiting_in_an_outage(cut):
    rig = Rig(cut)
    rig.server.down = True
    asyncio.get_running_loop().call_later(0.2, setattr, rig.server, "down", False)
    await cut(block(rig.pool))
    await asyncio.sleep(1)
    await rig.check()


async def waiting_and_drained(cut):
    rig = Rig(cut)
    other = asyncio.create_task(block(rig.pool))
    await turns(3)
    asyncio.get_running_loop().call_soon(rig.pool.drain)
    await cut(block(rig.pool))
    await other
    await rig.check()


async def timing_out(cut):
    """The wait ends in a timeout of the pool's own, in the moment of the cancellation or beside it."""
    rig = Rig(cut)
    lease = await asyncio.create_task(_lease(rig.pool))

    async def operation():
        with contextlib.suppress(TimeoutError):
            await rig.pool.acquire(1)

    await cut(operation())
    await lease.release()
    await rig.check()


async def _lease(pool):
    return await pool.acquire()


async def close(cut):
    rig = Rig(cut, max_size=2)
    lease = await asyncio.create_task(_lease(rig.pool))
    waiter = asyncio.create_task(_refused(rig.pool))
    giving = asyncio.create_task(_later(lambda lease: lease.release(), lease))
    await cut(rig.pool.close(5))
    await giving
    await waiter
    await rig.settled()
    if cut.cancelled and not rig.pool.closed:  # it was not begun
        await rig.check()
    else:
        await rig.close()


async def _refused(pool):
    with contextlib.suppress(PoolClosed):
        await block(pool)


async def waiting_for_a_close(cut):
    """The pool is closed under somebody who waits in line."""
    rig = Rig(cut)
    lease = await asyncio.create_task(_lease(rig.pool))
    closing = asyncio.create_task(_later(lambda pool: pool.close(5), rig.pool))

    await cut(_refused(rig.pool))
    await lease.release()
    assert await closing
    await rig.settled()
    assert rig.server.open_now == 0


SCENARIOS = {
    "acquire, idle": scenario(block, idle),
    "acquire, opening": scenario(block),
    "acquire, pinging": scenario(block, long_idle),
    "acquire, pinging the dead": scenario(block, dead),
    "acquire, waiting": scenario(block, idle, crowd=2),
    "acquire, two connections": scenario(block, crowd=3, max_size=2),
    "acquire, urgent": scenario(urgent, idle, crowd=2, reserved=1),
    "acquire, outage": waiting_in_an_outage,
    "acquire, drain": waiting_and_drained,
    "acquire, timeout": timing_out,
    "acquire, close": waiting_for_a_close,
    "reset": scenario(dirty_block, crowd=1),
    "reset in full": scenario(block, crowd=1, reset="full"),
    "release": scenario(by_hand, idle, crowd=1),
    "last use": scenario(block, crowd=1, max_uses=1),
    "commit": scenario(commit, idle),
    "commit, crowd": scenario(commit, long_idle, crowd=2),
    "commit, failing": scenario(failing_commit, idle),
    "rollback": scenario(rollback, idle, crowd=1),
    "aborted": scenario(aborted, idle),
    "warm": warm,
    "warm, outage": warm_in_an_outage,
    "ready": ready,
    "close": close,
}


@pytest.mark.parametrize(("scenario", "point"), every_point(SCENARIOS))
def test_cancelled_at(scenario, point):
    """By task.cancel()."""
    cancel_at(scenario, point, ["cancel"])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["timeout", "scope"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_cancelled_everywhere(name, way):
    """By an asyncio.timeout that expires; by a scope, which cancels again at every later await."""
    assert cancel_everywhere(SCENARIOS[name], [way])
