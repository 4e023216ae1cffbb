"""Leaks and misuse: what nobody gave back, what is given back twice, and borrowers who wait for each other."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import traceback

import pytest

from poolkit import AsyncPool, LeaseError, NestedAcquire, Pool, PoolError
from poolkit.events import Leaked
from poolkit.shell import forget_variables
from poolkit.testing.fakes import FakeError


def abandon(world, pool) -> None:
    """Borrow, and forget about it."""
    lease = world.acquire(pool)
    lease.label("GET /orders")
    del lease
    gc.collect()
    world.advance(1.1)


def test_a_collected_lease_is_reported_and_its_slot_recovered(world, caplog):
    """Nobody can give it back any more: at the next sweep the connection is closed, and the next one is served."""
    pool = world.pool(max_size=1, leak_after=60)
    abandon(world, pool)
    assert world.server.open_now == 0
    assert pool.stats().closed_by_reason == {"lost": 1}
    assert world.use_once(pool).number == 2
    assert "GET /orders dropped a connection without giving it back" in caplog.text
    assert "in abandon\n" in caplog.text, "the stack that took it"


def test_a_collected_lease_serves_who_waits(world):
    """The place that came free is theirs; they do not wait for their timeout."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    waiter = world.borrow(pool)
    del lease
    gc.collect()
    world.advance(1.1)
    world.settle(waiter)
    assert waiter.number == 2


def test_whoever_has_to_wait_looks_for_lost_connections_first(world):
    """A pool whose places are all lost serves at once all the same, without waiting for the sweep."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    world.advance(0.2)
    del lease
    gc.collect()
    waiter = world.borrow(pool, timeout=0.05)
    world.settle(waiter)
    assert waiter.number == 2


def test_what_is_lost_holds_up_no_close(world):
    """Nobody will ever give it back; so it is closed at once, and `close` says that all is closed."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    del lease
    gc.collect()
    assert world.do(lambda: pool.close(5))
    assert world.server.open_now == 0


def test_without_stacks_the_report_says_how_to_get_them(world, caplog):
    """Recording every stack costs too much to be the default."""
    abandon(world, world.pool())
    assert "set leak_after and it is" in caplog.text


def test_listeners_hear_of_a_lost_connection(world):
    """As of any leak; `now` says that nobody has it."""
    heard = []
    pool = world.pool(listeners=[heard.append], leak_after=60)
    abandon(world, pool)
    (leak,) = [event for event in heard if isinstance(event, Leaked)]
    assert leak.holder == "GET /orders"
    assert "nobody" in leak.now


def test_a_lease_that_ended_is_collected_without_a_word(world, caplog):
    """However it ended."""
    pool = world.pool(max_size=3)
    released, discarded, detached = (world.acquire(pool) for _ in range(3))
    world.release(released)
    world.do(discarded.discard)
    connection = world.do(detached.detach)
    del released, discarded, detached
    gc.collect()
    world.advance(1.1)
    assert caplog.text == ""
    assert pool.stats().closed_by_reason == {"discarded": 1, "detached": 1}
    connection.close()


def test_a_block_is_collected_without_a_word(world, caplog):
    """`with` gives back by itself, and leaves nothing for the finalizer."""
    pool = world.pool()
    with world.inside(pool.acquire()):
        pass
    gc.collect()
    world.advance(1.1)
    assert caplog.text == ""
    assert pool.stats().closed_by_reason == {}


def test_a_task_that_never_leaves_its_block_loses_its_connection(loop_world, caplog):
    """The loop forgot it, as asyncio does with a task that nobody holds."""
    pool = loop_world.pool(max_size=1)
    block = pool.acquire()
    loop_world.do(block.__aenter__)
    del block
    gc.collect()
    loop_world.advance(1.1)
    assert loop_world.use_once(pool).number == 2
    assert "without giving it back" in caplog.text


def test_the_second_return_is_refused(world):
    """Else the next borrower would share the connection with somebody."""
    pool = world.pool(max_size=1)
    lease = world.acquire(pool)
    world.release(lease)
    other = world.acquire(pool)
    for verb in (lease.release, lease.discard, lease.detach):
        with pytest.raises(LeaseError, match="has ended"):
            world.do(verb)
    assert other.resource.number == 1
    assert pool.stats().out == 1
    world.release(other)


def test_of_two_threads_that_end_a_lease_one_is_refused(threads):
    """However they interleave: the connection is given back once."""
    pool = threads.pool(max_size=1, timeout=10)
    for _ in range(200):
        lease = pool.acquire()
        errors = []
        barrier = threading.Barrier(2)

        def end(lease=lease, errors=errors, barrier=barrier):
            barrier.wait()
            try:
                lease.release()
            except LeaseError as error:
                errors.append(error)

        pair = [threading.Thread(target=end) for _ in range(2)]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()
        assert len(errors) == 1
        assert (pool.stats().idle, pool.stats().out) == (1, 0)


def test_borrowers_who_wait_for_each_other_are_told(threads):
    """Each has one and wants another: whoever closes the circle gets the error, and the others are served."""
    pool = threads.pool(max_size=2)
    inside, served = threading.Event(), []

    def life():
        with pool.acquire():
            inside.set()
            with pool.acquire():
                served.append("the other")

    with pool.acquire():
        other = threading.Thread(target=life)
        other.start()
        assert inside.wait(10)
        threads._until(lambda: len(pool._state.waiters) == 1)
        with pytest.raises(NestedAcquire, match="wait for another"):
            pool.acquire()
    other.join(10)
    assert served == ["the other"]
    assert pool.stats().out == 0


