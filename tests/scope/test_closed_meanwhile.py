"""A unit that is closed while somebody still waits for a connection of it: nobody would ever give that one back."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any, cast

import pytest
from rig import Rig

from poolkit import AsyncUnitOfWork, Pool, Registry, UnitOfWork, UnitOfWorkError
from poolkit.testing import FakeDriver, FakeServer


async def test_a_task_that_waits_when_the_unit_is_closed():
    """A sibling in a `gather` goes on when the other has failed: it gets an error, and the connection goes back."""
    rig = Rig().in_loop()
    unit = AsyncUnitOfWork(rig.registry, "unit")
    driver = rig.async_drivers["default"]
    driver.held.add("begin")
    asking = [asyncio.create_task(unit.get(name)) for name in ("default", "other")]  # the second waits for the first
    await driver.reached.wait()
    await unit.close()
    driver.gate.set()
    for task in asking:
        with pytest.raises(UnitOfWorkError, match=r"closed while '(default|other)' was waited for"):
            await task
    assert rig.out() == 0


async def test_whoever_asks_after_that_is_served_and_closes_again():
    """Only who waited is turned away: a unit that was closed can be asked, and be closed once more."""
    rig = Rig().in_loop()
    unit = AsyncUnitOfWork(rig.registry, "unit")
    await unit.close()
    assert not (await unit.get()).in_transaction
    await unit.close()
    assert rig.out() == 0


def test_a_thread_that_waits_when_the_unit_is_closed():
    """The same for threads that asked after the end."""
    asked, go = threading.Event(), threading.Event()

    def on_open() -> None:
        asked.set()
        assert go.wait(30)

    pool = Pool(FakeDriver(FakeServer(), on_open), max_size=1)

    class OnePool:
        def shares(self, name: str) -> bool:
            return False

        def pool(self, name: str) -> Any:
            return pool

    unit = UnitOfWork(cast("Registry", OnePool()), "unit")
    unit.finish()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            unit.get()
        except UnitOfWorkError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(30)
    unit.close()
    go.set()
    thread.join(30)
    assert len(errors) == 1
    assert pool.stats().out == 0
    pool.close()


async def test_a_commit_that_fails_when_its_caller_has_left():
    """The caller was cancelled during the COMMIT of its retries, and nobody asks how that ended: it is logged once."""
    rig = Rig().in_loop()
    unit = AsyncUnitOfWork(rig.registry, "unit")
    driver = rig.async_drivers["default"]
    await unit.get()
    driver.held.add("commit")
    rig.faults["default"].plan("commit", OSError("gone"))
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    committing = asyncio.create_task(unit.commit_in_place())
    await driver.reached.wait()
    committing.cancel()
    await asyncio.wait([committing])
    driver.gate.set()
    await unit.close()
    del committing
    unit._under_way = None
    gc.collect()
    assert complaints == []
    assert rig.out() == 0
