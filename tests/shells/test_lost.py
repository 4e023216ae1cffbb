"""Who has a resource is never thought to have lost it, and what is lost is always found.

A pool finds what its borrowers have forgotten by counting references. One too few, and it would close a connection
under its user; one too many, and a place would be lost for good. So in every way of holding one, at every instruction
of the way to it and back, the search has to find nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, Self

import pytest

import poolkit
from poolkit import (
    AsyncPool,
    AsyncUnitOfWork,
    LeaseError,
    Pool,
    Registry,
    UnitOfWork,
    aio,
    bridge,
    enlisted,
    scope,
    shell,
    threads,
)
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer, ManualClock, ManualLoop, ManualRuntime
from poolkit.workers import Workers

WATCHED = {module.__file__ for module in (threads, aio, shell, enlisted, scope, bridge)} | {__file__}
DEPENDS = poolkit.state.__file__


# -- at every instruction ---------------------------------------------------------------------------------------------


class Looking:
    """Search for lost slots at every instruction of this thread, wherever another thread could do so."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.looked = 0
        self.found: list[str] = []

    def __enter__(self) -> Self:
        self.before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)
        assert self.found == []
        assert self.looked > 100

    def _trace(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        frame.f_trace_opcodes = True
        self._look(frame)
        return self._trace

    def _look(self, frame: FrameType) -> None:
        lock = getattr(self.pool, "_lock", None)
        if (lock is not None and lock._is_owned()) or _in_state(frame):
            return
        self.looked += 1
        if self.pool._lost():
            self.found.append(f"{frame.f_code.co_qualname}, line {frame.f_lineno}")


def _in_state(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != DEPENDS:
        frame = frame.f_back
    return frame is not None


def _block(pool):
    with pool.acquire() as connection:
        connection.execute("select")


def _dirty_block(pool):
    with pool.acquire() as connection:
        connection.execute("dirty")


def _failing_block(pool):
    with contextlib.suppress(KeyError), pool.acquire():
        raise KeyError


def _by_hand(pool):
    lease = pool.acquire()
    lease.resource.execute("dirty")
    lease.release()


def _end_by_hand(pool):
    pool.acquire().discard()
    pool.acquire().detach().close()


def _transaction(pool):
    with pool.transaction() as connection:
        connection.execute("insert")
    with contextlib.suppress(KeyError), pool.transaction():
        raise KeyError


def _unit(pool):
    registry = Registry({"default": {"url": "sqlite:///never"}})
    registry._pools["default"] = pool
    with UnitOfWork(registry, "unit") as work:
        work.get().execute("insert")
        work.commit()
        work.get().execute("dirty")


def _look_after(pool):
    pool.sweep()
    assert pool.ready()
    assert pool.warm()
    pool.holders()
    pool.drain()
    pool.resize(1)
    pool.resize(2)


def _pinged(pool):
    pool._runtime.clock.advance(60)
    _block(pool)
    pool._runtime.clock.advance(60)
    for connection in pool._driver.server.connections:
        connection.mute = True
    _block(pool)


@pytest.mark.parametrize(
    "use",
    [_block, _dirty_block, _failing_block, _by_hand, _end_by_hand, _transaction, _unit, _look_after, _pinged],
    ids=lambda use: use.__name__.strip("_"),
)
@pytest.mark.parametrize("settings", [{}, {"leak_after": 100}, {"max_uses": 1}], ids=["plain", "traced", "used up"])
def test_at_no_instruction_is_a_slot_thought_lost(use, settings):
    """From before it is taken until after it is back: somebody can give it back at all times, and it counts as held."""
    pool = Pool(FakeDriver(), max_size=2, check_after=10, runtime=ManualRuntime(), **settings)
    for _ in range(2):  # nothing is open at first
        with Looking(pool):
            use(pool)
    assert pool.stats().out == 0


def _async_uses():
    async def block(pool):
        async with pool.acquire() as connection:
            await asyncio.sleep(0)
            connection.execute("dirty")

    async def by_hand(pool):
        lease = await pool.acquire()
        await lease.release()
        (await pool.acquire()).discard()

    async def transaction(pool):
        async with pool.transaction() as connection:
            connection.execute("insert")
        with contextlib.suppress(KeyError):
            async with pool.transaction():
                raise KeyError

    async def crowd(pool):
        await asyncio.gather(*(block(pool) for _ in range(5)))

    async def cancelled(pool):
        tasks = [asyncio.ensure_future(block(pool)) for _ in range(5)]
        for task in tasks:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.wait(list(pool._tasks) or [asyncio.ensure_future(asyncio.sleep(0))])

    async def unit(pool):
        registry = Registry({"default": {"url": "sqlite:///never"}})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "async_pool", lambda *_: pool)
            async with AsyncUnitOfWork(registry, "unit") as work:
                (await work.get()).execute("insert")

    return [block, by_hand, transaction, crowd, cancelled, unit]


@pytest.mark.parametrize("use", _async_uses(), ids=lambda use: use.__name__)
def test_at_no_instruction_of_a_task_is_a_slot_thought_lost(use):
    """Nor where it was handed over to a task that has not run yet, or where a cancelled one is cleaned up after."""

    async def main():
        pool = AsyncPool(FakeAsyncDriver(), max_size=2)
        for _ in range(2):
            with Looking(pool):
                await use(pool)
        assert pool.stats().out == 0
        assert await pool.close()

    asyncio.run(main())


def test_one_reference_more_or_less_is_seen(monkeypatch):
    """So closely does the search above look: a count that is off by one would be found out."""
    pool = Pool(FakeDriver(), runtime=ManualRuntime())
    lease = pool.acquire()
    assert pool._lost() == []
    nobody = shell._nobody()
    monkeypatch.setattr(shell, "_nobody", lambda: nobody + 1)
    monkeypatch.setattr(shell, "_NOBODY", nobody + 1)
    assert len(pool._lost()) == 1, "a lease is one reference"
    with pytest.raises(AssertionError, match="_block"), Looking(pool):
        _block(pool)
    lease.release()


# -- ways of having one -----------------------------------------------------------------------------------------------


class Node:
    """Something that has something, in a circle with itself if asked."""

    def __init__(self, held: Any, *, circle: bool = False) -> None:
        self.held = held
        self.me = self if circle else None


LOCAL = threading.local()
VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("lease")


def _generator(pool):
    def life():
        with pool.acquire() as connection:
            yield connection

    generator = life()
    next(generator)
    return generator, generator.close


def _exit_stack(pool):
    stack = contextlib.ExitStack()
    stack.enter_context(pool.acquire())
    return stack, stack.close


def _moved_exit_stack(pool):
    with contextlib.ExitStack() as stack:
        stack.enter_context(pool.transaction())
        return stack.pop_all().close, None


def _context_manager(pool):
    @contextlib.contextmanager
    def borrowed():
        with pool.acquire() as connection:
            yield connection

    manager = borrowed()
    manager.__enter__()
    return manager, lambda: manager.__exit__(None, None, None)


def _exit_alone(pool):
    ask = pool.acquire()
    ask.__enter__()
    return functools.partial(ask.__exit__, None, None, None), None


def _thread_local(pool):
    LOCAL.lease = pool.acquire()

    def end():
        LOCAL.lease.release()
        del LOCAL.lease

    return None, end


def _context_variable(pool):
    context = contextvars.copy_context()
    context.run(VARIABLE.set, pool.acquire())
    return context, lambda: context[VARIABLE].release()  # noqa: PLW0108  looked up when it is called


def _finalizer(pool):
    owner = Node(None)
    weakref.finalize(owner, pool.acquire().release)
    return owner, None


def _closure(pool):
    lease = pool.acquire()
    return lambda: lease.release(), None  # noqa: PLW0108  the closure is what holds it


def _circle(pool):
    node = Node(pool.acquire(), circle=True)
    return node, node.held.release


def _traceback(pool):
    def fail():
        lease = pool.acquire()
        raise KeyError(id(lease))

    try:
        fail()
    except KeyError as error:
        kept = error
    return kept, lambda: kept.__traceback__.tb_next.tb_frame.f_locals["lease"].release()  # noqa: PLW0108


HOLDS = [
    _generator, _exit_stack, _moved_exit_stack, _context_manager, _exit_alone, _thread_local, _context_variable,
    _finalizer, _closure, _circle, _traceback,
]  # fmt: skip


@pytest.mark.parametrize("hold", HOLDS, ids=lambda hold: hold.__name__.strip("_"))
def test_whoever_can_give_it_back_has_it(hold, caplog):
    """However it is kept: nothing is found and nothing is said, until it is given back."""
    pool = Pool(FakeDriver(), runtime=ManualRuntime())
    kept, end = hold(pool)
    for _ in range(2):
        gc.collect(1)
        pool._runtime.advance(1)
    assert (pool.stats().out, pool.stats().size) == (1, 1)
    if end is None and callable(kept):
        kept()
    elif end is not None:
        end()
    del kept, end
    assert (pool.stats().idle, pool.stats().closed_by_reason, caplog.text) == (1, {}, "")


@pytest.mark.parametrize("hold", HOLDS, ids=lambda hold: hold.__name__.strip("_"))
def test_what_is_dropped_with_its_holder_is_given_back_or_found(hold):
    """By a `finally` that runs then, or by the next sweep: in no case is the place gone."""
    server = FakeServer()
    pool = Pool(FakeDriver(server), max_size=1, runtime=ManualRuntime())
    kept, end = hold(pool)
    del kept, end
    LOCAL.__dict__.clear()
    gc.collect(1)
    pool._runtime.advance(1)
    assert pool.stats().out == 0
    assert server.open_now == pool.stats().size
    pool.acquire(0).release()


def test_a_resource_without_its_lease_is_lost(caplog):
    """As it says: who keeps the connection alone can't give it back. It is closed, and reported."""
    pool = Pool(FakeDriver(), runtime=ManualRuntime())
    connection = pool.acquire().resource
    entered = pool.acquire().__enter__()
    pool.sweep()
    assert connection.closed
    assert entered.closed
    assert caplog.text.count("without giving it back") == 2


# -- while the driver is at work --------------------------------------------------------------------------------------


class Busy(FakeDriver):
    """Whatever it is asked, the housekeeper comes by in the middle of it."""

    pool: Any = None

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        pool = super().__getattribute__("pool")
        if pool is None or name not in {"ping", "reset", "begin", "commit", "rollback", "alive", "clean", "is_broken"}:
            return value
        return lambda *arguments, **more: self.visited(pool, value, arguments, more)

    @staticmethod
    def visited(pool: Any, work: Any, arguments: Any, more: Any) -> Any:
        before = arguments[0].closed
        with ThreadPoolExecutor(1) as housekeeper:
            housekeeper.submit(pool.sweep).result()
        assert arguments[0].closed == before, "closed while the driver was using it"
        return work(*arguments, **more)


@pytest.mark.parametrize("use", [_dirty_block, _failing_block, _transaction, _unit, _look_after, _pinged])
def test_a_sweep_while_the_driver_is_at_work_finds_nothing(use, caplog):
    """A ping, a reset, a COMMIT may take as long as they like."""
    driver = Busy()
    pool = Pool(driver, max_size=2, check_after=10, runtime=ManualRuntime())
    driver.pool = pool
    pool._alive, pool._clean, pool.is_broken = driver.alive, driver.clean, driver.is_broken
    pool._is_plain = driver.clean
    use(pool)
    use(pool)
    assert pool.stats().out == 0
    assert "lost" not in pool.stats().closed_by_reason
    assert "without giving it back" not in caplog.text


class SlowDriver(FakeAsyncDriver):
    """Whatever it is asked, the pool is swept in the middle of it."""

    pool: Any = None

    async def _amid(self, connection: Any, work: Any) -> Any:
        before = connection.closed
        with contextlib.closing(work):  # it may be cut off before it has begun
            await asyncio.sleep(0)
            self.pool.sweep()
            assert connection.closed == before, "closed while the driver was using it"
            return await work

    async def ping(self, connection, timeout):
        return await self._amid(connection, super().ping(connection, timeout))

    async def reset(self, connection, *, full):
        await self._amid(connection, super().reset(connection, full=full))

    async def begin(self, connection):
        await self._amid(connection, super().begin(connection))

    async def commit(self, connection):
        await self._amid(connection, super().commit(connection))

    async def rollback(self, connection):
        await self._amid(connection, super().rollback(connection))


@pytest.mark.parametrize("use", _async_uses(), ids=lambda use: use.__name__)
def test_a_sweep_while_an_async_driver_is_at_work_finds_nothing(use, caplog):
    """The same, and its caller may be cancelled meanwhile."""

    async def main():
        driver = SlowDriver()
        pool = AsyncPool(driver, max_size=2, check_after=0)
        driver.pool = pool
        for _ in range(2):
            await use(pool)
        while pool._tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert pool.stats().out == 0
        assert "lost" not in pool.stats().closed_by_reason
        assert await pool.close()

    asyncio.run(main())
    assert "without giving it back" not in caplog.text


def test_what_was_handed_over_to_a_task_that_has_not_run_yet_is_its_own():
    """The loop may be busy for as long as it likes."""

    async def main():
        pool = AsyncPool(FakeAsyncDriver(), max_size=1)
        lease = await pool.acquire()
        waiting = asyncio.ensure_future(_borrow(pool))
        await asyncio.sleep(0)
        await lease.release()
        del lease
        gc.collect(1)
        pool.sweep()
        assert await waiting == 1
        assert pool.stats().closed_by_reason == {}
        assert await pool.close()

    asyncio.run(main())


async def _borrow(pool):
    async with pool.acquire() as connection:
        return connection.number


def test_what_was_handed_over_to_a_thread_that_has_not_run_yet_is_its_own(threads):
    """It was woken, and the interpreter goes on with others."""
    pool = threads.pool(max_size=1)
    lease = pool.acquire()
    waiter = pool_waiter(pool)
    bell = waiter.bell
    lease.release()
    del lease
    assert waiter.slot is not None
    pool.sweep()
    assert waiter.slot.status == "out"
    assert not bell.locked()
    pool.withdraw(waiter)
    del waiter
    pool.sweep()
    assert pool.stats().idle == 1
    assert pool.stats().closed_by_reason == {}


def pool_waiter(pool):
    waiter = poolkit.threads._Waiter(1, urgent=False)
    pool.enqueue(waiter)
    return waiter


def test_a_thread_may_use_what_its_cancelled_task_has_left():
    """A task that waits in a loop for a thread is cancelled: the thread goes on, and nobody closes its connection."""
    pool = Pool(FakeDriver(), max_size=1, runtime=ManualRuntime())
    started, go_on = threading.Event(), threading.Event()

    async def in_thread(work, *arguments):
        return await asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *arguments))

    def work(connection):
        started.set()
        assert go_on.wait(10)
        connection.execute("select")  # raises where it was closed

    async def main():
        lease = await bridge.acquire_from_loop(pool, in_thread)
        task = asyncio.ensure_future(bridge.use_in_thread(in_thread, lease, work))
        del lease
        while not started.is_set():  # noqa: ASYNC110  set by a thread
            await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del task
        gc.collect(1)
        pool.sweep()
        assert pool.stats().out == 1
        go_on.set()
        while pool.stats().out:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert pool.stats().idle == 1
    assert pool.stats().closed_by_reason == {}


