"""Who may close a connection, and when another gets it: never two holders of one connection, whichever thread closes.

psycopg2, mysqlclient and SQLite lend the same object again, so a thread that still has it can't be told by the object.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from closing_rig import SAME_OBJECT, THREADED, Thread
from rigs import RIGS, Rig

from poolkit import AcquireTimeout, AsyncPool, LeaseError, NestedAcquire, Pool
from poolkit.bridge import acquire_from_loop
from poolkit.config import PoolConfig


@pytest.fixture(params=THREADED)
def rig_name(request: pytest.FixtureRequest) -> str:
    """Every driver for threads once."""
    name: str = request.param
    return name


@pytest.fixture
def pool(rig: Rig) -> Iterator[Any]:
    """A pool with a single connection."""
    pool = Pool(rig.driver, PoolConfig(max_size=1, timeout=2))
    yield pool
    pool.close(5)


@pytest.fixture
def other() -> Iterator[Callable[..., Any]]:
    """A function that calls in a second thread, always the same, which no executor runs."""
    with Thread() as thread:
        yield thread


@pytest.fixture
def third() -> Iterator[Callable[..., Any]]:
    """The same in a third thread."""
    with Thread() as thread:
        yield thread


def ids(rig: Rig, pool: Any) -> list[int]:
    with pool.acquire() as conn:
        return [row[0] for row in rig.rows(conn, "SELECT id FROM item ORDER BY id")]


def lent(pool: Any) -> Any:
    """Return a lease, or None where nothing is free."""
    try:
        return pool.acquire(0.05)
    except (AcquireTimeout, NestedAcquire):
        return None


def insert(rig: Rig, conn: Any, number: int) -> bool:
    """Write a row; False where that is refused."""
    try:
        rig.do(conn, f"INSERT INTO item VALUES ({number})")
    except LeaseError:
        return False
    return True


def closes(conn: Any) -> bool:
    """Close; False where that is refused."""
    try:
        conn.close()
    except LeaseError:
        return False
    return True


@pytest.mark.parametrize("how", ["acquire", "transaction"])
def test_closed_by_another_thread(rig: Rig, pool: Any, other: Any, third: Any, how: str) -> None:
    """Either its borrower is refused, or it is not lent to another; and nothing that was rolled back is saved."""

    def fail() -> None:
        nonlocal wrote, lease
        with getattr(pool, how)() as conn:
            other(lambda: closes(conn))
            lease = third(lambda: lent(pool))
            wrote = insert(rig, conn, 1)
            assert not (wrote and lease is not None)
            if lease is not None:
                third(lambda: rig.do(lease.resource, "INSERT INTO item VALUES (2)"))
                third(lease.release)
            raise KeyError

    wrote, lease = False, None
    with pytest.raises(KeyError):
        fail()
    assert ids(rig, pool) == ([1] if wrote and how == "acquire" else []) + ([2] if lease is not None else [])
    assert pool.stats().out == 0
    assert pool.stats().opened == 1


@pytest.mark.parametrize("rig_name", sorted(SAME_OBJECT & RIGS.keys()), indirect=True)
def test_only_its_borrower_closes_it(rig: Rig, pool: Any, other: Any) -> None:
    """Where the object is the same for each borrower: another thread's close() is refused, and changes nothing."""
    with pool.transaction() as conn:
        rig.do(conn, "INSERT INTO item VALUES (1)")
        with pytest.raises(LeaseError, match=r"in use by the thread 'MainThread'.*only that thread"):
            other(conn.close)
        rig.do(conn, "INSERT INTO item VALUES (2)")
    assert ids(rig, pool) == [1, 2]


@pytest.mark.parametrize("how", ["acquire", "transaction"])
def test_a_kept_connection_is_closed_while_another_has_it(
    rig: Rig, rig_name: str, pool: Any, other: Any, how: str
) -> None:
    """The other borrowing goes on: its work is saved, and its connection is not lent before its end."""
    with pool.acquire() as kept:
        rig.value(kept, "SELECT 1")

    def work() -> None:
        with getattr(pool, how)() as conn:
            same = conn is kept
            assert same is (rig_name in SAME_OBJECT)
            rig.do(conn, "INSERT INTO item VALUES (1)")
            assert closing(lambda: closes(kept)) is not same
            rig.do(conn, "INSERT INTO item VALUES (2)")
            assert closing(lambda: lent(pool)) is None

    with Thread() as closing:
        other(work)
    assert ids(rig, pool) == [1, 2]
    assert pool.stats().opened == 1


