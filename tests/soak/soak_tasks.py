"""The borrowers that are tasks, over psycopg and over asyncpg: what the threads do, awaited, and cancelled anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import psycopg
from soak_journal import Actor, Boom, Journal, boom, may_happen, settle
from soak_ledger import NEVER, UNDONE, Work

from poolkit import AsyncPool, AsyncUnitOfWork, CommitFailed, LeaseError, Registry
from poolkit.retrying import run_retryable_async

__all__ = ["TaskActor"]

_DIVISION = (psycopg.errors.DivisionByZero, asyncpg.DivisionByZeroError)
_TWICE = (psycopg.errors.UniqueViolation, asyncpg.UniqueViolationError)
Body = Callable[[Any, Work, float], Awaitable[object]]


class TaskActor(Actor):
    """A task that borrows until it is told to stop. `library` is the driver's: psycopg or asyncpg."""

    def __init__(
        self, library: str, number: int, seed: int, *, registry: Registry, threads: Registry, journal: Journal
    ) -> None:
        super().__init__(f"{library} task {number}")
        self.library = library
        self.luck = random.Random(f"{seed}:{self.name}")
        self.registry, self.threads, self.journal = registry, threads, journal
        self.reaped = False
        self.task: asyncio.Task[None] | None = None

    async def life(self) -> None:
        """Borrow."""
        while not self.journal.over:
            try:
                await self._step()
            except asyncio.CancelledError:
                if not self.reaped:
                    raise
                self.reaped = False
                self.journal.met["CancelledError"] += 1
                if self.task is not None:
                    self.task.uncancel()

    async def _step(self) -> None:
        kind = self.luck.choices(_KINDS, _WEIGHTS)[0]
        self.doing = kind.__name__.strip("_")
        try:
            await kind(self)
            self.journal.did[f"{self.library}: {self.doing}"] += 1
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  anything else is what the soak is there to find
            self.journal.met[type(error).__name__] += 1
            if not may_happen(error, self.journal):
                self.journal.surprise(self, error)
            await asyncio.sleep(0.02)

    # -- borrowing ------------------------------------------------------------------------------------------------

    def _pool(self) -> AsyncPool[Any]:
        return self.registry.async_pool(self.luck.choice(["main", "main", "ledger"]))

    async def _lease(self, pool: AsyncPool[Any], timeout: float | None = None, *, urgent: bool = False) -> Any:
        """Borrow, and check how long it took and in what state the connection is."""
        began = time.monotonic()
        limit = pool.config.timeout if timeout is None else timeout
        try:
            lease = await pool.acquire(timeout, urgent=urgent)
        finally:
            self.journal.waited(self, time.monotonic() - began, limit)
        self._check(lease.resource, inside=False)
        return lease

    def _check(self, conn: Any, *, inside: bool) -> None:
        if self.library == "asyncpg":
            right = conn.is_closed() or conn.is_in_transaction() == inside
        else:
            begins = 0 if not conn.autocommit else 2  # its BEGIN rides with the first statement
            right = conn.pgconn.transaction_status in (*((begins, 2) if inside else (0,)), 4)  # 4: the server has gone
        if not right:
            self.journal.note(f"{self.name}, in {self.doing}, got a connection with inside={not inside}: {conn!r}")

    @contextlib.contextmanager
    def _mine(self, conn: Any) -> Iterator[None]:
        self.journal.take(conn, self)
        try:
            yield
        finally:
            self.journal.leave(conn)

    # -- writing --------------------------------------------------------------------------------------------------

    async def _write(self, conn: Any, work: Work, began: float) -> None:
        first, count = work.rows + 1, self.luck.randint(1, 4)
        work.rows += count
        last = first + count - 1
        if self.luck.random() < 0.5:
            await conn.execute(f"INSERT INTO {work.table} SELECT {work.unit}, generate_series({first}, {last})")
        elif self.library == "asyncpg":
            sql = f"INSERT INTO {work.table} SELECT $1, generate_series($2::int, $3::int)"
            await conn.execute(sql, work.unit, first, last)
        else:
            sql = f"INSERT INTO {work.table} SELECT %s, generate_series(%s::int, %s::int)"
            await conn.execute(sql, (work.unit, first, last))
        self.journal.served(f"{self.library}-{work.table}", began)

    def _begin(self, table: str) -> tuple[Work, float]:
        return self.journal.ledger.begin(self.journal.ledger.number(), table), time.monotonic()

    async def _statement(self) -> None:
        """One statement in autocommit."""
        pool = self._pool()
        work, began = self._begin(pool.name)
        asked = False
        try:
            async with pool.acquire() as conn:
                with self._mine(conn):
                    self._check(conn, inside=False)
                    asked = True
                    await self._write(conn, work, began)
        except BaseException as error:
            settle(work, self, error, asked=asked)
            raise
        settle(work, self, None, asked=True)

    async def _transaction(self) -> None:
        await self._in_transaction(self._write)

    async def _in_transaction(self, body: Body) -> None:
        pool = self._pool()
        work, began = self._begin(pool.name)
        asked = False
        try:
            async with pool.transaction() as conn:
                with self._mine(conn):
                    self._check(conn, inside=True)
                    await self._write(conn, work, began)
                    await body(conn, work, began)
                    asked = True
        except BaseException as error:
            settle(work, self, error, asked=asked)
            raise
        settle(work, self, None, asked=True)

    async def _savepoints(self) -> None:
        """Nested blocks, some of which fail."""

        async def nest(conn: Any, work: Work, began: float, depth: int = 0) -> None:
            await self._write(conn, work, began)
            try:
                async with conn.transaction():
                    await conn.execute(f"INSERT INTO {work.table} VALUES ({work.unit}, {NEVER + depth})")
                    if depth < 2:
                        async with conn.transaction():
                            await conn.execute(f"INSERT INTO {work.table} VALUES ({work.unit}, {NEVER + 10 + depth})")
                    if self.luck.random() < 0.5:
                        await conn.execute("SELECT 1/0")
                    boom()
            except (Boom, *_DIVISION):
                pass
            if depth < 2:
                async with conn.transaction():
                    await nest(conn, work, began, depth + 1)

        await self._in_transaction(nest)

    async def _user_error(self) -> None:
        async def body(_conn: Any, _work: Work, _began: float) -> None:
            boom()

        await self._in_transaction(body)

    async def _ignored_failure(self) -> None:
        """A failed statement whose error is swallowed: the unit must say that nothing was saved."""

        async def body(conn: Any, _work: Work, _began: float) -> None:
            with contextlib.suppress(*_DIVISION):
                await conn.execute("SELECT 1/0")

        await self._refused(body)

    async def _refused_commit(self) -> None:
        """A row that is there twice, which only the COMMIT finds out."""
        await self._refused(lambda conn, work, _: conn.execute(f"INSERT INTO {work.table} VALUES ({work.unit}, 1)"))

    async def _refused(self, body: Body) -> None:
        try:
            await self._in_transaction(body)
        except (CommitFailed, *_TWICE):
            return
        self.journal.note(f"{self.name}, in {self.doing}: the COMMIT should have failed")

    async def _statement_timeout(self) -> None:
        async def body(conn: Any, _work: Work, _began: float) -> None:
            await conn.execute("SET LOCAL statement_timeout = 5")
            await conn.execute("SELECT pg_sleep(0.5)")

        await self._in_transaction(body)

    async def _slow(self) -> None:
        await self._in_transaction(lambda conn, _work, _began: conn.execute("SELECT pg_sleep(0.01)"))

    async def _gives_up(self) -> None:
        """A deadline of the borrower's own, that strikes somewhere."""
        try:
            async with asyncio.timeout(self.luck.random() * 0.02):
                await self._slow()
        except TimeoutError:
            self.journal.met["asyncio.timeout"] += 1

    # -- contention -----------------------------------------------------------------------------------------------

    async def _bump(self, conn: Any, work: Work, *rows: int) -> None:
        for row in rows:
            work.bumps += 1
            await conn.execute(f"UPDATE counter SET value = value + 1 WHERE id = {row}")

    async def _deadlock(self) -> None:
        """Two rows in either order."""
        await self._in_transaction(lambda conn, work, _: self._bump(conn, work, *self.luck.sample([1, 2], 2)))

    async def _retried(self) -> None:
        """Serialization failures and deadlocks, tried again."""
        unit = self.journal.ledger.number()
        names = self.luck.choice([["main"], ["main"], ["main", "ledger"]])
        works = [self.journal.ledger.begin(unit, name) for name in names]
        began, asked = time.monotonic(), False

        async def attempt() -> None:
            nonlocal asked
            asked = False
            for work in works:
                work.rows = work.bumps = 0
                conn = await uow.get(work.table)
                await conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                await self._write(conn, work, began)
            conn = await uow.get("main")
            await conn.execute("SELECT sum(value) FROM counter")
            await self._bump(conn, works[0], self.luck.choice([1, 2, 3]))
            asked = True

        uow = AsyncUnitOfWork(self.registry, self.doing)
        try:
            async with uow:
                await run_retryable_async(uow, attempt, 3)
        except BaseException as error:
            self._settle(works, error, asked=asked, committed=uow.committed)
            raise
        self._settle(works, None, asked=True, committed=True)

    # -- units of work --------------------------------------------------------------------------------------------

    async def _unit(self) -> None:
        await self._unit_of([self.luck.choice(["main", "ledger"])])

    async def _two_names(self) -> None:
        names = ["main", "ledger"]
        await self._unit_of(names if self.luck.random() < 0.9 else names[::-1])

    async def _doomed(self) -> None:
        await self._unit_of(["main"], doom=True)

    async def _unit_of(self, names: list[str], *, doom: bool = False) -> None:
        unit, works, asked = self.journal.ledger.number(), [], False
        end = self.luck.random()
        uow = AsyncUnitOfWork(self.registry, self.doing)
        try:
            async with uow:
                for name in names:
                    began = time.monotonic()
                    conn, _ = await asyncio.gather(uow.get(name), uow.get(name))
                    works.append(self.journal.ledger.begin(unit, name))
                    await self._write(conn, works[-1], began)
                if end < 0.1:
                    boom()
                if end < 0.15:  # the last COMMIT is refused, and those before it were not
                    await (await uow.get(names[-1])).execute(f"INSERT INTO {names[-1]} VALUES ({unit}, 1)")
                if doom:
                    uow.doom()
                asked = not doom
                if end > 0.9 and not doom:
                    await uow.commit()
                    self._check(await uow.get(names[0]), inside=False)
        except BaseException as error:
            self._settle(works, error, asked=asked, committed=uow.committed)
            raise
        self._settle(works, None if not doom else Boom(), asked=asked, committed=uow.committed)

    async def _sync_in_loop(self) -> None:
        """A sync connection from the loop, as `def` endpoints have it: used in a thread."""
        unit, asked = self.journal.ledger.number(), False
        works: list[Work] = []
        uow = AsyncUnitOfWork(self.threads, self.doing)
        try:
            async with uow:
                conn = await uow.get_sync("main")
                works.append(self.journal.ledger.begin(unit, "main"))
                works[0].rows = 2
                await _in_thread(conn.execute, f"INSERT INTO main SELECT {unit}, generate_series(1, 2)")
                asked = True
        except BaseException as error:
            self._settle(works, error, asked=asked, committed=uow.committed)
            raise
        self._settle(works, None, asked=asked, committed=uow.committed)

    def _settle(self, works: list[Work], error: BaseException | None, *, asked: bool, committed: bool | None) -> None:
        for work in works:
            settle(work, self, error, asked=asked)
        if committed and error is not None:  # what came after the COMMIT failed
            for work in works:
                settle(work, self, None, asked=True)

    # -- the verbs, and their misuse ------------------------------------------------------------------------------

    async def _impatient(self) -> None:
        lease = await self._lease(self._pool(), timeout=0.002)
        with self._mine(lease.resource):
            await lease.resource.execute("SELECT 1")
        await lease.release()

    async def _urgent(self) -> None:
        lease = await self._lease(self._pool(), urgent=True)
        try:
            with self._mine(lease.resource):
                await lease.resource.execute("SELECT 1")
        finally:
            await lease.release()

    async def _discard(self) -> None:
        (await self._lease(self._pool())).discard("soak")

    async def _detach(self) -> None:
        conn = (await self._lease(self._pool())).detach()
        try:
            await conn.execute("SELECT 1")
        finally:
            if self.library == "asyncpg":
                conn.terminate()
            else:
                await conn.close()

    async def _drop_lease(self) -> None:
        """Forget to give it back, with a transaction open: the garbage collector does it."""
        pool = self._pool()
        work, began = self._begin(pool.name)
        work.outcome = UNDONE  # no COMMIT will ever be sent
        lease = await self._lease(pool)
        conn = lease.resource
        with self._mine(conn):
            await conn.execute("BEGIN")
            await self._write(conn, work, began)
        del lease

    async def _return_twice(self) -> None:
        lease = await self._lease(self._pool())
        await lease.release()
        for use in (lease.discard, lease.detach, lambda: lease.resource):
            self._must_refuse(use)
        try:
            await lease.release()
        except LeaseError:
            return
        self.journal.note(f"{self.name}: a lease was given back twice")

    def _must_refuse(self, use: Callable[[], object]) -> None:
        with contextlib.suppress(LeaseError):
            use()
            self.journal.note(f"{self.name}: a lease that had ended was used")

    async def _return_busy(self) -> None:
        """Give back a connection on which another task runs a statement."""
        lease = await self._lease(self._pool())
        conn = lease.resource

        async def run() -> None:
            # asyncpg has no better word for a statement whose answer comes while the connection is being closed
            odd = (asyncpg.InternalClientError, LeaseError)  # or it is refused, for it is not its borrower's any more
            with contextlib.suppress(psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, *odd):
                await conn.execute("SELECT pg_sleep(0.05)")

        other = asyncio.create_task(run())
        try:
            await asyncio.sleep(0.005)
        finally:
            await lease.release()
            await asyncio.wait([other])

    async def _look(self) -> None:
        pool = self._pool()
        stats = pool.stats()
        if stats.size != stats.idle + stats.out + stats.opening + stats.resetting:
            self.journal.note(f"the numbers don't add up: {stats}")
        str((pool, pool.holders()))

    async def _nested(self) -> None:
        """Two connections of one pool at once; may be refused, or time out."""
        pool = self._pool()
        async with pool.acquire() as one, pool.acquire(timeout=0.1) as two:
            with self._mine(one), self._mine(two):
                await two.execute("SELECT 1")


