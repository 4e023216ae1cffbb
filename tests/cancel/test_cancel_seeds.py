"""Many tasks at once, in an order and with cancellations that a seed decides: at the end the books balance."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from cancel_rig import LoopDriver, Rig, turns

from poolkit import PoolError
from poolkit.bridge import acquire_from_loop
from poolkit.testing.fakes import FakeError
from poolkit.testing.schedules import explore, run_seeded


async def borrower(rig, plan):
    with contextlib.suppress(PoolError, FakeError):
        async with rig.pool.acquire(timeout=1 + plan.random(), urgent=plan.random() < 0.1) as connection:
            connection.execute("dirty" if plan.random() < 0.5 else "select")
            await asyncio.sleep(plan.random())


async def transaction(rig, plan):
    with contextlib.suppress(PoolError, FakeError, KeyError):
        async with rig.pool.transaction(timeout=2) as connection:
            connection.execute("insert")
            await turns(int(3 * plan.random()))
            if plan.random() < 0.2:
                raise KeyError


async def request(rig, plan):
    with contextlib.suppress(PoolError, FakeError):
        async with rig.unit() as unit:
            connection = await (unit.get() if plan.random() < 0.5 else unit.get_sync())
            connection.execute("insert")
            await turns(1)
            if plan.random() < 0.3:
                await unit.commit()
                await unit.get()


async def from_loop(rig, plan):
    with contextlib.suppress(PoolError):
        lease = await acquire_from_loop(rig.sync_pool, rig.registry.in_thread, 2)
        try:
            await turns(2)
        finally:
            lease.release()


async def operator(rig, plan):
    """What happens to a pool meanwhile: drains, outages, dead connections, another size."""
    await asyncio.sleep(plan.random() / 2)
    event = plan.random()
    if event < 0.3:
        rig.pool.drain()
    elif event < 0.5:
        rig.server.kill()
    elif event < 0.7:
        rig.server.down = True
        await asyncio.sleep(plan.random())
    else:
        rig.pool.resize(1 + int(3 * plan.random()))


KINDS = (borrower, transaction, request, from_loop)


async def scenario(plan):
    rig = Rig(plan, sync_driver=LoopDriver, max_size=2, reserved=1, check_after=0.2, max_uses=5)
    tasks = [KINDS[int(len(KINDS) * plan.random())](rig, plan) for _ in range(8)]
    await plan.play(operator(rig, plan), *tasks)
    rig.server.down = False
    rig.pool.resize(2)
    await asyncio.sleep(2)
    for connection in rig.server.connections:
        if connection.killed and not connection.closed:
            connection.in_transaction = connection.dirty = False  # the server has ended it
    await rig.check()


@pytest.mark.parametrize("start", range(0, 150, 50))
def test_150_schedules(start):
    """Whoever goes first, whoever is cancelled when and how."""
    assert explore(scenario, range(start, start + 50)) == 50


@pytest.mark.slow
@pytest.mark.parametrize("start", range(150, 1150, 100))
def test_a_thousand_schedules(start):
    """A thousand more of them, all different, in well under a minute."""
    assert explore(scenario, range(start, start + 100)) == 100


def test_a_seed_does_the_same_again():
    """Who is cancelled where depends on the seed alone."""
    told = [run_seeded(scenario, seed).told for seed in (7, 7, 8)]
    assert told[0] == told[1] != told[2]
