"""Pool: the threading shell around PoolState.

It sleeps, wakes and does I/O, and decides nothing: each operation asks the state under the lock, lets the lock go, and
carries out the orders it got. Connects run in threads of their own, so whoever waits takes what comes first.

The hot path is `acquire` and `Lease.__exit__`. To take an idle resource needs no lock (see `poolkit.state`: who pops a
slot owns it); to give it back takes the lock by its bound acquire and release (70 ns; a `with` costs 200). One small
object is built, without an `__init__` (50 ns less), and nothing is logged or formatted.

Signal handlers may raise anywhere in the main thread (Ctrl-C, a soft time limit), and finalizers may give a lease back
in the middle of anything. So the lock is an RLock: a finalizer can't deadlock with its own thread, and only its owner
can release it, which is what `_unwind` relies on. The `try` around each hot path costs nothing until it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, overload

from poolkit import fork, housekeeper
from poolkit.closing import owner_of
from poolkit.config import PoolConfig
from poolkit.driver import Driver, Transactional, TransactionArguments, TransactionOptions, check_options
from poolkit.drivers import Url, sync_driver
from poolkit.errors import Holder, LeaseError, PoolError, Returned
from poolkit.events import Closed, Listener, Opened, OpenError, Refused
from poolkit.shell import (
    RESET_LIMIT,
    Shell,
    aborted_error,
    check_lent,
    closed_error,
    done,
    forget_variables,
    logger,
)
from poolkit.state import DEAD, INHERITED, OUT, RETURNED, Orders, PoolState, Slot, Waiter
from poolkit.stats import PoolStats
from poolkit.uncopied import Uncopied

__all__ = ["Lease", "Pool", "Transaction"]

R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")

TO_OPEN, TO_CLOSE = 1, 2  # what somebody has begun with a slot
LET_GO_AFTER = 1.0  # seconds; the collector is through with what it found by then


class _Waiter(Waiter[R]):
    """A waiter asleep on a lock that its waker releases."""

    __slots__ = ("bell",)

    def __init__(self, holder: int, *, urgent: bool) -> None:
        self.slot = None  # as Waiter does it; a call less for everybody who waits
        self.error = None
        self.done = False
        self.asked_at = 0.0
        self.holder = holder
        self.urgent = urgent
        self.bell = bell = threading.Lock()
        bell.acquire()

    def wake(self) -> None:
        try:
            self.bell.release()
        except RuntimeError:  # woken before: an interrupt had the orders carried out twice
            return


class _Reset(Generic[R]):
    """A reset that was sent with the return of a resource, or that a helper thread is making."""

    __slots__ = ("_finish", "error", "finished", "until")

    def __init__(self, until: float, finish: Callable[[R, float], bool] | None) -> None:
        self.until = until
        self._finish = finish  # reads the answer; None where a helper thread does all of it
        self.error: BaseException | None = None
        self.finished = None if finish is not None else threading.Event()

    def wait(self, resource: R, timeout: float) -> bool:
        """Whether the resource is as new, within `timeout` seconds. Raises what the reset failed with."""
        if self._finish is not None:
            return self._finish(resource, timeout)
        done = self.finished is not None and self.finished.wait(timeout)
        if self.error is not None:
            raise self.error
        return done


class _State(PoolState[R]):
    """A state that remembers what it ordered until that is carried out, though an interrupt cut the way there short."""

    def __init__(self, config: PoolConfig, name: str, random: Callable[[], float]) -> None:
        super().__init__(config, name, random)
        self.issued: list[Orders] = []

    def _issue(self, orders: Orders) -> None:
        self.issued.append(orders)

    def settle(self, orders: Orders) -> None:
        """Forget what was carried out."""
        try:
            self.issued.remove(orders)
        except ValueError:  # by two, after an interrupt
            return


class Lease(Uncopied, Generic[R]):
    """One borrowing of a resource; `Pool.acquire` makes it.

    Use it as `with pool.acquire() as resource`, or end it with one of the three verbs `release`, `discard` and
    `detach`. It is dead afterwards. One that is dropped before its end has lost its resource: within a second, or as
    soon as somebody has to wait, that is reported, the resource is closed, and its place is free again.

    A lease may be handed from thread to thread, but not shared: of two threads that end it, one gets `LeaseError`.
    (`mine, self._slot = self._slot, None` is one step where there is a GIL: nothing is called in between.)
    """

    __slots__ = ("_pool", "_slot")

    _instead = "it is one borrowing of a connection: ask the pool for another with acquire()"

    _pool: Pool[R]
    _slot: Slot[R] | None

    @property
    def resource(self) -> R:
        """The driver's own object. Raises `LeaseError` after the end, `WrongProcess` in a forked child."""
        slot = self._slot
        if slot is None or slot.status is not OUT:
            slot = self._live()  # raises
        return slot.resource

    @property
    def inherited(self) -> bool:
        """Whether this lease was taken before a fork and belongs to the parent process."""
        return self._slot is not None and self._slot.status is INHERITED

    @property
    def is_out(self) -> bool:
        """Whether the resource is still this lease's."""
        return self._slot is not None and self._slot.status is OUT

    @property
    def given_back(self) -> bool:
        """Whether the borrower has closed the resource with nothing open, so that it is back already."""
        return self._slot is not None and self._slot.status is RETURNED

    @property
    def returned_early(self) -> bool:
        """Whether others may have it by now, while this lease goes on."""
        slot = self._slot
        return slot is not None and slot.status is RETURNED and slot.returned.block is not None

    def forget(self) -> None:
        """End a lease whose resource its borrower has closed."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._pool._give_back(slot, None)

    def label(self, text: str) -> None:
        """Say what the resource is used for ("GET /orders"): shown where the pool lists its holders."""
        self._live().label = text

    def release(self, error: BaseException | None = None) -> None:
        """Give the resource back, reset. `error`: what the borrower's work ended with, if it failed."""
        if self.given_back:
            self.forget()
            return
        self._live()
        if not self._end(error):
            self._live()  # raises: another thread was faster

    def discard(self, reason: str = "discarded") -> None:
        """Close the resource instead of giving it back; `reason` is counted in the pool's stats."""
        if self.given_back:
            self.forget()
            return
        slot = self._live()
        uses = slot.uses
        try:
            mine, self._slot = self._slot, None
            self._pool._drop(self._checked(mine), reason)
        except LeaseError:  # another thread was faster
            raise
        except BaseException:
            self._pool._unwind(slot, uses)
            raise

    def detach(self) -> R:
        """Take the resource out of the pool for good: it is yours to close, and the pool may open another."""
        slot = self._live()
        uses = slot.uses
        try:
            mine, self._slot = self._slot, None
            self._pool._detach(self._checked(mine))
        except LeaseError:
            raise
        except BaseException:
            self._pool._unwind(slot, uses)
            raise
        return slot.resource

    def _live(self) -> Slot[R]:
        return self._checked(self._slot)

    def _checked(self, slot: Slot[R] | None) -> Slot[R]:
        if slot is None:
            raise LeaseError(f"pool {self._pool.name!r}: this lease has ended; acquire a new one")
        check_lent(slot, self._pool.name)
        return slot

    def __enter__(self) -> R:
        slot = self._slot
        if slot is None or slot.status is not OUT:
            slot = self._live()  # raises
        slot.scoped = True
        return slot.resource

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        slot = self._slot
        pool = self._pool
        if error is not None or slot is None:
            self._end(error)
            return
        uses = slot.uses
        try:
            # `_end` and `_give_back` in one, for what is as it should be: 0.2 us less
            mine, self._slot = self._slot, None
            if mine is None:
                return
            if slot.status is OUT and pool._is_plain(slot.resource) and (not pool._parts or pool._part(slot)):
                slot.scoped = False
                slot.label = ""
                now = pool._clock()
                pool._enter()
                orders = pool._give(slot, now)
                pool._leave()
                if orders is not None:
                    pool._carry_out(orders)
            elif pool._was_closed(slot):
                raise closed_error(pool.name)  # noqa: TRY301  as any error here
            else:
                pool._give_back(mine, None)
        except BaseException:
            pool._unwind(slot, uses)
            raise

    def _end(self, error: BaseException | None) -> bool:
        """Give the slot back, unless the lease was ended by hand before, or by another thread in this moment."""
        slot = self._slot
        if slot is None:
            return False
        uses = slot.uses
        try:
            mine, self._slot = self._slot, None
            if mine is not None:
                self._pool._give_back(mine, error)
        except BaseException:
            self._pool._unwind(slot, uses)
            raise
        return mine is not None


