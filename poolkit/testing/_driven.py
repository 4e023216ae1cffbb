"""What schedules are made of: coroutines whose every step is seen, and a loop that runs all of its tasks that way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from poolkit.testing.fakes import ManualClock
from poolkit.testing.loops import ManualLoop, Stuck

__all__ = ["Driven", "ScheduleError", "ScheduledLoop", "Watcher", "run_watched", "stack_of"]

T = TypeVar("T")
PATIENCE = 5.0  # real seconds for a thread of the scenario's own; without one nothing can come any more
HORIZON = 7200.0  # seconds of the loop's own time: longer than any timeout that a scenario waits for

_ASYNCIO = str(Path(asyncio.__file__).parent)


class ScheduleError(AssertionError):
    """What ran under a schedule broke a rule that holds for everything: it says which, where, and how to replay it."""


class Watcher(Protocol):
    """Who is told of every step, and may hold a task up before its next one."""

    def holds(self, driven: Driven) -> bool:
        """Whether a task that may go on is to wait for one more turn of the loop; asked again after that turn."""

    def stepped(self, driven: Driven, *, ended: bool) -> None:
        """A task has come to its next await, or to its end."""


class Driven(Coroutine[Any, Any, Any]):
    """A coroutine around another one. It lets the watcher see each step, and changes nothing else."""

    def __init__(self, inner: Coroutine[Any, Any, Any], watcher: Watcher) -> None:
        self.inner = inner
        self.task: asyncio.Task[Any] | None = None
        self._watcher = watcher
        self._late: BaseException | None = None  # what was awaited has failed, and the task does not know it yet

    def send(self, value: Any, /) -> Any:  # noqa: ARG002  a task sends nothing but None
        """Take the next step, or none yet."""
        return self._wake(self._late)

    def throw(self, error: Any, value: Any = None, traceback: Any = None, /) -> Any:  # noqa: ARG002  as it was up to 3.11
        """Take the next step with an error. A cancellation is not held up, and takes the place of what was."""
        if value is not None:
            error = value
        return self._wake(error() if isinstance(error, type) else error)

    def _wake(self, error: BaseException | None) -> Any:
        if not isinstance(error, asyncio.CancelledError | GeneratorExit) and self._watcher.holds(self):
            self._late = error
            return None
        self._late = None
        try:
            awaited = self.inner.send(None) if error is None else self.inner.throw(error)
        except BaseException:
            self._watcher.stepped(self, ended=True)
            raise
        self._watcher.stepped(self, ended=False)
        return awaited

    @property
    def name(self) -> str:
        """What the coroutine within is called."""
        return str(getattr(self.inner, "__qualname__", self.inner)).replace("<locals>.", "")

    def close(self) -> None:
        """Close the coroutine within."""
        self.inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.inner.__await__()

    def __getattr__(self, name: str) -> Any:
        """Look like the coroutine within: `cr_frame` and the like are what stacks of tasks are made of."""
        return getattr(self.inner, name)


def stack_of(awaitable: Any) -> tuple[str, ...]:
    """Say where a suspended coroutine stands: who called, then whom, asyncio's own code left out."""
    found = []
    while awaitable is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(awaitable, f"{kind}_frame")), None)
        if kind is None:
            break
        frame = getattr(awaitable, f"{kind}_frame")
        if frame is not None and not frame.f_code.co_filename.startswith(_ASYNCIO):
            name = frame.f_code.co_qualname.replace("<locals>.", "")
            found.append(f"{name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})")
        awaitable = getattr(awaitable, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
    return tuple(found)


class ScheduledLoop(ManualLoop):
    """A loop on a clock of its own in which every task is driven, and what is meant for a thread runs in the loop.

    So nothing depends on the speed of anything, and the same program takes the same steps each time. Work for an
    executor is run a turn later, and is through another turn later: cancelled before, it is not begun; after, its
    result is lost; as with threads. Work that waits for another task in its thread would wait for ever.
    """

    def __init__(self, clock: ManualClock, watcher: Watcher) -> None:
        super().__init__(clock, patience=PATIENCE, horizon=HORIZON)
        self._watcher = watcher
        self.complaints: list[str] = []
        self.set_task_factory(self._drive)
        self.set_exception_handler(self._complain)

    def _drive(self, loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        driven = Driven(work, self._watcher)
        driven.task = asyncio.Task(driven, loop=loop, **more)
        return driven.task

    def _complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    def run_in_executor(  # type: ignore[override]  # the executor may be any, since it is not used
        self,
        _executor: object,
        work: Callable[..., T],
        *arguments: Any,
    ) -> asyncio.Future[T]:
        """Run `work` in the loop, a turn later."""
        future: asyncio.Future[T] = self.create_future()
        self.call_soon(self._work, future, partial(work, *arguments))
        return future

    def _work(self, future: asyncio.Future[T], work: Callable[[], T]) -> None:
        if future.cancelled():
            return
        try:
            deliver: Callable[[], None] = partial(future.set_result, work())
        except BaseException as error:  # noqa: BLE001  a thread's error, of whatever kind, is its caller's
            deliver = partial(future.set_exception, error)
        self.call_soon(lambda: None if future.done() else deliver())


def run_watched(work: Coroutine[Any, Any, T], clock: ManualClock, watcher: Watcher) -> T:
    """Run to the end. Raises `ScheduleError` where tasks are left over, or asyncio had to complain of something."""
    loop = ScheduledLoop(clock, watcher)
    try:
        result: T = _to_the_end(loop, work)
        left = _pending(loop)
        loop.run(loop.shutdown_asyncgens())
        faults = [*loop.complaints, *(f"a task is left over: {_describe(task)}" for task in left)]
        if faults:
            raise ScheduleError("; ".join(faults))
        return result
    finally:
        _clear_away(loop)
        loop.close()


def _to_the_end(loop: ScheduledLoop, work: Coroutine[Any, Any, T]) -> T:
    try:
        result: T = loop.run(work)
    except Stuck as stuck:
        raise ScheduleError(f"{stuck}: {'; '.join(map(_describe, _pending(loop)))}") from None
    return result


def _pending(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    return sorted((task for task in asyncio.all_tasks(loop) if not task.done()), key=asyncio.Task.get_name)


def _describe(task: asyncio.Task[Any]) -> str:
    return f"{task.get_name()} in {' > '.join(stack_of(task.get_coro())) or 'nothing yet'}"


def _clear_away(loop: ScheduledLoop) -> None:
    """End what is left, so that the next run is not disturbed by it: politely, and at most a few times."""
    for _ in itertools.repeat(None, 10):
        left = _pending(loop)
        if not left:
            return
        for task in left:
            task.cancel()
        with contextlib.suppress(BaseException):
            loop.run(asyncio.wait(left, timeout=60))
