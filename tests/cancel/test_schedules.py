"""The tools themselves: what they find, how they cancel, what they refuse to let pass."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import types

import pytest
import test_cancel_pool
import test_cancel_seeds
from cancel_rig import turns

from poolkit import PoolError, aio
from poolkit.testing import ManualClock, _driven
from poolkit.testing.fakes import FakeError
from poolkit.testing.interrupts import Interrupt, interrupt_at, interrupt_everywhere, interrupt_points
from poolkit.testing.loops import ManualLoop, Stuck
from poolkit.testing.schedules import (
    WAYS,
    ScheduleError,
    await_points,
    cancel_at,
    cancel_everywhere,
    explore,
    run_seeded,
)

# -- cancelling --------------------------------------------------------------------------------------------------------


def simple(operation):
    async def scenario(cut):
        await cut(operation())

    return scenario


async def two_steps():
    await asyncio.sleep(0)
    await asyncio.sleep(1)


def test_the_awaits_are_found_by_running():
    """Each moment in which the operation is about to begin, sleeps, or is woken and has not gone on yet."""
    points = await_points(simple(two_steps))
    assert [point.moment for point in points] == ["woken", "asleep", "woken", "asleep", "woken"]
    assert all("two_steps" in str(point) for point in points)
    assert cancel_everywhere(simple(two_steps)) == len(points)


def test_the_steps_of_those_who_work_for_it_count_as_well():
    """An await of a task that the operation waits for is a moment of its own to be cancelled in."""

    async def operation():
        task = asyncio.create_task(two_steps())
        try:
            await task
        finally:
            task.cancel()

    others = [point for point in await_points(simple(operation)) if point.task]
    assert [point.moment for point in others] == ["asleep", "asleep", "ended"]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_arrives(way):
    """The operation sees a CancelledError at the point, once, or again at every later await."""

    async def run(cut):
        seen = []

        async def operation():
            try:
                await asyncio.sleep(10)
            finally:
                for _ in range(3):
                    try:
                        await asyncio.sleep(1)
                    except asyncio.CancelledError:
                        seen.append("again")

        with contextlib.suppress(ScheduleError):
            await cut(operation())
        assert seen == (["again"] * 3 if way == "scope" else [])

    cancel_at(run, 1, [way])


def test_a_swallowed_cancellation_is_seen():
    """Who is cancelled has to leave: an operation that goes on, or ends in another error, is a fault."""

    async def swallows():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)

    async def replaces():
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            raise ValueError from None

    for operation in (swallows, replaces):
        for way in WAYS:
            with pytest.raises(ScheduleError, match="was lost") as caught:
                cancel_at(simple(operation), 1, [way])
            assert way in caught.value.__notes__[0]


def test_what_the_operation_raises_by_itself_passes():
    """A fault that is there without any cancellation is not blamed on one."""

    async def fails():
        await asyncio.sleep(0)
        raise KeyError

    with pytest.raises(KeyError):
        await_points(simple(fails))


def test_a_task_left_over_is_seen():
    """Whatever the operation has started ends by itself before the scenario does."""

    async def scenario(cut):
        async def operation():
            tasks.append(asyncio.create_task(asyncio.sleep(3600)))
            await asyncio.sleep(0)

        await cut(operation())

    tasks = []
    with pytest.raises(ScheduleError, match="left over"):
        await_points(scenario)


def test_who_waits_for_ever_is_seen(monkeypatch):
    """A scenario in which nobody can go on any more does not hang: it says who waits where."""

    async def forgotten():
        await asyncio.Event().wait()

    monkeypatch.setattr(_driven, "PATIENCE", 0.01)
    with pytest.raises(ScheduleError, match=r"nobody can go on.*the operation in .*forgotten"):
        await_points(simple(forgotten))


def test_what_asyncio_complains_of_is_a_fault():
    """An error that nobody looked at is reported by asyncio too late to be seen in a test."""

    async def careless():
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    with pytest.raises(ScheduleError, match="ZeroDivisionError"):
        await_points(simple(careless))


def test_a_point_that_is_not_reached_is_a_fault():
    """A case that cancels nothing would pass for ever."""
    with pytest.raises(ScheduleError, match="no point 99"):
        cancel_at(simple(two_steps), 99)


def test_work_for_a_thread_is_begun_or_not():
    """Cancelled before its turn it never runs; after that it runs, and only its result is lost."""
    done = []

    async def operation():
        await asyncio.to_thread(done.append, 1)

    ran = []
    for point in await_points(simple(operation)):
        done.clear()
        cancel_at(simple(operation), point, ["cancel"])
        ran.append(bool(done))
    assert ran == [False, False, True]


def test_a_manual_loop_that_is_stuck_says_so():
    """With a limit to its patience or its time; without one it waits, for a thread may still call."""
    for settings, work in (({"patience": 0.01}, asyncio.Event().wait), ({"horizon": 10}, lambda: asyncio.sleep(20))):
        loop = ManualLoop(ManualClock(), **settings)
        task = loop.create_task(work())
        with pytest.raises(Stuck):
            loop.run(task)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run(task)
        loop.close()


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_a_race_is_found_and_its_seed_replays_it():
    """Two tasks that read, pause and write: some order loses a write, and the failure names its seed."""

    async def scenario(plan):
        counter = [0]

        async def add():
            seen = counter[0]
            await turns(1)
            counter[0] = seen + 1

        async def later():
            await turns(4)
            await add()

        await plan.play(add(), later(), cancelled=0)
        assert counter == [2]

    with pytest.raises(AssertionError) as caught:
        explore(scenario, range(200))
    note = caught.value.__notes__[0]
    seed = int(note.split()[1].rstrip(":"))
    with pytest.raises(AssertionError):
        run_seeded(scenario, seed)


def test_about_the_share_asked_for_is_cancelled():
    """In all three ways, and never who was not to be."""

    async def scenario(plan):
        outcomes.extend(await plan.play(*(turns(50) for _ in range(10)), cancelled=share))

    for share in (0, 0.5):
        outcomes = []
        explore(scenario, range(20))
        assert (outcomes.count(True) > 20) == bool(share)
        assert outcomes.count(False) > 50


def test_a_swallowed_cancellation_of_a_schedule_is_seen():
    """As with one operation."""

    async def scenario(plan):
        async def swallows():
            for _ in range(200):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)

        await plan.play(swallows(), cancelled=1)

    with pytest.raises(ScheduleError, match="was cancelled"):
        explore(scenario, range(20))


# -- faults put into the pool ------------------------------------------------------------------------------------------


async def _sleep_and_stay(self, waiter):
    await waiter.future


async def _unshielded(work, *others):
    return await work


async def _careless_find(self, slot, now, timeout, *, urgent):
    slot = slot or await self._wait(now + 30, urgent=urgent)
    await asyncio.sleep(0)
    return slot


FAULTS = {
    "one who is cancelled stays in line": (aio.AsyncPool, "_sleep", _sleep_and_stay),
    "COMMIT and reset can be cancelled": (aio, "shielded", _unshielded),
    "a slot in hand is lost": (aio.AsyncPool, "_find", _careless_find),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_pool_is_found(fault, monkeypatch):
    """Both tools find it: at some point, and under some seed."""
    monkeypatch.setattr(*FAULTS[fault])
    told = (AssertionError, PoolError, FakeError, asyncio.CancelledError)
    with pytest.raises(told):
        _cancel_some()
    with pytest.raises(told):
        explore(test_cancel_seeds.scenario, range(200))


def _cancel_some():
    for name in ("acquire, waiting", "commit", "reset"):
        cancel_everywhere(test_cancel_pool.SCENARIOS[name])


# -- interrupting ------------------------------------------------------------------------------------------------------

SOURCE = """
import threading

