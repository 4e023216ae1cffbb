"""The connections that the psycopg drivers lend: psycopg's own classes, with a gate before every statement.

Every step that a connection takes with the server goes through its method `wait`. There each statement is noted (see
`_psycopg_session`) and joined to its BEGIN (see `_fold`).

A borrowing has an object of its own. `renew` moves the session into a fresh object of the same class, and what was the
connection refuses all use from then on; so does everything that was made from it, for it all works through `wait`. What
a cursor has received already stays readable.

`close` and `with conn:` of a connection that a pool has do what they do with psycopg_pool: `with` ends the transaction
and closes nothing; `close` with no work open gives the connection back at once, and the session is kept.
"""

# ruff: noqa: SLF001  see the psycopg driver: one spelling of each operation, for threads and for asyncio

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import cache
from types import GeneratorType, TracebackType
from typing import Any, NoReturn, Self, TypeVar, cast
from weakref import ref

import psycopg
from psycopg import AsyncConnection, BaseConnection, Connection, pq
from psycopg._conninfo_attempts import conninfo_attempts
from psycopg._conninfo_attempts_async import conninfo_attempts_async
from psycopg.abc import PQGen
from psycopg.rows import Row

from poolkit.drivers import _common
from poolkit.drivers._fold import Folding, nothing_begun, through_the_gate
from poolkit.drivers._libpq import IDLE, INTRANS, to_rest
from poolkit.drivers._psycopg_connect import Patience, hosts_of_service
from poolkit.drivers._psycopg_session import EXECUTE, Session, sends_as_psycopg
from poolkit.errors import Returned

__all__ = ["AsyncPooledConnection", "PooledConnection", "nothing_to_end", "renew"]

C = TypeVar("C", bound="BaseConnection[Any]")
logger = logging.getLogger("poolkit")
_new = object.__new__
# Steps that send nothing of a borrower's. Not in a set: to hash a code object takes longer than to compare a few.
_ENDS = (BaseConnection._commit_gen.__code__, BaseConnection._rollback_gen.__code__)
_SETS_AUTOCOMMIT = Connection._set_autocommit_gen.__code__

_cancelling: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references


def _noting(name: str) -> Any:
    """Make a method that does what psycopg's does, and notes that it was called."""

    def noted(conn: Any, *arguments: Any, **keywords: Any) -> Any:
        conn._session.touched = True
        return getattr(super(_Ours, conn), name)(*arguments, **keywords)

    noted.__name__ = name
    return noted


def _noting_property(name: str) -> Any:
    """Make a property that is psycopg's, and notes that it was set."""
    theirs = getattr(BaseConnection, name)

    def set_it(conn: Any, value: Any) -> None:
        conn._session.touched = True
        theirs.fset(conn, value)

    return property(theirs.fget, set_it, doc=theirs.__doc__)


class _Ours(Folding):
    """Mixed in before psycopg's. What is seldom set is noted, so that each return has one flag to look at."""

    _session: Session
    _explicit_end: Callable[[str], None] | None = None  # hears of the borrower's own commit and rollback
    _chosen = False  # whether this borrowing's transactions have options
    _readable: Callable[[int], object]
    _bad = pq.ConnStatus.BAD  # looked at by finalizers, also when the globals of this module are gone

    def __init__(self, pgconn: Any, *arguments: Any, **keywords: Any) -> None:
        super().__init__(pgconn, *arguments, **keywords)  # type: ignore[call-arg]
        self._session = Session(cast("BaseConnection[Any]", self))

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **arguments: Any) -> Any:
        steps = super()._connect_gen(conninfo, **arguments)  # type: ignore[misc]
        patience = Patience.current.get()
        return steps if patience is None else patience.bound(steps, conninfo)

    set_isolation_level = _noting("set_isolation_level")
    set_read_only = _noting("set_read_only")
    set_deferrable = _noting("set_deferrable")
    tpc_begin = _noting("tpc_begin")
    add_notice_handler = _noting("add_notice_handler")
    remove_notice_handler = _noting("remove_notice_handler")
    add_notify_handler = _noting("add_notify_handler")
    remove_notify_handler = _noting("remove_notify_handler")
    prepare_threshold = _noting_property("prepare_threshold")
    prepared_max = _noting_property("prepared_max")

    def _tell_end(self, op: str) -> None:
        if self._explicit_end is not None:
            self._explicit_end(op)

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, by its user or by the server."""
        conn: Any = self
        return bool(conn.pgconn.status == self._bad)

    def _may_be_kept(self) -> bool | None:
        """Whether `close` gives the connection back; None where the server has to be asked what was done on it."""
        if self._session.give_back is None:
            return False
        conn: Any = self
        status = conn.pgconn.transaction_status
        if conn.lock.locked() or conn._pipeline is not None or conn._num_transactions or conn._tpc is not None:
            return False
        return True if status == IDLE else None if status == INTRANS else False

    def _close(self, *, keep: bool) -> None:
        session, conn = self._session, cast("Any", self)
        if keep:
            nothing_to_end(conn)
            to_rest(conn)
            if session.give_back is not None and session.give_back(conn):
                return
        if session.give_back is not None and not self.closed:
            session.closed_by_user = not conn._autocommit or conn.pgconn.transaction_status == INTRANS
        conn.__dict__["_closed"] = True
        conn.pgconn.finish()


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Leave out what would have psycopg list each address twice."""
    return {name: value for name, value in params.items() if name != "target_session_attrs"}


