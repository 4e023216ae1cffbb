"""Random programs of three threads that hand connections to each other, use and close them: never two holders of one.

Each step is a call in one of the threads, so a failure can be repeated by its seed. A model of the rules of
docs/sessions.md says for each use whether it has to work or to be refused, and which rows are saved at the end.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from closing_rig import SAME_OBJECT, THREADED, Thread
from rigs import Rig

from poolkit import AcquireTimeout, CommitFailed, LeaseError, NestedAcquire, Pool
from poolkit.config import PoolConfig
from poolkit.drivers import _sqlite_session
from poolkit.drivers.sqlite import SqliteDriver

SEEDS = [int(seed) for seed in os.environ.get("HOLDERS_SEEDS", "").split()] or [*range(9), 348, 366, 371]
STEPS = 60
KINDS = ("acquire", "transaction", "lease")


@pytest.fixture(params=THREADED)
def rig_name(request: pytest.FixtureRequest) -> str:
    """Every driver for threads once."""
    name: str = request.param
    return name


@pytest.fixture
def threads() -> Iterator[list[Thread]]:
    """Three threads, beside the test's own."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Thread()) for _ in range(3)]


class Borrowing:
    """What the model knows of one borrowing."""

    def __init__(self, kind: str, thread: int, entered: Any, conn: Any) -> None:
        self.kind, self.thread, self.entered, self.conn = kind, thread, entered, conn
        self.is_closed = False  # by a close() that was not refused
        self.lost = False  # closed with work open
        self.rows: list[int] = []

    @property
    def in_block(self) -> bool:
        """Whether it belongs to a thread."""
        return self.kind != "lease"


class Program:
    """A random program, and the model of what has to come of it."""

    def __init__(self, seed: int, rig: Rig, threads: list[Thread], *, same: bool) -> None:
        self.random = random.Random(seed)
        self.rig, self.threads, self.same = rig, threads, same
        self.pool = Pool(rig.driver, PoolConfig(max_size=2 if rig.postgres or rig.mysql else 1, timeout=2))
        self.going: list[Borrowing] = []  # their blocks and leases have not ended
        self.over: list[Borrowing] = []
        self.saved: set[int] = set()
        self.rows = 0

    def run(self) -> None:
        for _ in range(STEPS):
            self.random.choice((self.borrow, self.use, self.use, self.close, self.close_kept, self.end))()
        while self.going:
            self.end()
        until = time.monotonic() + 5
        while self.pool.stats().out and time.monotonic() < until:  # a helper thread may be giving one back
            time.sleep(0.01)
        assert self.pool.stats().out == 0
        with self.pool.acquire() as conn:
            assert {row[0] for row in self.rig.rows(conn, "SELECT id FROM item")} == self.saved
        self.pool.close(5)
        assert self.pool.stats().size == 0

    def has(self, conn: Any) -> Borrowing | None:
        """Who has this object now, by the rules: at most one."""
        holders = [one for one in self.going if one.conn is conn and not one.is_closed]
        assert len(holders) <= 1
        return holders[0] if holders else None

    def borrow(self) -> None:
        kind, thread = self.random.choice(KINDS), self.random.randrange(3)
        entered = self.pool.transaction(0.01) if kind == "transaction" else None

        def begin() -> Any:
            nonlocal entered
            if kind == "transaction":
                return entered.__enter__()
            entered = self.pool.acquire(0.01)
            return entered.resource if kind == "lease" else entered.__enter__()

        try:
            conn = self.threads[thread](begin)
        except (AcquireTimeout, NestedAcquire):
            return
        kept = [one for one in self.going if one.conn is conn]
        assert self.has(conn) is None, "two holders"
        assert all(one.in_block for one in kept), "lent before the lease was over"
        self.going.append(Borrowing(kind, thread, entered, conn))

    def use(self) -> None:
        """Use one whose block goes on, in whatever thread."""
        if not self.going:
            return
        one, thread = self.random.choice(self.going), self.random.randrange(3)
        holder = self.has(one.conn)
        if one is not holder and holder is not None:
            if thread == holder.thread:
                return  # it has borrowed the same object anew
            if not holder.in_block and thread != one.thread:
                return  # the docs say that this can't be told apart
        if holder is one and any(other.conn is one.conn for other in self.going if other is not one):
            may = thread == one.thread if one.in_block else self.only_closers_are_refused(one, thread)
        else:
            may = holder is one
        self.rows += 1
        worked = self.insert(one, thread, self.rows)
        assert worked is may, f"{one.kind} of {one.thread} used in {thread}"
        if worked:
            one.rows.append(self.rows)
            if one.kind != "transaction":
                self.saved.add(self.rows)

    def only_closers_are_refused(self, one: Borrowing, thread: int) -> bool:
        """A lease without a block serves any thread, but one that has closed the object, unless it is its borrower."""
        others = [other for other in self.going if other.conn is one.conn and other is not one]
        return thread == one.thread or all(other.thread != thread for other in others)

    def insert(self, one: Borrowing, thread: int, number: int) -> bool:
        try:
            self.threads[thread](lambda: self.rig.do(one.conn, f"INSERT INTO item VALUES ({number})"))
        except LeaseError:
            return False
        except self.rig.errors:
            assert one.lost
            return False
        return True

    def close(self) -> None:
        """Close one whose block goes on, in whatever thread."""
        if self.going:
            one = self.random.choice(self.going)
            self.close_in(one, self.random.randrange(3))

    def close_kept(self) -> None:
        """Close one of an ended borrowing, in whatever thread."""
        if self.over:
            self.close_in(self.random.choice(self.over), self.random.randrange(3))

    def close_in(self, one: Borrowing, thread: int) -> None:
        holder = self.has(one.conn)
        beside = holder is not None and any(o.conn is one.conn for o in self.going if o is not holder)
        try:
            self.threads[thread](one.conn.close)
        except LeaseError:
            assert self.same
            assert holder is not None
            assert holder.in_block
            assert holder.thread != thread
            return
        if holder is None or (not self.same and holder is not one):
            return
        if self.same and holder.in_block and holder.thread != thread:
            assert beside, "a close by a stranger"
            return  # refused as every use is, which a close is quiet about
        if self.same and beside and not holder.in_block and not self.only_closers_are_refused(holder, thread):
            return
        holder.is_closed = True
        holder.lost = holder.kind == "transaction" and bool(holder.rows)

    def end(self) -> None:
        if not self.going:
            return
        one = self.random.choice(self.going)
        error = self.random.choice((None, KeyError()))
        thread = one.thread if one.in_block else self.random.randrange(3)
        failed = False
        try:
            if one.kind == "lease":
                self.threads[thread](one.entered.release)
            else:
                kind = None if error is None else KeyError
                self.threads[thread](lambda: one.entered.__exit__(kind, error, None))
        except CommitFailed:
            failed = True
        assert failed is (one.lost and error is None)
        if one.kind == "transaction" and error is None and not one.lost:
            self.saved.update(one.rows)
        self.going.remove(one)
        self.over.append(one)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs(seed: int, rig: Rig, rig_name: str, threads: list[Thread]) -> None:
    """No two holders, every use as the docs say, saved is what was told to be, and nothing stays leased."""
    Program(seed, rig, threads, same=rig_name in SAME_OBJECT).run()