def _mending(call: Callable[Concatenate[Pool[R], P], T]) -> Callable[Concatenate[Pool[R], P], T]:
    """Let a call put the books right where it is cut short by an interrupt."""

    @functools.wraps(call)
    def guarded(pool: Pool[R], /, *arguments: P.args, **more: P.kwargs) -> T:
        try:
            return call(pool, *arguments, **more)
        except BaseException:
            pool._unwind(None, 0)
            raise

    return guarded


class Pool(Shell[R]):
    """A pool of resources for threads.

    `source` is a URL (`postgresql://user@host/db`), a callable that returns one (fresh credentials for each connect;
    `scheme="mysql"` says which driver they are for, else psycopg), or a `Driver`. Settings come as `config` or as
    keywords, not both. Nothing is opened before the first `acquire`, or `warm`. Raises `ConfigError` for settings that
    can't work.

        pool = Pool("postgresql://localhost/shop", max_size=8)
        with pool.acquire() as conn: ...
        with pool.transaction() as conn: ...
        pool.close()
    """

    _awaits = False

    @overload
    def __init__(
        self, source: Driver[R], config: PoolConfig | None = None, *, name: str = "default",
        listeners: Iterable[Listener] = (), runtime: housekeeper.Runtime | None = None, **settings: Any,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Pool[Any], source: Url, config: PoolConfig | None = None, *, name: str = "default",
        listeners: Iterable[Listener] = (), runtime: housekeeper.Runtime | None = None, **settings: Any,
    ) -> None: ...  # fmt: skip
    def __init__(
        self, source: Driver[R] | Url, config: PoolConfig | None = None, *, name: str = "default",
        listeners: Iterable[Listener] = (), runtime: housekeeper.Runtime | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        driver, config = sync_driver(source, config, settings, where=f"pool {name!r}")
        super().__init__(name, config, driver, listeners)
        self._driver: Driver[R] = driver
        self._send_reset: Callable[..., bool] | None = getattr(driver, "send_reset", None)
        self._read_reset: Callable[[R, float], bool] | None = getattr(driver, "finish_reset", None)
        self._resets_aside = self._send_reset is None and bool(getattr(driver, "background_reset", False))
        self.transactional: Transactional[R] | None = driver if isinstance(driver, Transactional) else None
        self._runtime: housekeeper.Runtime = runtime or housekeeper.shared()
        self._clock = self._runtime.clock
        self._start()
        fork.know(self)

    def _start(self) -> None:
        """Begin with an empty state and a new lock: at first, and in the child of a fork."""
        self._state: _State[R] = _State(self.config, self.name, self._runtime.random)
        self._lock = threading.RLock()
        self._enter, self._leave = self._lock.acquire, self._lock.release
        self._pop, self._give = self._state.pop, self._state.give
        self._closed: dict[weakref.ref[Slot[R]], tuple[Slot[R], Returned]] = {}  # by a borrower whose lease goes on
        self._empty = threading.Event()
        self._watched = False

    # -- borrowing ------------------------------------------------------------------------------------------------

    def acquire(self, timeout: float | None = None, *, urgent: bool = False) -> Lease[R]:
        """Borrow a resource, waiting up to `timeout` seconds (default: the pool's).

        `urgent`: for probes and administration. Stands before all others, is refused by neither `max_waiting` nor
        `target_delay`, and may be given one of the `reserved` connections. Raises `AcquireTimeout`, `Overloaded`,
        `OpenFailed`, `NestedAcquire` or `PoolClosed`.
        """
        now = self._clock()
        slot = None
        try:
            try:
                slot = self._pop()
                slot.uses += 1  # before it is OUT: its last borrower may be unwinding, and knows it by that
                slot.status = OUT
                slot.idled = idled = now - slot.since
                slot.since = now
            except IndexError:  # nothing lies idle
                idled = 0.0
            if (
                slot is None
                or slot.expires <= now
                or (idled >= self._bypass and (idled > self._check_after or not self._alive(slot.resource)))
            ):
                slot = self._find(slot, now, timeout, urgent=urgent)
            slot.holder = threading.get_ident()  # looked up each time: gevent may replace it
            if self._prepares:
                self._prepare(slot)
            if self._traced:
                self._trace(slot, now, depth=2)
            lease: Lease[R] = Lease()
            lease._pool = self
            lease._slot = slot
            return lease  # noqa: TRY300  an interrupt between these lines is meant as well
        except BaseException:
            self._unwind(slot, 0 if slot is None else slot.uses)
            raise

    def transaction(
        self, timeout: float | None = None, *, urgent: bool = False, **options: Unpack[TransactionArguments]
    ) -> Transaction[R]:
        """Borrow a resource inside a transaction: committed on success, rolled back on error, then returned.

        `timeout` and `urgent` are those of `acquire`. The rest are options of the transaction, sent with its BEGIN:
        `read_only`, `isolation_level` ("serializable", ...), `deferrable`, and `settings`, which maps names of session
        settings to values that hold for this transaction. `ConfigError` where the driver can't do one of them.

        Raises what `acquire` raises, the driver's own error where the COMMIT fails, and `CommitFailed` where a failed
        statement had aborted the transaction and its error was ignored.
        """
        driver = self.transactional
        if driver is None:
            raise LeaseError(f"pool {self.name!r}: {type(self._driver).__name__} has no transactions; use acquire()")
        chosen = TransactionOptions.of(**options) if options else None
        if chosen is not None:
            check_options(driver, chosen)
        return Transaction(self, driver, timeout, chosen, urgent=urgent)

    def _find(self, slot: Slot[R] | None, now: float, timeout: float | None, *, urgent: bool) -> Slot[R]:
        """Get a fit slot: the one in hand, another idle one, or one waited for."""
        asked = now
        deadline = now + self._seconds(timeout, self.config.timeout)
        try:
            if slot is not None and slot.expires <= now:
                slot = self._after(slot, now)
            while True:
                if slot is None:
                    slot = self._wait(now, deadline, urgent=urgent)
                if slot.reset is not None:
                    if self._finish_reset(slot, deadline):
                        return slot
                elif slot.idled < self._bypass or self._is_fit(slot, deadline):
                    return slot
                else:
                    self._end_dead(slot)
                slot = None
                now = self._clock()
                if now >= deadline:
                    raise self._too_late(asked)  # noqa: TRY301
                slot = self._after(None, now)
        except BaseException:  # an interrupt, or the error of one who got nothing
            if slot is not None:
                self._drop_if_ours(slot, slot.uses)
            raise

    def _after(self, outlived: Slot[R] | None, now: float) -> Slot[R] | None:
        """Take the next idle slot, if there is one, after one that turned out to be too old."""
        with self._lock:
            if outlived is not None:
                self._state.outlived(outlived, now)
            slot = self._state.take(now)
            orders = self._state.orders()
        self._carry_out(orders)
        return slot

    def _is_fit(self, slot: Slot[R], deadline: float) -> bool:
        try:
            if not self._alive(slot.resource):
                return False
            return not self.needs_ping(slot) or not self._has_time_to_ask(deadline) or self.ping(slot, deadline)
        except BaseException:
            self._drop(slot, "dead")
            raise

    def _prepare(self, slot: Slot[R]) -> None:
        """Do what is to be done before a borrower gets a resource: the driver's part, and the user's `setup`."""
        if self._lend is not None:
            self._lend(slot.resource)
        if self._setup is not None:
            done("setup", self._setup(slot.resource))

    def _finish_reset(self, slot: Slot[R], deadline: float) -> bool:
        """Read the answer to the reset of a resource that is to be lent; where there is none, it is not lent."""
        reset: _Reset[R] = slot.reset
        try:
            if reset.wait(slot.resource, max(0.0, min(reset.until, deadline) - self._clock())):
                slot.reset = None
                return True
            if self._clock() < reset.until:  # the borrower's time is up, not that of the reset
                with self._lock:
                    orders = self._state.give(slot, self._clock())
                self._carry_out(orders)
                return False
            self._report_reset(f"no answer within {RESET_LIMIT:g} s")
        except Exception as error:  # noqa: BLE001  whatever the library raises, the resource is not to be lent again
            self._report_reset(error)
        self._drop(slot, "broken")
        return False

    def _too_late(self, asked: float) -> PoolError:
        """Make the error for one whose time went by on resources that turned out to be dead."""
        waiter: Waiter[R] = Waiter(threading.get_ident())
        waiter.asked_at = asked
        now = self._clock()
        with self._lock:
            self._state.count_timeout()
        return self._timeout_error(waiter, now, self.holders())

    def _wait(self, now: float, deadline: float, *, urgent: bool) -> Slot[R]:
        if self._search_is_due(now):
            self._recover_lost()
        waiter: _Waiter[R] = _Waiter(threading.get_ident(), urgent=urgent)
        try:
            with self._lock:
                orders = self._state.ask(waiter, now)
            if orders is not None:
                self._carry_out(orders)
            if not waiter.done:
                left = deadline - now
                waiter.bell.acquire(True, left if 0.0 < left < threading.TIMEOUT_MAX else _bounded(left))
                if not waiter.done:
                    self.time_out(waiter)
            slot = waiter.slot
            return self.claim(waiter) if slot is None else slot
        except BaseException:  # an interrupt, or the error claimed: then nothing was handed over
            self.withdraw(waiter)
            raise

    def _unwind(self, slot: Slot[R] | None, uses: int) -> None:
        """After an interrupt or a driver's fault: let go of the lock, and of the slot if it is still ours."""
        with contextlib.suppress(RuntimeError):  # not ours: it was not taken yet, or let go of already
            self._leave()
        if slot is not None:
            self._drop_if_ours(slot, uses)
        with self._lock:
            orders = self._state.mend(self._clock(), self._lost())
        self._carry_out(orders)
        self._make_up()

    def _drop_if_ours(self, slot: Slot[R], uses: int) -> None:
        with self._lock:
            if slot.status is not OUT or slot.uses != uses:  # given back already, and perhaps lent to somebody else
                return
            orders = self._state.drop(slot, self._clock(), "broken")
        self._carry_out(orders)

    # What a waiter of any kind goes through; poolkit.bridge has one that waits in an event loop.

    def take_live(self) -> Slot[R] | None:
        """Take an idle resource whose peer is there, or one whose reset is under way, without waiting."""
        while True:
            with self._lock:
                slot = self._state.take(self._clock())
                orders = self._state.orders()
            self._carry_out(orders)
            if slot is None or slot.reset is not None or self._alive(slot.resource):
                return slot
            self._drop(slot, "dead")

    def prepare(self, slot: Slot[R], deadline: float) -> bool:
        """Make a slot that was taken fit for its borrower, with round trips where they are needed; False if it is not.

        Then it is not the caller's any more.
        """
        if slot.reset is not None:
            if not self._finish_reset(slot, deadline):
                return False
        elif self.needs_ping(slot) and self._has_time_to_ask(deadline) and not self.ping(slot, deadline):
            self._end_dead(slot)
            return False
        if self._prepares:
            self._prepare(slot)
        return True

    def is_prepared(self, slot: Slot[R]) -> bool:
        """Whether `prepare` would have nothing to do that may take time."""
        return slot.reset is None and self._setup is None and not self.needs_ping(slot)

    @property
    def resets_without_wait(self) -> bool:
        """Whether a reset is sent, or left to a helper thread, and not waited for."""
        return self._send_reset is not None or self._resets_aside

    def needs_ping(self, slot: Slot[R]) -> bool:
        """Whether the resource lay idle for longer than `check_after`."""
        return slot.idled > self._check_after

    def ping(self, slot: Slot[R], deadline: float) -> bool:
        """Ask the resource's peer, which gets no longer than a connect, nor than its borrower has. One round trip."""
        if self._ask is not None:
            return self._answers(slot)
        patience, left = self._state.patience, max(0.0, deadline - self._clock())
        answered = self._driver.ping(slot.resource, min(patience, left))
        if not answered and left < self._state.ample_time:
            slot.idled = 0.0  # it was given too little time to say anything about the others that lay idle
        return answered

    def _answers(self, slot: Slot[R]) -> bool:
        """Ask in the user's own way."""
        try:
            slot.holder = threading.get_ident()
            if self._lend is not None:  # what was given back refuses until it is lent again
                self._lend(slot.resource)
            return self._ask is None or done("ping", self._ask(slot.resource)) is not False
        except Exception as error:  # noqa: BLE001  an error is a no
            logger.debug("pool %r: ping raised %r", self.name, error)
            return False

    def _end_dead(self, slot: Slot[R]) -> None:
        with self._lock:
            orders = self._state.found_dead(slot, self._clock())
        self._carry_out(orders)

    def enqueue(self, waiter: Any) -> None:
        """Put a waiter in line; it may be done at once, with a slot or an error."""
        with self._lock:
            orders = self._state.ask(waiter, self._clock())
        self._carry_out(orders)

    def withdraw(self, waiter: Any) -> None:
        """Leave the line; what was handed over in this moment goes to the next."""
        with self._lock:
            orders = self._state.give_up(waiter, self._clock())
        self._carry_out(orders)

    def time_out(self, waiter: Any) -> None:
        """Leave the line with `AcquireTimeout`, unless the waiter was served in this very moment."""
        now = self._clock()
        with self._lock:
            if waiter.done:
                return
            orders = self._state.give_up(waiter, now, timed_out=True)
        waiter.error = self._timeout_error(waiter, now, self.holders())
        waiter.wake()
        self._carry_out(orders)

    def claim(self, waiter: Any) -> Slot[R]:
        """Return what a waiter got, or raise its error."""
        error = waiter.error
        if error is not None:
            self._tell(lambda: Refused(self.name, self._clock() - waiter.asked_at, error))
            raise error
        slot: Slot[R] = waiter.slot
        return slot

    # -- returning ------------------------------------------------------------------------------------------------

    def _was_closed(self, slot: Slot[R]) -> bool:
        """Whether the borrower closed the resource with work open: then it is dropped."""
        if slot.status is not OUT or not self._is_closed_by_user(slot.resource):
            return False
        self._drop(slot, "broken")
        return True

    @_mending
    def _close_early(self, resource: R) -> bool:
        with self._lock:
            slot = self._state.lent(resource)
            if slot is not None and self._renew is None and slot.closing != slot.uses:
                return True  # its lease ended meanwhile, and this is the next one's
            parted = self._state.give_early(resource)
        if parted is None:
            return False
        old, new = parted
        returned = self._place_of_close(old)
        if self._renew is not None or (self._retire is not None and owner_of(old) is not None):
            self._give_back(new, None, returned)
        elif self._part(new, returned := returned._replace(block=None)):
            # its users are not known: it is not lent again before the lease ends
            old.returned = returned
            self._closed[weakref.ref(old, self._block_ended)] = new, returned
        else:
            self._drop(new, "broken")
        return True

    @_mending
    def _block_ended(self, block: weakref.ref[Slot[R]]) -> None:
        """Give back what was closed, now that its lease is over. Called from wherever that is dropped."""
        closed = self._closed.pop(block, None)
        if closed is None:
            return
        slot, returned = closed
        if self._clean(slot.resource):
            self._give_back(slot, None, returned)
        else:
            self._runtime.spawn(functools.partial(self._give_back, slot, None, returned))

    def _give_back(self, slot: Slot[R], error: BaseException | None, returned: Returned | None = None) -> None:
        if slot.status is not OUT:  # inherited over a fork: not ours to touch
            if slot.status is RETURNED:  # its borrower has closed it
                slot.status = DEAD
                self._block_ended(weakref.ref(slot))
            return
        if (error is not None or not self._resets) and self._driver.is_broken(slot.resource, error):
            self._drop_broken(slot, error)
            return
        if self._parts and not self._part(slot, returned):
            self._drop(slot, "broken")
            return
        if self._resets and not self._clean(slot.resource) and not self._reset(slot):
            return
        slot.scoped = False
        slot.label = ""
        if self._traced:
            self._untrace(slot)
        now = self._clock()
        reset = slot.reset  # a borrower that is handed the slot may be through with it in a moment
        self._enter()
        if slot.status is RETURNED:  # closed in this moment
            self._leave()
            self._give_back(slot, None)
            return
        orders = self._state.give(slot, now)
        self._leave()
        if orders is not None:
            self._carry_out(orders)
        if reset is not None and self._resets_aside:
            self._runtime.spawn(functools.partial(self._reset_aside, slot, reset))

    def _reset(self, slot: Slot[R]) -> bool:
        """Have the resource made as new; drop it where that fails at once.

        The reset is sent and not waited for, or left to a helper thread, where the driver can do that.
        """
        full = self.config.reset == "full"
        try:
            if self._send_reset is not None:
                if self._send_reset(slot.resource, full=full):
                    slot.reset = _Reset(self._clock() + RESET_LIMIT, self._read_reset)
            elif self._resets_aside:
                slot.reset = _Reset(self._clock() + RESET_LIMIT, None)
            else:
                self._driver.reset(slot.resource, full=full)
        except Exception as error:  # noqa: BLE001  whatever the library raises, the resource is not to be lent again
            self._drop(slot, "broken")
            self._report_reset(error)
            return False
        return True

    def _reset_aside(self, slot: Slot[R], reset: _Reset[R]) -> None:
        """Make a resource as new, in a helper thread."""
        try:
            self._driver.reset(slot.resource, full=self.config.reset == "full")
        except BaseException as error:  # noqa: BLE001  its next borrower gets it, or this thread
            reset.error = error
        if reset.finished is not None:
            reset.finished.set()
        with self._lock:
            mine = slot.reset is reset and self._state.claim_reset(slot)
        if mine:
            self._tend_reset(slot)

    def _tend_resets(self) -> None:
        """Look for the answers to resets that no borrower waits for."""
        if self._state.resetting:
            with self._lock:
                claimed = self._state.claim_resets()
            for slot in claimed:
                self._tend_reset(slot)

    def _tend_reset(self, slot: Slot[R]) -> None:
        """Look, without waiting, whether the reset of a claimed slot has come to its end."""
        reset: _Reset[R] = slot.reset
        failure: object = None
        try:
            if reset.wait(slot.resource, 0.0):
                slot.reset = None
            elif self._clock() >= reset.until:
                failure = f"no answer within {RESET_LIMIT:g} s"
        except Exception as error:  # noqa: BLE001  as in `_reset`
            failure = error
        if failure is not None:
            self._report_reset(failure)
        ended = self._state.reset_done if failure is None else self._state.reset_failed
        with self._lock:
            orders = ended(slot, self._clock())
        self._carry_out(orders)

    def _drop_broken(self, slot: Slot[R], error: BaseException | None) -> None:
        if error is None or not self._driver.demoted(slot.resource, error):
            self._drop(slot, "broken")
            return
        with self._lock:
            drained = self._state.generation
            orders = self._state.demoted(slot, self._clock())
            drained = self._state.generation - drained
        if drained:
            self._report_demotion(error)
        self._carry_out(orders)

    def _recover_lost(self) -> None:
        """Close what nobody can give back any more, and report what a borrower has forgotten."""
        with self._lock:
            lost = self._lost()
            forgotten = [slot for slot in lost if slot.status is OUT]
            orders = self._state.recover(lost, self._clock()) if lost else None
        for slot in forgotten:
            self._report_lost(slot, slot.label or _holder_names()(slot.holder))
        self._carry_out(orders)

    def _drop(self, slot: Slot[R], reason: str) -> None:
        with self._lock:
            orders = self._state.drop(slot, self._clock(), reason)
        self._carry_out(orders)

    def _detach(self, slot: Slot[R]) -> None:
        if self._let_close is not None:
            self._let_close(slot.resource, None)
        with self._lock:
            orders = self._state.detach(slot, self._clock())
        self._carry_out(orders)

    # -- carrying out ---------------------------------------------------------------------------------------------

    def _carry_out(self, orders: Orders | None) -> None:
        """Do what the state decided: wake, open, come back later, close. Never with the lock held."""
        if orders is not None:
            try:
                for waiter in orders.woken:
                    waiter.wake()
                if orders.doomed or orders.opens or orders.retry_in is not None:
                    self._do(orders)
            except BaseException:  # an interrupt is the business of this thread; the rest of the work is everybody's
                for waiter in orders.woken:
                    waiter.wake()
                self._do(orders)
                raise
            self._state.settle(orders)
        if self._state.closed and self._state.size == 0:
            self._empty.set()

    def _do(self, orders: Orders) -> None:
        """Do each of these things. To do them twice, or in two threads, is as good as once."""
        for slot in orders.doomed:  # before their successors are opened: max_size is what the server sees
            self._close_resource(slot)
        for slot in orders.opens:
            self._begin_open(slot)
        if orders.retry_in is not None:
            self._runtime.call_later(orders.retry_in, self._retry)

    def _make_up(self) -> None:
        """Carry out what an interrupt has kept somebody from: of this thread now, of others when the pool is swept."""
        for orders in list(self._state.issued):
            self._carry_out(orders)

    def _claim(self, slot: Slot[R], step: int) -> bool:
        with self._lock:
            mine = slot.begun < step
            slot.begun = max(slot.begun, step)
        return mine

    def _begin_open(self, slot: Slot[R]) -> None:
        ticket = [
            slot
        ]  # no reference for good: an interrupt may leave a thread that is never started and never forgotten

        def work() -> None:
            while ticket:
                mine = ticket.pop()
                if self._claim(mine, TO_OPEN):
                    self._open(mine)

        try:
            self._runtime.spawn(work)
            self._watch()
        except BaseException:  # an interrupt: nobody can tell whether the thread was started, but the claim will
            self._runtime.call_later(0, work)
            raise

    def _open(self, slot: Slot[R]) -> None:
        began = self._clock()
        try:
            resource = self._connect(slot.patience)
            slot.resource = resource
            self._count_references(slot)
        except BaseException as error:  # noqa: BLE001  every failure gives the place back; the waiters get the error
            self._open_failed(slot, error, began)
            return
        now = self._clock()
        with self._lock:
            orders = self._state.opened(slot, resource, now, now - began)
        self._carry_out(orders)
        self._tell(lambda: Opened(self.name, now - began, resource))

    def _connect(self, patience: float) -> R:
        """Open a resource and set it up. Where the URL comes from a callable, a refusal has it asked once more."""
        try:
            resource = self._driver.open(patience)
        except Exception as error:
            if not (getattr(self._driver, "rotates", False) and self._kind_of(error) == "refused"):
                raise
            resource = self._driver.open(patience)
        try:
            self._call_configure(resource)
            self._settled(resource)
        except BaseException:
            with contextlib.suppress(Exception):
                self._driver.close(resource)
            raise
        return resource

    def _call_configure(self, resource: R) -> None:
        if self._configure is not None:
            try:
                done("configure", self._configure(resource))
            except Exception as error:
                self._blame_configure(error)
                raise

    def _open_failed(self, slot: Slot[R], error: BaseException, began: float) -> None:
        kind = self._kind_of(error)
        forget_variables(error)
        now = self._clock()
        with self._lock:
            orders = self._state.open_failed(slot, error, now, kind)
        self._carry_out(orders)
        logger.debug("pool %r: could not connect: %r", self.name, error)
        self._tell(lambda: OpenError(self.name, now - began, error))

    def _retry(self) -> None:
        with self._lock:
            orders = self._state.retry(self._clock())
        self._carry_out(orders)

    def _close_resource(self, slot: Slot[R]) -> None:
        try:
            if not self._claim(slot, TO_CLOSE):
                return
            if self._on_close is not None and slot.reason != "dead" and self._reset_has_ended(slot):
                self._call_on_close(slot.resource)
            self._driver.close(slot.resource)
        except Exception as error:  # noqa: BLE001  it is gone either way; the pool goes on
            logger.debug("pool %r: closing a resource raised %r", self.name, error)
        except BaseException:  # an interrupt: nobody would come back to this one
            with contextlib.suppress(Exception):
                self._driver.close(slot.resource)
            raise
        self._tell(lambda: Closed(self.name, slot.reason, slot.resource))

    def _reset_has_ended(self, slot: Slot[R]) -> bool:
        """Wait for the reset of a resource that is to be closed; whether the user's own code can use it then."""
        reset: _Reset[R] | None = slot.reset
        try:
            return reset is None or reset.wait(slot.resource, max(0.0, reset.until - self._clock()))
        except Exception as error:  # noqa: BLE001  it is closed either way
            logger.debug("pool %r: a reset before a close raised %r", self.name, error)
            return False

    def _call_on_close(self, resource: R) -> None:
        try:
            if self._on_close is not None:
                if self._lend is not None:
                    self._lend(resource)
                done("on_close", self._on_close(resource))
        except Exception:  # noqa: BLE001  the user's own code must not keep a connection open
            logger.exception("pool %r: on_close raised", self.name)

    def _watch(self) -> None:
        if not self._watched:
            self._runtime.watch(self)
            self._watched = True

    # -- looking after --------------------------------------------------------------------------------------------

    @_mending
    def sweep(self) -> None:
        """Close what is too old, refill to min_size, report leaks. The housekeeper calls this once a second."""
        now = self._clock()
        with self._lock:
            orders = self._state.sweep(now)
            late = self._state.overdue(now)
        self._close_aside(orders)
        self._carry_out(orders)
        self._tend_resets()
        self._make_up()
        self._recover_lost()
        for slot in late:
            who = slot.label or _holder_names()(slot.holder)
            self._report_leak(slot, now - slot.since, who, _stack_of(slot.holder))

    def _close_aside(self, orders: Orders | None) -> None:
        """Close what is doomed in a thread of its own: a goodbye may block, and the next pool waits for its visit."""
        if orders is None or not orders.doomed:
            return
        doomed = list(orders.doomed)

        def work() -> None:
            for slot in doomed:
                self._close_resource(slot)

        self._runtime.spawn(work)
        orders.doomed = ()  # only now: what an interrupt keeps from being closed there is made up for

    def warm(self, timeout: float | None = None) -> bool:
        """Open min_size resources (at least one) now and wait up to `timeout` seconds for the first.

        Returns whether one is there; False as soon as the server is known to be away. For start-up code: it never
        raises because of that, and the pool keeps trying.
        """
        try:
            self.acquire(timeout).release()
        except Exception as error:  # noqa: BLE001  a start must not fail because the server is away
            logger.warning("pool %r is not warm yet: %s", self.name, error)
            return False
        self.sweep()
        return True

    def ready(self, timeout: float = 1.0) -> bool:
        """Whether requests can be served now, without waiting for a free resource.

        A resource in use, or an idle one that is alive, is enough; where there is none, one is opened within `timeout`.
        """
        deadline = self._clock() + self._seconds(timeout, 1.0)
        while True:
            with self._lock:
                slot = self._state.take(self._clock())
                in_use = self._state.size > self._state.opening and not self._state.failures
            if slot is None:
                return not self.closed and (in_use or self._can_open(timeout))
            if slot.reset is not None:
                fit = self._finish_reset(slot, deadline)
            else:
                fit = self._is_fit(slot, deadline)
                if not fit:
                    self._end_dead(slot)
            if fit:
                self._give_back(slot, None)
                return True
            if self._clock() >= deadline:
                return False

    def _can_open(self, timeout: float) -> bool:
        try:
            self.acquire(timeout).release()
        except PoolError:
            return False
        return True

    def stats(self) -> PoolStats:
        """Return a snapshot of the pool's numbers, all of the same moment."""
        with self._lock:
            return self._state.stats()

    def holders(self) -> list[Holder]:
        """List who has the resources that are out: label, seconds, whether in a transaction, stack if `leak_after`."""
        return self._holders(_holder_names(), self.transactional)

    # -- changing -------------------------------------------------------------------------------------------------

    @_mending
    def drain(self) -> None:
        """Replace every resource: idle ones now, borrowed ones when they come back. Service goes on."""
        with self._lock:
            orders = self._state.drain(self._clock())
        self._carry_out(orders)

    @_mending
    def resize(self, max_size: int, min_size: int | None = None) -> None:
        """Change the limits of a running pool. Raises `ConfigError` for limits that can't work."""
        PoolConfig(max_size=max_size, min_size=0 if min_size is None else min_size)
        with self._lock:
            orders = self._state.resize(max_size, self._clock(), min_size)
        self._carry_out(orders)

    @_mending
    def close(self, timeout: float | None = None) -> bool:
        """Refuse new borrowers and close everything.

        Wait up to `timeout` seconds (default `close_timeout`) for what is out. Returns whether all came back in time;
        what comes later is closed on its return. May be called twice.
        """
        limit = self._seconds(timeout, self.config.close_timeout)
        with self._lock:
            orders = self._state.close(self._clock())
        self._carry_out(orders)
        self._recover_lost()
        self._unwatch()
        if self._only_mine():  # waiting for oneself would only waste the time
            return self._state.size == 0
        return self._empty.wait(limit)

    def _only_mine(self) -> bool:
        me = threading.get_ident()
        with self._lock:
            return all(slot.status is OUT and slot.holder == me for slot in self._state.slots)

    def _unwatch(self) -> None:
        unwatch = getattr(self._runtime, "unwatch", None)
        if unwatch is not None:
            unwatch(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        """Say goodbye for what lies idle in a pool that was dropped without `close`; leases keep their pool alive."""
        if not hasattr(self, "_state") or sys.is_finalizing():
            return
        self._abandon([*self._state.idle, *self._state.resetting, *self._lost()], self._driver.close)
        self._state.idle.clear()
        self._state.resetting.clear()
        if [slot for slot in self._state.slots if slot.status is OUT]:
            # A circle of references was dropped, with borrowers in it. They go next; what they leave is closed then.
            self._runtime.call_later(LET_GO_AFTER, self._let_go)

    def _let_go(self) -> None:
        self.close(0)

    # -- the process ----------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Forget what is the parent's, without a word to the server, and start with an empty pool."""
        closed = self._state.closed
        inherited = list(self._state.slots) + self._state.doomed
        fork.keep((self._state, inherited))
        self._start()
        self._state.closed = closed
        self._abandon(inherited, self._driver.abandon)

    def at_exit(self) -> None:
        """Close without waiting; what nobody can give back any more is closed as well."""
        self._state.at_exit = True
        self.close(timeout=0)
        for slot in [slot for slot in self._state.slots if slot.status is OUT and not _goes_on(slot.holder)]:
            self._drop(slot, "exit")


class Transaction(Generic[R]):
    """What `Pool.transaction()` returns: a context manager, to be entered once."""

    __slots__ = ("_driver", "_lease", "_options", "_pool", "_timeout", "_urgent")

    def __init__(
        self, pool: Pool[R], driver: Transactional[R], timeout: float | None, options: TransactionOptions | None, *,
        urgent: bool,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._driver = driver
        self._timeout = timeout
        self._options = options
        self._urgent = urgent

    def __enter__(self) -> R:
        lease = self._pool.acquire(self._timeout, urgent=self._urgent)
        try:
            self._lease = lease
            resource = lease.__enter__()
            if self._options is None:
                self._driver.begin(resource)
            else:
                begin: Any = self._driver.begin  # `check_options` has said that it takes them
                begin(resource, self._options)
        except BaseException:
            lease.discard("broken")
            raise
        return resource

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        lease = self._lease
        # a child forked inside the block: the transaction is the parent's; or its borrower closed it with nothing open
        if lease.inherited or lease.given_back:
            lease.forget()
            return
        resource = lease.resource
        try:
            if error is not None:
                self._roll_back(resource)
            elif self._driver.aborted(resource):
                self._roll_back(resource)
                raise aborted_error(self._pool.name)  # noqa: TRY301  the release below is for this error as well
            else:
                self._driver.commit(resource)
        except BaseException as failure:
            closed = isinstance(failure, Exception) and self._pool._is_closed_by_user(resource)
            lease.__exit__(type(failure), failure, None)
            if closed:
                raise closed_error(self._pool.name) from failure
            raise
        lease.__exit__(kind, error, tb)

    def _roll_back(self, resource: R) -> None:
        # The error that brought us here matters more than a failing ROLLBACK; the reset on return sees to the rest.
        try:
            self._driver.rollback(resource)
        except Exception as failure:  # noqa: BLE001
            logger.debug("pool %r: rollback failed: %r", self._pool.name, failure)


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


def _holder_names() -> Callable[[Any], str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}

    def name(holder: Any) -> str:
        if not isinstance(holder, weakref.ref):
            return f"thread {names.get(holder, holder)}"
        task = holder()  # poolkit.bridge borrowed from a loop
        return "a task that has ended" if task is None else f"task {task.get_name()}"

    return name


def _goes_on(holder: Any) -> bool:
    """At exit, whether a holder may still use what it has: a daemon thread, or a task of a loop in one."""
    if isinstance(holder, weakref.ref):
        task = holder()
        return task is not None and bool(task.get_loop().is_running())
    return holder != threading.get_ident() and holder in sys._current_frames()


def _stack_of(holder: Any) -> str:
    if not isinstance(holder, int):
        return "in an event loop\n"
    frame = sys._current_frames().get(holder)
    return "its thread has ended, or is a greenlet\n" if frame is None else "".join(traceback.format_stack(frame))