def nothing_to_end(conn: Any) -> bool:
    """Whether the server has no transaction of this unit: it was only promised.

    What the unit asked for ends here, whatever comes.
    """
    conn._explicit_end = None
    if conn._chosen:
        conn._session.forget_choice(conn)
    return nothing_begun(conn)


def _roll_back_reading(conn: Any) -> PQGen[bool]:
    """Roll back a transaction that has written nothing. Returns whether it was one."""
    written = yield from conn._exec_command(b"SELECT pg_catalog.txid_current_if_assigned()")
    if written is None or written.get_value(0, 0) is not None:
        return False
    yield from conn._exec_command(b"ROLLBACK")
    return True


def _enter(conn: Any, steps: Any) -> tuple[Any, Any, bytes | None]:
    """Note what these steps do and how their transaction begins.

    Returns steps to take before, or None; the steps; and a text to note once they have succeeded.
    """
    session: Session = conn._session
    text = given = None
    code = steps.gi_code if steps.__class__ is GeneratorType else None
    if code is EXECUTE:
        given = steps.gi_frame.f_locals
        query = given["query"]
        # `Session.enter` in short, for what every request does: a call less
        if query.__class__ is str and not session.noting and sends_as_psycopg(given["self"].__class__):
            level = session.levels[query]
            if level > session.level:  # noqa: PLR1730  a call less
                session.level = level
            session.ran = True
            if session.epoch != session.plans.epoch:
                session.forget(conn)
        else:
            text = session.enter(conn, steps)
    elif code in _ENDS and not session.noting:
        session.ran = True  # a COMMIT may run triggers
    else:
        text = session.enter(conn, steps)
    if conn._autocommit:
        return None, steps, text
    first, steps = through_the_gate(conn, steps, given)
    return first, steps, text


class PooledConnection(_Ours, Connection[Row]):
    """A psycopg connection whose session is watched, and whose connect can be bounded."""

    @classmethod
    def _get_connection_params(cls, conninfo: str, **keywords: Any) -> Any:
        params = super()._get_connection_params(conninfo, **keywords)
        patience = Patience.current.get()
        if patience is None:
            return params
        params |= hosts_of_service(params)
        return patience.spread(params, conninfo_attempts(_plain(params)))

    def wait(self, gen: Any, *arguments: Any, **keywords: Any) -> Any:
        """Take steps with the server, as psycopg does; the transaction has begun before them, or begins with them."""
        if getattr(gen, "gi_code", None) is _SETS_AUTOCOMMIT and not self._begin_due and self._pipeline is None:
            return Connection.wait(self, gen, *arguments, **keywords)  # which looks, and sends nothing
        first, steps, text = _enter(self, gen)
        if first is not None:
            Connection.wait(self, first)
        try:
            if arguments or keywords:
                result: Any = Connection.wait(self, steps, *arguments, **keywords)
            else:
                result = Connection.wait(self, steps)  # `super()` and passing on nothing would cost more than `_enter`
        except psycopg.Error as error:
            self._session.suspect(error)
            raise
        if text is not None:
            self._session.noted(text)
        return result

    def commit(self) -> None:
        """Commit, as psycopg does; a unit of work hears of it."""
        self._tell_end("commit")
        super().commit()

    def rollback(self) -> None:
        """Roll back, as psycopg does; a unit of work hears of it."""
        self._tell_end("rollback")
        super().rollback()

    def close(self) -> None:
        """Close the connection; one that a pool has is given back at once, unless work is open on it."""
        if _is_given_back(self):  # a method that was kept
            return
        keep = self._may_be_kept()
        if keep is None:
            with contextlib.suppress(psycopg.Error), self.lock:
                keep = super().wait(_roll_back_reading(self))
        self._close(keep=bool(keep))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End the transaction. Close the connection, unless a pool has it."""
        if _is_given_back(self):  # a `with` keeps this method from its begin on
            return
        if self._session.give_back is None:
            super().__exit__(kind, error, tb)
        elif not self.closed:
            if kind is None:
                self.commit()
                return
            try:
                self.rollback()
            except Exception as failure:  # noqa: BLE001  the error of the block matters more
                logger.warning("error ignored in the rollback of a connection: %s", failure)


class AsyncPooledConnection(_Ours, AsyncConnection[Row]):
    """The same for asyncio."""

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **keywords: Any) -> Any:
        params = await super()._get_connection_params(conninfo, **keywords)
        patience = Patience.current.get()
        if patience is None:
            return params
        params |= hosts_of_service(params)
        return patience.spread(params, await conninfo_attempts_async(_plain(params)))

    async def wait(self, gen: Any, *arguments: Any, **keywords: Any) -> Any:
        """Take steps with the server, as psycopg does; the transaction has begun before them, or begins with them."""
        first, steps, text = _enter(self, gen)
        if first is not None:
            await AsyncConnection.wait(self, first)
        try:
            if arguments or keywords:
                result: Any = await AsyncConnection.wait(self, steps, *arguments, **keywords)
            else:
                result = await AsyncConnection.wait(self, steps)
        except psycopg.Error as error:
            self._session.suspect(error)
            raise
        if text is not None:
            self._session.noted(text)
        return result

    async def commit(self) -> None:
        """Commit, as psycopg does; a unit of work hears of it."""
        self._tell_end("commit")
        await super().commit()

    async def rollback(self) -> None:
        """Roll back, as psycopg does; a unit of work hears of it."""
        self._tell_end("rollback")
        await super().rollback()

    async def close(self) -> None:
        """Close the connection; one that a pool has is given back at once, unless work is open on it."""
        if _is_given_back(self):
            return
        keep = self._may_be_kept()
        if keep is None:
            with contextlib.suppress(psycopg.Error):
                async with self.lock:
                    keep = await super().wait(_roll_back_reading(self))
        self._close(keep=bool(keep))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End the transaction. Close the connection, unless a pool has it."""
        if _is_given_back(self):  # a `with` keeps this method from its begin on
            return
        if self._session.give_back is None:
            await super().__aexit__(kind, error, tb)
        elif not self.closed:
            if kind is None:
                await self.commit()
                return
            try:
                await self.rollback()
            except Exception as failure:  # noqa: BLE001  the error of the block matters more
                logger.warning("error ignored in the rollback of a connection: %s", failure)

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        """Have the server cancel the statement, also where the waiting task is cancelled again.

        A cancelled scope of anyio cancels each await in it: so this goes on in a task of its own.
        """
        task = asyncio.get_running_loop().create_task(super()._try_cancel(timeout=timeout))
        _cancelling.add(task)
        task.add_done_callback(_cancelling.discard)
        await asyncio.shield(task)