# -- three threads at once --------------------------------------------------------------------------------------------


class Crowd:
    """Three threads that write by their own connections, and close those of the others, and their own of before."""

    def __init__(self, seed: int, file: Path) -> None:
        self.seed = seed
        self.pool = Pool(SqliteDriver(f"sqlite:///{file}"), PoolConfig(max_size=2, timeout=5))
        self.seen: list[Any] = []  # connections, of ended borrowings and of those that go on
        self.saved: set[int] = set()
        self.faults: list[BaseException] = []

    def work(self, number: int) -> None:
        choose = random.Random(self.seed * 3 + number)
        try:
            for row in range(number * 1000, number * 1000 + 60):
                with contextlib.suppress(KeyError, LeaseError, CommitFailed):
                    self.block(choose, row)
        except BaseException as fault:  # noqa: BLE001  raised in the test
            self.faults.append(fault)

    def block(self, choose: random.Random, row: int) -> None:
        with self.pool.transaction() as conn:
            self.seen.append(conn)
            self.close_one(choose)
            conn.execute("INSERT INTO item VALUES (?)", (row,))
            self.close_one(choose)
            if choose.random() < 0.3:
                raise KeyError
            if choose.random() < 0.3:
                conn.commit()
                self.saved.add(row)
                conn.close()
                self.close_one(choose)
                with contextlib.suppress(LeaseError):
                    conn.execute("INSERT INTO item VALUES (?)", (row + 500,))
                    raise AssertionError("a closed connection works")
        self.saved.add(row)

    def close_one(self, choose: random.Random) -> None:
        """Close one that was seen, but not by its borrower."""
        conn = choose.choice(self.seen)
        if self.pool._early.is_stranger(conn) is not False:
            with contextlib.suppress(LeaseError):
                conn.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_three_threads_at_once(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never are two inside one connection, what was rolled back is not saved, and nothing stays leased."""
    inside: dict[int, int] = {}
    execute: Callable[..., Any] = _sqlite_session._execute

    def watched(cursor: sqlite3.Cursor, *arguments: Any) -> Any:
        me = threading.get_ident()
        assert inside.setdefault(id(cursor.connection), me) == me, "two threads inside one connection"
        try:
            return execute(cursor, *arguments)
        finally:
            inside.pop(id(cursor.connection), None)

    monkeypatch.setattr(_sqlite_session, "_execute", watched)
    with sqlite3.connect(tmp_path / "crowd.db") as conn:
        conn.execute("CREATE TABLE item (id integer PRIMARY KEY)")
    conn.close()
    crowd = Crowd(seed, tmp_path / "crowd.db")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=crowd.work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert crowd.faults == []
    assert crowd.pool.stats().out == 0
    with crowd.pool.acquire() as left:
        assert {row[0] for row in left.execute("SELECT id FROM item")} == crowd.saved
    crowd.pool.close(5)
