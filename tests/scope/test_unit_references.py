"""What a unit of work itself refers to costs no borrower a new object."""

from __future__ import annotations

import asyncio
import sys

import pytest

from poolkit import AsyncUnitOfWork, Registry, UnitOfWork
from poolkit.testing import FakeAsyncDriver, FakeDriver

pytestmark = pytest.mark.skipif(not hasattr(sys, "getrefcount"), reason="references are not counted here")


def counting(driver):
    """Count how often the driver is asked for a new object; the test's own list of connections is no borrower."""
    driver.renewed = 0

    def renew(connection, _returned):
        driver.renewed += 1
        return connection

    driver.renew = renew
    return driver


def test_a_unit_that_kept_nothing_has_nothing_renewed():
    """Neither the COMMIT nor the return holds on to the connection."""
    driver = counting(FakeDriver())
    registry = Registry({"default": {"driver": driver}})
    for _ in range(3):
        with UnitOfWork(registry, "work") as unit:
            unit.get().execute("x")
    registry.close()
    assert driver.renewed == 0


def test_an_async_unit_that_kept_nothing_has_nothing_renewed():
    """The same for asyncio."""
    driver = counting(FakeAsyncDriver())

    async def main():
        registry = Registry({"default": {"driver": driver}})
        for _ in range(3):
            async with AsyncUnitOfWork(registry, "work") as unit:
                (await unit.get()).execute("x")
        await registry.aclose()

    asyncio.run(main())
    assert driver.renewed == 0
