"""Cancel an asyncio operation at each of its awaits in turn, and run tasks in orders that are drawn from a seed.

A scenario is a coroutine function that builds what it needs, does the operation, and asserts what must hold after
it. It runs again and again, each time in a loop of its own on a clock of its own, where nothing takes real time:

    async def scenario(cut: Cut) -> None:
        pool = AsyncPool(FakeAsyncDriver(), runtime=cut)
        await cut(transfer(pool))  # this is cancelled, somewhere else in each run
        assert pool.stats().out == 0  # and this has to hold wherever that was

    def test_everywhere():
        cancel_everywhere(scenario)

    @pytest.mark.parametrize("point", await_points(scenario), ids=str)  # or one case for each
    def test_cancelled(point):
        cancel_at(scenario, point)

Nobody lists the awaits: the first run finds them. They are the operation's own, and those of every task that works
meanwhile, for it or beside it, because each step of theirs is another state of the world to be cancelled in.

`explore` runs many tasks at once, in an order and with cancellations that a seed decides; what fails says its seed.
For threads see `poolkit.testing.interrupts`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from poolkit.testing._driven import Driven, ScheduleError, run_watched, stack_of
from poolkit.testing.fakes import ManualClock

__all__ = [
    "WAYS",
    "AwaitPoint",
    "Cut",
    "Schedule",
    "ScheduleError",
    "Way",
    "await_points",
    "cancel_at",
    "cancel_everywhere",
    "explore",
    "run_seeded",
]

T = TypeVar("T")
Way: TypeAlias = Literal["cancel", "timeout", "scope"]
Moment: TypeAlias = Literal["woken", "asleep", "ended"]

WAYS: tuple[Way, ...] = ("cancel", "timeout", "scope")
MOST_STEPS = 10_000  # of one run: an operation with more of them does not end


@dataclass(frozen=True, slots=True)
class AwaitPoint:
    """A moment in which an operation can be cancelled: a task has just taken a step, and nothing else has run since.

    `asleep`: a task has come to an await. `woken`: what the operation awaited is there, but it has not gone on yet.
    `ended`: another task has come to its end. `task` is empty for the operation itself, else the other task's name.
    """

    number: int
    moment: Moment
    task: str
    stack: tuple[str, ...]

    def __str__(self) -> str:
        where = self.stack[-1] if self.stack else "the start" if self.moment == "woken" else "the end"
        return f"{self.number:02} {self.moment} in {where}" + (f" of {self.task}" if self.task else "")


class Cut:
    """What a scenario gets: call it with the operation, once. It is a runtime for an `AsyncPool` as well.

    After that `cancelled` says whether the operation was cut off in this run.
    """

    def __init__(self, at: int | None = None, way: Way = "cancel") -> None:
        self.clock = ManualClock()
        self.cancelled = False
        self.points: list[AwaitPoint] = []
        self._at = at
        self._way = way
        self._steps = 0
        self._begun = False
        self._struck = False
        self._holding = False
        self._main: asyncio.Task[Any] | None = None
        self._victim: asyncio.Task[Any] | None = None
        self._limit: asyncio.Timeout | None = None

    def random(self) -> float:
        """Always the middle."""
        return 0.5

    async def __call__(self, operation: Coroutine[Any, Any, T]) -> T | None:
        """Run the operation as a task of its own; return what it returns, or None where it was cancelled.

        Raises what it raises by itself, and `ScheduleError` where it was cancelled and went on all the same.
        """
        if self._begun:
            operation.close()
            raise ScheduleError("one run cuts off one operation: put them into one coroutine, or into two scenarios")
        self._begun = True
        self._main = asyncio.current_task()
        work = self._limited(operation) if self._way == "timeout" else operation
        self._victim = task = asyncio.get_running_loop().create_task(work, name="the operation")
        await asyncio.wait([task])
        in_time = self._limit is None or self._limit.expired()  # else it was through before the limit could act
        self._victim = self._limit = None  # they would keep alive what the operation has left behind
        if not (self._struck and in_time):
            return task.result()
        self.cancelled = True
        self._check_it_left(task)
        return None

    async def _limited(self, operation: Coroutine[Any, Any, T]) -> T:
        async with asyncio.timeout(0 if self._struck else None) as self._limit:
            return await operation

    def _check_it_left(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            if self._way != "timeout":
                return
        elif self._way == "timeout" and isinstance(task.exception(), TimeoutError):
            return
        became = "cancelled" if task.cancelled() else repr(task.exception() or task.result())
        raise ScheduleError(f"the cancellation was lost, the operation ended with: {became}")

    # What the loop tells.

    def holds(self, driven: Driven) -> bool:
        """Cancel the operation between its being woken and its going on, if that is the point."""
        if self._victim is None or driven.task is not self._victim:
            return False
        if self._holding:
            self._holding = False  # a cancellation would have come by now: it was too late for one
            return False
        self._holding = self._note(driven, "woken")
        return self._holding

    def stepped(self, driven: Driven, *, ended: bool) -> None:
        """Cancel the operation after this step, if that is the point."""
        victim = self._victim
        if victim is None or victim.done() or driven.task is self._main or (ended and driven.task is victim):
            return
        again = self._struck and self._way == "scope" and driven.task is victim
        if not self._note(driven, "ended" if ended else "asleep") and again:
            victim.cancel()

    def _note(self, driven: Driven, moment: Moment) -> bool:
        number, self._steps = self._steps, self._steps + 1
        if number > MOST_STEPS:
            raise ScheduleError(f"the operation has not ended after {MOST_STEPS} steps")
        if self._at is None or self._at == number:
            other = "" if driven.task is self._victim else driven.name
            self.points.append(AwaitPoint(number, moment, other, stack_of(driven.inner)))
        if self._at == number:
            self._strike()
            return True
        return False

    def _strike(self) -> None:
        self._struck = True
        if self._way != "timeout":
            if self._victim is not None:
                self._victim.cancel()
        elif self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())


Scenario: TypeAlias = Callable[[Cut], Coroutine[Any, Any, object]]


def await_points(scenario: Scenario) -> list[AwaitPoint]:
    """Run the scenario once, without cutting anything off, and return the points at which it could be."""
    cut = Cut()
    run_watched(scenario(cut), cut.clock, cut)
    if not cut.points:
        raise ScheduleError("the scenario has not called `cut` with an operation")
    return cut.points


def cancel_at(scenario: Scenario, point: AwaitPoint | int, ways: Iterable[Way] = WAYS) -> None:
    """Run the scenario with its operation cancelled at that point, once for each way.

    `cancel` is `task.cancel()`; `timeout` an `asyncio.timeout` around it that expires; `scope` cancels again at every
    later await, as anyio's scopes do. Raises what the scenario's checks raise, and `ScheduleError` where the
    cancellation is swallowed, where nothing can go on any more, and where a task is left over at the end.
    """
    number = point if isinstance(point, int) else point.number
    for way in ways:
        if not _cancel_at(scenario, number, way):
            raise ScheduleError(f"there is no point {number}: the scenario has fewer, or not the same ones each time")


def cancel_everywhere(scenario: Scenario, ways: Iterable[Way] = WAYS) -> int:
    """Run the scenario with its operation cancelled at its 1st, 2nd, 3rd ... point, until it runs through.

    Return how many points there were. Raises as `cancel_at` does.
    """
    counts = {way: _walk(scenario, way) for way in ways}
    return max(counts.values())


def _walk(scenario: Scenario, way: Way) -> int:
    number = 0
    while _cancel_at(scenario, number, way):
        number += 1
    return number


def _cancel_at(scenario: Scenario, number: int, way: Way) -> bool:
    """Return whether there was such a point."""
    cut = Cut(number, way)
    try:
        run_watched(scenario(cut), cut.clock, cut)
    except BaseException as error:
        error.add_note(f"cancelled by {way} at point {cut.points[0] if cut.points else f'{number}, never reached'}")
        raise
    return bool(cut.points)


class Schedule:
    """What a scenario of `explore` gets: call `play` with the tasks. It is a runtime for an `AsyncPool` as well.

    Everything that is left to chance is drawn from its seed: who goes on first, who is cancelled when and how, and
    `random()`, for the scenario's own use.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.clock = ManualClock()
        self.told: list[str] = []
        self._draw = random.Random(seed)  # noqa: S311  it is to be repeatable
        self._steps = 0
        self._plans: dict[asyncio.Task[Any], tuple[int, Way]] = {}

    def random(self) -> float:
        """A number in [0, 1)."""
        return self._draw.random()

    async def play(self, *work: Coroutine[Any, Any, Any], cancelled: float = 0.5) -> list[bool]:
        """Run all at once and return, for each, whether it was cancelled. That share of them is to be, on average.

        Raises what one of them raises by itself, and `ScheduleError` where a cancellation is swallowed.
        """
        loop = asyncio.get_running_loop()
        tasks = []
        for number, each in enumerate(work):
            fate = self._fate(cancelled)
            limited = fate is not None and fate[1] == "timeout"
            task = loop.create_task(self._limited(each) if limited else each, name=f"task {number}")
            if fate is not None and not limited:
                self._plans[task] = fate
            tasks.append(task)
        if tasks:
            await asyncio.wait(tasks)
        return [self._was_cancelled(task) for task in tasks]

    def _fate(self, share: float) -> tuple[int, Way] | None:
        """Draw whether somebody is cancelled: after how many steps of all, and how."""
        if self._draw.random() >= share:
            return None
        return self._steps + int(self._draw.expovariate(1 / 40)), self._draw.choice(WAYS)

    async def _limited(self, work: Coroutine[Any, Any, object]) -> None:
        """Run with a time limit. It ends as if cancelled, so that all ways look alike from outside."""
        seconds = self._draw.choice((0.0, self._draw.random(), 3 * self._draw.random()))
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await work
        except TimeoutError:
            if not limit.expired():
                raise
            self._tell(f"had {seconds:.3f} s and took longer", asyncio.current_task())
            raise asyncio.CancelledError from None

    def _was_cancelled(self, task: asyncio.Task[Any]) -> bool:
        if not task.cancelled():
            if task.cancelling():
                raise ScheduleError(f"{task.get_name()} was cancelled, and ended with {task.exception()!r}")
            task.result()
        return task.cancelled()

    # What the loop tells.

    def holds(self, driven: Driven) -> bool:
        """Hold a task up by chance: so another one overtakes it."""
        self._cancel_who_is_due(driven)
        return self._draw.random() < 0.3

    def stepped(self, driven: Driven, *, ended: bool) -> None:
        """Count, and cancel who is due."""
        if ended and driven.task is not None:
            self._plans.pop(driven.task, None)
        self._steps += 1
        if self._steps > MOST_STEPS * 10:
            raise ScheduleError(f"the tasks have not ended after {self._steps} steps")
        self._cancel_who_is_due(driven)

    def _cancel_who_is_due(self, driven: Driven) -> None:
        for task, (step, way) in list(self._plans.items()):
            if step > self._steps:
                continue
            if way != "scope":
                del self._plans[task]
            elif task.cancelling() and task is not driven.task:  # again, but not before it has moved
                continue
            self._tell(f"cancelled ({way})", task)
            task.cancel()

    def _tell(self, what: str, task: asyncio.Task[Any] | None) -> None:
        if task is not None:
            where = stack_of(getattr(task.get_coro(), "inner", None))
            self.told.append(f"step {self._steps}: {task.get_name()} {what} in {where[-1] if where else 'its start'}")


SeededScenario: TypeAlias = Callable[[Schedule], Coroutine[Any, Any, object]]


def run_seeded(scenario: SeededScenario, seed: int) -> Schedule:
    """Run the scenario with what this seed decides; the same seed does the same again. Return the schedule.

    Raises as `cancel_at` does, with a note that names the seed and tells who was cancelled where.
    """
    schedule = Schedule(seed)
    try:
        run_watched(scenario(schedule), schedule.clock, schedule)
    except BaseException as error:
        error.add_note(
            "\n".join([f"seed {seed}: run_seeded({scenario.__qualname__}, {seed}) replays it", *schedule.told])
        )
        raise
    return schedule


def explore(scenario: SeededScenario, seeds: Iterable[int]) -> int:
    """Run the scenario with each of the seeds, and return how many there were. Raises as `run_seeded` does."""
    count = 0
    for count, seed in enumerate(seeds, start=1):  # noqa: B007  the last one is the number
        run_seeded(scenario, seed)
    return count
