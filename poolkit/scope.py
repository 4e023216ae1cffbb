"""UnitOfWork: what one request, command or message does, from the first use of a connection to one COMMIT or ROLLBACK.

Nothing is leased before `get` is first called for a name, and the second call gives the same resource. `finish` ends
the unit once: it commits or rolls back everything and gives it back; calling it again does nothing. Whoever asks
after that (a streamed body, a background task) gets a resource without a transaction, given back by `close`.

    with poolkit.unit_of_work() as uow:
        uow.get().execute("INSERT ...")

`AsyncUnitOfWork` is the same, awaited. Both run the same steps (`ending.finish`); only how a step is done differs.
"""

from __future__ import annotations

import asyncio
import logging
from _thread import RLock, allocate_lock
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, Unpack

from poolkit import ending
from poolkit.aio import _log_orphan, shielded
from poolkit.bridge import acquire_from_loop, begin_from_loop, returns_at_once, transact
from poolkit.driver import TransactionArguments, TransactionOp, TransactionOptions
from poolkit.ending import Reason
from poolkit.enlisted import (
    Enlisted,
    are_the_parents,
    do,
    do_async,
    end,
    end_async,
    failed,
    hold,
    is_plain,
    lease_async,
    lease_sync,
    run,
)
from poolkit.errors import UnitOfWorkError
from poolkit.registry import Registry
from poolkit.threads import Lease
from poolkit.unit import Unit

__all__ = [
    "AsyncUnitOfWork",
    "UnitOfWork",
]

logger = logging.getLogger("poolkit")


