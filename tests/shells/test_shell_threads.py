"""What only threads can do to a pool: interrupts, finalizers, closes that wait, drivers that raise anywhere."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
import weakref
from weakref import WeakSet

import pytest

from poolkit import AcquireTimeout, OpenFailed, Pool, PoolClosed, housekeeper
from poolkit.events import OpenError
from poolkit.state import LEAST_PATIENCE
from poolkit.testing import FakeDriver, FakeServer, ManualRuntime
from poolkit.testing.fakes import FakeError

OPERATIONS = ("alive", "clean", "is_broken", "reset", "ping", "close", "open")


class Interrupt(BaseException):
    """What a signal handler raises: Ctrl-C, a soft time limit."""


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def usable(pool, size):
    """Whether the pool can still lend all it may, to another thread."""
    got = []

    def work():
        leases = [pool.acquire(5) for _ in range(size)]
        got.extend(leases)
        for lease in leases:
            lease.release()

    in_thread(work).join(10)
    return len(got) == size


def test_close_waits_for_what_is_out():
    """close() returns when the last lease came back, not when its time is up."""
    pool = Pool(FakeDriver())
    lease = pool.acquire()
    result = []
    closer = in_thread(lambda: result.append(pool.close(30)))
    while not pool.closed:
        time.sleep(0.001)
    assert not result
    lease.release()
    closer.join(5)
    assert result == [True]


def _ignoring(error, work):
    with contextlib.suppress(error):
        work()


@pytest.mark.parametrize("down", [False, True], ids=["that succeed", "that fail"])
def test_close_waits_for_opens_under_way(down):
    """close() returns when the connect has ended, however it ends."""
    runtime = ManualRuntime(hold=True)
    server = FakeServer()
    pool = Pool(FakeDriver(server), runtime=runtime)
    in_thread(lambda: _ignoring(PoolClosed, pool.acquire))
    while not runtime.pending:
        time.sleep(0.001)
    result = []
    closer = in_thread(lambda: result.append(pool.close(30)))
    while not pool.closed:
        time.sleep(0.001)
    server.down = down
    runtime.run_pending()
    closer.join(5)
    assert result == [True]
    assert server.open_now == 0


def test_close_does_not_wait_for_the_closers_own_leases():
    """Waiting for oneself would only waste the time."""
    pool = Pool(FakeDriver())
    lease = pool.acquire()
    began = time.monotonic()
    assert not pool.close(30)
    assert time.monotonic() - began < 5
    lease.release()
    assert pool._driver.server.open_now == 0


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", [ValueError, Interrupt], ids=["an error", "an interrupt"])
def test_a_driver_may_raise_anywhere(operation, fault, caplog):
    """Whatever a driver raises wherever, no place is lost, no lock is held, and nothing unfit is lent."""
    runtime = ManualRuntime()
    driver = FakeDriver()
    pool = Pool(driver, max_size=2, runtime=runtime, check_after=10, timeout=0.05)

    def raising(*_args, **_more):
        raise fault(operation)

    def life():
        with pool.acquire() as conn:
            conn.dirty = True
            raise KeyError

    def exercise():
        for _ in range(4):
            with contextlib.suppress(KeyError, ValueError, Interrupt, AcquireTimeout, OpenFailed):
                life()
            runtime.advance(11)

    exercise()
    healthy = getattr(driver, operation)
    setattr(driver, operation, raising)
    pool._alive, pool._clean, pool.is_broken = driver.alive, driver.clean, driver.is_broken
    pool._is_plain = driver.clean
    for _ in range(2):
        with contextlib.suppress(ValueError, Interrupt):
            exercise()
            pool.drain()
    setattr(driver, operation, healthy)
    pool._alive, pool._clean, pool.is_broken = driver.alive, driver.clean, driver.is_broken
    pool._is_plain = driver.clean
    runtime.advance(5)
    assert pool.stats().out == 0
    assert usable(pool, 2)
    assert pool._lock.acquire(blocking=False)
    pool._lock.release()


@pytest.mark.parametrize("fault", [ValueError, Interrupt])
def test_a_listener_may_raise(fault, caplog):
    """A listener's error is logged; an interrupt in it goes to the borrower, and the place is given back."""

    def listener(event):
        raise fault("listener")

    pool = Pool(FakeDriver(), listeners=[listener], runtime=ManualRuntime())
    for _ in range(3):
        with contextlib.suppress(Interrupt):
            pool.acquire().release()
    assert pool.stats().out == 0


