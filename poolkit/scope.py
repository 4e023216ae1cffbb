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
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from poolkit import ending
from poolkit.aio import AsyncLease, AsyncPool, _log_orphan, shielded
from poolkit.bridge import acquire_from_loop, begin_from_loop, returns_at_once, transact, works_in_loop
from poolkit.driver import TransactionOp
from poolkit.errors import CommitFailed, UnitOfWorkError
from poolkit.registry import Registry
from poolkit.threads import Lease, Pool

__all__ = [
    "AsyncUnitOfWork",
    "UnitOfWork",
]

logger = logging.getLogger("poolkit")

Hook = Callable[[], object]


class _Enlisted:
    """One leased resource of a unit; `transactional` is its driver where a transaction was begun on it."""

    __slots__ = ("lease", "name", "pool", "transactional")

    def __init__(self, name: str, pool: Any, lease: Any, transactional: Any) -> None:
        self.name = name
        self.pool = pool
        self.lease = lease
        self.transactional = transactional

    @property
    def needs_thread(self) -> bool:
        """Whether the end of this one has to be made in a thread where a loop runs."""
        return isinstance(self.lease, Lease) and not works_in_loop(self.transactional)

    def lost(self, error: BaseException) -> bool:
        """Whether the resource can't be used again after `error`."""
        try:
            broken: bool = self.pool.is_broken(self.lease.resource, error)
        except Exception:  # the other resources are still to be ended, and this one is not to be trusted
            logger.exception("pool %r: the driver could not tell whether a resource is broken", self.name)
            return True
        return broken

    def foreign(self, error: BaseException) -> bool:
        """Whether `error` is of another library than the resource: then it is no answer of the server's."""
        libraries = {kind.__module__.partition(".")[0] for kind in type(self.lease.resource).__mro__} - {"builtins"}
        return type(error).__module__.partition(".")[0] not in libraries


class _Unit:
    """What both units share: their phase, their hooks, and how the outcome is told."""

    def __init__(self, registry: Registry, label: str = "", rollback_on: Callable[[int], bool] | None = None) -> None:
        self.registry = registry
        self.label = label
        self._rollback_on = rollback_on
        self._enlisted: dict[Any, _Enlisted] = {}
        self._late: dict[Any, _Enlisted] = {}
        self._hooks_commit: list[Hook] = []
        self._hooks_rollback: list[Hook] = []
        self._doomed = False
        self._ended = False
        self._closings = 0  # who waited across one has nobody left who would give back what it gets
        self._committed: bool | None = None
        self.streaming = False

    @property
    def ended(self) -> bool:
        """Whether the unit was finished: what is asked for from now on has no transaction."""
        return self._ended

    @property
    def doomed(self) -> bool:
        """Whether the unit will be rolled back whatever happens."""
        return self._doomed

    @property
    def is_open(self) -> bool:
        """Whether the unit may still commit: neither ended nor doomed."""
        return not (self._ended or self._doomed)

    @property
    def used(self) -> bool:
        """Whether anything was leased."""
        return bool(self._enlisted or self._late)

    @property
    def committed(self) -> bool | None:
        """After the end, whether the unit committed; None before."""
        return self._committed

    def doom(self, reason: str = "") -> None:
        """Roll back at the end even if the work returns normally. `reason` goes to the log."""
        self._check_open("doom")
        self._doomed = True
        if reason:
            logger.info("unit of work %s doomed: %s", self.label, reason)

    def stream(self) -> None:
        """Keep the transaction to the end of a streamed body.

        The stream then holds its connection for as long as the client reads, and a COMMIT that fails there can only cut
        the stream short.
        """
        self._check_open("stream")
        self.streaming = True

    def on_commit(self, hook: Hook) -> None:
        """Call `hook` after the unit has committed. What it raises is logged: the work is done and stays done."""
        self._check_open("on_commit")
        self._hooks_commit.append(_called(hook))

    def on_rollback(self, hook: Hook) -> None:
        """Call `hook` after the unit has been rolled back."""
        self._check_open("on_rollback")
        self._hooks_rollback.append(_called(hook))

    def _forget_attempt(self) -> None:
        """Forget what belongs to work that is tried once more: its hooks, and what doomed it."""
        self._hooks_commit.clear()
        self._hooks_rollback.clear()
        self._doomed = False

    def _check_aborted(self) -> None:
        for entry in self._enlisted.values():
            if entry.transactional is not None and entry.transactional.aborted(entry.lease.resource):
                raise CommitFailed(
                    f"a failed statement aborted the transaction on {entry.name!r} and its error was ignored"
                )

    def _check_open(self, what: str) -> None:
        if self._ended:
            raise UnitOfWorkError(f"{what}() came too late: this unit of work has ended")

    def _verdict(self, error: BaseException | None, status: int | None) -> bool:
        return ending.verdict(error=error, doomed=self._doomed, status=status, rollback_on=self._rollback_on)

    def _begin_end(self) -> list[_Enlisted]:
        """Enter the late phase; return what has to be ended."""
        self._ended = True
        enlisted = list(self._enlisted.values())
        self._enlisted.clear()
        return enlisted

    def _report(self, outcome: ending.Outcome[_Enlisted]) -> None:
        for op, target, problem in outcome.problems:
            if op != "commit":
                logger.warning("unit of work %s: %s of %r failed: %r", self.label, op, target.name, problem)

    def _conclude(self, outcome: ending.Outcome[_Enlisted], *, commit: bool) -> None:
        """Run the hooks and raise what the caller has to know."""
        self._report(outcome)
        error = ending.failure(outcome, lambda target: target.name)
        self._call_hooks(commit=commit and error is None)
        if error is not None:
            raise error

    def _call_hooks(self, *, commit: bool) -> None:
        self._committed = commit
        for hook in self._hooks_commit if commit else self._hooks_rollback:
            try:
                hook()
            except Exception:
                logger.exception("unit of work %s: a hook raised", self.label)


