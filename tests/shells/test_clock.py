"""A machine that slept: its idle connections have been idle for as long, whichever clock shows it."""

from __future__ import annotations

import asyncio
import functools
import logging
import time

import pytest

from poolkit import AsyncPool, Pool, aio, clock, housekeeper
from poolkit.testing import FakeAsyncDriver, FakeDriver, ManualClock


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock that counts suspended time")
def test_the_clock_counts_the_time_of_a_suspended_machine():
    """Both kinds of pool measure in the clock that goes on while the machine is suspended."""
    assert isinstance(clock.clock, functools.partial)
    assert clock.clock.args == (time.CLOCK_BOOTTIME,)
    for pool in (Pool(FakeDriver()), AsyncPool(FakeAsyncDriver())):
        assert pool._clock is clock.clock
    assert abs(clock.clock() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5


def test_time_goes_on_by_seconds():
    """It is no other clock's moment that comes out, but its pace is that of every clock."""
    before, wall = clock.clock(), time.monotonic()
    time.sleep(0.02)
    assert clock.clock() - before == pytest.approx(time.monotonic() - wall, abs=0.01)


def test_a_leap_is_seen_once(monkeypatch):
    """Set forward by half a minute or more: as after a pause of the machine. Less, or back, is a clock being set."""
    now, wall = ManualClock(), ManualClock()
    monkeypatch.setattr(clock, "_wall", wall)
    leaps = clock.Leaps(now)
    for moved, by, seen in ((5, 5, 0), (1, 3601, 3600), (1, 1, 0), (1, 30, 0), (1, 31, 30), (0, 86400, 86400)):
        now.advance(moved)
        wall.advance(by)
        assert leaps.seen() == seen
    now.advance(7200)  # suspended, on a clock that counts it or with a wall clock set back: no leap of the wall clock
    assert leaps.seen() == 0
    wall.advance(7200)
    assert leaps.seen() == 7200


@pytest.fixture
def ahead(monkeypatch):
    """A wall clock that can be set forward: `ahead.append(seconds)`."""
    moved = []
    wall = clock._wall
    monkeypatch.setattr(clock, "_wall", lambda: wall() + sum(moved))
    return moved


def test_the_housekeeper_replaces_what_may_be_forgotten(ahead, monkeypatch, caplog):
    """A pool of threads has no connection of before the pause a second later, and says so."""
    monkeypatch.setattr(housekeeper, "SWEEP_EVERY", 0.02)
    keeper = housekeeper.Housekeeper()
    pool = Pool(FakeDriver(), runtime=keeper)
    with caplog.at_level(logging.WARNING, "poolkit"), pool.acquire():
        _wait_for(lambda: keeper._thread is not None)
        time.sleep(0.05)
        ahead.append(3600)
        _wait_for(lambda: pool.stats().generation == 1)
    assert pool.stats().closed_by_reason == {"drained": 1}
    assert "set forward by 3600 s, as after a pause of the machine: all connections are replaced" in caplog.text
    pool.close()


async def test_the_loop_replaces_what_may_be_forgotten(ahead, monkeypatch):
    """A pool of asyncio does the same."""
    monkeypatch.setattr(aio, "SWEEP_EVERY", 0.02)
    async with AsyncPool(FakeAsyncDriver()) as pool:
        async with pool.acquire():
            pass
        await asyncio.sleep(0.05)
        ahead.append(3600)
        for _ in range(500):
            if pool.stats().generation:
                break
            await asyncio.sleep(0.01)
        assert pool.stats().generation == 1


def _wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
