"""What a driver is: the one seam between the pool and the world.

A pool never knows what it holds. It asks a `Driver` to open and close resources, to say without a round trip whether
one is still alive and clean, and to make it as new before the next borrower gets it. A driver that can begin, commit
and roll back is `Transactional` besides, and takes part in units of work. What is shared rather than leased (an HTTP
session, say) is a `SharedClient`.

Rules for authors:
- `alive`, `clean`, `is_broken` and `abandon` do no network I/O and never block.
- `clean` and `reset` look at the driver's own state (transaction status, in_transaction), never at what poolkit
  believes: a client library's belief and the server's state part ways exactly when it matters.
- `reset` makes the resource as new or raises; then the pool discards it.
- Errors are the library's own; the pool passes them on or puts them under `OpenFailed` as the cause.
- Where `alive` costs a system call, an attribute `alive_bypass` (seconds) spares it those who get what came back less
  than that ago. Without it every borrower's resource is looked at.

Optional members, for both kinds of pools (looked up once, when a pool is made):
- `renew(resource, returned) -> resource`: make another object of the same class that has the session from now on; the
  old one, and all that was made from it, refuses to work with `returned.error()`. Called at the return where something
  still refers to the old object. No I/O.
- `lend(resource)` and `retire(resource, returned)`, for objects that can't be renewed: called at each checkout and each
  return. No I/O.
- `settled(resource)`: what the session and the object are now is their state of rest. Called after the user's
  `configure`. No I/O.
- `on_user_close(resource, give_back)`: have the resource's own `close()`, where it is called with no work open, call
  `give_back(resource)` after it has ended what is open, and close nothing; where that answers False, it closes. Where
  the resource can't be renewed, it calls `give_back.begin(resource)` before anything else (see `GiveBack`). None,
  when the resource leaves the pool for good: its `close` closes. Beside it `closed_by_user(resource) -> bool`: whether
  its `close()` has closed it with a transaction open. No I/O in either. `retire` then gets a `Returned` with a `block`.
- `failure_kind(error) -> "away" | "refused"`: of a connect that failed: whether trying again may help, or nothing will
  before something is changed. "away" where there is no such method.
- `rotates`: whether each connect asks for the URL anew, so that one that was refused is worth a second try.
- `begin(resource, options)`, where a transaction can have options: `begin` is called with `TransactionOptions` where
  any are given, without a second argument otherwise. They hold for each later transaction of the same borrowing that
  the library begins by itself, until the driver's `commit`, `rollback` or `reset`, which forget them.
- `check_options(options) -> None`, beside it: raise `ConfigError` for those that this driver can't do. No I/O.
- `on_explicit_end(resource, callback) -> None`: have the resource's own `commit()` and `rollback()`, which its borrower
  calls, call `callback("commit")` or `callback("rollback")` before they do anything. The driver's `commit`, `rollback`
  and `reset` forget it first, and never call it.
- `statement_error(resource) -> str`: the first line of what the server said of the last statement that failed, or "".
- `is_retryable(error) -> bool`: whether the error is the library's own word for a deadlock or a serialization failure.

For threads only:
- `send_reset(resource, *, full) -> bool`: send all that makes the resource as new, without waiting for an answer. True
  where `finish_reset(resource, timeout) -> bool` has to read the answer: True once it is as new, False where no answer
  came within `timeout` seconds. Both raise where the resource can't be lent again.
- `background_reset = True`, where the library can't send without waiting: `reset` runs in a helper thread.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias, TypedDict, TypeVar, runtime_checkable

from poolkit.errors import ConfigError, Returned

__all__ = [
    "AsyncDriver",
    "AsyncTransactional",
    "Driver",
    "FromLoop",
    "GiveBack",
    "SharedClient",
    "TransactionArguments",
    "TransactionOp",
    "TransactionOptions",
    "Transactional",
    "check_options",
]

R = TypeVar("R")
C_co = TypeVar("C_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
TransactionOp: TypeAlias = Literal["begin", "commit", "rollback"]


class TransactionArguments(TypedDict, total=False):
    """How a caller spells `TransactionOptions`: as keyword arguments, None where nothing is said."""

    read_only: bool | None
    isolation_level: str | None
    deferrable: bool | None
    settings: Mapping[str, object] | None


_LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")
_is_name = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*").fullmatch


@dataclass(frozen=True, slots=True)
class TransactionOptions:
    """What one transaction is to be; None: as the connection has it at rest.

    `settings` are names and texts of session settings that hold for the transaction, as in PostgreSQL's `SET LOCAL`:
    the names are checked, the texts are not quoted.
    """

    read_only: bool | None = None
    isolation_level: str | None = None
    deferrable: bool | None = None
    settings: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls, *, read_only: bool | None = None, isolation_level: str | None = None, deferrable: bool | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> Self | None:  # fmt: skip
        """Check what a caller gives; None where that is nothing. Raises one `ConfigError` with all that is wrong."""
        if read_only is None and isolation_level is None and deferrable is None and not settings:
            return None
        problems = [
            f"{name} must be True, False or None, not {value!r}"
            for name, value in (("read_only", read_only), ("deferrable", deferrable))
            if value not in (True, False, None)
        ]
        level = isolation_level.lower().replace("_", " ") if isinstance(isolation_level, str) else isolation_level
        if level is not None and level not in _LEVELS:
            problems.append(f"isolation_level must be one of {', '.join(_LEVELS)}, not {isolation_level!r}")
        given, faults = _settings(settings or {})
        if problems or faults:
            raise ConfigError([*problems, *faults], "options of a transaction")
        return cls(read_only, level, deferrable, given)


def _settings(settings: Any) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """Make texts of the values. Faults name the setting, and never its value, which may be a secret."""
    if not isinstance(settings, Mapping):
        return (), [f"settings must map names to values, not {type(settings).__name__}"]
    given, faults = [], []
    for name, value in settings.items():
        if not isinstance(name, str) or _is_name(name) is None:
            faults.append(f"settings: {name!r} is no name of a setting: letters, digits and _, in parts between dots")
        elif not isinstance(value, (str, int, float)):
            faults.append(
                f"settings: the value of {name!r} must be a text, a number or a bool, not {type(value).__name__}"
            )
        elif isinstance(value, str) and "\0" in value:
            faults.append(f"settings: the value of {name!r} has a NUL character in it")
        else:
            given.append((name, ("on" if value else "off") if isinstance(value, bool) else str(value)))
    return tuple(given), faults


def check_options(driver: object, options: TransactionOptions) -> None:
    """Raise `ConfigError` where this driver's transactions can't have these options."""
    check = getattr(driver, "check_options", None)
    if check is not None:
        check(options)
    elif len(inspect.signature(getattr(driver, "begin")).parameters) < 2:  # noqa: B009  any driver's
        raise ConfigError(f"{type(driver).__name__} begins transactions without options", "options of a transaction")


class Driver(Protocol[R]):
    """How a thread pool opens, checks, cleans and closes one kind of resource."""

    @property
    def defaults(self) -> Mapping[str, object]:
        """Pool settings that suit this resource, used where the user sets none (names of `PoolConfig`)."""

    def open(self, timeout: float) -> R:
        """Connect within `timeout` seconds, whatever the number of hosts tried; raises the library's error."""

    def close(self, resource: R) -> None:
        """Say goodbye and close. May raise; the pool logs that and goes on."""

    def alive(self, resource: R) -> bool:
        """Whether the peer still seems to be there. No round trip. A readable socket is a hint to look closer."""

    def ping(self, resource: R, timeout: float) -> bool:
        """Whether the peer answers within `timeout` seconds. One round trip; asked only after `check_after` idle."""

    def clean(self, resource: R) -> bool:
        """Whether `reset` would have nothing to do. No I/O."""

    def reset(self, resource: R, *, full: bool) -> None:
        """Make the resource as new, or raise. `full`: the whole session, whatever the driver's own state shows."""

    def is_broken(self, resource: R, error: BaseException | None) -> bool:
        """Whether the resource can't be used again after `error`. No I/O."""

    def demoted(self, resource: R, error: BaseException | None) -> bool:
        """Whether `error` says that this server takes no writes any more: all connections to it are replaced. No I/O.

        Asked only of a resource that is broken. False where there is no such thing.
        """

    def abandon(self, resource: R) -> None:
        """Let go of a resource inherited over a fork, without a word to the server."""


