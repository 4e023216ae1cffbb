"""One leased resource of a unit of work, and how each step of its end is carried out: in a thread or in a loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from poolkit import ending
from poolkit.aio import AsyncLease, AsyncPool
from poolkit.bridge import works_in_loop
from poolkit.driver import TransactionOptions
from poolkit.events import Event
from poolkit.shell import closed_error
from poolkit.threads import Lease, Pool

__all__ = [
    "Enlisted",
    "are_the_parents",
    "do",
    "do_async",
    "end",
    "end_async",
    "failed",
    "hold",
    "is_plain",
    "lease_async",
    "lease_sync",
    "run",
]

logger = logging.getLogger("poolkit")

Watcher: TypeAlias = Callable[[str], None]
"""Called with "commit" or "rollback"."""


class Enlisted:
    """One leased resource of a unit; `transactional` is its driver where a transaction was begun on it.

    Its transactions begin with `options`, and `watcher` hears of a commit by the borrower itself.
    """

    __slots__ = ("lease", "name", "options", "pool", "transactional", "watcher")

    def __init__(  # noqa: PLR0913, PLR0917  keywords would cost each request more
        self, name: str, pool: Pool[Any] | AsyncPool[Any], lease: Any, transactional: Any = None,
        options: TransactionOptions | None = None, watcher: Watcher | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.pool = pool
        self.lease = lease
        self.transactional = transactional
        self.options = options
        self.watcher = watcher

    def begin(self) -> Any:
        """Begin, also anew after a rollback; awaitable where the resource is one for asyncio."""
        if self.options is None:
            return self.transactional.begin(self.lease.resource)
        return self.transactional.begin(self.lease.resource, self.options)

    def watch(self) -> None:
        """Have the resource tell of what its borrower ends itself, from a BEGIN on."""
        if self.watcher is not None and self.pool.on_explicit_end is not None:
            self.pool.on_explicit_end(self.lease.resource, self.watcher)

    @property
    def needs_thread(self) -> bool:
        """Whether the end of this one has to be made in a thread where a loop runs."""
        return isinstance(self.lease, Lease) and not works_in_loop(self.transactional)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open: the unit's, which nothing has to have been asked in, or its user's own."""
        driver = self.pool.transactional
        return self.transactional is not None or (driver is not None and driver.in_transaction(self.lease.resource))

    def lost(self, error: BaseException) -> bool:
        """Whether the resource can't be used again after `error`."""
        try:
            broken: bool = self.pool.is_broken(self.lease.resource, error)
        except Exception:  # the other resources are still to be ended, and this one is not to be trusted
            logger.exception("pool %r: the driver could not tell whether a resource is broken", self.name)
            return True
        return broken

    def was_closed_by_user(self) -> bool:
        """Whether it was the work itself that closed the resource, as far as the driver knows."""
        ask: Callable[[Any], bool] = self.pool._is_closed_by_user
        return ask(self.lease.resource)

    def is_aborted(self) -> bool:
        """Whether a failed statement has aborted the transaction. What can't be looked at fails at its COMMIT."""
        try:
            return self.transactional is not None and bool(self.transactional.aborted(self.lease.resource))
        except Exception:  # noqa: BLE001
            return False

    def is_spoilt(self) -> bool:
        """Whether nothing can be committed on it: a failed statement aborted the transaction, or it is lost."""
        if self.transactional is None or self.lease.given_back:
            return False
        try:
            resource = self.lease.resource
            return bool(self.transactional.aborted(resource)) or self.pool.is_broken(resource, None)
        except Exception:  # noqa: BLE001  what can't be looked at can't be committed
            return True

    def statement_error(self) -> str:
        """What the server said of the failed statement, where the driver knows it: one line, without values."""
        ask = getattr(self.transactional, "statement_error", None)
        if ask is None:
            return ""
        try:
            text: str = ask(self.lease.resource)
        except Exception:  # noqa: BLE001  it only adds to another message
            return ""
        return text

    def tell(self, build: Callable[[], Event]) -> None:
        """Tell the listeners of its pool; where there are none, nothing is built."""
        if self.transactional is not None:
            self.pool._tell(build)

    def foreign(self, error: BaseException) -> bool:
        """Whether `error` is of another library than the resource: then it is no answer of the server's."""
        libraries = {kind.__module__.partition(".")[0] for kind in type(self.lease.resource).__mro__} - {"builtins"}
        return type(error).__module__.partition(".")[0] not in libraries


def hold(lease: Lease[Any] | AsyncLease[Any], label: str) -> Any:
    """Return the resource of a new lease.

    Notes what it is used for, and that whoever took it ends the unit: waiting for oneself is no use.
    """
    slot: Any = lease._slot
    slot.label = label
    slot.scoped = True
    return slot.resource