def test_the_housekeeper_survives_whatever_a_listener_raises(caplog):
    """Even a SystemExit in its thread ends neither the sweeps nor the retries of all other pools."""

    def listener(event):
        if isinstance(event, OpenError):
            raise SystemExit

    server = FakeServer(down=True)
    keeper = housekeeper.Housekeeper()
    keeper.spawn = lambda work: work()  # so that retries connect in the housekeeper's own thread
    pool = Pool(FakeDriver(server), listeners=[listener], runtime=keeper, timeout=10)
    threading.Timer(0.2, lambda: setattr(server, "down", False)).start()
    with contextlib.suppress(SystemExit):
        pool.acquire()
    assert pool.acquire().resource.number == 1


def test_an_interrupt_while_waiting_in_line(threads):
    """Who is interrupted leaves the line, and what was handed over goes to the next."""
    pool = threads.pool(max_size=1, timeout=30)
    lease = pool.acquire()
    result = []
    main = threading.get_ident()

    def interrupt():
        while not any(waiter.holder == main for waiter in list(pool._state.waiters)):
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGUSR1)

    def handler(*_):
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        in_thread(interrupt)
        with pytest.raises(Interrupt):
            pool.acquire()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert pool.stats().waiting == 0
    lease.release()
    assert usable(pool, 1)
    assert result == []


def test_interrupts_at_any_moment_leave_a_pool_that_works():
    """A signal handler that raises again and again, wherever the main thread is: no lock stays held, nothing is lost.

    A second interrupt may strike while the first one is cleaned up after; what that leaves out, the next sweep finds.
    """
    server = FakeServer()
    pool = Pool(FakeDriver(server), max_size=1000, timeout=5)
    hits = _bombard(pool, seconds=0.5)
    assert hits > 5
    assert pool._lock.acquire(timeout=1)
    pool._lock.release()
    pool.sweep()
    stats = pool.stats()
    assert stats.out == stats.opening == 0
    assert stats.size == len(pool._state.slots) == len(pool._state.idle)
    assert usable(pool, 3)
    assert pool.close()
    assert server.open_now == 0