class UnitOfWork(Unit):
    """A unit of work for threads. Integrations make one per request; elsewhere use `unit_of_work()`.

    Threads that share it get the same resources.
    """

    def __init__(self, registry: Registry, label: str = "", rollback_on: Callable[[int], bool] | None = None) -> None:
        super().__init__(registry, label, rollback_on)
        self._leasing = RLock()  # held while a resource is waited for; the end does not wait for that
        self._books = allocate_lock()  # held for a moment, by whoever writes down or takes over what is leased

    def get(self, name: str = "default", **options: Unpack[TransactionArguments]) -> Any:
        """Return the unit's resource of that name: leased, and a transaction begun, on first use.

        A shared client is returned as it is. After the end the resource is fresh and without a transaction. The options
        are those of the transaction, as of `Pool.transaction`: they hold for each BEGIN of the unit, and to ask again
        with others is a `UnitOfWorkError`. Raises what `Pool.acquire` raises, and `ConfigError` for an unknown name.
        """
        entry = (self._held() if self._ended else self._enlisted).get(name)
        if entry is not None:
            if entry.lease.given_back:
                self._forget_given_back()
                entry = None
            elif not options:
                return entry.lease.resource
        chosen = TransactionOptions.of(**options) if options else None
        if chosen is not None:
            self._agree(name, entry, chosen)
        if entry is None:
            if self.registry.shares(name):
                self._refuse_options(name, chosen)
                return self.registry.client(name).get()
            entry = self._enlist(name, chosen)
        return entry.lease.resource

    def _enlist(self, name: str, options: TransactionOptions | None = None) -> Enlisted:
        """Lease a resource. Where the unit ends meanwhile, nobody would end the lease: so it is ended here."""
        closings = self._closings
        with self._leasing:
            late = self._ended
            entry = (self._late if late else self._enlisted).get(name)
            if entry is not None:
                self._agree(name, entry, options)
                return entry
            pool = self.registry.pool(name)
            if late or options is not None:
                self._prepare(name, pool, options)
            driver, watcher = (None, None) if late else (pool.transactional, self._watcher())
            entry = lease_sync(pool, name, self.label, driver, options, watcher)
            if self._write_down(name, entry, late=late, closings=closings):
                return entry
        do(ending.Step("rollback", entry))
        entry.lease.release()
        raise UnitOfWorkError(f"{self.label}: this unit of work ended while {name!r} was waited for")

    def _write_down(self, name: str, entry: Enlisted, *, late: bool, closings: int) -> bool:
        with self._books:
            if self._ended is not late or self._closings != closings:
                return False
            (self._late if late else self._enlisted)[name] = entry
            return True

    def _forget_given_back(self) -> None:
        with self._books:  # or another thread's new one would be forgotten in the place of the one that was closed
            super()._forget_given_back()

    def _take_late(self) -> list[Enlisted]:
        with self._books:
            self._closings += 1
            late = list(self._late.values())
            self._late.clear()
            return late

    def commit(self) -> None:
        """Commit now, and end the unit: what comes after has no transaction. Raises as `finish` does."""
        self._check_open("commit")
        self.finish()

    def restart(self) -> None:
        """Roll back and begin again on the same connections: for work that is tried once more."""
        self._check_open("restart")
        self._forget_given_back()
        for entry in self._enlisted.values():
            if entry.transactional is not None:
                entry.transactional.rollback(entry.lease.resource)
                entry.begin()
                entry.watch()
        self._forget_attempt()

    def commit_in_place(self) -> None:
        """Commit what is open now and keep the connections: the first half of `finish`, for `run_retryable`.

        Several are left to `finish`: no other attempt is possible there, and it tells which of them did what.
        """
        self._forget_given_back()
        if len(self._enlisted) > 1:
            return
        self._check_aborted()
        for entry in self._enlisted.values():
            if entry.transactional is not None:
                entry.transactional.commit(entry.lease.resource)

    def finish(self, error: BaseException | None = None, *, status: int | None = None) -> None:
        """End the unit: commit, or roll back after `error`, doom, or a veto on `status`; give everything back.

        Idempotent. Raises the driver's error where the only COMMIT failed, else `CommitFailed`.
        """
        if self._ended:
            return
        reason = self._verdict(error, status)
        with self._books:
            enlisted = self._begin_end()
        if enlisted and are_the_parents(enlisted):
            return
        if enlisted:
            outcome = end(enlisted, commit=reason is None)
            if outcome is not None:
                reason, failure = self._judge(outcome, reason)
                self._call_hooks(reason)
                self._raise(failure)
                return
        if self._hooks is None and self._failure is None:
            self._committed = reason is None  # `_note_outcome`, a call less
            self._reason = reason
            return
        self._call_hooks(reason)
        self._raise()

    def _call_hooks(self, reason: Reason | None) -> None:
        kind = self._note_outcome(reason)
        if self._hooks is not None:
            self._hooks.run(kind)

    def let_go(self) -> list[str]:
        """Give back what no transaction is open on, the unit's or its user's; return the names of what stays.

        For long work that needs none of it: `get` leases anew. No other thread may be at work with it.
        """
        self._forget_given_back()
        with self._books:
            leased = [(held, name, entry) for held in (self._enlisted, self._late) for name, entry in held.items()]
            free = [(held, name, entry) for held, name, entry in leased if not entry.in_transaction]
            for held, name, _ in free:
                del held[name]
        self._release([entry for *_, entry in free])
        return [name for held, name, _ in leased if name in held]

    def close(self, error: BaseException | None = None) -> None:
        """Give back what was asked for after the end; a unit never finished is rolled back. Never raises for that."""
        if not self._ended:
            self._leave_unfinished()
            self.finish(error)
        late = self._take_late()
        if late:
            self._release(late, error)

    def _release(self, entries: list[Enlisted], error: BaseException | None = None) -> None:
        """Give back what is in no transaction of the unit's. Raises interrupts only."""
        outcome: ending.Outcome[Enlisted] = ending.Outcome()
        for entry in entries:
            outcome.note("release", entry, do(ending.Step("release", entry, error)))
        self._report(outcome)
        if outcome.interrupt is not None:
            raise outcome.interrupt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.finish(error)
        finally:
            self.close(error)


