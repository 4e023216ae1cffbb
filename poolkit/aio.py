"""AsyncPool: the asyncio shell around PoolState.

It awaits, wakes and does I/O, and decides nothing. There is no lock: between two awaits nothing else runs, and every
call into the state is between two awaits. A pool belongs to the loop in which it is first used.

Three rules keep cancellation harmless. Connects, resets and closes run in tasks of their own, which belong to the
pool and not to whoever caused them. A caller cancelled in the queue leaves it; if a resource was handed over in the
same moment, it goes on to the next. And COMMIT and ROLLBACK are never cancelled: their outcome would be unknown.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import random
import sys
import weakref
from asyncio import current_task, get_running_loop
from collections.abc import Callable, Coroutine, Generator, Iterable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, Unpack, overload
from weakref import ref

from poolkit import fork
from poolkit.clock import Leaps, clock
from poolkit.config import PoolConfig
from poolkit.driver import AsyncDriver, AsyncTransactional, TransactionArguments, TransactionOptions, check_options
from poolkit.drivers import Url, async_driver
from poolkit.errors import Holder, LeaseError, PoolError, Returned
from poolkit.events import Closed, Listener, Opened, OpenError, Refused
from poolkit.shell import RESET_LIMIT, Shell, aborted_error, check_lent, closed_error, forget_variables, logger
from poolkit.state import DEAD, IDLE, INHERITED, OUT, RETURNED, Orders, PoolState, Slot, Waiter
from poolkit.stats import PoolStats
from poolkit.uncopied import Uncopied

__all__ = ["AsyncAcquire", "AsyncLease", "AsyncPool", "AsyncTransaction", "no_loop", "shielded", "this_task"]

R = TypeVar("R")
T = TypeVar("T")

SWEEP_EVERY = 1.0
HUNG_UP = 0.1  # seconds after which a reset that does not notice that its resource was closed is cancelled


class AsyncRuntime(Protocol):
    """What an async pool needs besides its loop; tests pass one with a clock they turn by hand."""

    def clock(self) -> float:
        """Seconds, monotonic; not those of the loop, which may stand still where these go on."""

    def random(self) -> float:
        """A number in [0, 1)."""


class _Real:
    clock = staticmethod(clock)
    random = staticmethod(random.random)


class _Waiter(Waiter[R]):
    """A waiter asleep on a future, until its deadline."""

    __slots__ = ("deadline", "future")

    def __init__(self, holder: Any, deadline: float, future: asyncio.Future[None], *, urgent: bool) -> None:
        super().__init__(holder, urgent=urgent)
        self.deadline = deadline
        self.future = future

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Ticker:
    """Sweeps the pools of a loop once a second, all of them by one timer."""

    def __init__(self) -> None:
        self._pools: weakref.WeakSet[AsyncPool[Any]] = weakref.WeakSet()
        self._running = False

    def watch(self, pool: AsyncPool[Any]) -> None:
        """Sweep `pool` from now on, until it is closed, collected or empty. Call it in the loop."""
        self._pools.add(pool)
        if not self._running:
            self._running = True
            self._leaps = Leaps()
            # An empty context: the timer goes on and on, and must not keep the variables of whose request began it.
            get_running_loop().call_later(SWEEP_EVERY, self._tick, context=contextvars.Context())

    def unwatch(self, pool: AsyncPool[Any]) -> None:
        """Leave `pool` alone."""
        self._pools.discard(pool)

    def _tick(self) -> None:
        self._running = False
        leap = self._leaps.seen()
        for pool in list(self._pools):
            try:
                if leap:
                    pool.after_leap(leap)
                pool.sweep()
            except Exception:  # noqa: BLE001  one pool's fault must not end the housekeeping of the others
                logger.exception("pool %r: housekeeping failed", pool.name)
            if pool.is_in_use():
                self.watch(pool)
            else:
                self._pools.discard(pool)


_tickers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Ticker] = weakref.WeakKeyDictionary()


def _ticker(loop: asyncio.AbstractEventLoop) -> _Ticker:
    ticker = _tickers.get(loop)
    if ticker is None:
        ticker = _tickers[loop] = _Ticker()
    return ticker


class AsyncLease(Uncopied, Generic[R]):
    """One borrowing of a resource, got by `await pool.acquire()`. End it with `release`, `discard` or `detach`.

    One that is dropped before its end has lost its resource: within a second, or as soon as somebody has to wait, that
    is reported, the resource is closed, and its place is free again.
    """

    __slots__ = ("_pool", "_slot")

    _instead = "it is one borrowing of a connection: ask the pool for another with acquire()"

    _pool: AsyncPool[R]
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

    def label(self, text: str) -> None:
        """Say what the resource is used for ("GET /orders"): shown where the pool lists its holders."""
        self._live().label = text

    def forget(self) -> None:
        """End a lease whose resource its borrower has closed."""
        self._slot = None

    async def release(self, error: BaseException | None = None) -> None:
        """Give the resource back, reset. `error`: what the borrower's work ended with, if it failed."""
        slot = self._slot
        if error is None and slot is not None and slot.status is OUT:  # the rest in short, as nearly always
            self._slot = None
            self._pool._give_back(slot, None)
            return
        if self.given_back:
            self._slot = None
            return
        slot = self._live()
        self._slot = None
        await self._pool._return(slot, error)

    def discard(self, reason: str = "discarded") -> None:
        """Close the resource instead of giving it back; `reason` is counted in the pool's stats."""
        if self.given_back:
            self._slot = None
            return
        slot = self._live()
        self._slot = None
        self._pool._drop(slot, reason)

    def detach(self) -> R:
        """Take the resource out of the pool for good: it is yours to close, and the pool may open another."""
        slot = self._live()
        self._slot = None
        if self._pool._let_close is not None:
            self._pool._let_close(slot.resource, None)
        self._pool._carry_out(self._pool._state.detach(slot, self._pool._clock()))
        return slot.resource

    def _live(self) -> Slot[R]:
        slot = self._slot
        if slot is None:
            raise LeaseError(f"pool {self._pool.name!r}: this lease has ended; acquire a new one")
        check_lent(slot, self._pool.name)
        return slot


