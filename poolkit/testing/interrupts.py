"""Interrupt a call of this thread everywhere a signal handler may raise: Ctrl-C, a soft time limit, SystemExit.

A scenario is a function that builds what it needs, makes the call, and asserts what must hold after it:

    def scenario(cut: Interruption) -> None:
        pool = Pool(FakeDriver(), runtime=ManualRuntime())
        cut(lambda: transfer(pool))  # this is interrupted, somewhere else in each run
        assert pool.stats().out == 0  # and this has to hold wherever that was

    def test_everywhere():
        interrupt_everywhere(scenario, [poolkit.threads, poolkit.state])

    @pytest.mark.parametrize("point", interrupt_points(scenario, MODULES), ids=str)  # or one case for each
    def test_interrupted(point):
        interrupt_at(scenario, point, MODULES)

Where may that be? CPython runs signal handlers, and lets in what another thread throws, only between some
instructions: when a function begins, when a call of something written in C returns, and when a loop goes round. These
are the points of `"signals"`, found with a profile and a trace function. At `"lines"` it is every line, which is more
than the interpreter does and independent of its version; left out is the moment between the end of a `with` block and
its `__exit__`, which Python keeps closed and a trace function can't. Finalizers are left out as well: what is raised
in `__del__` reaches nobody.

For asyncio see `poolkit.testing.schedules`.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Literal, TypeAlias, TypeVar

from poolkit.testing._driven import ScheduleError

__all__ = [
    "ERRORS",
    "Interrupt",
    "InterruptPoint",
    "Interruption",
    "ScheduleError",
    "interrupt_at",
    "interrupt_everywhere",
    "interrupt_points",
]

T = TypeVar("T")
Boundary: TypeAlias = Literal["signals", "lines"]


class Interrupt(BaseException):
    """An interrupt that is neither KeyboardInterrupt nor SystemExit; a GreenletExit or a soft time limit is one."""


ERRORS: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, Interrupt)


@dataclass(frozen=True, slots=True)
class InterruptPoint:
    """A place in the code at which a call can be interrupted: `entering` a function, `after` a call, and so on."""

    number: int
    event: Literal["entering", "after a call in", "loop in", "line in"]
    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.number:02} {self.event} {self.function} ({self.file}:{self.line})"


class Interruption:
    """What a scenario gets: call it with the call to interrupt, once.

    After that `interrupted` says whether it was, in this run. `error` is what it is interrupted by.
    """

    def __init__(
        self,
        modules: Iterable[ModuleType],
        at: int | None = None,
        error: type[BaseException] = KeyboardInterrupt,
        boundary: Boundary = "signals",
    ) -> None:
        self.interrupted = False
        self.points: list[InterruptPoint] = []
        self._files = {module.__file__ for module in modules}
        self._at = at
        self.error = error
        self._boundary = boundary
        self._count = 0
        self._begun = False
        self._elsewhere = 0
        self._raised: BaseException | None = None

    def __call__(self, call: Callable[[], T]) -> T | None:
        """Make the call in this thread; return what it returns, or None where it was interrupted.

        Raises what it raises by itself, and `ScheduleError` where the interrupt did not reach the caller.
        """
        if self._begun:
            raise ScheduleError("one run interrupts one call: put them into one function, or into two scenarios")
        self._begun = True
        result, error = self._caught(call)
        if self._raised is None:
            if error is not None:
                raise error
            return result
        self.interrupted = True
        became = result if error is None else repr(error)
        reached = error is self._raised
        self._raised = error = None
        gc.collect(0)  # with it go the frames, and what was held by nobody else
        if not reached:
            raise ScheduleError(f"the interrupt was lost, the call ended with: {became}")
        return None

    def _caught(self, call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
        """Make the call under the hooks. A debugger's or coverage's own hooks are put back after it."""
        before = sys.getprofile(), sys.gettrace()
        try:
            try:
                sys.settrace(self._trace)
                if self._boundary == "signals":
                    sys.setprofile(self._profile)
                return call(), None
            finally:
                sys.setprofile(before[0])
                sys.settrace(before[1])
        except BaseException as error:  # noqa: BLE001  whatever it is, the caller of this sorts it out
            return None, error.with_traceback(None)

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Mark a block as what another thread would do: signal handlers don't run there."""
        self._elsewhere += 1
        try:
            yield
        finally:
            self._elsewhere -= 1

    # The hooks. What they raise is raised at that point of the code, and the interpreter lets go of them.

    def _profile(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event == "call":
            self._come_to(frame, "entering")
        elif event == "c_return":
            self._come_to(frame, "after a call in")

    def _trace(self, frame: FrameType, _event: str, _arg: Any) -> Callable[[FrameType, str, Any], Any] | None:
        """Return a trace function for each call of the modules' code, that remembers where the call was last."""
        if frame.f_code.co_filename not in self._files:
            return None
        last = -1

        def line(frame: FrameType, event: str, _arg: Any) -> Any:
            nonlocal last
            if event == "line":
                came_from, last = last, frame.f_lasti
                if self._boundary == "signals":
                    if frame.f_lasti <= came_from:
                        self._come_to(frame, "loop in")
                elif not _leaves_a_with(frame.f_code, came_from, frame.f_lasti):
                    self._come_to(frame, "line in")
            return line

        return line

    def _come_to(self, frame: FrameType, event: Any) -> None:
        code = frame.f_code
        if self._elsewhere or self._raised or code.co_filename not in self._files or _is_finalizing(frame):
            return
        number, self._count = self._count, self._count + 1
        if self._at is None or self._at == number:
            name = code.co_qualname.replace("<locals>.", "")
            self.points.append(InterruptPoint(number, event, name, Path(code.co_filename).name, frame.f_lineno))
        if self._at == number:
            self._raised = self.error()
            raise self._raised


def _is_finalizing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _leaves_a_with(code: CodeType, came_from: int, goes_to: int) -> bool:
    """Whether the body of a `with` lies between the two: then its `__exit__` is about to be called."""
    bodies = _with_bodies(code)
    return any(came_from in body and goes_to not in body for body in bodies)


@functools.cache
def _with_bodies(code: CodeType) -> list[range]:
    """Where in the bytecode an exception would be given to an `__exit__`."""
    bytecode = dis.Bytecode(code)
    exits = {i.offset for i in bytecode if i.opname == "WITH_EXCEPT_START"}
    # A handler of a `with` begins with PUSH_EXC_INFO, and the call of __exit__ is the next instruction.
    entries = getattr(bytecode, "exception_entries", ())  # since 3.11, and not in every list of its attributes
    return [range(entry.start, entry.end) for entry in entries if entry.target + 2 in exits]


Scenario: TypeAlias = Callable[[Interruption], object]


def interrupt_points(
    scenario: Scenario, modules: Iterable[ModuleType], *, boundary: Boundary = "signals"
) -> list[InterruptPoint]:
    """Run the scenario once without an interrupt, and return the points in the modules' code that the call comes to."""
    cut = Interruption(modules, boundary=boundary)
    scenario(cut)
    if not cut.points:
        raise ScheduleError("the scenario has not called `cut`, or the call does not come to the modules")
    return cut.points


def interrupt_at(
    scenario: Scenario,
    point: InterruptPoint | int,
    modules: Iterable[ModuleType],
    errors: Iterable[type[BaseException]] = ERRORS,
    *,
    boundary: Boundary = "signals",
) -> None:
    """Run the scenario with its call interrupted at that point, once with each of the errors.

    Raises what the scenario's checks raise, and `ScheduleError` where the interrupt does not reach the caller.
    """
    modules, number = list(modules), point if isinstance(point, int) else point.number
    for error in errors:
        if not _interrupt_at(scenario, Interruption(modules, number, error, boundary)):
            raise ScheduleError(f"there is no point {number}: the scenario has fewer, or not the same ones each time")


def interrupt_everywhere(
    scenario: Scenario,
    modules: Iterable[ModuleType],
    errors: Iterable[type[BaseException]] = ERRORS,
    *,
    boundary: Boundary = "signals",
) -> int:
    """Run the scenario with its call interrupted at its 1st, 2nd, 3rd ... point, until it runs through.

    Return how many points there were. Raises as `interrupt_at` does.
    """
    modules, number = list(modules), 0
    for error in errors:
        number = 0
        while _interrupt_at(scenario, Interruption(modules, number, error, boundary)):
            number += 1
    return number


def _interrupt_at(scenario: Scenario, cut: Interruption) -> bool:
    """Return whether there was such a point."""
    try:
        scenario(cut)
    except BaseException as error:
        error.add_note(f"interrupted by {cut.error.__name__} at {cut.points[0] if cut.points else 'no point at all'}")
        raise
    return bool(cut.points)