def test_a_kept_connection_is_closed_while_nobody_has_it(rig: Rig, pool: Any, other: Any) -> None:
    """Quietly, by whatever thread and however often, also by a method that was kept; the pool's connection stays."""
    with pool.acquire() as conn:
        kept, close = conn, conn.close
    for _ in range(2):
        kept.close()
        close()
        other(kept.close)
    assert ids(rig, pool) == []
    assert pool.stats().opened == 1


def test_close_is_quiet_the_second_time(rig: Rig, pool: Any) -> None:
    """In the block that it was called in, by the connection and by a method that was kept; `with` keeps `__exit__`."""
    with pool.acquire() as conn:
        close = conn.close
        with conn:
            close()
        close()
        conn.close()
    assert pool.stats().opened == 1
    assert pool.stats().out == 0


@pytest.mark.parametrize("name", ["psycopg-async", "asyncpg"])
def test_close_is_quiet_the_second_time_in_asyncio(name: str, tables: str) -> None:
    """There as well; also while the next borrower has the session."""

    async def main() -> None:
        async with AsyncPool(RIGS[name].kind(tables), PoolConfig(max_size=1, timeout=2)) as pool:
            async with pool.acquire() as conn:
                close = conn.close
                async with contextlib.AsyncExitStack() as stack:
                    if hasattr(conn, "__aenter__"):
                        await stack.enter_async_context(conn)
                    await close()
                await close()
                async with pool.acquire() as again:
                    await close()
                    await conn.close()
                    await again.execute("SELECT 1")
            await close()
            assert pool.stats().opened == 1

    asyncio.run(main())


def test_what_another_thread_was_given_is_refused_as_well(rig: Rig, pool: Any, other: Any, third: Any) -> None:
    """Its borrower closes it, and another block has it: a helper of the first is refused, as the first is."""
    with pool.acquire() as conn:
        other(lambda: rig.value(conn, "SELECT 1"))
        conn.close()
        with pytest.raises(LeaseError, match=r"close\(\) at"):
            other(lambda: rig.value(conn, "SELECT 1"))
        block = third(lambda: lent(pool))
        third(block.__enter__)
        assert not insert(rig, conn, 1)
        assert not other(lambda: insert(rig, conn, 2))
        assert third(lambda: insert(rig, block.resource, 3))
        other(conn.close)
        assert third(lambda: insert(rig, block.resource, 4))
        third(lambda: block.__exit__(None, None, None))
    assert ids(rig, pool) == [3, 4]
    with pool.acquire() as conn:  # the block is over: it may be handed on again
        assert other(lambda: insert(rig, conn, 5))


def test_a_cursor_is_closed_by_another_thread(rig: Rig, pool: Any, other: Any, third: Any) -> None:
    """That ends the cursor, and nothing else; one of an ended borrowing is closed quietly."""
    with pool.transaction() as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT 1")
        other(cursor.close)
        rig.do(conn, "INSERT INTO item VALUES (1)")
        kept = conn.cursor()
        kept.execute("SELECT 1")
    lease = third(lambda: lent(pool))
    other(kept.close)
    assert third(lambda: insert(rig, lease.resource, 2))
    third(lease.release)
    assert ids(rig, pool) == [1, 2]


@pytest.mark.parametrize("rig_name", ["sqlite-file"], indirect=True)
def test_a_cursor_that_a_thread_is_inside_of(rig: Rig, pool: Any, other: Any) -> None:
    """close() says so, and the cursor refuses from the end of the lease on, or its connection goes."""
    inside, go = threading.Event(), threading.Event()

    def wait() -> int:
        inside.set()
        return int(go.wait(10))

    with ThreadPoolExecutor(1) as executor:
        lease: Any = pool.acquire()
        lease.resource.create_function("wait", 0, wait)
        idle, busy = lease.resource.cursor(), lease.resource.cursor()
        busy.execute("SELECT 1")
        running = executor.submit(lambda: busy.execute("SELECT wait()").fetchall())
        assert inside.wait(10)
        with pytest.raises(rig.errors):
            other(lease.resource.close)
        go.set()
        running.exception(10)
        with pytest.raises(LeaseError):
            lease.resource.execute("SELECT 1")
        lease.release()
        with pool.acquire():
            for cursor in (idle, busy):
                with pytest.raises((LeaseError, rig.errors)):
                    cursor.execute("INSERT INTO item VALUES (1)")
    assert ids(rig, pool) == []
    assert pool.stats().out == 0


# -- what can't be told apart: in the table of docs/sessions.md -------------------------------------------------------


def said(driver: str, row: str) -> str:
    """What that row of the table says of a driver."""
    text = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()
    table = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    names = next(cells for cells in table if "psycopg2" in cells)
    column = names.index({"sqlite-file": "SQLite", "pymysql": "PyMySQL"}.get(driver, driver))
    cells = next(cells for cells in table if cells[1].startswith(row))
    return cells[column - 1] if cells[column] == "the same" else cells[column]