class AsyncUnitOfWork(Unit):
    """A unit of work for asyncio."""

    _awaits_hooks = True

    def __init__(self, registry: Registry, label: str = "", rollback_on: Callable[[int], bool] | None = None) -> None:
        super().__init__(registry, label, rollback_on)
        self._lock: asyncio.Lock | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._under_way: asyncio.Future[None] | None = None
        self._committed_in_place = False
        self._refusal = ""

    async def get(self, name: str = "default", **options: Unpack[TransactionArguments]) -> Any:
        """Return the unit's resource of that name: leased, and a transaction begun, on first use.

        Tasks of one request that ask at once get the same one. The options are those of `UnitOfWork.get`. Raises what
        `AsyncPool.acquire` raises.
        """
        entry = self._held().get(name)
        if entry is not None and entry.lease.given_back:
            self._forget_given_back()
            entry = None
        chosen = TransactionOptions.of(**options) if options else None
        if chosen is not None:
            self._agree(name, entry, chosen)
        if entry is None:
            if self.registry.shares(name):
                self._refuse_options(name, chosen)
                return self.registry.client(name).get()
            entry = await self._enlist(name, self._lease, name, chosen)
        return entry.lease.resource

    async def get_sync(self, name: str = "default", **options: Unpack[TransactionArguments]) -> Any:
        """The same from the thread pool, for `def` endpoints: no thread is blocked while this waits."""
        key = (name, "sync")
        entry = self._held().get(key)
        if entry is not None and entry.lease.given_back:
            self._forget_given_back()
            entry = None
        chosen = TransactionOptions.of(**options) if options else None
        if chosen is not None:
            self._agree(name, entry, chosen)
        if entry is None:
            if self.registry.shares(name):
                self._refuse_options(name, chosen)
                return self.registry.client(name).get()
            entry = await self._enlist(key, self._lease_sync, name, chosen)
        return entry.lease.resource

    async def _enlist(
        self,
        key: Any,
        lease: Callable[[str, TransactionOptions | None], Awaitable[Enlisted]],
        name: str,
        options: TransactionOptions | None,
    ) -> Enlisted:
        closings = self._closings
        if self._refusal:
            raise UnitOfWorkError(f"{self.label}: {self._refusal}")
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            while self._closings == closings:
                late = self._ended
                held = self._held()
                entry = held.get(key)
                self._agree(name, entry, options)
                if entry is None:
                    entry = await lease(name, options)
                    if late is not self._ended or self._closings != closings:  # the unit ended while a task waited here
                        await self._do(ending.Step("release", entry))
                        continue
                    held[key] = entry
                return entry
        raise UnitOfWorkError(f"{self.label}: this unit of work was closed while {name!r} was waited for")

    async def commit(self) -> None:
        """Commit now, and end the unit: what comes after has no transaction. Raises as `finish` does."""
        self._check_open("commit")
        await self.finish()

    async def restart(self) -> None:
        """Roll back and begin again on the same connections: for work that is tried once more."""
        self._check_open("restart")
        self._forget_given_back()
        await self._to_its_end("rollback", "begin")
        self._forget_attempt()

    async def commit_in_place(self) -> None:
        """Commit what is open now and keep the connections: the first half of `finish`, for `run_retryable_async`.

        Several are left to `finish`: no other attempt is possible there, and it tells which of them did what.
        """
        self._forget_given_back()
        if len(self._enlisted) > 1:
            return
        self._check_aborted()
        await self._to_its_end("commit")

    async def _to_its_end(self, *ops: TransactionOp) -> None:
        """Do this with every connection. A cancelled caller leaves, and the end of the unit waits for it."""
        self._under_way = asyncio.ensure_future(self._with_each(ops))
        try:
            await asyncio.shield(self._under_way)
        except asyncio.CancelledError:
            self._under_way.add_done_callback(_log_orphan)
            raise

    async def _with_each(self, ops: tuple[TransactionOp, ...]) -> None:
        for entry in list(self._enlisted.values()):
            for op in ops if entry.transactional is not None else ():
                await self._carry_out(entry, op)
        self._committed_in_place = "commit" in ops

    async def _carry_out(self, entry: Enlisted, op: TransactionOp) -> None:
        if isinstance(entry.lease, Lease):
            options = entry.options if op == "begin" else None
            await transact(self.registry.in_thread, entry.transactional, op, entry.lease, options)
        elif op == "begin":
            await entry.begin()
        else:
            await getattr(entry.transactional, op)(entry.lease.resource)
        if op == "begin":
            entry.watch()

    async def finish(self, error: BaseException | None = None, *, status: int | None = None) -> None:
        """End the unit: commit, or roll back after `error`, doom, or a veto on `status`; give everything back.

        Idempotent, and never half done: where the caller is cancelled meanwhile, it leaves and the end goes on.
        Raises the driver's error where the only COMMIT failed, else `CommitFailed`.
        """
        if self._ended:
            return
        reason = self._verdict(error, status)
        enlisted = self._begin_end()
        if are_the_parents(enlisted):
            return
        if not enlisted:
            if self._hooks is None:
                self._note_outcome(reason)
            else:
                await shielded(self._call_hooks(reason), self._tasks)
            self._raise()
            return
        await shielded(self._end(enlisted, reason), self._tasks)

    async def close(self, error: BaseException | None = None) -> None:
        """Give back what was asked for after the end; a unit never finished is rolled back. Never raises for that."""
        self._closings += 1
        if not self._ended:
            self._leave_unfinished()
            await self.finish(error)
        late = list(self._late.values())
        self._late.clear()
        if late:
            await shielded(self._release_late(late, error), self._tasks)

    async def shut(self, reason: str, error: BaseException | None = None) -> None:
        """Close for good: whoever asks from now on is refused with `UnitOfWorkError`, which says `reason`."""
        self._refusal = reason
        await self.close(error)

    async def _end(self, enlisted: list[Enlisted], reason: Reason | None) -> None:
        if self._under_way is not None:
            await asyncio.wait([self._under_way])
            if self._committed_in_place:  # what is saved is saved, though its caller was cancelled
                reason = None
        commit = reason is None
        steps = ending.finish(enlisted, commit=commit)
        answer: ending.Answer = None
        entry = enlisted[0]
        if commit and len(enlisted) == 1 and entry.transactional is not None and not isinstance(entry.lease, Lease):
            done = await end_async(entry)  # nearly every request is that; see `end`
            if is_plain(done):
                await self._call_hooks(None)
                return
            for known in done:
                steps.send(answer)
                answer = known
        elif all(entry.needs_thread for entry in enlisted):  # one trip to a thread, not one per step
            await self._conclude(await self.registry.in_thread(run, steps), reason)
            return
        outcome: ending.Outcome[Enlisted] | None = None
        while outcome is None:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                outcome = stop.value
            else:
                answer = await self._do(step)
        await self._conclude(outcome, reason)  # out here, so that what it raises has no StopIteration about it

    async def _conclude(self, outcome: ending.Outcome[Enlisted], reason: Reason | None) -> None:
        reason, failure = self._judge(outcome, reason)
        await self._call_hooks(reason)
        self._raise(failure)

    async def _call_hooks(self, reason: Reason | None) -> None:
        kind = self._note_outcome(reason)
        if self._hooks is not None:
            await self._hooks.run_awaited(kind, self.registry.units.hook_timeout)

    async def _release_late(self, late: list[Enlisted], error: BaseException | None) -> None:
        for entry in late:
            answer = await self._do(ending.Step("release", entry, error))
            if isinstance(answer, ending.Failure):
                logger.warning("unit of work %s: release of %r failed: %r", self.label, entry.name, answer.error)

    async def _do(self, step: ending.Step[Enlisted]) -> ending.Answer:
        if isinstance(step.target.lease, Lease):
            return await self._do_sync(step)
        return await do_async(step)

    async def _do_sync(self, step: ending.Step[Enlisted]) -> ending.Answer:
        """Carry out a step on a resource for threads: in the loop where that holds up nobody."""
        op, entry, _ = step
        if op == "check" or (op == "release" and (not entry.lease.is_out or returns_at_once(entry.lease))):
            return do(step)
        if op == "release" or entry.needs_thread or entry.lease.inherited:
            return await self.registry.in_thread(do, step)
        try:
            await transact(self.registry.in_thread, entry.transactional, op, entry.lease)
        except BaseException as failure:  # noqa: BLE001  as in `do`
            return failed(entry, op, failure)
        return None

    async def _lease(self, name: str, options: TransactionOptions | None) -> Enlisted:
        pool = self.registry.async_pool(name)
        if self._ended or options is not None:
            self._prepare(name, pool, options)
        driver, watcher = (None, None) if self._ended else (pool.transactional, self._watcher())
        return await lease_async(pool, name, self.label, driver, options, watcher)

    async def _lease_sync(self, name: str, options: TransactionOptions | None) -> Enlisted:
        pool = self.registry.pool(name)
        self._prepare(name, pool, options)
        lease = await acquire_from_loop(pool, self.registry.in_thread)
        hold(lease, self.label)
        driver = pool.transactional
        if driver is None or self._ended:
            return Enlisted(name, pool, lease)
        await begin_from_loop(self.registry.in_thread, lease, driver, options)
        entry = Enlisted(name, pool, lease, driver, options, self._watcher())
        entry.watch()
        return entry

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self.finish(error)
        finally:
            await self.close(error)