class AsyncDriver(Protocol[R]):
    """The same for asyncio: a coroutine wherever I/O may happen."""

    @property
    def defaults(self) -> Mapping[str, object]:
        """Pool settings that suit this resource, used where the user sets none (names of `PoolConfig`)."""

    async def open(self, timeout: float) -> R:
        """Connect within `timeout` seconds, in the running loop. The pool cancels what takes longer."""

    async def close(self, resource: R) -> None:
        """Say goodbye and close."""

    def terminate(self, resource: R) -> None:
        """Close at once without I/O that needs the loop: the loop may be closed already."""

    def alive(self, resource: R) -> bool:
        """Whether the peer still seems to be there. No round trip."""

    async def ping(self, resource: R, timeout: float) -> bool:
        """Whether the peer answers within `timeout` seconds. One round trip. The pool cancels what takes longer."""

    def clean(self, resource: R) -> bool:
        """Whether `reset` would have nothing to do. No I/O."""

    async def reset(self, resource: R, *, full: bool) -> None:
        """Make the resource as new, or raise."""

    def is_broken(self, resource: R, error: BaseException | None) -> bool:
        """Whether the resource can't be used again after `error`. No I/O."""

    def demoted(self, resource: R, error: BaseException | None) -> bool:
        """Whether `error` says that this server takes no writes any more: all connections to it are replaced. No I/O.

        Asked only of a resource that is broken. False where there is no such thing.
        """

    def abandon(self, resource: R) -> None:
        """Let go of a resource inherited over a fork, without a word to the server."""