class UnitOfWork(_Unit):
    """A unit of work for threads. Integrations make one per request; elsewhere use `unit_of_work()`.

    Threads that share it get the same resources.
    """

    def __init__(self, registry: Registry, label: str = "", rollback_on: Callable[[int], bool] | None = None) -> None:
        super().__init__(registry, label, rollback_on)
        self._leasing = threading.RLock()  # held while a resource is waited for; the end does not wait for that
        self._books = threading.Lock()  # held for a moment, by whoever writes down or takes over what is leased

    def get(self, name: str = "default") -> Any:
        """Return the unit's resource of that name: leased, and a transaction begun, on first use.

        A shared client is returned as it is. After the end the resource is fresh and without a transaction. Raises what
        `Pool.acquire` raises, and `ConfigError` for an unknown name.
        """
        held = self._late if self._ended else self._enlisted
        entry = held.get(name)
        if entry is None:
            if self.registry.shares(name):
                return self.registry.client(name).get()
            entry = self._enlist(name)
        return entry.lease.resource

    def _enlist(self, name: str) -> _Enlisted:
        """Lease a resource. Where the unit ends meanwhile, nobody would end the lease: so it is ended here."""
        closings = self._closings
        with self._leasing:
            late = self._ended
            entry = (self._late if late else self._enlisted).get(name)
            if entry is not None:
                return entry
            entry = _lease(self.registry.pool(name), name, self.label, begin=not late)
            if self._write_down(name, entry, late=late, closings=closings):
                return entry
        _do(ending.Step("rollback", entry))
        entry.lease.release()
        raise UnitOfWorkError(f"{self.label}: this unit of work ended while {name!r} was waited for")

    def _write_down(self, name: str, entry: _Enlisted, *, late: bool, closings: int) -> bool:
        with self._books:
            if self._ended is not late or self._closings != closings:
                return False
            (self._late if late else self._enlisted)[name] = entry
            return True

    def _begin_end(self) -> list[_Enlisted]:
        with self._books:
            self._ended = True
            enlisted = list(self._enlisted.values())
            self._enlisted.clear()
            return enlisted

    def _take_late(self) -> list[_Enlisted]:
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
        for entry in self._enlisted.values():
            if entry.transactional is not None:
                entry.transactional.rollback(entry.lease.resource)
                entry.transactional.begin(entry.lease.resource)
        self._forget_attempt()

    def commit_in_place(self) -> None:
        """Commit what is open now and keep the connections: the first half of `finish`, for `run_retryable`.

        Several are left to `finish`: no other attempt is possible there, and it tells which of them did what.
        """
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
        commit = self._verdict(error, status)
        enlisted = self._begin_end()
        if enlisted:
            if _are_the_parents(enlisted):
                return
            outcome = _end(enlisted, commit=commit)
            if outcome is not None:
                self._conclude(outcome, commit=commit)
                return
        self._committed = commit
        if self._hooks_commit or self._hooks_rollback:
            self._call_hooks(commit=commit)

    def close(self, error: BaseException | None = None) -> None:
        """Give back what was asked for after the end; a unit never finished is rolled back. Never raises for that."""
        if not self._ended:
            self._doomed = True
            self.finish(error)
        late = self._take_late()
        if not late:
            return
        outcome: ending.Outcome[_Enlisted] = ending.Outcome()
        for entry in late:
            outcome.note("release", entry, _do(ending.Step("release", entry, error)))
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


