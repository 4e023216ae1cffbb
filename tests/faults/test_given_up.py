"""A connect that is given up leaves no socket behind."""

from __future__ import annotations

import asyncio
import socket

import pytest
from fault_rig import RIGS, until

from poolkit.testing import FaultProxy


@pytest.fixture
def hole():
    """A way to nowhere: connects are accepted, and that is all."""
    with socket.create_server(("127.0.0.1", 0)) as listener, FaultProxy(listener.getsockname()) as hole:
        hole.blackhole()
        yield hole


@pytest.mark.parametrize("name", ["asyncio", "asyncpg"])
def test_cancelled(hole, name):
    """Nor does it for as long as somebody keeps the error: a log, or the pool as the reason of an outage."""
    driver = RIGS[name].driver(hole.url("postgresql://user:secret@here/db"))

    async def give_up():
        connect = asyncio.create_task(driver.open(10))
        assert await asyncio.to_thread(until, lambda: hole.links == 1)
        connect.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await connect
        return caught

    kept = [asyncio.run(give_up()) for _ in range(2)]
    assert until(lambda: hole.links == 0, 2)
    assert len(kept) == hole.accepted == 2


@pytest.mark.parametrize("name", list(RIGS))
def test_timed_out(hole, name):
    """The same where the time the pool gives it has passed; and no more than that passes."""
    driver = RIGS[name].driver(hole.url("postgresql://user:secret@here/db"))

    async def give_up():
        await driver.open(0.05)

    with pytest.raises(RIGS[name].errors) as kept:
        asyncio.run(give_up()) if name != "threads" else driver.open(0.05)
    assert until(lambda: hole.links == 0, 2)
    assert kept.value is not None
    assert hole.accepted == 1