@runtime_checkable
class Transactional(Protocol[R_contra]):
    """A driver whose resources can be part of a unit of work."""

    def begin(self, resource: R_contra) -> None:
        """Start a transaction on a clean resource."""

    def commit(self, resource: R_contra) -> None:
        """Commit; raises the library's own error where the server refuses."""

    def rollback(self, resource: R_contra) -> None:
        """Roll back."""

    def aborted(self, resource: R_contra) -> bool:
        """Whether a COMMIT would silently be a ROLLBACK (a failed statement ended the transaction). No I/O."""

    def in_transaction(self, resource: R_contra) -> bool:
        """Whether a transaction is open. No I/O."""


@runtime_checkable
class FromLoop(Protocol[R_contra]):
    """A `Transactional` driver for threads that can do its work from an event loop as well. Optional.

    Without it, a sync endpoint of an async framework goes through two threads of poolkit's besides its own: one to
    begin in, one to end in.
    """

    async def from_loop(self, op: TransactionOp, resource: R_contra) -> bool:
        """Do what the method of that name does, and raise what it raises, while the loop goes on.

        False, with nothing done, where that can't be: on such a loop, or while a thread uses the resource.
        """


@runtime_checkable
class AsyncTransactional(Protocol[R_contra]):
    """A driver for asyncio whose resources can be part of a unit of work."""

    async def begin(self, resource: R_contra) -> None:
        """Start a transaction on a clean resource."""

    async def commit(self, resource: R_contra) -> None:
        """Commit; raises the library's own error where the server refuses."""

    async def rollback(self, resource: R_contra) -> None:
        """Roll back."""

    def aborted(self, resource: R_contra) -> bool:
        """Whether a COMMIT would silently be a ROLLBACK. No I/O."""

    def in_transaction(self, resource: R_contra) -> bool:
        """Whether a transaction is open. No I/O."""


class GiveBack(Protocol):
    """What `on_user_close` is given."""

    def __call__(self, resource: Any, /) -> bool:
        """Take the resource back; False where it is not borrowed."""

    def begin(self, resource: Any, /) -> Returned | None:
        """Ask to close a resource that can't be renewed, before anything is done with it.

        Returns the place of the close, for the errors of later uses; None where it is not borrowed. Raises
        `LeaseError` where another thread has borrowed it: the caller may be an earlier borrower.
        """

    def is_stranger(self, resource: Any, /) -> bool | None:
        """Whether the running thread is another than the one that uses it; None where any thread may."""


@runtime_checkable
class SharedClient(Protocol[C_co]):
    """Something each thread of a process uses without leasing it: an HTTP session, a client with a pool of its own."""

    @property
    def defaults(self) -> Mapping[str, object]:
        """Pool settings that suit this client, used where the user sets none (names of `PoolConfig`)."""

    def get(self) -> C_co:
        """This thread's client, made on first use in this process."""

    def close(self) -> None:
        """Close what this process opened, of every thread. May be called twice."""

    def abandon(self) -> None:
        """Start afresh in a forked child: forget what the parent opened, without a word to the server."""

    def stats(self) -> Mapping[str, Any]:
        """How many clients were made and are open, for the status page."""