class AsyncUnitOfWork(_Unit):
    """A unit of work for asyncio."""

    def __init__(self, registry: Registry, label: str = "", rollback_on: Callable[[int], bool] | None = None) -> None:
        super().__init__(registry, label, rollback_on)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._under_way: asyncio.Future[None] | None = None
        self._committed_in_place = False

    async def get(self, name: str = "default") -> Any:
        """Return the unit's resource of that name: leased, and a transaction begun, on first use.

        Tasks of one request that ask at once get the same one. Raises what `AsyncPool.acquire` raises.
        """
        entry = (self._late if self._ended else self._enlisted).get(name)
        if entry is None:
            if self.registry.shares(name):
                return self.registry.client(name).get()
            entry = await self._enlist(name, self._lease, name)
        return entry.lease.resource

    async def get_sync(self, name: str = "default") -> Any:
        """The same from the thread pool, for `def` endpoints: no thread is blocked while this waits."""
        key = (name, "sync")
        entry = (self._late if self._ended else self._enlisted).get(key)
        if entry is None:
            if self.registry.shares(name):
                return self.registry.client(name).get()
            entry = await self._enlist(key, self._lease_sync, name)
        return entry.lease.resource

    async def _enlist(self, key: Any, lease: Callable[[str], Awaitable[_Enlisted]], name: str) -> _Enlisted:
        closings = self._closings
        async with self._lock:
            while self._closings == closings:
                late = self._ended
                held = self._late if late else self._enlisted
                entry = held.get(key)
                if entry is None:
                    entry = await lease(name)
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
        await self._to_its_end("rollback", "begin")
        self._forget_attempt()

    async def commit_in_place(self) -> None:
        """Commit what is open now and keep the connections: the first half of `finish`, for `run_retryable_async`.

        Several are left to `finish`: no other attempt is possible there, and it tells which of them did what.
        """
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
                if isinstance(entry.lease, Lease):
                    await transact(self.registry.in_thread, entry.transactional, op, entry.lease.resource)
                else:
                    await getattr(entry.transactional, op)(entry.lease.resource)
        self._committed_in_place = "commit" in ops

    async def finish(self, error: BaseException | None = None, *, status: int | None = None) -> None:
        """End the unit: commit, or roll back after `error`, doom, or a veto on `status`; give everything back.

        Idempotent, and never half done: where the caller is cancelled meanwhile, it leaves and the end goes on.
        Raises the driver's error where the only COMMIT failed, else `CommitFailed`.
        """
        if self._ended:
            return
        commit = self._verdict(error, status)
        enlisted = self._begin_end()
        if _are_the_parents(enlisted):
            return
        if not enlisted:
            self._conclude(ending.Outcome(), commit=commit)
            return
        await shielded(self._end(enlisted, commit=commit), self._tasks)

    async def close(self, error: BaseException | None = None) -> None:
        """Give back what was asked for after the end; a unit never finished is rolled back. Never raises for that."""
        self._closings += 1
        if not self._ended:
            self._doomed = True
            await self.finish(error)
        late = list(self._late.values())
        self._late.clear()
        if late:
            await shielded(self._release_late(late, error), self._tasks)

    async def _end(self, enlisted: list[_Enlisted], *, commit: bool) -> None:
        if self._under_way is not None:
            await asyncio.wait([self._under_way])
            commit = commit or self._committed_in_place  # what is saved is saved, though its caller was cancelled
        steps = ending.finish(enlisted, commit=commit)
        if all(entry.needs_thread for entry in enlisted):  # one trip to a thread, not one per step
            return self._conclude(await self.registry.in_thread(_run, steps), commit=commit)
        answer: ending.Answer = None
        outcome: ending.Outcome[_Enlisted] | None = None
        while outcome is None:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                outcome = stop.value
            else:
                answer = await self._do(step)
        return self._conclude(outcome, commit=commit)  # out here, so that what it raises has no StopIteration about it

    async def _release_late(self, late: list[_Enlisted], error: BaseException | None) -> None:
        for entry in late:
            answer = await self._do(ending.Step("release", entry, error))
            if isinstance(answer, ending.Failure):
                logger.warning("unit of work %s: release of %r failed: %r", self.label, entry.name, answer.error)

    async def _do(self, step: ending.Step[_Enlisted]) -> ending.Answer:
        if isinstance(step.target.lease, Lease):
            return await self._do_sync(step)
        return await _do_async(step)

    async def _do_sync(self, step: ending.Step[_Enlisted]) -> ending.Answer:
        """Carry out a step on a resource for threads: in the loop where that holds up nobody."""
        op, entry, _ = step
        if op == "check" or (op == "release" and (entry.lease.inherited or returns_at_once(entry.lease))):
            return _do(step)
        if op == "release" or entry.needs_thread or entry.lease.inherited:
            return await self.registry.in_thread(_do, step)
        try:
            await transact(self.registry.in_thread, entry.transactional, op, entry.lease.resource)
        except BaseException as failure:  # noqa: BLE001  as in `_do`
            return _failure(entry, op, failure)
        return None

    async def _lease(self, name: str) -> _Enlisted:
        return await _lease_async(self.registry.async_pool(name), name, self.label, begin=not self._ended)

    async def _lease_sync(self, name: str) -> _Enlisted:
        pool = self.registry.pool(name)
        lease = await acquire_from_loop(pool, self.registry.in_thread)
        _hold(lease, self.label)
        driver = pool.transactional
        if driver is None or self._ended:
            return _Enlisted(name, pool, lease, None)
        await begin_from_loop(self.registry.in_thread, lease, driver)
        return _Enlisted(name, pool, lease, driver)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self.finish(error)
        finally:
            await self.close(error)