class AsyncAcquire(Generic[R]):
    """What `AsyncPool.acquire()` returns: `async with` it for the resource, or `await` it for an `AsyncLease`."""

    __slots__ = ("_pool", "_slot", "_timeout", "_urgent")

    _pool: AsyncPool[R]
    _slot: Slot[R] | None
    _timeout: float | None
    _urgent: bool

    async def __aenter__(self) -> R:
        # `_take`, written out: a third of the time goes into calls
        pool = self._pool
        try:
            loop = get_running_loop()
        except RuntimeError:
            raise no_loop(pool.name) from None
        if loop is not pool._loop:
            pool._bind(loop)
        now = pool._clock()
        slot = None
        try:
            slot = pool._pop()
            slot.status = OUT
            slot.idled = idled = now - slot.since
            slot.since = now
            slot.uses += 1
        except IndexError:  # nothing lies idle
            idled = 0.0
        if slot is None or slot.expires <= now or (idled >= pool._bypass and not pool._seems_fit(slot)):
            slot = await pool._find(slot, now, self._timeout, urgent=self._urgent)
        task = current_task(loop)
        slot.holder = None if task is None else ref(task)
        slot.scoped = True
        if pool._prepares:
            await pool._prepare(slot)
        if pool._traced:
            pool._trace(slot, now, depth=2)
        self._slot = slot
        return slot.resource

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        slot = self._slot
        if slot is None:
            return
        self._slot = None
        pool = self._pool
        # `_give_back`, written out for what is as it should be
        try:
            plain = error is None and slot.status is OUT and pool._is_plain(slot.resource)
        except BaseException:
            pool._drop(slot, "broken")
            raise
        if plain and (not pool._parts or pool._part(slot)):
            slot.scoped = False
            slot.label = ""
            orders = pool._state.give(slot, pool._clock())
            if orders is not None:
                pool._carry_out(orders)
        elif error is None and pool._was_closed(slot):
            raise closed_error(pool.name)
        else:
            await pool._return(slot, error)

    def __await__(self) -> Generator[Any, None, AsyncLease[R]]:
        return self._lease().__await__()

    async def _lease(self) -> AsyncLease[R]:
        await self.__aenter__()
        lease: AsyncLease[R] = AsyncLease()
        lease._pool = self._pool
        lease._slot = slot = self._slot
        self._slot = None
        if slot is not None:
            slot.scoped = False
        return lease


