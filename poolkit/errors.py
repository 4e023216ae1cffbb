"""Every error poolkit raises, as one tree. Nothing else is imported here.

An error says what happened, on which pool, how long it took, who holds the connections and what to do about it.
All of them survive pickling, so that a task queue or a process pool can carry them. The errors of the user's code
and of the driver are never wrapped while a lease is held: they pass through as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import NamedTuple

__all__ = [
    "AcquireTimeout",
    "CommitFailed",
    "ConfigError",
    "ConnectRejected",
    "Holder",
    "LeaseError",
    "NestedAcquire",
    "OpenFailed",
    "Overloaded",
    "PoolClosed",
    "PoolError",
    "PoolkitError",
    "Returned",
    "UnitOfWorkError",
    "WrongProcess",
]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds one connection: a label (endpoint, thread or task), for how many seconds, and where it was taken."""

    label: str
    age: float
    in_transaction: bool | None = None
    stack: str = ""

    def __str__(self) -> str:
        state = {True: ", in a transaction", False: ", idle", None: ""}[self.in_transaction]
        line = f"{self.label} for {self.age:.2f} s{state}"
        return f"{line}, taken at:\n{self.stack}" if self.stack else line


class PoolkitError(Exception):
    """The root: `except PoolkitError` catches whatever poolkit itself raises."""


class ConfigError(PoolkitError, ValueError):
    """Settings that can't work. `problems` has every fault found, not only the first."""

    def __init__(self, problems: Sequence[str] | str, where: str = "") -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        self.where = where
        super().__init__(self.problems, where)

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        if len(self.problems) == 1:
            return head + self.problems[0]
        return head + f"{len(self.problems)} problems" + "".join(f"\n  - {text}" for text in self.problems)


class PoolError(PoolkitError):
    """Something a pool could not do. `pool` is its name; `retry_after` is in seconds where trying again can help."""

    retry_after: float | None = None

    def __init__(self, pool: str, message: str) -> None:
        self.pool = pool
        self.message = message
        super().__init__(pool, message)

    def __str__(self) -> str:
        return f"pool {self.pool!r}: {self.message}"


class PoolClosed(PoolError):
    """The pool was closed; make a new one."""

    def __init__(self, pool: str, message: str = "is closed and hands out nothing any more") -> None:
        super().__init__(pool, message)


class WrongProcess(PoolError):
    """The lease was taken before a fork and belongs to the parent process."""

    def __init__(
        self,
        pool: str,
        message: str = "this lease was taken before a fork and belongs to the parent process; acquire one here",
    ) -> None:
        super().__init__(pool, message)


class _Refused(PoolError):
    """What the refusals share: how long the caller waited (seconds) and when trying again makes sense."""

    def __init__(
        self, pool: str, message: str, waited: float = 0.0, retry_after: float | None = None,
        holders: Sequence[Holder] = (),
    ) -> None:  # fmt: skip
        super().__init__(pool, message)
        self.waited = waited
        self.retry_after = retry_after
        self.holders: tuple[Holder, ...] = tuple(holders)
        self.args = (pool, message, waited, retry_after, self.holders)

    def __str__(self) -> str:
        held = "".join(f"\n  held by {holder}" for holder in self.holders)
        return super().__str__() + held


class AcquireTimeout(_Refused, TimeoutError):
    """No connection came free in time. `waited` is in seconds; `holders` says who has the connections."""


class Overloaded(_Refused):
    """Refused without waiting: the queue is full, or the wait has been too long for too long (`target_delay`)."""


class OpenFailed(_Refused):
    """No connection can be opened. `__cause__` is the driver's own error, `retry_after` when the next probe is due."""


class ConnectRejected(OpenFailed):
    """The server or its client library refuses to connect for good: a wrong password, an unknown database or option.

    Trying again can't help before something is changed: `retry_after` is None. `__cause__` is the driver's own error.
    """


class NestedAcquire(_Refused):
    """This thread or task already holds every connection of the pool: waiting could never end."""


class LeaseError(PoolkitError, RuntimeError):
    """A lease was used or returned after it had been given back."""


class Returned(NamedTuple):
    """Where a connection was given back: for the error that a later use of the same object raises.

    `label` is what the connection was used for ("GET /orders"), where that is known; else `code` and `at`, the offset
    of an instruction in it, are the place in the borrower's code. `advice` is what a framework has to say about a use
    that comes too late. `block` answers None once the block has ended in whose middle the connection was closed, where
    it was.
    """

    pool: str
    label: str = ""
    code: CodeType | None = None
    at: int = 0
    advice: str = ""
    block: Callable[[], object] | None = None

    def __str__(self) -> str:
        if self.label:
            return self.label
        if self.code is None:
            return "an unknown place"
        line = next((line for start, end, line in self.code.co_lines() if start <= self.at < end), None)
        return f"{self.code.co_filename}:{line} in {self.code.co_qualname}"

    def error(self, what: str = "connection") -> LeaseError:
        """Make the error for a use after the return. `what`: the object that was used ("cursor", ...)."""
        place = f"by {self}" if self.label else f"at {self}"
        whose = "was" if what == "connection" else "belongs to a connection that was"
        return LeaseError(
            f"pool {self.pool!r}: this {what} {whose} given back {place}, and may not be used any more; "
            f"{self.advice or 'acquire a new connection, or ask the unit of work for one'}"
        )


class UnitOfWorkError(PoolkitError):
    """A unit of work was asked for something it can't do any more."""


class CommitFailed(UnitOfWorkError):
    """A unit of work did not commit, or not whole.

    `committed` and `undone` name the resources; `lost` says that the server went away, so that the outcome of the
    failing COMMIT is unknown.
    """

    def __init__(
        self, message: str, committed: Sequence[str] = (), undone: Sequence[str] = (), *, lost: bool = False
    ) -> None:
        self.message = message
        self.committed: tuple[str, ...] = tuple(committed)
        self.undone: tuple[str, ...] = tuple(undone)
        self.lost = lost
        super().__init__(message, self.committed, self.undone)

    def __reduce__(self) -> tuple[object, ...]:
        return _commit_failed, (self.message, self.committed, self.undone, self.lost)

    def __str__(self) -> str:
        return self.message


def _commit_failed(message: str, committed: Sequence[str], undone: Sequence[str], lost: bool) -> CommitFailed:  # noqa: FBT001
    return CommitFailed(message, committed, undone, lost=lost)