def test_a_thread_may_use_what_its_closed_loop_has_left():
    """The loop ends while a thread is at work for one of its tasks: its connection is closed when it is through."""
    runtime = ManualRuntime()
    pool = Pool(FakeDriver(), max_size=1, runtime=runtime)
    workers = Workers(1, "test")
    started, go_on = threading.Event(), threading.Event()
    seen = []

    async def in_thread(work, *arguments):
        return await asyncio.wrap_future(workers.submit(work, *arguments))

    def work(connection):
        started.set()
        assert go_on.wait(10)
        seen.append(connection.closed)

    async def main():
        lease = await bridge.acquire_from_loop(pool, in_thread)
        using = asyncio.ensure_future(bridge.use_in_thread(in_thread, lease, work))
        while not started.is_set():  # noqa: ASYNC110  set by a thread
            await asyncio.sleep(0.001)
        using.cancel()

    asyncio.run(main())
    gc.collect(1)
    pool.sweep()
    go_on.set()
    assert workers.settle(10)
    assert seen == [False]
    gc.collect(1)
    pool.sweep()
    assert pool.stats().out == 0
    workers.stop()


# -- what comes in between --------------------------------------------------------------------------------------------


def test_a_finalizer_may_end_a_lease_in_the_middle_of_the_search(monkeypatch):
    """The collector runs where it likes; the search goes on over what was there when it began."""
    pool = Pool(FakeDriver(), max_size=3, runtime=ManualRuntime())
    leases = [pool.acquire() for _ in range(3)]
    count = sys.getrefcount

    def collecting(thing):
        if leases:
            leases.pop().discard()
        return count(thing)

    monkeypatch.setattr(shell, "_references_to", collecting)
    pool.sweep()
    assert leases == []
    assert pool.stats().closed_by_reason == {"discarded": 3}