# -- an object for each borrowing -------------------------------------------------------------------------------------

_ANSWERED = frozenset({
    "__class__", "__dict__", "__doc__", "__module__", "__repr__", "__str__", "__hash__", "__eq__", "__ne__",
    "__init_subclass__", "__subclasshook__", "__reduce_ex__", "__exit__", "__aexit__", "close", "closed", "broken",
    "lock", "wait", "_returned",
})  # fmt: skip


class _Lock:
    """Stands in for the lock of a connection that refuses anyway."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_error: object) -> None: ...

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_error: object) -> None: ...


class _GivenBack:
    """What a connection becomes when it is given back. It answers whether it is closed, and refuses all else."""

    _returned: Returned
    closed = True
    broken = False
    lock = _Lock()

    def __getattribute__(self, name: str) -> Any:
        if name in _ANSWERED:
            return object.__getattribute__(self, name)
        raise object.__getattribute__(self, "__dict__")["_returned"].error()

    def __setattr__(self, name: str, value: object) -> None:
        raise self._returned.error()

    def __delattr__(self, name: str) -> None:
        raise self._returned.error()

    def __del__(self) -> None:
        """Do nothing: the session is another object's."""

    def __repr__(self) -> str:
        return f"<psycopg connection of pool {self._returned.pool!r}, given back at {self._returned}>"

    def wait(self, steps: Any, *_arguments: Any, **_keywords: Any) -> NoReturn:
        """Refuse: this is where everything that was made from the connection comes by."""
        steps.close()
        raise self._returned.error()

    def __enter__(self) -> Self:
        raise self._returned.error()

    async def __aenter__(self) -> Self:
        raise self._returned.error()


def _is_given_back(conn: object) -> bool:
    return isinstance(conn, _GivenBack)


class _SyncGivenBack(_GivenBack):
    def close(self) -> None:
        """Do nothing: it was given back."""

    def __exit__(self, *_error: object) -> None:
        """Do nothing: it was given back."""


class _AsyncGivenBack(_GivenBack):
    async def close(self) -> None:
        """Do nothing: it was given back."""

    async def __aexit__(self, *_error: object) -> None:
        """Do nothing: it was given back."""


@cache
def _given_back(kind: type) -> type:
    base = _AsyncGivenBack if issubclass(kind, AsyncConnection) else _SyncGivenBack
    return type(f"Returned{kind.__name__}", (base, kind), {"__module__": kind.__module__})


def renew(conn: C, returned: Returned) -> C:
    """Move the session into a new object of the same class; the old one refuses all use from now on.

    A statement that another thread or task runs meanwhile is hung up on.
    """
    kind = conn.__class__
    fresh: Any = _new(kind)
    state = conn.__dict__
    session: Session = state["_session"]
    if not session.moved:
        session.moved = True
        state = {**state}  # one that shares its keys with none: else CPython (3.11 to 3.13) reads attributes slowly
    fresh.__dict__ = state
    conn.__dict__ = {"_returned": returned}
    conn.__class__ = _given_back(kind)  # type: ignore[arg-type]
    session.conn = ref(fresh)
    if state["lock"].locked():
        _common.hang_up_on(session.descriptor)
    return fresh  # type: ignore[no-any-return]