async def _in_thread(work: Callable[[str], object], statement: str) -> None:
    """Run it in a thread, and leave only when the thread is through: nobody else may be using the connection then."""
    using = asyncio.ensure_future(asyncio.to_thread(work, statement))
    try:
        await asyncio.shield(using)
    finally:
        await asyncio.wait([using])
        if not using.cancelled():
            using.exception()  # a cancelled caller does not ask


_TABLE: dict[Callable[[TaskActor], Awaitable[None]], int] = {
    TaskActor._statement: 20,
    TaskActor._transaction: 20,
    TaskActor._unit: 20,
    TaskActor._two_names: 15,
    TaskActor._savepoints: 6,
    TaskActor._user_error: 4,
    TaskActor._ignored_failure: 3,
    TaskActor._refused_commit: 3,
    TaskActor._statement_timeout: 2,
    TaskActor._slow: 5,
    TaskActor._gives_up: 5,
    TaskActor._deadlock: 2,
    TaskActor._retried: 3,
    TaskActor._doomed: 2,
    TaskActor._sync_in_loop: 3,
    TaskActor._impatient: 4,
    TaskActor._urgent: 2,
    TaskActor._discard: 2,
    TaskActor._detach: 2,
    TaskActor._drop_lease: 2,
    TaskActor._return_twice: 2,
    TaskActor._return_busy: 2,
    TaskActor._look: 4,
    TaskActor._nested: 2,
}
_KINDS, _WEIGHTS = list(_TABLE), list(_TABLE.values())
