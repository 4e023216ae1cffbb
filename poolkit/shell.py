"""What the two shells share: settings, listeners, the wording of errors. Neither threads nor asyncio is known here."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
import pkgutil
import sys
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from poolkit.closing import Block, Early
from poolkit.errors import AcquireTimeout, CommitFailed, ConfigError, Holder, Returned, WrongProcess
from poolkit.events import Acquired, Event, Leaked, Listener, Released
from poolkit.state import IDLE, INHERITED, OUT, RESETTING, RETURNED, PoolState, Slot, Waiter
from poolkit.uncopied import Uncopied

if TYPE_CHECKING:
    from poolkit.config import PoolConfig

__all__ = ["RESET_LIMIT", "Shell", "logger"]

R = TypeVar("R")
T = TypeVar("T")
logger = logging.getLogger("poolkit")

_Call = tuple[CodeType, int]
_RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_OWN = frozenset({"poolkit", "poolkit_django", "poolkit_fastapi", "poolkit_flask"})
_INNER = _OWN | {"contextlib"}
_DEEPEST = 64  # calls: between a connection and the view stand some 25 of Django's ORM, and a serializer's over them

_tuple = tuple.__new__

RESET_LIMIT = 1.0  # seconds for the answer to a reset; what is later is not worth a borrower's wait
_TOLD = 50  # reasons for a failed reset that are logged as a warning; further ones at debug level
_FOREVER = 1e9  # seconds; longer than anybody waits, and a number that every timer takes
LOOK_FOR_LOST = 0.05  # seconds at least between two searches by those who have to wait; the sweep makes its own
# CPython's, and only where a count tells all: without a GIL each thread counts for itself.
_references_to: Callable[[Any], int] | None = getattr(sys, "getrefcount", None)
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    _references_to = None


def _counted(slots: set[T]) -> list[tuple[T, int]]:
    """Count the references to each of these slots.

    Of a copy, made in one step: a finalizer may run between any two, and give back or end one of them.
    """
    copied = list(slots)
    return [] if _references_to is None else [(slot, _references_to(slot)) for slot in copied]


def _nobody() -> int:
    """How many references `_counted` finds to something that no borrower has; 0, fewer than there can be, if unknown.

    Of plain objects, which are made without a call of Python's: a profiler that keeps the frames it sees has no frame
    of theirs. And where one reference more does not count exactly one more, something holds what it should not, and no
    count can be trusted.
    """
    held = object()
    counts = [(thing is held, count) for thing, count in _counted({held, object(), object()})]
    nobody = min([count for is_held, count in counts if not is_held], default=0)
    return nobody if (True, nobody + 1) in counts else 0


_NOBODY = _nobody()


class Shell(Uncopied, Generic[R]):
    """The part of a pool that is neither about threads nor about asyncio."""

    _instead = "it has connections of this process: make a pool of your own, from the same URL and settings"

    advice = ""
    """What a framework has to say to code that uses a connection after its return."""
    _awaits: bool
    """Whether the hooks of the settings may be coroutine functions."""
    _state: PoolState[R]
    _clock: Callable[[], float]

    def __init__(self, name: str, config: PoolConfig, driver: Any, listeners: Iterable[Listener]) -> None:
        self.name = name
        self.config = config
        self._listeners = self._watchers = tuple(listeners)
        self._alive: Callable[[R], bool] = driver.alive
        self.is_broken: Callable[[R, BaseException | None], bool] = driver.is_broken
        self._clean: Callable[[R], bool] = _never if config.reset == "full" else driver.clean
        self._resets = config.reset != "off"
        self._check_after = math.inf if config.check_after is None else config.check_after
        self._bypass: float = min(getattr(driver, "alive_bypass", 0.0), self._check_after)
        self._searched = -math.inf
        self._told: set[str] = set()
        self._renew: Callable[[R, Returned], R] | None = getattr(driver, "renew", None)
        self._retire: Callable[[R, Returned], object] | None = getattr(driver, "retire", None)
        self._lend: Callable[[R], object] | None = getattr(driver, "lend", None)
        self._settle: Callable[[R], object] | None = getattr(driver, "settled", None)
        self._closed_by_user: Callable[[R], bool] | None = getattr(driver, "closed_by_user", None)
        self._let_close: Callable[[R, Callable[[R], bool] | None], object] | None = getattr(
            driver, "on_user_close", None
        )
        self._early = Early(self)
        self.on_explicit_end: Callable[[R, Callable[[str], None]], object] | None = getattr(
            driver, "on_explicit_end", None
        )
        self._failure_kind: Callable[[BaseException], Literal["away", "refused"]] | None = getattr(
            driver, "failure_kind", None
        )
        self._configure = self._hook("configure")
        self._setup = self._hook("setup")
        self._ask = self._hook("ping")
        self._on_close = self._hook("on_close")
        # what the hot path looks at: whether there is anything to do when a resource is lent, and when it comes back
        self._prepares = self._lend is not None or self._setup is not None
        self._parts = self._renew is not None or self._retire is not None
        self._count = None if self._renew is None else _references_to
        self._watch_borrowings()

    def _hook(self, name: str) -> Callable[[Any], Any] | None:
        """Return the callable of that setting. One that would have to be awaited is refused where nothing awaits it."""
        value: Any = getattr(self.config, name)
        found = self._imported(name, value) if isinstance(value, str) else value
        if not self._awaits and _is_coroutine_function(found):
            raise ConfigError(
                f"{name}: {_place_of(found)} is a coroutine function, and a pool for threads awaits nothing: it needs "
                "a plain function. One that returns what the connection's method returns serves both kinds of pool",
                f"pool {self.name!r}",
            )
        return cast("Callable[[Any], Any] | None", found)

    def _imported(self, name: str, value: str) -> object:
        """Import what a dotted path names."""
        try:
            found = pkgutil.resolve_name(value)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{name}: {value!r} can't be imported: {error}", f"pool {self.name!r}") from error
        if not callable(found):
            raise ConfigError(f"{name}: {value!r} is {type(found).__name__}, not a callable", f"pool {self.name!r}")
        return found

    def _blame_configure(self, error: BaseException) -> None:
        """Add the place to an error of the user's `configure`, which is reported as a failed connect."""
        note = f"raised in configure: {_place_of(self._configure)}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)

    def _kind_of(self, error: BaseException) -> Literal["away", "refused"]:
        """What kind of failure a failed connect was, in the driver's opinion; wrong settings are no outage anywhere."""
        if isinstance(error, ConfigError):
            return "refused"
        if self._failure_kind is None:
            return "away"
        try:
            return self._failure_kind(error)
        except Exception:
            logger.exception("pool %r: the driver could not say what kind of failure this is", self.name)
            return "away"

    def _settled(self, resource: R) -> None:
        """Hear that a new resource is as it is to be at rest. From now on its own `close` gives it back."""
        if self._settle is not None:
            self._settle(resource)
        if self._let_close is not None:
            self._let_close(resource, self._early)

    def _is_closed_by_user(self, resource: R) -> bool:
        """Whether the borrower closed the resource with a transaction open, as far as the driver can tell."""
        try:
            return self._closed_by_user is not None and self._closed_by_user(resource)
        except Exception:  # noqa: BLE001  where that can't be told, the driver's own error is
            return False

    @abstractmethod
    def _close_early(self, resource: R) -> bool:
        """Take back a resource that its borrower closed with no work open; False where it is not borrowed."""

    def _place_of_close(self, old: Slot[R]) -> Returned:
        """Note where a borrower has closed its resource: for its lease, and for who uses the resource later."""
        frame = _outside(sys._getframe(1))
        place = Returned(self.name, "", frame.f_code, frame.f_lasti)
        old.returned = returned = Returned(self.name, f"close() at {place}", None, 0, self.advice, Block(old))
        return returned

    def _part(self, slot: Slot[R], returned: Returned | None = None) -> bool:
        """Part the borrower from the resource that it gives back: what it still refers to is of no use from now on.

        Where the driver can, a new object takes over; but only where something refers to the old one, for it takes
        about a microsecond. Without a GIL the references can't be counted. Returns False where that failed.
        """
        count = self._count
        if returned is None:
            if count is not None and count(slot.resource) <= slot.references:
                return True
            if slot.label:  # `Returned(...)` would take five times as long
                returned = _tuple(Returned, (self.name, slot.label, None, 0, self.advice, None))
            else:
                frame = sys._getframe(2)
                if _is_inner(frame.f_globals.get("__name__", "")):
                    frame = _outside(frame)
                returned = _tuple(Returned, (self.name, "", frame.f_code, frame.f_lasti, self.advice, None))
        try:
            if self._renew is not None:
                slot.resource = self._renew(slot.resource, returned)
            elif self._retire is not None:
                self._retire(slot.resource, returned)
        except Exception:
            logger.exception("pool %r: discarded a resource that could not be parted from its borrower", self.name)
            return False
        return True

    def _count_references(self, slot: Slot[R]) -> None:
        """Note how many references there are to a resource that was not borrowed yet."""
        if sys.getprofile() is not None or sys.gettrace() is not None:  # it may keep what it sees: part in any case
            slot.references = 0
        elif _references_to is not None:
            slot.references = _references_to(slot.resource) - 1  # the variable of the caller, who has just opened it

    def _has_time_to_ask(self, deadline: float) -> bool:
        """Whether a borrower has the time of a round trip: else what lies idle is lent unasked."""
        return deadline - self._clock() >= self._state.quick_answer

    def _report_reset(self, error: object) -> None:
        """Log why a resource was replaced instead of reset: a warning once, for an application may do it always."""
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
        level = logging.DEBUG if text in self._told or len(self._told) > _TOLD else logging.WARNING
        self._told.add(text)
        logger.log(
            level, "pool %r: a connection could not be made as new and was replaced by another: %s", self.name, text
        )

    def _watch_borrowings(self) -> None:
        self._traced = bool(self._watchers) or self.config.leak_after is not None
        # What is given back in the shortest way: clean, and nobody is to be told.
        self._is_plain: Callable[[R], bool] = _never if self._traced else self._clean

    def listen(self, listener: Listener, *, borrowings: bool = True) -> None:
        """Tell `listener` from now on what happens. Without `borrowings` it is spared `Acquired` and `Released`.

        Those two are built for every borrower, and cost each about a microsecond; the others are rare.
        """
        self._listeners = (*self._listeners, listener)
        if borrowings:
            self._watchers = (*self._watchers, listener)
            self._watch_borrowings()

    def unlisten(self, listener: Listener) -> None:
        """Tell `listener` nothing any more."""
        self._listeners = tuple(other for other in self._listeners if other != listener)
        self._watchers = tuple(other for other in self._watchers if other != listener)
        self._watch_borrowings()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._state.closed

    def __repr__(self) -> str:
        stats = self._state.stats()
        return f"<{type(self).__name__} {self.name!r}: {stats.out} out, {stats.idle} idle, max {stats.max_size}>"

    def _trace(self, slot: Slot[R], asked: float, depth: int) -> None:
        if self.config.leak_after is not None:
            slot.stack = _calls(sys._getframe(depth))
        self._tell(lambda: Acquired(self.name, self._clock() - asked, slot.resource), self._watchers)

    def _untrace(self, slot: Slot[R]) -> None:
        used = self._clock() - slot.since
        slot.stack = None
        self._tell(lambda: Released(self.name, used, slot.resource), self._watchers)

    def _tell(self, build: Callable[[], Event], listeners: tuple[Listener, ...] | None = None) -> None:
        listeners = self._listeners if listeners is None else listeners
        if not listeners:
            return
        event = build()
        for listener in listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("pool %r: a listener raised", self.name)

    def _seconds(self, timeout: Any, default: float) -> float:
        """Return a caller's timeout, or the default. Raises `ConfigError` where it is no number to wait for."""
        if timeout is None:
            return default
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout != timeout:  # noqa: PLR0124  nan
            shown = "nan" if isinstance(timeout, float) else type(timeout).__name__
            raise ConfigError(f"timeout must be a number of seconds or None, not {shown}", f"pool {self.name!r}")
        return float(min(timeout, _FOREVER))

    @abstractmethod
    def drain(self) -> None:
        """Replace every resource: idle ones now, borrowed ones when they come back. Service goes on."""

    def after_leap(self, seconds: float) -> None:
        """Replace every resource after the machine stood still: the peers may have forgotten them meanwhile."""
        logger.warning(
            "pool %r: the wall clock was set forward by %.0f s, as after a pause of the machine: all connections are "
            "replaced", self.name, seconds,
        )  # fmt: skip
        self.drain()

    def _lost(self) -> list[Slot[R]]:
        """List the slots that nobody can give back, for nobody refers to them: not a lease, not a call under way.

        A finalizer of the lease would say so at once, but cost every borrower of every resource (a tenth of the whole),
        and what an interrupt loses before there is a lease it would never see. To be called where slots can't change
        hands but by leaving `idle`: under the lock, or in the loop.
        """
        state = self._state
        if state.size == len(state.idle) + state.opening:  # nothing is out, nor on its way
            return []
        nobody = min(_NOBODY, _nobody())  # a debugger may have held some when this module was loaded, or may now
        state.witness = None  # that would be a reference
        return [s for s, count in _counted(state.slots) if count <= nobody and s.status in (OUT, IDLE, RESETTING)]

    def _search_is_due(self, now: float) -> bool:
        """Whether somebody who has to wait should look for lost slots first."""
        due = now - self._searched >= LOOK_FOR_LOST
        if due:
            self._searched = now
        return due

    def _report_leak(self, slot: Slot[R], age: float, who: str, now: str) -> None:
        taken = stack_text(slot.stack)
        logger.warning(
            "pool %r: %s holds a connection for %.1f s (leak_after=%s)\ntaken at:\n%sits holder is now at:\n%s",
            self.name, who, age, self.config.leak_after, taken, now,
        )  # fmt: skip
        self._tell(lambda: Leaked(self.name, who, age, taken, now))

    def _report_lost(self, slot: Slot[R], who: str) -> None:
        age = self._clock() - slot.since
        taken = stack_text(slot.stack) or "  (not recorded; set leak_after and it is)\n"
        logger.warning(
            "pool %r: %s dropped a connection without giving it back, after %.1f s. It is closed now, and its place is "
            "free again; use `with`, or release the lease\ntaken at:\n%s", self.name, who, age, taken,
        )  # fmt: skip
        self._tell(lambda: Leaked(self.name, who, age, taken, "nobody holds it any more\n"))

    def _report_demotion(self, error: BaseException) -> None:
        logger.warning(
            "pool %r: the server takes no writes any more; all connections are replaced: %s", self.name, error
        )

    def _timeout_error(self, waiter: Waiter[R], now: float, holders: Iterable[Holder]) -> AcquireTimeout:
        stats = self._state.stats()
        waited = now - waiter.asked_at
        advice = "Hold connections for a shorter time, or raise max_size or timeout"
        if stats.outage is not None:  # none of that would help
            advice = f"No connection can be opened: {stats.outage}"
        error = AcquireTimeout(
            self.name,
            f"no connection came free within {waited:.2f} s: {stats.out} of {stats.max_size} are out, "
            f"{stats.opening} are being opened, {stats.waiting} others wait. {advice}",
            waited=waited,
            retry_after=self._state.timeout_hint(),
            holders=tuple(holders),
        )
        error.__cause__ = self._state.last_error
        return error

    def _abandon(self, inherited: Iterable[Slot[R]], let_go: Callable[[R], object]) -> None:
        """Let go of what is not ours any more (a parent's, a closed loop's), each whatever the others raise."""
        slots = list(inherited)
        for slot in slots:
            slot.status = INHERITED
        for slot in slots:
            if slot.resource is None:
                continue
            try:
                let_go(slot.resource)
            except Exception:
                logger.exception("pool %r: could not let go of a resource", self.name)

    def _holders(self, name_of: Callable[[Any], str], driver: Any) -> list[Holder]:
        """List who has what. `driver` is None where there are no transactions.

        The set is copied at one go, and nothing is locked while stacks are read from the source files.
        """
        now = self._clock()
        return [
            Holder(
                label=slot.label or name_of(slot.holder),
                age=now - slot.since,
                in_transaction=None if driver is None else _in_transaction(driver, slot.resource),
                stack=stack_text(slot.stack),
            )
            for slot in list(self._state.slots)
            if slot.status is OUT
        ]