def test_tasks_that_wait_for_each_other_are_told(loop_world):
    """The same in a loop."""
    pool = loop_world.pool(max_size=2)
    errors = []

    async def life():
        async with pool.acquire():
            await asyncio.sleep(1)
            try:
                async with pool.acquire():
                    pass
            except NestedAcquire as error:
                errors.append(error)

    async def both():
        await asyncio.gather(life(), life())

    loop_world.loop.run(both())
    assert len(errors) == 1
    assert pool.stats().out == 0


def test_a_failed_connect_keeps_its_lines_and_no_variables():
    """What was known on the way to the error and its causes is forgotten; a coroutine that is asleep goes on."""

    def library():
        password = "SECRET"
        raise OSError(len(password))

    def driver():
        secret = ["SECRET"]
        try:
            library()
        except OSError as error:
            raise FakeError(str(len(secret))) from error

    def asleep():
        kept = "KEPT"
        driver()
        yield kept

    def told():
        secret = "SECRET"
        try:
            driver()
        except FakeError as error:
            stored.append(error)
        yield secret
        yield secret + " and KEPT"

    stored = []
    sleeper = told()
    assert next(sleeper) == "SECRET"
    forget_variables(stored[0])
    assert next(sleeper) == "SECRET and KEPT"

    with pytest.raises(FakeError) as caught:
        next(asleep())
    lines = traceback.format_exception(caught.value)
    forget_variables(caught.value)
    told_now = traceback.format_exception(caught.value)
    assert [line.partition("\n")[0] for line in told_now] == [line.partition("\n")[0] for line in lines]
    error = caught.value
    frames = [frame for at in (error, error.__cause__) for frame, _ in traceback.walk_tb(at.__traceback__)]
    assert {"library", "driver", "asleep"} <= {frame.f_code.co_name for frame in frames}
    variables = {frame.f_code.co_name: dict(frame.f_locals) for frame in frames}
    assert (variables["library"], variables["driver"], variables["asleep"]) == ({}, {}, {})


def test_the_causes_in_a_group_forget_as_well():
    """Several connects at once fail as a group, and both a cause and a context have frames."""

    def fail(text):
        secret = ["SECRET", text]
        raise OSError(len(secret))

    def all_of_them():
        found = []
        for text in "ab":
            try:
                fail(text)
            except OSError as error:
                found.append(error)
        try:
            fail("c")
        except OSError:
            raise ExceptionGroup("both", found) from found[0]

    with pytest.raises(ExceptionGroup) as caught:
        all_of_them()
    group = caught.value
    forget_variables(group)
    for error in (*group.exceptions, group.__cause__, group.__context__):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            assert "SECRET" not in repr(frame.f_locals) or frame.f_code.co_name.startswith("test_")


WATCHED = """
import sys
from poolkit.shell import forget_variables

def watch(*_event):
    return watch

async def connect():
    raise OSError

getattr(sys, sys.argv[1])(watch)
for _ in range(50):
    try:
        connect().send(None)
    except OSError as error:
        forget_variables(error)
print("alive")
"""


@pytest.mark.parametrize("watch", ["settrace", "setprofile"])
def test_variables_are_forgotten_under_a_debugger(watch):
    """A debugger, a coverage run or a profiler looks at each frame that is made: the process outlives that."""
    program = [sys.executable, "-c", WATCHED, watch]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


SECRET = "hunter2-TOPSECRET"
URL = f"//user:{SECRET}@127.0.0.1:1/db"


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg", "postgresql+psycopg2", "mysql+pymysql"])
def test_the_frames_of_a_failed_connect_hold_no_password(scheme):
    """As error trackers and debug pages walk them, for every driver, by URL and by each kind of callable."""

    async def ask(source):
        async with AsyncPool(source, max_size=1, timeout=0.5, **settings(source)) as pool:
            await pool.acquire()

    def settings(source):
        return {} if isinstance(source, str) else {"scheme": scheme}

    def borrow(source):
        Pool(source, max_size=1, timeout=0.5, **settings(source)).acquire()

    def plain():
        url = f"{scheme}:{URL}"
        return str(url)

    async def awaited():
        return plain()

    for source in (f"{scheme}:{URL}", plain, awaited):
        kinds = {"postgresql": (Pool, ask), "postgresql+asyncpg": (ask,)}.get(scheme, (Pool,))
        for kind in kinds:
            if kind is Pool and source is awaited:
                continue
            with pytest.raises(PoolError) as caught:
                borrow(source) if kind is Pool else asyncio.run(ask(source))
            assert shown(caught.value) == []


def shown(error):
    seen, found, left = set(), [], [error]
    while left:
        at = left.pop()
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        left += [at.__cause__, at.__context__]
        found += [f"{at!r}"] if SECRET in f"{at!r} {at}" else []
        for frame, line in traceback.walk_tb(at.__traceback__):
            if frame.f_code.co_filename != __file__:
                found += [
                    f"{frame.f_code.co_filename}:{line} {n}" for n, v in frame.f_locals.items() if SECRET in repr(v)
                ]
    return found