def _reaches_nobody(frame):
    """Whether this is in a finalizer, or in the callback of a weak reference: there an error is only reported."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename == WeakSet.__init__.__code__.co_filename:
            return True
        frame = frame.f_back
    return False


def _bombard(pool, seconds):
    hits, armed = 0, True

    def handler(_number, frame):
        if armed and not _reaches_nobody(frame):
            raise Interrupt

    def work(end):
        nonlocal hits
        while time.monotonic() < end:
            try:
                with contextlib.suppress(Interrupt):
                    while time.monotonic() < end:
                        with pool.acquire():
                            pass
                hits += 1
            except Interrupt:
                hits += 1

    gc.collect()  # what others have left behind may have finalizers in C, which look like nothing
    gc.disable()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        with contextlib.suppress(Interrupt):
            work(time.monotonic() + seconds)
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    return hits


def test_the_rest_of_the_orders_survives_an_interrupt():
    """An interrupt while one resource is closed does not leave the others open, nor those who wait asleep."""
    server = FakeServer()
    driver = FakeDriver(server)
    pool = Pool(driver, max_size=3, runtime=ManualRuntime())
    for lease in [pool.acquire() for _ in range(3)]:
        lease.release()
    close, calls = driver.close, []

    def closing(conn):
        calls.append(conn)
        close(conn)
        if len(calls) == 1:
            raise Interrupt

    driver.close = closing
    with pytest.raises(Interrupt):
        pool.drain()
    assert server.open_now == 0


def test_a_finalizer_may_return_a_lease_in_the_middle_of_anything():
    """The collector may run a generator's `finally` while its own thread holds the pool's lock."""
    pool = Pool(FakeDriver(), max_size=2, runtime=ManualRuntime())

    def generator():
        with pool.acquire():
            yield

    abandoned = generator()
    next(abandoned)
    with pool._lock:  # as in the middle of an acquire of this thread
        abandoned.close()
        gc.collect()
    assert pool.stats().out == 0


def test_a_ping_takes_no_longer_than_a_connect(threads):
    """One that goes unanswered casts doubt on all that lay idle as long: the caller is served by a new connection."""
    driver, asked = threads.driver(), []
    pool = threads.pool(driver, max_size=5, check_after=1)
    threads.release(*[pool.acquire() for _ in range(5)])
    threads.clock.advance(2)
    driver.ping = lambda _conn, timeout: asked.append(timeout)
    lease = pool.acquire(timeout=4)
    assert asked == [LEAST_PATIENCE]
    assert lease.resource.number == 6
    assert pool.stats().closed_by_reason == {"dead": 5}
    lease.release()


def test_a_ping_takes_no_longer_than_its_caller_has(threads):
    """Then the caller is told that its time went by."""
    driver = threads.driver()
    pool = threads.pool(driver, check_after=1)
    pool.acquire().release()
    threads.clock.advance(2)
    driver.ping = lambda _conn, timeout: threads.clock.advance(timeout)
    began = threads.clock()
    with pytest.raises(AcquireTimeout):
        pool.acquire(timeout=0.5)
    assert threads.clock() - began == pytest.approx(0.5)
    assert pool.stats().timeouts == 1


def test_a_pool_that_is_dropped_is_collected():
    """Neither the housekeeper nor the fork hooks keep a pool alive."""
    pool = Pool(FakeDriver())
    pool.acquire().release()
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    end = time.monotonic() + 5
    while gone() is not None and time.monotonic() < end:  # the housekeeper may be visiting it this moment
        time.sleep(0.01)
        gc.collect()
    assert gone() is None


def test_a_pool_that_is_dropped_closes_what_lies_idle(world):
    """Nobody called close(): the server is told all the same, and nobody is warned. What is out stays as it is."""
    pool = world.pool(max_size=3)
    mine = world.acquire(pool)
    world.release(world.acquire(pool))
    conn = world.do(mine.detach)
    del pool, mine
    world.runtime.pools.clear()
    world.do(gc.collect)
    assert world.server.open_now == 1
    assert not conn.closed


def test_an_open_that_can_have_no_thread_is_done_by_the_caller(monkeypatch):
    """Where the system has no thread left, or the interpreter is ending, the caller connects by itself."""
    pool = Pool(FakeDriver())
    monkeypatch.setattr(threading.Thread, "start", _no_thread)
    pool._watched = True
    assert pool.acquire().resource.number == 1


def _no_thread(self):
    raise RuntimeError("can't start new thread")


def test_the_driver_error_of_a_failing_open_is_the_cause(threads):
    """A timeout during an outage says what the last attempt failed with."""
    threads.server.down = True
    pool = threads.pool()
    with pytest.raises(AcquireTimeout) as caught:
        pool.acquire(timeout=0.01)
    assert isinstance(caught.value.__cause__, FakeError)


def test_what_is_detached_is_never_ordered_closed(threads):
    """Not even for a moment: another thread may carry out what was ordered, as after an interrupt."""
    pool = threads.pool(max_size=1)
    lease = pool.acquire()
    slot = lease._slot
    ordered, plain = [], pool._state._orders

    def watched():
        orders = plain()
        ordered.extend(orders.doomed if orders is not None else ())
        return orders

    pool._state._orders = watched
    connection = lease.detach()
    assert slot not in ordered
    assert not connection.closed