def _in_transaction(driver: Any, resource: object) -> bool | None:
    try:
        open_now: bool = driver.in_transaction(resource)
    except Exception:  # noqa: BLE001  its borrower may have closed it; a report about others must not fail for that
        return None
    return open_now


@functools.lru_cache(maxsize=1024)
def _is_inner(module: str) -> bool:
    return module.partition(".")[0] in _INNER


def _outside(frame: FrameType) -> FrameType:
    """Return the innermost frame that is neither poolkit's own nor of a `with` block's machinery."""
    outside: FrameType | None = frame
    while outside is not None and _is_inner(outside.f_globals.get("__name__", "")):
        outside = outside.f_back
    return outside or frame


def _calls(frame: FrameType) -> list[_Call]:
    """Note who called, the innermost first, and not how poolkit got here: a reader looks for his own code.

    No text is made yet, which takes ten times as long, nor is a frame kept, which would keep its variables.
    """
    calls: list[_Call] = []
    at: FrameType | None = _outside(frame)
    while at is not None and len(calls) < _DEEPEST:
        calls.append((at.f_code, at.f_lineno))
        at = at.f_back
    return calls


def stack_text(calls: list[_Call] | None) -> str:
    """Render what `_trace` has noted, oldest call first."""
    frames = [
        traceback.FrameSummary(code.co_filename, line, code.co_name, lookup_line=False)
        for code, line in reversed(calls or [])
    ]
    return "".join(traceback.StackSummary.from_list(frames).format())