@pytest.mark.parametrize("boundary", ["opcodes", "calls"])
def test_a_debugger_that_keeps_what_it_sees_hides_and_invents_nothing_for_good(boundary):
    """It may hold references when the module is loaded, or now: a search compares with what it counts, or is off."""
    kept = []
    pool = Pool(FakeDriver(), runtime=ManualRuntime())
    lease = pool.acquire()
    forgotten = pool.acquire()
    del forgotten

    def keep(frame, event, arg):
        kept.append((event, arg, dict(frame.f_locals)))
        frame.f_trace_opcodes = boundary == "opcodes"
        return keep

    before = sys.gettrace(), sys.getprofile()
    (sys.settrace if boundary == "opcodes" else sys.setprofile)(keep)
    try:
        raised = shell._nobody()
        found = pool._lost()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    assert raised == 0 or raised >= shell._NOBODY
    assert lease._slot not in found
    del found
    kept.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shell, "_NOBODY", max(raised, shell._NOBODY) + 1)
        assert len(pool._lost()) == 1, "the forgotten one, and no other"
    with pytest.raises(LeaseError):
        lease.release() or lease.release()


RECORDED = """
import collections, sys, threading, time
tape = collections.deque(maxlen=200)
def record(frame, event, arg):
    tape.append((frame, event, arg))
threading.setprofile(record)
sys.setprofile(record)
import poolkit
from poolkit.testing.fakes import FakeDriver
pool = poolkit.Pool(FakeDriver(), max_size=3, timeout=20)
def work():
    for _ in range(150):
        with pool.acquire() as conn:
            time.sleep(0.0005)
            assert not conn.closed
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.setprofile(None)
print(pool.stats().acquired, pool.stats().closed_by_reason)
"""