# -- the runners: how one step is done ---------------------------------------------------------------------------------


def _hold(lease: Lease[Any] | AsyncLease[Any], label: str) -> Any:
    """Note what the resource is used for, and that whoever took it ends the unit: waiting for oneself is no use."""
    slot = lease._live()
    slot.label = label
    slot.scoped = True
    return slot.resource


def _lease(pool: Pool[Any], name: str, label: str, *, begin: bool) -> _Enlisted:
    lease = pool.acquire()
    resource = _hold(lease, label)
    driver = pool.transactional
    if driver is None or not begin:
        return _Enlisted(name, pool, lease, None)
    try:
        driver.begin(resource)
    except BaseException:
        lease.discard("broken")
        raise
    return _Enlisted(name, pool, lease, driver)


async def _lease_async(pool: AsyncPool[Any], name: str, label: str, *, begin: bool) -> _Enlisted:
    lease = await pool.acquire()
    resource = _hold(lease, label)
    driver = pool.transactional
    if driver is None or not begin:
        return _Enlisted(name, pool, lease, None)
    try:
        await driver.begin(resource)
    except BaseException:
        lease.discard("broken")
        raise
    return _Enlisted(name, pool, lease, driver)


def _end(enlisted: list[_Enlisted], *, commit: bool) -> ending.Outcome[_Enlisted] | None:
    """End what is enlisted; None where it was one resource, committed, and nothing went wrong: nothing is to be told.

    Nearly every request is that, and the steps of `ending.finish` would take 10 us. So they are done here, and are
    taken through it, with the answers so far, only where one of them has gone wrong.
    """
    entry = enlisted[0]
    driver, lease = entry.transactional, entry.lease
    if len(enlisted) > 1 or not commit or driver is None:
        return _run(ending.finish(enlisted, commit=commit))
    done: list[ending.Answer] = []
    try:
        resource = lease.resource
        done.append(driver.aborted(resource))
        if not done[0]:
            driver.commit(resource)
            done.append(None)
            lease.release()
            return None
    except BaseException as error:  # noqa: BLE001  as in `_do`
        op: ending.Op = ("check", "commit", "release")[len(done)]
        done.append(_failure(entry, op, error))
    return _run(ending.finish(enlisted, commit=commit), done)