@pytest.mark.parametrize("thread", ["the same thread's", "no thread of it is known"])
def test_a_kept_connection_ends_the_next_borrowing(rig: Rig, rig_name: str, pool: Any, other: Any, thread: str) -> None:
    """Where nothing tells the two apart. Nobody else has the connection before that lease is over."""
    with pool.acquire() as kept:
        pass
    lease = pool.acquire()
    if thread == "the same thread's":
        lease.__enter__()
        kept.close()
    else:
        other(kept.close)
        assert not lease.given_back or other(lambda: lent(pool)) is None
    assert lease.given_back is (thread in said(rig_name, "its `close()`"))
    assert lease.given_back is (rig_name in SAME_OBJECT)
    assert lease.given_back or insert(rig, lease.resource, 1)
    lease.release()
    assert pool.stats().out == 0


def test_what_another_thread_was_given_works_in_the_next_lease(
    rig: Rig, rig_name: str, pool: Any, other: Any, third: Any
) -> None:
    """That of a lease without a block, which any thread may use."""
    with pool.acquire() as conn:
        conn.close()
        lease = third(lambda: lent(pool))
        assert not insert(rig, conn, 1)
        worked = other(lambda: insert(rig, conn, 2))
        third(lease.release)
    assert worked is (rig_name in SAME_OBJECT)
    assert worked is ("works" in said(rig_name, "a connection that its block has closed early"))


# -- where it is not known which threads use it -----------------------------------------------------------------------


async def borrow(how: str, pool: Any, executor: ThreadPoolExecutor) -> Any:
    """Borrow in that way."""

    async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)

    if how == "from the loop":
        return await acquire_from_loop(pool, in_thread)
    return pool.acquire() if how == "in the loop" else await in_thread(pool.acquire)


@pytest.mark.parametrize("end", ["release", "discard", "dropped"])
@pytest.mark.parametrize(
    ("how", "closer"), list(itertools.product(["from the loop", "in the loop", "in a thread"], ["first", "second"]))
)
def test_in_the_threads_of_a_loop(rig: Rig, pool: Any, how: str, closer: str, end: str) -> None:
    """close() works in each of them: all are refused from then on, and another has it from the end of the lease on."""

    async def use(lease: Any, first: Any, second: Any, third: Any) -> None:
        loop, conn = asyncio.get_running_loop(), lease.resource
        await loop.run_in_executor(second, rig.value, conn, "SELECT 1")
        await loop.run_in_executor(first if closer == "first" else second, conn.close)
        assert lease.given_back
        early = await loop.run_in_executor(third, lent, pool)
        for executor in (first, second):
            assert not await loop.run_in_executor(executor, insert, rig, conn, 1)
        if early is not None:
            await loop.run_in_executor(third, early.release)
        if end != "dropped":
            getattr(lease, end)()

    async def main() -> None:
        with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second, ThreadPoolExecutor(1) as third:
            await use(await borrow(how, pool, first), first, second, third)
        gc.collect()

    asyncio.run(main())
    until = time.monotonic() + 5
    while pool.stats().out and time.monotonic() < until:  # a reset may be under way
        time.sleep(0.01)
    assert pool.stats().out == 0
    assert ids(rig, pool) == []
    assert pool.stats().opened == 1


@pytest.mark.parametrize("rig_name", sorted(SAME_OBJECT & RIGS.keys()), indirect=True)
def test_a_lease_that_ends_while_another_thread_closes_it(rig: Rig, pool: Any) -> None:
    """The close comes too late, and does not end the next borrowing; the end of one that was just closed is quiet."""
    lease = pool.acquire()
    conn = lease.resource
    assert pool._early.begin(conn) is not None
    lease.release()
    lease = pool.acquire()
    assert pool._early(conn)
    assert lease.is_out
    rig.do(lease.resource, "INSERT INTO item VALUES (1)")
    slot, lease._slot = lease._slot, None  # its release has begun
    pool._early.begin(conn)
    assert pool._early(conn)
    pool._give_back(slot, None)
    assert pool.stats().out == 0
    assert ids(rig, pool) == [1]


def test_work_is_open_in_the_threads_of_a_loop(rig: Rig, pool: Any) -> None:
    """The end says that nothing was saved, whichever thread closed it."""

    async def main() -> None:
        lease: Any = await asyncio.to_thread(pool.acquire)
        rig.do(lease.resource, "BEGIN", "INSERT INTO item VALUES (1)")
        await asyncio.to_thread(lease.resource.close)
        lease.release()

    asyncio.run(main())
    assert ids(rig, pool) == []
    assert pool.stats().out == 0