def test_a_profiler_that_keeps_what_it_sees_costs_no_connection():
    """One that was there before the import holds frames, and what they refer to: nothing in use is taken for lost."""
    done = subprocess.run([sys.executable, "-c", RECORDED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(maxsplit=1), done.stderr) == (["900", "{}\n"], "")


def test_counts_that_can_not_be_trusted_find_nothing(monkeypatch):
    """Where one reference more is not one more, the search is off."""
    pool = Pool(FakeDriver(), runtime=ManualRuntime())
    pool.acquire()
    for wrong in (lambda thing: 7, lambda thing: sys.getrefcount(thing) * 2):
        with monkeypatch.context() as patch:
            patch.setattr(shell, "_references_to", wrong)
            assert shell._nobody() == 0
            assert pool._lost() == []
    assert len(pool._lost()) == 1


class Limbo(ManualRuntime):
    """Threads whose start was interrupted: `threading` remembers them for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.never_started: list[Any] = []

    def spawn(self, work: Any) -> None:
        self.never_started.append(work)
        if len(self.never_started) == 1:
            raise KeyboardInterrupt
        work()


def test_a_thread_that_is_never_started_keeps_no_slot():
    """Or the slot that it was to open could not be found when its borrower has lost it."""
    runtime = Limbo()
    pool = Pool(FakeDriver(), max_size=1, runtime=runtime)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire()
    runtime.advance(0)
    assert pool.stats().idle == 1
    pool.acquire()
    pool.sweep()
    assert pool.stats().out == 0


def test_where_references_are_not_counted_nothing_is_thought_lost(monkeypatch):
    """On an interpreter without counts: better a place that is missing than a connection closed under its user."""
    monkeypatch.setattr(shell, "_references_to", None)
    assert shell._nobody() == 0
    pool = Pool(FakeDriver(), runtime=ManualRuntime())
    pool.acquire()
    pool.sweep()
    assert pool.stats().out == 1


# -- a pool that is dropped with its borrowers ------------------------------------------------------------------------


def _in_a_circle(pool):
    """What keeps the pool keeps a lease as well, and both are dropped at once."""
    Node((pool, pool.acquire()), circle=True)


def _with_a_generator(pool):
    """Whose `with` is left by the collector."""

    def life():
        with pool.acquire() as connection:
            yield connection, node

    node = Node(None)
    node.held = life()
    next(node.held)


@pytest.mark.parametrize("dropped", [_in_a_circle, _with_a_generator])
def test_a_pool_that_is_dropped_with_its_borrowers_leaves_nothing_open(dropped):
    """The collector finds pool and lease together: nobody gives back, and there is no sweep any more."""
    server = FakeServer()
    runtime = ManualRuntime()
    pool = Pool(FakeDriver(server), runtime=runtime)
    runtime.watch = lambda _pool: None  # the housekeeper's references are weak
    pool.acquire().release()
    dropped(pool)
    gone = weakref.ref(pool)
    del pool
    gc.collect(1)
    runtime.advance(2)
    gc.collect(1)
    assert server.open_now == 0
    assert gone() is None


@pytest.mark.parametrize("in_loop", [True, False], ids=["while the loop runs", "after that"])
def test_an_async_pool_that_is_dropped_with_its_borrowers_leaves_nothing_open(in_loop):
    """The same for one that belongs to a loop."""
    server = FakeServer()
    loop = ManualLoop(ManualClock())
    nodes = []

    async def borrow():
        pool = AsyncPool(FakeAsyncDriver(server))
        nodes.append(Node((pool, await pool.acquire()), circle=True))

    async def drop():
        nodes.clear()
        gc.collect(1)
        await asyncio.sleep(2)

    loop.run(borrow())
    if in_loop:
        loop.run(drop())
    nodes.clear()
    gc.collect(1)
    loop.close()
    assert server.open_now == 0
