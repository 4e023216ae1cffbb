"""The borrowers that are threads: every way to borrow, every way to misuse it, and interrupts from outside."""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from soak_journal import Actor, Boom, Interrupt, Journal, SoftLimit, boom, may_happen, settle
from soak_ledger import NEVER, UNDONE, Work

from poolkit import CommitFailed, LeaseError, Pool, Registry, UnitOfWork
from poolkit.retrying import run_retryable

__all__ = ["Interrupter", "ThreadActor"]

_IDLE, _IN_TRANSACTION = 0, 2


class ThreadActor(Actor):
    """A thread that borrows until it is told to stop."""

    def __init__(self, number: int, seed: int, registry: Registry, journal: Journal) -> None:
        super().__init__(f"thread {number}")
        self.luck = random.Random(f"{seed}:{self.name}")
        self.registry, self.journal = registry, journal
        self.thread = threading.Thread(target=self._life, name=f"soak-{number}", daemon=True)
        self._pause = 0.0

    def _life(self) -> None:
        while not self.journal.over:
            try:
                while not self.journal.over:
                    self._step()
            except (Interrupt, SoftLimit):  # struck between two steps
                self.journal.met["struck between"] += 1

    def _step(self) -> None:
        kind = self.luck.choices(_KINDS, _WEIGHTS)[0]
        self.doing = kind.__name__.strip("_")
        try:
            with self._exposed():
                kind(self)
            self.journal.did[f"threads: {self.doing}"] += 1
        except (Interrupt, SoftLimit) as error:
            self.journal.met[type(error).__name__] += 1
        except BaseException as error:  # noqa: BLE001  anything else is what the soak is there to find
            self.journal.met[type(error).__name__] += 1
            if not may_happen(error, self.journal):
                self.journal.surprise(self, error)
            time.sleep(0.02)

    @contextlib.contextmanager
    def _exposed(self) -> Iterator[None]:
        """Let interrupts strike in here."""
        with self.lock:
            self.inside = True
        try:
            yield
        finally:
            with self.lock:
                self.inside = False

    def _shelter(self) -> None:
        """Have no interrupt from here on, to the end of this step: what follows is no business of the pool's."""
        with self.lock:
            self.inside = False

    # -- borrowing ------------------------------------------------------------------------------------------------

    def _pool(self) -> Pool[Any]:
        return self.registry.pool(self.luck.choice(["main", "main", "ledger"]))

    def _lease(self, pool: Pool[Any], timeout: float | None = None, *, urgent: bool = False) -> Any:
        """Borrow, and check how long it took and in what state the connection is."""
        began, struck = time.monotonic(), self.struck
        limit = pool.config.timeout if timeout is None else timeout
        try:
            lease = pool.acquire(timeout, urgent=urgent)
        finally:
            if struck == self.struck:
                self.journal.waited(self, time.monotonic() - began, limit)
        self._check(lease.resource, _IDLE)
        return lease

    def _check(self, conn: Any, *states: int) -> None:
        if _IDLE not in states and not conn.autocommit:
            states = (*states, _IDLE)  # its BEGIN rides with the first statement
        if conn.pgconn.transaction_status not in (*states, 4):  # 4: the server has just gone
            self.journal.note(f"{self.name}, in {self.doing}, got a connection in {conn.info.transaction_status!r}")

    @contextlib.contextmanager
    def _mine(self, conn: Any) -> Iterator[None]:
        self.journal.take(conn, self)
        try:
            yield
        finally:
            self.journal.leave(conn)

    # -- writing --------------------------------------------------------------------------------------------------

    def _write(self, conn: Any, work: Work, began: float) -> None:
        first, count = work.rows + 1, self.luck.randint(1, 4)
        work.rows += count
        if self.luck.random() < 0.5:
            sql = f"INSERT INTO {work.table} SELECT %s, generate_series(%s::int, %s::int)"
            conn.execute(sql, (work.unit, first, first + count - 1))
        else:
            last = first + count - 1
            conn.execute(f"INSERT INTO {work.table} SELECT {work.unit}, generate_series({first}, {last})")
        self.journal.served(f"threads-{work.table}", began)

    def _begin(self, table: str) -> tuple[Work, float]:
        return self.journal.ledger.begin(self.journal.ledger.number(), table), time.monotonic()

    def _statement(self) -> None:
        """One statement in autocommit."""
        pool = self._pool()
        work, began = self._begin(pool.name)
        asked = False
        try:
            lease = self._lease(pool)
            with lease as conn, self._mine(conn):
                asked = True
                self._write(conn, work, began)
        except BaseException as error:
            settle(work, self, error, asked=asked)
            raise
        settle(work, self, None, asked=True)

    def _transaction(self) -> None:
        self._in_transaction(self._write)

    def _in_transaction(self, body: Callable[[Any, Work, float], object]) -> None:
        pool = self._pool()
        work, began = self._begin(pool.name)
        asked = False
        try:
            with pool.transaction() as conn, self._mine(conn):
                self._check(conn, _IN_TRANSACTION)
                self._write(conn, work, began)
                body(conn, work, began)
                asked = True
        except BaseException as error:
            settle(work, self, error, asked=asked)
            raise
        settle(work, self, None, asked=True)

    def _savepoints(self) -> None:
        """Nested blocks, some of which fail."""

        def nest(conn: Any, work: Work, began: float, depth: int = 0) -> None:
            self._write(conn, work, began)
            try:
                with conn.transaction():
                    conn.execute(f"INSERT INTO {work.table} VALUES ({work.unit}, {NEVER + depth})")
                    if depth < 2:
                        with conn.transaction():
                            conn.execute(f"INSERT INTO {work.table} VALUES ({work.unit}, {NEVER + 10 + depth})")
                    if self.luck.random() < 0.5:
                        conn.execute("SELECT 1/0")
                    boom()
            except (Boom, psycopg.errors.DivisionByZero):
                pass
            if depth < 2:
                with conn.transaction():
                    nest(conn, work, began, depth + 1)

        self._in_transaction(nest)

    def _user_error(self) -> None:
        def body(_conn: Any, _work: Work, _began: float) -> None:
            raise self.luck.choice([Boom, Interrupt])

        self._in_transaction(body)

    def _ignored_failure(self) -> None:
        """A failed statement whose error is swallowed: the unit must say that nothing was saved."""

        def body(conn: Any, _work: Work, _began: float) -> None:
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                conn.execute("SELECT 1/0")

        self._refused(body)

    def _refused_commit(self) -> None:
        """A row that is there twice, which only the COMMIT finds out."""
        self._refused(lambda conn, work, _: conn.execute(f"INSERT INTO {work.table} VALUES ({work.unit}, 1)"))

    def _refused(self, body: Callable[[Any, Work, float], object]) -> None:
        try:
            self._in_transaction(body)
        except (CommitFailed, psycopg.errors.UniqueViolation):
            return
        self.journal.note(f"{self.name}, in {self.doing}: the COMMIT should have failed")

    def _statement_timeout(self) -> None:
        def body(conn: Any, _work: Work, _began: float) -> None:
            conn.execute("SET LOCAL statement_timeout = 5")
            conn.execute("SELECT pg_sleep(0.5)")

        self._in_transaction(body)

    def _slow(self) -> None:
        self._in_transaction(lambda conn, _work, _began: conn.execute("SELECT pg_sleep(0.01)"))

    # -- contention -----------------------------------------------------------------------------------------------

    def _bump(self, conn: Any, work: Work, *rows: int) -> None:
        for row in rows:
            work.bumps += 1
            conn.execute(f"UPDATE counter SET value = value + 1 WHERE id = {row}")

    def _deadlock(self) -> None:
        """Two rows in either order."""
        self._in_transaction(lambda conn, work, _: self._bump(conn, work, *self.luck.sample([1, 2], 2)))

    def _retried(self) -> None:
        """Serialization failures and deadlocks, tried again."""
        unit = self.journal.ledger.number()
        names = self.luck.choice([["main"], ["main"], ["main", "ledger"]])
        works = [self.journal.ledger.begin(unit, name) for name in names]
        began, asked = time.monotonic(), False

        def attempt() -> None:
            nonlocal asked
            asked = False
            for work in works:
                work.rows = work.bumps = 0
                conn = uow.get(work.table)
                conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                self._write(conn, work, began)
            conn = uow.get("main")
            conn.execute("SELECT sum(value) FROM counter")
            self._bump(conn, works[0], self.luck.choice([1, 2, 3]))
            asked = True

        uow = UnitOfWork(self.registry, self.doing)
        try:
            with uow:
                run_retryable(uow, attempt, 3)
        except BaseException as error:
            self._settle(works, error, asked=asked, committed=uow.committed)
            raise
        self._settle(works, None, asked=True, committed=True)

    # -- units of work --------------------------------------------------------------------------------------------

    def _unit(self) -> None:
        self._unit_of([self.luck.choice(["main", "ledger"])])

    def _two_names(self) -> None:
        names = ["main", "ledger"]
        self._unit_of(names if self.luck.random() < 0.9 else names[::-1])

    def _doomed(self) -> None:
        self._unit_of(["main"], doom=True)

    def _unit_of(self, names: list[str], *, doom: bool = False) -> None:
        unit, works, asked = self.journal.ledger.number(), [], False
        end = self.luck.random()
        uow = UnitOfWork(self.registry, self.doing)
        try:
            with uow:
                for name in names:
                    began = time.monotonic()
                    conn = uow.get(name)
                    works.append(self.journal.ledger.begin(unit, name))
                    self._write(conn, works[-1], began)
                if end < 0.1:
                    boom()
                if end < 0.15:  # the last COMMIT is refused, and those before it were not
                    uow.get(names[-1]).execute(f"INSERT INTO {names[-1]} VALUES ({unit}, 1)")
                if doom:
                    uow.doom()
                asked = not doom
                if end > 0.9 and not doom:
                    uow.commit()
                    self._check(uow.get(names[0]), _IDLE)
        except BaseException as error:
            self._settle(works, error, asked=asked, committed=uow.committed)
            raise
        self._settle(works, None if not doom else Boom(), asked=asked, committed=uow.committed)

    def _settle(self, works: list[Work], error: BaseException | None, *, asked: bool, committed: bool | None) -> None:
        for work in works:
            settle(work, self, error, asked=asked)
        if committed and error is not None:  # what came after the COMMIT failed
            for work in works:
                settle(work, self, None, asked=True)

    # -- the verbs, and their misuse ------------------------------------------------------------------------------

    def _impatient(self) -> None:
        with self._lease(self._pool(), timeout=0.002) as conn, self._mine(conn):
            conn.execute("SELECT 1")

    def _urgent(self) -> None:
        with self._lease(self._pool(), urgent=True) as conn, self._mine(conn):
            conn.execute("SELECT 1")

    def _discard(self) -> None:
        lease = self._lease(self._pool())
        with self._mine(lease.resource):
            lease.label("to be discarded")
        lease.discard("soak")

    def _detach(self) -> None:
        lease = self._lease(self._pool())
        self._shelter()  # who is struck between the two calls of the next line has lost a connection of his own
        with lease.detach() as conn:  # closes it
            conn.execute("SELECT 1")

    def _drop_lease(self) -> None:
        """Forget to give it back, with a transaction open: the garbage collector does it."""
        pool = self._pool()
        work, began = self._begin(pool.name)
        work.outcome = UNDONE  # no COMMIT will ever be sent
        lease = self._lease(pool)
        conn = lease.resource
        with self._mine(conn):
            conn.execute("BEGIN")
            self._write(conn, work, began)
        del lease

    def _return_twice(self) -> None:
        lease = self._lease(self._pool())
        lease.release()
        for use in (lease.release, lease.discard, lease.detach, lambda: lease.resource):
            self._must_refuse(use)

    def _return_at_once(self) -> None:
        """Two threads give one lease back: one of them is refused."""
        lease, struck = self._lease(self._pool()), self.struck
        refused: list[BaseException] = []

        def give() -> None:
            try:
                lease.release()
            except BaseException as error:  # noqa: BLE001  looked at below
                refused.append(error)

        other = threading.Thread(target=give, name="soak-other", daemon=True)
        try:
            other.start()
            give()
        finally:
            other.join()
        if struck == self.struck and [type(error) for error in refused] != [LeaseError]:
            self.journal.note(f"{self.name}: two threads returned a lease; refused: {refused!r}")

    def _must_refuse(self, use: Callable[[], object]) -> None:
        try:
            use()
        except LeaseError:
            return
        self.journal.note(f"{self.name}: a lease that had ended was used")

    def _return_busy(self) -> None:
        """Give back a connection on which another thread runs a statement."""
        lease = self._lease(self._pool())
        self._shelter()  # or the other one might begin only when the next borrower has the connection
        conn = lease.resource

        def run() -> None:
            with contextlib.suppress(psycopg.Error, OSError, LeaseError):  # hung up on, or refused
                conn.execute("SELECT pg_sleep(0.05)")

        other = threading.Thread(target=run, name="soak-other", daemon=True)
        try:
            other.start()
            while not conn.lock.locked() and other.is_alive():
                time.sleep(0.001)
        finally:
            lease.release()
            other.join()

    def _look(self) -> None:
        pool = self._pool()
        stats = pool.stats()
        if stats.size != stats.idle + stats.out + stats.opening + stats.resetting:
            self.journal.note(f"the numbers don't add up: {stats}")
        str(pool.holders())
        repr(pool)

    def _nested(self) -> None:
        """Two connections of one pool at once; may be refused, or time out."""
        pool = self._pool()
        with self._lease(pool) as one, self._mine(one), self._lease(pool, timeout=0.1) as two, self._mine(two):
            two.execute("SELECT 1")