def lease_sync(  # noqa: PLR0913, PLR0917  as above
    pool: Pool[Any], name: str, label: str, driver: Any, options: TransactionOptions | None, watcher: Watcher | None
) -> Enlisted:
    """Lease a resource, and begin a transaction by `driver`, unless that is None.

    Raises what either raises, with nothing leased.
    """
    lease = pool.acquire()
    resource = hold(lease, label)
    entry = Enlisted(name, pool, lease, driver, options, watcher)
    if driver is None:
        return entry
    try:
        driver.begin(resource) if options is None else driver.begin(resource, options)
        if watcher is not None and pool.on_explicit_end is not None:
            pool.on_explicit_end(resource, watcher)
    except BaseException:
        lease.discard("broken")
        raise
    return entry


async def lease_async(  # noqa: PLR0913, PLR0917  as above
    pool: AsyncPool[Any], name: str, label: str, driver: Any, options: TransactionOptions | None,
    watcher: Watcher | None,
) -> Enlisted:  # fmt: skip
    """Do the same for asyncio."""
    lease = await pool.acquire()
    resource = hold(lease, label)
    entry = Enlisted(name, pool, lease, driver, options, watcher)
    if driver is None:
        return entry
    try:
        await (driver.begin(resource) if options is None else driver.begin(resource, options))
        if watcher is not None and pool.on_explicit_end is not None:
            pool.on_explicit_end(resource, watcher)
    except BaseException:
        lease.discard("broken")
        raise
    return entry


def end(enlisted: list[Enlisted], *, commit: bool) -> ending.Outcome[Enlisted] | None:
    """End what is enlisted; None where it was one resource, committed, and nothing went wrong: nothing is to be told.

    Nearly every request is that, and the steps of `ending.finish` would take 10 us. So they are done here, and are
    taken through it, with the answers so far, only where one of them has gone wrong.
    """
    entry = enlisted[0]
    driver, lease = entry.transactional, entry.lease
    if len(enlisted) > 1 or not commit or driver is None:
        return run(ending.finish(enlisted, commit=commit))
    done: list[ending.Answer] = []
    try:
        resource = lease.resource
        done.append(driver.aborted(resource))
        if not done[0]:
            driver.commit(resource)
            done.append(None)
            del resource  # a reference would have the pool make a new object of it
            lease.__exit__(None, None, None)  # `release`, for one that is live: half the calls
            return None
    except BaseException as error:  # noqa: BLE001  as in `do`
        op: ending.Op = ("check", "commit", "release")[len(done)]
        done.append(failed(entry, op, error))
    return run(ending.finish(enlisted, commit=commit), done)


async def end_async(entry: Enlisted) -> list[ending.Answer]:
    """Commit one resource for asyncio and give it back; the answers of these steps, up to the one that went wrong."""
    driver, lease = entry.transactional, entry.lease
    done: list[ending.Answer] = []
    try:
        resource = lease.resource
        done.append(driver.aborted(resource))
        if not done[0]:
            await driver.commit(resource)
            done.append(None)
            del resource  # as above
            await lease.release()
            done.append(None)
    except BaseException as error:  # noqa: BLE001  as in `do`
        op: ending.Op = ("check", "commit", "release")[len(done)]
        done.append(failed(entry, op, error))
    return done


def is_plain(answers: Sequence[ending.Answer]) -> bool:
    """Whether all three steps of `end_async` went well."""
    return len(answers) == 3 and answers[2] is None


def run(steps: Any, done: Sequence[ending.Answer] = ()) -> ending.Outcome[Enlisted]:
    """Carry out the steps, but for the first ones, whose answers are known."""
    answer: ending.Answer = None
    try:
        for known in done:
            steps.send(answer)
            answer = known
        while True:
            answer = do(steps.send(answer))
    except StopIteration as stop:
        outcome: ending.Outcome[Enlisted] = stop.value
        return outcome


def do(step: ending.Step[Enlisted]) -> ending.Answer:
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
        return failed(entry, op, failure)
    return None


async def do_async(step: ending.Step[Enlisted]) -> ending.Answer:
    """Do the same with a resource for asyncio."""
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
        return failed(entry, op, failure)
    return None


def are_the_parents(enlisted: list[Enlisted]) -> bool:
    """Whether this is a child forked in mid unit: then the end is the parent's, and so are the hooks.

    Else `enlisted` loses what the work itself has closed: there is nothing to end.
    """
    for entry in enlisted:  # any() would add a microsecond to every request
        if not entry.lease.is_out:
            if entry.lease.inherited:
                return True
            closed = [entry for entry in enlisted if entry.lease.given_back]
            enlisted[:] = [entry for entry in enlisted if entry not in closed]
            for gone in closed:
                gone.lease.forget()
            break
    return False


def failed(entry: Enlisted, op: str, error: BaseException) -> ending.Failure:
    """Make the answer of a step that raised."""
    if op not in {"check", "commit"}:
        return ending.Failure(error)
    if isinstance(error, Exception) and entry.was_closed_by_user():
        failure = closed_error(entry.name)
        failure.__cause__ = error
        return ending.Failure(failure)
    if op == "check":
        return ending.Failure(error)
    return ending.Failure(error, entry.lost(error), entry.foreign(error))