def locked_well(lock, work):
    with lock:
        return work(1)

def locked_badly(lock, work):
    lock.acquire()
    result = work(1)
    lock.release()
    return result

def swallows(lock, work):
    try:
        return work(1)
    except BaseException:
        return None

def loops(lock, work):
    n = 3
    while n:
        n -= 1

class Finalized:
    def __del__(self):
        self.gone = True

def finalizes(lock, work):
    Finalized()
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "interrupted_code.py"
    path.write_text(SOURCE)
    module = types.ModuleType("interrupted_code")
    module.__file__ = str(path)
    exec(compile(SOURCE, str(path), "exec"), module.__dict__)
    return module


def calling(code, name):
    def scenario(cut):
        lock = threading.Lock()
        cut(lambda: getattr(code, name)(lock, abs))
        assert not lock.locked()

    return scenario


@pytest.mark.parametrize("boundary", ["signals", "lines"])
def test_what_holds_is_not_reported(code, boundary):
    """A `with` can't be torn in two, and neither does the tool."""
    assert interrupt_everywhere(calling(code, "locked_well"), [code], boundary=boundary) >= 2


@pytest.mark.parametrize("boundary", ["signals", "lines"])
def test_a_lock_that_stays_held_is_found(code, boundary):
    """Between the taking of it and its letting go an interrupt leaves it held for ever."""
    with pytest.raises(AssertionError, match="locked") as caught:
        interrupt_everywhere(calling(code, "locked_badly"), [code], boundary=boundary)
    assert "locked_badly (interrupted_code.py:" in caught.value.__notes__[0]


def test_the_points_are_where_python_looks_for_signals(code):
    """The beginning of a function, the return of what is written in C, the end of a round of a loop."""
    events = [(point.event, point.line) for point in interrupt_points(calling(code, "locked_badly"), [code])]
    assert events == [("entering", 8), ("after a call in", 9), ("after a call in", 10), ("after a call in", 11)]
    rounds = [point.event for point in interrupt_points(calling(code, "loops"), [code])]
    assert rounds.count("loop in") in (2, 3)


def test_an_interrupt_that_is_swallowed_is_seen(code):
    """It has to reach who made the call."""
    with pytest.raises(ScheduleError, match="was lost"):
        interrupt_everywhere(calling(code, "swallows"), [code], [Interrupt])


def test_finalizers_are_spared(code):
    """What is raised there reaches nobody, so nothing is."""
    assert interrupt_everywhere(calling(code, "finalizes"), [code], [Interrupt]) == 1


def test_the_hooks_of_others_are_put_back(code):
    """A debugger's or coverage's trace function is there again afterwards."""

    def trace(frame, event, arg):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        interrupt_at(calling(code, "locked_well"), 0, [code])
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace


def test_an_interrupt_that_does_not_come_is_a_fault(code):
    """As with a point of asyncio."""
    with pytest.raises(ScheduleError, match="no point 99"):
        interrupt_at(calling(code, "locked_well"), 99, [code])
    with pytest.raises(ScheduleError, match="has not called"):
        interrupt_points(lambda cut: None, [code])