_TABLE: dict[Callable[[ThreadActor], None], int] = {
    ThreadActor._statement: 20,
    ThreadActor._transaction: 20,
    ThreadActor._unit: 20,
    ThreadActor._two_names: 15,
    ThreadActor._savepoints: 6,
    ThreadActor._user_error: 4,
    ThreadActor._ignored_failure: 3,
    ThreadActor._refused_commit: 3,
    ThreadActor._statement_timeout: 2,
    ThreadActor._slow: 5,
    ThreadActor._deadlock: 2,
    ThreadActor._retried: 3,
    ThreadActor._doomed: 2,
    ThreadActor._impatient: 4,
    ThreadActor._urgent: 2,
    ThreadActor._discard: 2,
    ThreadActor._detach: 2,
    ThreadActor._drop_lease: 2,
    ThreadActor._return_twice: 2,
    ThreadActor._return_at_once: 2,
    ThreadActor._return_busy: 2,
    ThreadActor._look: 4,
    ThreadActor._nested: 2,
}
_KINDS, _WEIGHTS = list(_TABLE), list(_TABLE.values())


class Interrupter:
    """Throws exceptions into the threads, at whatever they are doing there."""

    def __init__(self, seed: int, actors: list[ThreadActor], every: float) -> None:
        self._luck = random.Random(f"{seed}:interrupter")
        self._actors = actors
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-interrupter", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._luck.uniform(0, 2 * self._every)):
            victim = self._luck.choice(self._actors)
            error = self._luck.choice([Interrupt, SoftLimit])
            with victim.lock:
                if victim.inside and victim.thread.ident is not None:
                    victim.struck += 1
                    ident = ctypes.c_ulong(victim.thread.ident)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(error))