def _run(steps: Any, done: Sequence[ending.Answer] = ()) -> ending.Outcome[_Enlisted]:
    """Carry out the steps, but for the first ones, whose answers are known."""
    answer: ending.Answer = None
    try:
        for known in done:
            steps.send(answer)
            answer = known
        while True:
            answer = _do(steps.send(answer))
    except StopIteration as stop:
        outcome: ending.Outcome[_Enlisted] = stop.value
        return outcome


def _do(step: ending.Step[_Enlisted]) -> ending.Answer:
    """Carry out one step.

    An interrupt (KeyboardInterrupt, SystemExit) is an answer too: the rest still has to be ended.
    """
    op, entry, error = step
    if entry.lease.inherited:  # a child forked in mid unit: all of it is the parent's
        return None
    try:
        if op == "release":
            entry.lease.release(error)
        elif entry.transactional is not None:
            resource = entry.lease.resource
            if op == "check":
                aborted: bool = entry.transactional.aborted(resource)
                return aborted
            getattr(entry.transactional, op)(resource)
    except BaseException as failure:  # noqa: BLE001
        return _failure(entry, op, failure)
    return None


async def _do_async(step: ending.Step[_Enlisted]) -> ending.Answer:
    op, entry, error = step
    if entry.lease.inherited:
        return None
    try:
        if op == "release":
            await entry.lease.release(error)
        elif entry.transactional is not None:
            resource = entry.lease.resource
            if op == "check":
                aborted: bool = entry.transactional.aborted(resource)
                return aborted
            await getattr(entry.transactional, op)(resource)
    except BaseException as failure:  # noqa: BLE001
        return _failure(entry, op, failure)
    return None


def _are_the_parents(enlisted: list[_Enlisted]) -> bool:
    """Whether this is a child forked in mid unit: then the end is the parent's, and so are the hooks."""
    for entry in enlisted:  # noqa: SIM110  any() would add a microsecond to every request
        if entry.lease.inherited:
            return True
    return False


def _failure(entry: _Enlisted, op: str, error: BaseException) -> ending.Failure:
    if op != "commit":
        return ending.Failure(error)
    return ending.Failure(error, entry.lost(error), entry.foreign(error))


def _called(hook: Hook) -> Hook:
    if inspect.iscoroutinefunction(hook):
        name = getattr(hook, "__qualname__", repr(hook))
        raise UnitOfWorkError(f"hook {name} is called, not awaited: give a function that starts a task")
    return hook