def forget_variables(error: BaseException | None) -> None:
    """Take the variables out of an error's traceback, and of those of its causes, and keep their lines.

    For a connect that failed: its variables hold the password, and debug pages and error trackers show variables. A
    frame that may be a coroutine's is not emptied, for it may only be asleep: another with the same place, and nothing
    in it, takes its place in the traceback.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        at = left.pop()
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        at.__traceback__ = _without_variables(at.__traceback__)
        left += [at.__cause__, at.__context__]
        if isinstance(at, BaseExceptionGroup):
            left += at.exceptions


def _without_variables(traceback: TracebackType | None) -> TracebackType | None:
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    for entry in reversed(entries):
        frame, lasti = entry.tb_frame, entry.tb_lasti
        if frame.f_code.co_flags & _RESUMED:
            frame, lasti = _stand_in(frame, entry.tb_lineno)
        else:
            with contextlib.suppress(RuntimeError):  # it runs: the caller's own
                frame.clear()
        traceback = TracebackType(traceback, frame, lasti, entry.tb_lineno)
    return traceback


def _raise() -> None:
    raise LookupError


# Each instruction is of the function's first line, and of no column in it. An entry is for up to eight code units, and
# all of them for as many as there are: who traces or profiles has CPython write an array of that size by this table.
_UNITS = len(_raise.__code__.co_code) // 2
_ONE_LINE = bytes(byte for at in range(0, _UNITS, 8) for byte in (0x80 | 13 << 3 | min(8, _UNITS - at) - 1, 0))


def _stand_in(frame: FrameType, line: int) -> tuple[FrameType, int]:
    """Make a frame that looks like another from outside, and where its code was left; it has no variables."""
    code = _raise.__code__.replace(
        co_filename=frame.f_code.co_filename,
        co_name=frame.f_code.co_name,
        co_qualname=frame.f_code.co_qualname,
        co_firstlineno=line,
        co_linetable=_ONE_LINE,
    )
    known = ("__name__", "__file__", "__loader__")
    names: dict[str, Any] = {name: frame.f_globals[name] for name in known if name in frame.f_globals}
    try:
        FunctionType(code, names)()
    except LookupError as raised:
        made = raised.__traceback__
    made = made and made.tb_next
    return (frame, 0) if made is None else (made.tb_frame, made.tb_lasti)


def _is_coroutine_function(function: object) -> bool:
    function = getattr(function, "func", function)  # a functools.partial's
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _place_of(function: object) -> str:
    """Name a function for an error: `shop.database.configure`."""
    function = getattr(function, "func", function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def done(name: str, result: object) -> object:
    """Return what a hook of a pool for threads returned. Raises `ConfigError` for a coroutine, which never ran."""
    if inspect.iscoroutine(result):
        result.close()
        raise ConfigError(
            f"{name} returned a coroutine, and a pool for threads awaits nothing: it needs a function that does the "
            "work itself"
        )
    return result


def check_lent(slot: Slot[Any], pool: str) -> None:
    """Raise where a lease has lost its resource: its borrower closed it, or the process forked."""
    if slot.status is RETURNED:
        raise slot.returned.error()
    if slot.status is INHERITED:
        raise WrongProcess(pool)


def closed_error(name: str) -> CommitFailed:
    """Make the error for a resource that was closed by its borrower under its transaction."""
    return CommitFailed(
        f"the connection on {name!r} was closed, by its close(), with a transaction open: nothing was saved. "
        "Commit first, or leave that to the unit of work, which commits and gives it back; `with conn:` ends a "
        "transaction, no more",
        undone=[name],
    )


def aborted_error(pool: str) -> CommitFailed:
    """Make the error for a transaction that a failed statement had ended before its COMMIT."""
    return CommitFailed(
        f"pool {pool!r}: a failed statement aborted this transaction and its error was ignored; nothing was saved",
        undone=[pool],
    )


def _never(_resource: object) -> bool:
    return False