class AsyncPool(Shell[R]):
    """A pool of resources for asyncio; the same as `Pool`, awaited. A URL callable may be a coroutine function.

    It belongs to the loop in which it is first used. Where that loop was closed, it starts afresh in the next one.
    Raises `ConfigError` for settings that can't work.

        pool = AsyncPool("postgresql://localhost/shop", max_size=8)
        async with pool.acquire() as conn: ...
        async with pool.transaction() as conn: ...
        await pool.close()
    """

    _awaits = True

    @overload
    def __init__(
        self, source: AsyncDriver[R], config: PoolConfig | None = None, *, name: str = "default",
        listeners: Iterable[Listener] = (), runtime: AsyncRuntime | None = None, **settings: Any,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: AsyncPool[Any], source: Url, config: PoolConfig | None = None, *, name: str = "default",
        listeners: Iterable[Listener] = (), runtime: AsyncRuntime | None = None, **settings: Any,
    ) -> None: ...  # fmt: skip
    def __init__(
        self, source: AsyncDriver[R] | Url, config: PoolConfig | None = None, *, name: str = "default",
        listeners: Iterable[Listener] = (), runtime: AsyncRuntime | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        driver, config = async_driver(source, config, settings, where=f"pool {name!r}")
        super().__init__(name, config, driver, listeners)
        self._driver: AsyncDriver[R] = driver
        self.transactional: AsyncTransactional[R] | None = driver if isinstance(driver, AsyncTransactional) else None
        self._runtime = runtime or _Real()
        self._clock = self._runtime.clock
        self._start()
        fork.know(self)

    def _start(self) -> None:
        """Begin with an empty state and no loop: at first, in the child of a fork, and after a loop was closed."""
        self._state = PoolState(self.config, self.name, self._runtime.random)
        self._pop = self._state.pop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: set[Slot[R]] = set()
        self._empty: asyncio.Event | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._alarm: asyncio.TimerHandle | None = None  # for the first of those who wait whose time will be up
        self._alarm_at = math.inf
        self._postponed: list[Orders] = []

    # -- borrowing ------------------------------------------------------------------------------------------------

    def acquire(self, timeout: float | None = None, *, urgent: bool = False) -> AsyncAcquire[R]:
        """Borrow a resource, waiting up to `timeout` seconds (default: the pool's).

        `urgent`: for probes and administration. Stands before all others, is refused by neither `max_waiting` nor
        `target_delay`, and may be given one of the `reserved` connections. Entering or awaiting raises
        `AcquireTimeout`, `Overloaded`, `OpenFailed`, `NestedAcquire` or `PoolClosed`.
        """
        ask: AsyncAcquire[R] = AsyncAcquire()
        ask._pool = self
        ask._slot = None
        ask._timeout = timeout
        ask._urgent = urgent
        return ask

    def transaction(
        self, timeout: float | None = None, *, urgent: bool = False, **options: Unpack[TransactionArguments]
    ) -> AsyncTransaction[R]:
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
        return AsyncTransaction(self, driver, timeout, chosen, urgent=urgent)

    def _seems_fit(self, slot: Slot[R]) -> bool:
        try:
            return slot.idled <= self._check_after and self._alive(slot.resource)
        except BaseException:
            self._drop(slot, "dead")
            raise

    async def _find(self, slot: Slot[R] | None, now: float, timeout: float | None, *, urgent: bool) -> Slot[R]:
        """Get a fit slot: the one in hand, another idle one, or one waited for."""
        deadline = now + self._seconds(timeout, self.config.timeout)
        if slot is not None and slot.expires <= now:
            self._state.outlived(slot, now)
            slot = None
        while True:
            if slot is None:
                slot = self._state.take(self._clock())
                self._carry_out(self._state.orders())
            if slot is None:
                slot = await self._wait(deadline, urgent=urgent)
            if slot.reset is not None:
                if await self._finish_reset(slot, deadline):
                    return slot
            elif await self._is_fit(slot, deadline):
                return slot
            else:
                self._end_dead(slot)
            if self._clock() >= deadline:
                raise self._too_late(now)
            slot = None

    async def _is_fit(self, slot: Slot[R], deadline: float) -> bool:
        try:
            if not self._alive(slot.resource):
                return False
            asks = slot.idled > self._check_after and self._has_time_to_ask(deadline)
            return not asks or await self._ping(slot, deadline)
        except BaseException:
            self._drop(slot, "dead")
            raise

    async def _finish_reset(self, slot: Slot[R], deadline: float) -> bool:
        """Wait for the reset of a resource that is to be lent; where it fails, it is not lent."""
        reset: asyncio.Future[bool] = slot.reset
        try:
            await asyncio.wait([reset], timeout=max(0.0, deadline - self._clock()))
        except BaseException:  # cancelled: the next borrower waits for it
            self._pass_on(slot)
            raise
        if not reset.done():
            self._pass_on(slot)
            return False
        return self._was_reset(slot)

    def _was_reset(self, slot: Slot[R]) -> bool:
        """Whether the reset of a lent slot, which has ended, went well; else the slot is dropped."""
        if slot.status is not OUT:  # the loop was closed under us
            return False
        if slot.reset.cancelled() or not slot.reset.result():
            self._drop(slot, "broken")
            return False
        slot.reset = None
        return True

    def _pass_on(self, slot: Slot[R]) -> None:
        """Leave a slot to the next one: its reset goes on, or has just come to its end."""
        if slot.status is OUT and (not slot.reset.done() or self._was_reset(slot)):
            self._carry_out(self._state.give(slot, self._clock()))

    async def _prepare(self, slot: Slot[R]) -> None:
        """Do what is to be done before a borrower gets a resource: the driver's part, and the user's `setup`."""
        try:
            if self._lend is not None:
                self._lend(slot.resource)
            if self._setup is not None:
                await _awaited(self._setup(slot.resource))
        except BaseException:
            self._drop(slot, "broken")
            raise

    async def _ping(self, slot: Slot[R], deadline: float) -> bool:
        left = max(0.0, deadline - self._clock())
        patience = min(self._state.patience, left)  # no longer than a connect
        limit = asyncio.timeout(patience)
        answered = False
        try:
            async with limit:
                answered = await self._answers(slot, patience)
        except TimeoutError:
            if not limit.expired():
                raise
        if not answered and left < self._state.ample_time:
            slot.idled = 0.0  # it was given too little time to say anything about the others that lay idle
        return answered

    async def _answers(self, slot: Slot[R], patience: float) -> bool:
        """Ask in the user's own way, or in the driver's."""
        if self._ask is None:
            return await self._driver.ping(slot.resource, patience)
        try:
            return await _awaited(self._ask(slot.resource)) is not False
        except Exception as error:  # noqa: BLE001  an error is a no
            logger.debug("pool %r: ping raised %r", self.name, error)
            return False

    def _end_dead(self, slot: Slot[R]) -> None:
        if slot.status is OUT:  # not when the loop was closed under us
            self._carry_out(self._state.found_dead(slot, self._clock()))

    def _too_late(self, asked: float) -> PoolError:
        """Make the error for one whose time went by on resources that turned out to be dead."""
        waiter: Waiter[R] = Waiter()
        waiter.asked_at = asked
        self._state.count_timeout()
        return self._timeout_error(waiter, self._clock(), self.holders())

    async def _wait(self, deadline: float, *, urgent: bool) -> Slot[R]:
        if self._search_is_due(self._clock()):
            self._recover_lost()
        waiter: _Waiter[R] = _Waiter(this_task(), deadline, get_running_loop().create_future(), urgent=urgent)
        self._carry_out(self._state.ask(waiter, self._clock()))
        if not waiter.done:
            if deadline < self._alarm_at:
                self._set_alarm(deadline)
            await self._sleep(waiter)
        if waiter.error is not None:
            error = waiter.error
            self._tell(lambda: Refused(self.name, self._clock() - waiter.asked_at, error))
            raise error
        if waiter.slot is None:  # pragma: no cover  done means a slot or an error
            raise AssertionError(waiter)
        return waiter.slot

    async def _sleep(self, waiter: _Waiter[R]) -> None:
        try:
            await waiter.future
        except BaseException:  # cancelled: what was handed over in this moment goes to the next
            self._carry_out(self._state.give_up(waiter, self._clock()))
            raise

    def _set_alarm(self, moment: float) -> None:
        """Wake up when the first one's time is up. To have a timer each took half of the time that waiting costs."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._timers.discard(self._alarm)
        self._alarm_at = moment
        self._alarm = self._later(max(0.0, moment - self._clock()), self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        now = self._clock()
        waiters: list[Any] = list(self._state.waiters)
        for waiter in waiters:
            if waiter.deadline <= now:
                self._time_out(waiter)
        earliest = min([waiter.deadline for waiter in waiters if not waiter.done], default=math.inf)
        if earliest < self._alarm_at:
            self._set_alarm(earliest)

    def _time_out(self, waiter: _Waiter[R]) -> None:
        if waiter.done:
            return
        now = self._clock()
        orders = self._state.give_up(waiter, now, timed_out=True)
        waiter.error = self._timeout_error(waiter, now, self.holders())
        waiter.wake()
        self._carry_out(orders)

    # -- returning ------------------------------------------------------------------------------------------------

    async def _return(self, slot: Slot[R], error: BaseException | None) -> None:
        """Give a resource back; its reset is waited for only by a borrower that was cancelled.

        That one may be cancelled because the loop ends, which would end the reset, and what the library does to cancel
        a statement, in the middle.
        """
        reset = self._give_back(slot, error)
        if reset is not None and isinstance(error, asyncio.CancelledError):
            await asyncio.wait([reset])

    def _was_closed(self, slot: Slot[R]) -> bool:
        """Whether the borrower closed the resource with work open: then it is dropped."""
        if slot.status is not OUT or not self._is_closed_by_user(slot.resource):
            return False
        self._drop(slot, "broken")
        return True

    def _close_early(self, resource: R) -> bool:
        parted = self._state.give_early(resource)
        if parted is not None:
            old, new = parted
            self._give_back(new, None, self._place_of_close(old))
        return parted is not None

    def _give_back(
        self, slot: Slot[R], error: BaseException | None, returned: Returned | None = None
    ) -> asyncio.Future[bool] | None:
        """Give a resource back, or drop a broken one. Returns how its reset will end, where it needs one."""
        if slot.status is not OUT:  # inherited over a fork, or its loop is gone: not ours to touch
            return None
        reset = None
        try:
            if (error is not None or not self._resets) and self._driver.is_broken(slot.resource, error):
                self._drop_broken(slot, error)
                return None
            if self._parts and not self._part(slot, returned):
                self._drop(slot, "broken")
                return None
            if self._resets and not self._clean(slot.resource):
                reset = self._start_reset(slot)
        except BaseException:
            self._drop(slot, "broken")
            raise
        if reset is not None and reset.done():  # an eager task
            slot.reset = reset
            if not self._was_reset(slot):
                return None
        else:
            slot.reset = reset
        self._give(slot)
        return reset

    def _give(self, slot: Slot[R]) -> None:
        slot.scoped = False
        slot.holder = None
        slot.label = ""
        if self._traced:
            self._untrace(slot)
        orders = self._state.give(slot, self._clock())
        if orders is not None:
            self._carry_out(orders)

    def _start_reset(self, slot: Slot[R]) -> asyncio.Future[bool]:
        """Begin to make a resource as new; whether it is, is known within `RESET_LIMIT` seconds."""
        outcome: asyncio.Future[bool] = get_running_loop().create_future()
        self._spawn(self._reset(slot, slot.resource, outcome))
        return outcome

    async def _reset(self, slot: Slot[R], resource: R, outcome: asyncio.Future[bool]) -> None:
        task = asyncio.current_task()
        late = get_running_loop().call_later(RESET_LIMIT, self._reset_is_late, slot, resource, outcome, task)
        done = False
        try:
            await self._driver.reset(resource, full=self.config.reset == "full")
            done = True
        except Exception as error:  # noqa: BLE001  whatever the library raises, the resource is not to be lent again
            if slot.status is not DEAD and not outcome.done():  # else the pool was closed or drained, or it is too late
                self._report_reset(error)
        finally:  # also where the loop ends and cancels this
            late.cancel()
            self._reset_over(slot, outcome, done=done)

    def _reset_is_late(self, slot: Slot[R], resource: R, outcome: asyncio.Future[bool], task: Any) -> None:
        """Give a resource up whose reset has no answer: by hanging up.

        A library that is cancelled would ask the server to cancel, and wait seconds for one that is silent.
        """
        if slot.status is not DEAD:
            self._report_reset(f"no answer within {RESET_LIMIT:g} s")
        try:
            self._driver.terminate(resource)
        finally:
            get_running_loop().call_later(HUNG_UP, task.cancel)
            self._reset_over(slot, outcome, done=False)

    def _reset_over(self, slot: Slot[R], outcome: asyncio.Future[bool], *, done: bool) -> None:
        """Say how a reset has ended, once; a borrower that has the resource by then reads it."""
        if outcome.done():
            return
        outcome.set_result(done)
        if self._state.claim_reset(slot):
            slot.reset = None
            ended = self._state.reset_done if done else self._state.reset_failed
            self._carry_out(ended(slot, self._clock()))

    def _drop_broken(self, slot: Slot[R], error: BaseException | None) -> None:
        if error is None or not self._driver.demoted(slot.resource, error):
            self._drop(slot, "broken")
            return
        generation = self._state.generation
        orders = self._state.demoted(slot, self._clock())
        if self._state.generation != generation:
            self._report_demotion(error)
        self._carry_out(orders)

    def _recover_lost(self) -> None:
        """Close what nobody can give back any more, and report it."""
        lost = self._lost()
        if lost:
            for slot in lost:
                self._report_lost(slot, slot.label or _task_name(slot.holder))
            self._carry_out(self._state.recover(lost, self._clock()))

    def _drop(self, slot: Slot[R], reason: str) -> None:
        if slot.status is OUT:  # not when the loop was closed under us
            self._carry_out(self._state.drop(slot, self._clock(), reason))

    # -- carrying out ---------------------------------------------------------------------------------------------

    def _carry_out(self, orders: Orders | None) -> None:
        """Do what the state decided: wake, open, come back later, close. Never awaits."""
        if orders is None:
            return
        if self._loop is None:  # changed before its first use: the loop to do it in comes with that
            self._postponed.append(orders)
            return
        for waiter in orders.woken:
            waiter.wake()
        for slot in orders.doomed:  # before the opens: what can be closed at once is gone when its successor comes
            self._closing.add(slot)
            self._spawn(self._close_resource(slot))
        for slot in orders.opens:
            self._spawn(self._open(slot))
        if orders.opens:
            _ticker(self._loop).watch(self)
        if orders.retry_in is not None:
            self._later(orders.retry_in, self._retry)
        self._note_empty()

    async def _open(self, slot: Slot[R]) -> None:
        began = self._clock()
        try:
            resource = await self._connect(slot.patience)
            slot.resource = resource
            self._count_references(slot)
        except BaseException as error:
            self._open_failed(slot, error, began)
            if not isinstance(error, Exception):
                raise
            return
        now = self._clock()
        self._carry_out(self._state.opened(slot, resource, now, now - began))
        self._tell(lambda: Opened(self.name, now - began, resource))

    async def _connect(self, patience: float) -> R:
        """Connect within `patience` seconds, also where the driver forgets the time."""
        limit = asyncio.timeout(patience)
        try:
            async with limit:
                return await self._set_up(patience)
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"no connection within {patience:g} s") from error
            raise

    async def _set_up(self, patience: float) -> R:
        """Open a resource and set it up. Where the URL comes from a callable, a refusal has it asked once more."""
        try:
            resource = await self._driver.open(patience)
        except Exception as error:
            if not (getattr(self._driver, "rotates", False) and self._kind_of(error) == "refused"):
                raise
            resource = await self._driver.open(patience)
        try:
            await self._call_configure(resource)
            self._settled(resource)
        except BaseException:
            self._driver.terminate(resource)
            raise
        return resource

    async def _call_configure(self, resource: R) -> None:
        if self._configure is not None:
            try:
                await _awaited(self._configure(resource))
            except Exception as error:
                self._blame_configure(error)
                raise

    def _open_failed(self, slot: Slot[R], error: BaseException, began: float) -> None:
        forget_variables(error)
        now = self._clock()
        self._carry_out(self._state.open_failed(slot, error, now, self._kind_of(error)))
        logger.debug("pool %r: could not connect: %r", self.name, error)
        self._tell(lambda: OpenError(self.name, now - began, error))

    async def _close_resource(self, slot: Slot[R]) -> None:
        try:
            reset = slot.reset
            if reset is not None and not reset.done():  # it ends in time, one way or the other
                await asyncio.wait([reset])
            is_usable = reset is None or (not reset.cancelled() and reset.result())
            if slot.reason == "dead":  # a goodbye would wait for its answer, and it would lie beside its successor
                self._driver.terminate(slot.resource)
            else:
                async with asyncio.timeout(self.config.close_timeout):
                    if self._on_close is not None and is_usable:
                        await self._call_on_close(slot.resource)
                    await self._driver.close(slot.resource)
        except BaseException as error:
            logger.debug("pool %r: closing a resource raised %r", self.name, error)
            self._driver.terminate(slot.resource)
            if not isinstance(error, Exception):
                raise
        finally:
            self._closing.discard(slot)
        self._tell(lambda: Closed(self.name, slot.reason, slot.resource))

    async def _call_on_close(self, resource: R) -> None:
        try:
            if self._on_close is not None:
                await _awaited(self._on_close(resource))
        except Exception:  # noqa: BLE001  the user's own code must not keep a connection open
            logger.exception("pool %r: on_close raised", self.name)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        # An empty context: what the pool does for all must not carry one request's context variables.
        task = get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("pool %r: background work failed", self.name, exc_info=task.exception())
        self._note_empty()

    def _note_empty(self) -> None:
        if self._empty is not None and self._state.size == 0 and not self._tasks:
            self._empty.set()

    def _retry(self) -> None:
        self._carry_out(self._state.retry(self._clock()))

    # -- looking after --------------------------------------------------------------------------------------------

    def is_in_use(self) -> bool:
        """Whether there is something to look after."""
        return not self._state.closed and bool(self._state.size or self._state.min_size)

    def _later(self, delay: float, work: Callable[[], None]) -> asyncio.TimerHandle | None:
        """Call `work` later, in this loop, unless the pool was closed or collected by then."""
        if self._state.closed:
            return None
        call = weakref.WeakMethod(work)
        timers = self._timers

        def run() -> None:
            timers.discard(timer)
            method = call()
            if method is not None:
                method()

        timer = get_running_loop().call_later(delay, run)
        timers.add(timer)
        return timer

    def sweep(self) -> None:
        """Close what is too old, refill to min_size, report leaks.

        Runs once a second by itself; call it in the pool's loop.
        """
        self._check_loop()
        now = self._clock()
        self._carry_out(self._state.sweep(now))
        for slot in [slot for slot in self._state.resetting if slot.reset.done() and self._state.claim_reset(slot)]:
            done = not slot.reset.cancelled() and slot.reset.result()
            slot.reset = None
            self._carry_out((self._state.reset_done if done else self._state.reset_failed)(slot, now))
        for slot in self._state.overdue(now):
            self._report_leak(slot, now - slot.since, slot.label or _task_name(slot.holder), _task_stack(slot.holder))
        self._recover_lost()

    async def warm(self, timeout: float | None = None) -> bool:
        """Open min_size resources (at least one) now and wait up to `timeout` seconds for the first.

        Returns whether one is there; False as soon as the server is known to be away. For start-up code: it never
        raises because of that, and the pool keeps trying.
        """
        try:
            await (await self.acquire(timeout)).release()
        except Exception as error:  # noqa: BLE001  a start must not fail because the server is away
            logger.warning("pool %r is not warm yet: %s", self.name, error)
            return False
        self.sweep()
        return True

    async def ready(self, timeout: float = 1.0) -> bool:
        """Whether requests can be served now, without waiting for a free resource.

        A resource in use, or an idle one that is alive, is enough; where there is none, one is opened within `timeout`.
        """
        if get_running_loop() is not self._loop:
            self._bind(get_running_loop())
        deadline = self._clock() + self._seconds(timeout, 1.0)
        while (slot := self._state.take(self._clock())) is not None:
            if slot.reset is not None:
                fit = await self._finish_reset(slot, deadline)
            else:
                fit = await self._is_fit(slot, deadline)
                if not fit:
                    self._end_dead(slot)
            if fit:
                self._give(slot)
                return True
            if self._clock() >= deadline:
                return False
        if self.closed:
            return False
        in_use = self._state.size > self._state.opening and not self._state.failures
        return in_use or await self._can_open(timeout)

    async def _can_open(self, timeout: float) -> bool:
        try:
            await (await self.acquire(timeout)).release()
        except PoolError:
            return False
        return True

    def stats(self) -> PoolStats:
        """Return a snapshot of the pool's numbers, all of the same moment."""
        return self._state.stats()

    def holders(self) -> list[Holder]:
        """List who has the resources that are out: label, seconds, whether in a transaction, stack if `leak_after`."""
        return self._holders(_task_name, self.transactional)

    # -- changing -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Replace every resource: idle ones now, borrowed ones when they come back. Service goes on."""
        self._check_loop()
        self._carry_out(self._state.drain(self._clock()))

    def resize(self, max_size: int, min_size: int | None = None) -> None:
        """Change the limits of a running pool. Raises `ConfigError` for limits that can't work."""
        PoolConfig(max_size=max_size, min_size=0 if min_size is None else min_size)
        self._check_loop()
        self._carry_out(self._state.resize(max_size, self._clock(), min_size))

    async def close(self, timeout: float | None = None) -> bool:
        """Refuse new borrowers and close everything.

        Wait up to `timeout` seconds (default `close_timeout`) for what is out. Returns whether all came back in time;
        what comes later is closed on its return. May be called twice.
        """
        limit = self._seconds(timeout, self.config.close_timeout)
        if get_running_loop() is not self._loop:
            self._bind(get_running_loop())
        self._empty = self._empty or asyncio.Event()
        self._carry_out(self._state.close(self._clock()))
        self._recover_lost()
        self._cancel_timers()
        self._note_empty()
        me = this_task()
        mine = [slot for slot in self._state.slots if slot.status is OUT and slot.holder == me]
        if mine and len(mine) == len(self._state.slots):  # waiting for oneself would only waste the time
            return False
        try:
            async with asyncio.timeout(limit):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        """Let go of what lies idle in a pool that was dropped without `close`; leases keep their pool alive."""
        loop = getattr(self, "_loop", None)
        if loop is None or sys.is_finalizing():
            return
        running = loop.is_running()
        if running and loop is not asyncio._get_running_loop():  # in another thread
            return
        self._abandon([*self._state.idle, *self._state.resetting, *self._lost()], self._driver.terminate)
        # Is anything left, a circle of references was dropped, with borrowers in it. They go next, if they still can.
        if not running:
            self._let_go()
        elif [slot for slot in self._state.slots if slot.status is OUT]:
            loop.call_later(SWEEP_EVERY, self._let_go)

    def _let_go(self) -> None:
        self._abandon([slot for slot in self._state.slots if slot.status in (OUT, IDLE)], self._driver.terminate)

    # -- the loop and the process -------------------------------------------------------------------------------------

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            if not self._loop.is_closed():
                raise PoolError(
                    self.name,
                    "belongs to another event loop, which is still open; make one pool per loop (a Registry does)",
                )
            self._leave_loop()
        self._loop = loop
        postponed, self._postponed = self._postponed, []
        for orders in postponed:
            self._carry_out(orders)

    def _check_loop(self) -> None:
        """For calls that don't await: they may be made in the pool's loop, or while there is none."""
        if self._loop is None or self._loop is asyncio._get_running_loop():
            return
        if not self._loop.is_closed():
            raise PoolError(self.name, "belongs to an event loop that is open; call this in it")
        self._leave_loop()

    def _leave_loop(self) -> None:
        """The loop is closed: nothing of it can be awaited or said goodbye to. Let go and start afresh."""
        closed = self._state.closed
        left = self._everything()
        for task in self._tasks:  # what they were doing is done here; asyncio would complain of each
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._start()
        self._state.closed = closed
        self._abandon(left, self._driver.terminate)

    def _everything(self) -> list[Slot[R]]:
        return [*self._state.slots, *self._state.doomed, *self._closing]

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._loop is not None:
            _ticker(self._loop).unwatch(self)

    def after_fork_in_child(self) -> None:
        """Forget what is the parent's, without a word to the server, and start with an empty pool."""
        closed = self._state.closed
        inherited = self._everything()
        fork.keep((self._state, inherited, self._loop, self._tasks, self._timers))
        self._start()
        self._state.closed = closed
        self._abandon(inherited, self._driver.abandon)

    def at_exit(self) -> None:
        """Close without a loop: whoever had one should have awaited `close`."""
        self._leave_loop()


class AsyncTransaction(Generic[R]):
    """What `AsyncPool.transaction()` returns: an async context manager, to be entered once."""

    __slots__ = ("_driver", "_lease", "_options", "_pool", "_timeout", "_urgent")

    def __init__(
        self, pool: AsyncPool[R], driver: AsyncTransactional[R], timeout: float | None,
        options: TransactionOptions | None, *, urgent: bool,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._driver = driver
        self._timeout = timeout
        self._options = options
        self._urgent = urgent

    async def __aenter__(self) -> R:
        self._lease = await self._pool.acquire(self._timeout, urgent=self._urgent)
        resource = self._lease.resource
        try:
            if self._options is None:
                await self._driver.begin(resource)
            else:
                begin: Any = self._driver.begin  # `check_options` has said that it takes them
                await begin(resource, self._options)
        except BaseException:
            self._lease.discard("broken")
            raise
        return resource

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not (self._lease.inherited or self._lease.given_back):
            await shielded(self._end(error), self._pool._tasks, self._pool._note_empty)

    async def _end(self, error: BaseException | None) -> None:
        resource = self._lease.resource
        try:
            if error is not None:
                await self._roll_back(resource)
            elif self._driver.aborted(resource):
                await self._roll_back(resource)
                raise aborted_error(self._pool.name)  # noqa: TRY301  the release below is for this error as well
            else:
                await self._driver.commit(resource)
        except BaseException as failure:
            closed = isinstance(failure, Exception) and self._pool._is_closed_by_user(resource)
            await self._lease.release(failure)
            if closed:
                raise closed_error(self._pool.name) from failure
            raise
        await self._lease.release(error)

    async def _roll_back(self, resource: R) -> None:
        # The error that brought us here matters more than a failing ROLLBACK; the reset on return sees to the rest.
        try:
            await self._driver.rollback(resource)
        except Exception as failure:  # noqa: BLE001
            logger.debug("pool %r: rollback failed: %r", self._pool.name, failure)


async def shielded(
    work: Coroutine[Any, Any, T], keep: set[asyncio.Task[Any]], then: Callable[[], None] | None = None
) -> T:
    """Run `work` to its end whatever happens to the caller, who may leave early when cancelled.

    The task is kept referenced in `keep`; `then` is called when it is there no more.

    Not anyio's shield and not a wait after the cancellation: an anyio scope goes on cancelling until the caller has
    left, and what has to be finished does not need the caller.
    """
    loop = get_running_loop()
    waiting: asyncio.Future[Any]
    if sys.version_info >= (3, 12):  # begun at once, and told of by itself: two turns of the loop less, 15 us
        waiting = loop.create_future()
        task = asyncio.Task(_followed(work, waiting), loop=loop, eager_start=True)
    else:
        task = loop.create_task(work)
        waiting = asyncio.shield(task)
    keep.add(task)
    task.add_done_callback(keep.discard)
    if then is not None:
        task.add_done_callback(lambda _: then())
    try:
        await waiting
    except asyncio.CancelledError:
        task.add_done_callback(_log_orphan)
        raise
    return task.result()


async def _followed(work: Coroutine[Any, Any, T], over: asyncio.Future[None]) -> T:
    try:
        return await work
    finally:
        if not over.done():
            over.set_result(None)


def _log_orphan(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.warning("work that went on after its caller was cancelled failed: %r", task.exception())


async def _awaited(answer: Any) -> Any:
    """Return the answer of a hook that may be a coroutine function."""
    return await answer if inspect.isawaitable(answer) else answer


def no_loop(pool: str) -> PoolError:
    """Make the error for a pool of asyncio that is used where no event loop of asyncio runs."""
    return PoolError(
        pool,
        "an AsyncPool works in a running event loop of asyncio, and there is none here (trio's is another): use it in "
        "a coroutine that asyncio runs, or a Pool in a thread",
    )


def this_task() -> weakref.ref[asyncio.Task[Any]] | None:
    """Name the current task as a holder. Weakly: a task that is forgotten is to lose what it holds, not to be kept."""
    task = asyncio.current_task()
    return None if task is None else weakref.ref(task)


def _task_name(holder: Any) -> str:
    if holder is None:
        return "no task"
    task = holder()
    return "a task that has ended" if task is None else f"task {task.get_name()}"


def _task_stack(holder: Any) -> str:
    task = None if holder is None else holder()
    if task is None or task.done():
        return "its task has ended\n"
    return "".join(
        f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}\n" for frame in task.get_stack()
    )
