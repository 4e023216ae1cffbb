"""psycopg 3, for threads and for asyncio: `PsycopgDriver` and `AsyncPsycopgDriver`.

A connection rests in autocommit: a statement outside a unit of work costs one round trip and leaves no transaction
behind. `begin` turns autocommit off: from then on the connection is what its user knows. `conn.transaction()` is a
savepoint; after a `conn.commit()` in the middle the next statement begins a new transaction, which can still be rolled
back. `commit` and `rollback` turn autocommit on again.

BEGIN rides with the first statement: a unit of one statement takes two round trips, one of n statements n + 1, one of
none none. What can't go along (a COPY, `executemany`, `stream`, a named cursor, a pipeline, several statements in one
string, DDL) gets its BEGIN first, which is one round trip more; no statement runs outside the transaction, whatever
cursor class it comes from. Two things look different: until the first statement `conn.info.transaction_status` is IDLE,
and a server that went away unnoticed is found by the statement, not by `begin`. What is sent by hand through libpq
(`conn.pgconn.exec_`) passes psycopg by: as the very first statement it would run outside the transaction. The option
`fold_begin=False` has `begin` send BEGIN at once.

Whether a connection is alive, clean or in a transaction is read from libpq's own state and from the socket, never from
what poolkit did with it. Sync and async connections share their generators, as psycopg's own do: each operation is
written once, and only the waiting differs. (That, and speed, is why members with an underscore are used here; they are
the same in every psycopg from 3.2 on, and the conformance tests hold them.)

Not seen by `clean`, so left behind in `reset="auto"`: session settings made by SQL (`SET`, temporary tables, session
advisory locks). Use `SET LOCAL`, or `reset="full"`. Never undone: adapters registered on the connection, and prepared
statements made by SQL.
"""

# ruff: noqa: SLF001  see above: one spelling of each operation, for threads and for asyncio

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from time import monotonic
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast, overload

import psycopg
from psycopg import AsyncConnection, BaseConnection, Connection, errors, pq
from psycopg.abc import PQGen
from psycopg.rows import AsyncRowFactory, RowFactory, TupleRow, tuple_row
from psycopg.waiting import wait_async

from poolkit.config import PoolConfig
from poolkit.driver import TransactionOp
from poolkit.drivers import _common
from poolkit.drivers._fold import Folding, can_fold, due, nothing_begun, through_the_gate
from poolkit.drivers._libpq import (
    ACTIVE,
    INERROR,
    INTRANS,
    UNKNOWN,
    Patience,
    answers,
    check_arguments,
    conninfo_keywords,
    demotes,
    ends_session,
    parse,
    refuse_busy,
    rest_state,
    run,
    still_there,
    to_rest,
)  # fmt: skip

__all__ = ["AsyncPsycopgDriver", "PooledConnection", "PsycopgDriver", "descriptor", "within"]

C = TypeVar("C", bound="BaseConnection[Any]")
Row = TypeVar("Row")

LOOK_AGAIN = 1.0  # seconds; the socket wakes who waits for it, and 0 would have psycopg ask without a pause

_PREPARE_AFTER = 5  # psycopg's own default: how often a statement runs before it is prepared
_REST = ("isolation_level", "read_only", "deferrable")
_REFUSED = {
    "autocommit": "connections rest in autocommit; use a transaction or a unit of work",
    "conninfo": "it is the URL",
}

# One round trip. DISCARD ALL would not do: it can't run beside anything else, and would deallocate the statements that
# psycopg keeps prepared.
_FULL_RESET = (
    b"CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); "
    b"DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES"
)


_patience: ContextVar[Patience | None] = ContextVar("poolkit_psycopg_patience", default=None)


def _noting(name: str) -> Any:
    """Make a method that does what psycopg's does, and notes that it was called."""

    def noted(conn: Any, *arguments: Any, **keywords: Any) -> Any:
        conn._touched = True
        return getattr(super(_Noting, conn), name)(*arguments, **keywords)

    noted.__name__ = name
    return noted


class _Noting:
    """Notes what is seldom set, so that `clean`, which every return asks, has one flag to look at instead of seven."""

    _touched = True

    set_isolation_level = _noting("set_isolation_level")
    set_read_only = _noting("set_read_only")
    set_deferrable = _noting("set_deferrable")
    tpc_begin = _noting("tpc_begin")
    add_notice_handler = _noting("add_notice_handler")
    add_notify_handler = _noting("add_notify_handler")

    @property
    def prepare_threshold(self) -> int | None:
        """How often a statement is executed before it is prepared."""
        return cast("int | None", super().prepare_threshold)  # type: ignore[misc]

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self._touched = True
        BaseConnection.prepare_threshold.fset(self, value)  # type: ignore[attr-defined]


class PooledConnection(Folding, _Noting, Connection[Row]):
    """A psycopg connection that remembers how to look at its socket, and whose connect can be bounded."""

    _readable: Callable[[int], object]

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **arguments: Any) -> Any:
        return _bounded_connect(super()._connect_gen(conninfo, **arguments))

    def wait(self, gen: Any, *arguments: Any, **keywords: Any) -> Any:
        """Take steps with the server, as psycopg does; the transaction has begun before them, or begins with them."""
        if not self._autocommit:
            first, gen = through_the_gate(self, gen)
            if first is not None:
                super().wait(first)
        return super().wait(gen, *arguments, **keywords)


class AsyncPooledConnection(Folding, _Noting, AsyncConnection[Row]):
    """The same for asyncio."""

    _readable: Callable[[int], object]

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **arguments: Any) -> Any:
        return _bounded_connect(super()._connect_gen(conninfo, **arguments))

    def wait(self, gen: Any, *arguments: Any, **keywords: Any) -> Any:
        """Take steps with the server, as psycopg does; the transaction has begun before them, or begins with them."""
        if not self._autocommit:
            first, gen = through_the_gate(self, gen)
            if first is not None:
                return self._wait_for_both(first, gen, *arguments, **keywords)
        return super().wait(gen, *arguments, **keywords)

    async def _wait_for_both(self, first: Any, gen: Any, *arguments: Any, **keywords: Any) -> Any:
        await super().wait(first)
        return await super().wait(gen, *arguments, **keywords)


class _Base(Generic[C]):
    """What both drivers share: all that needs no waiting."""

    _keywords: frozenset[str]
    _cursor: type
    _row: Any = staticmethod(tuple_row)

    def __init__(
        self,
        source: _common.Source,
        *,
        options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None,
        where: str = "",
    ) -> None:
        self._source = source
        self._config = config or PoolConfig()
        self._where = where
        options = dict(options or {})
        _common.check_options(options, self._keywords | conninfo_keywords() | {*_REST, "fold_begin"}, _REFUSED, where)
        check_arguments(options, where)
        self._folds = options.pop("fold_begin", True) and can_fold()
        self._rest = rest_state({name: options.pop(name, None) for name in _REST}, where)
        self._arguments = {name: options.pop(name) for name in list(options) if name in self._keywords}
        self._parameters = options
        self._row_factory = self._arguments.get("row_factory") or self._row
        self._cursor_factory = self._arguments.get("cursor_factory") or self._cursor
        self._threshold = self._arguments.get("prepare_threshold", _PREPARE_AFTER)
        self._fixed = parse(source, where) if isinstance(source, str) else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    alive_bypass = _common.ALIVE_BYPASS

    @property
    def defaults(self) -> Mapping[str, object]:
        """Nothing: the defaults of `PoolConfig` are made for PostgreSQL."""
        return MappingProxyType({})

    def _conninfo(self, timeout: float, asked: str | None = None) -> dict[str, Any]:
        """All parameters for one connect: what suits a pool, under the URL, under the options.

        `asked` is what a URL callable has answered.
        """
        url = parse(asked, self._where) if asked is not None else self._fixed or {}
        self._threshold = {"prepare_threshold": _PREPARE_AFTER, **url, **self._arguments}["prepare_threshold"]
        return {
            # libpq counts whole seconds, and psycopg makes it at least two
            "connect_timeout": max(2, math.ceil(timeout)),
            "fallback_application_name": _common.application_name(),
            "keepalives_idle": _common.KEEPALIVE_IDLE,
            "keepalives_interval": _common.KEEPALIVE_INTERVAL,
            "keepalives_count": _common.KEEPALIVE_COUNT,
            "tcp_user_timeout": _common.USER_TIMEOUT * 1000,
            **url,
            **self._parameters,
            **self._arguments,
            "prepare_threshold": self._threshold,
            "autocommit": True,
        }

    def _fit(self, conn: Any) -> None:
        """Prepare a new connection for its life in the pool."""
        conn._readable = _common.poller(conn.pgconn.socket)
        conn._folds = self._folds
        self._restore(conn)

    # -- looking: no I/O but a look at the socket ---------------------------------------------------------------------

    def alive(self, resource: C) -> bool:
        """Look at the socket; 0.5 us. A readable one is looked at closer, and its notifications are kept."""
        if resource._readable(0):  # type: ignore[attr-defined]
            return still_there(resource)
        return not resource.pgconn.transaction_status  # IDLE is 0

    def clean(self, resource: C) -> bool:
        """Whether the connection is as when it was opened, as far as libpq and psycopg know."""
        conn: Any = resource
        return (
            not conn.pgconn.transaction_status
            and not conn.lock.locked()  # a thread that still uses it, and has not sent its statement yet
            and conn._autocommit
            and conn.row_factory is self._row_factory
            and conn.cursor_factory is self._cursor_factory
            and conn._pipeline is None
            and not conn._num_transactions
            and not conn._notifies_backlog
            and (not conn._touched or self._is_restored(conn))
        )

    def _is_restored(self, conn: Any) -> bool:
        """Whether all that `_Noting` notes is as it was: a change was refused, or put back by hand."""
        restored = (
            (conn._isolation_level, conn._read_only, conn._deferrable) == self._rest
            and conn._prepared.prepare_threshold == self._threshold
            and conn._tpc is None
            and not conn._notify_handlers
            and not conn._notice_handlers
        )
        conn._touched = not restored
        return restored

    def is_broken(self, resource: C, error: BaseException | None) -> bool:
        """Whether the session is over, is in the middle of something, or is one that has to be left.

        An interrupt (Ctrl-C, a SIGTERM that raises SystemExit) may have struck anywhere: not worth the doubt. A refusal
        to write where nobody asked for read-only means that the server is no longer the primary.
        """
        status = resource.pgconn.transaction_status
        if status in (ACTIVE, UNKNOWN) or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        return any(ends_session(cause) or demotes(cause, resource) for cause in _common.causes(error))

    def demoted(self, resource: C, error: BaseException | None) -> bool:
        """Whether a write was refused because the server is no longer the primary."""
        return any(demotes(cause, resource) for cause in _common.causes(error))

    def aborted(self, resource: C) -> bool:
        """Whether a failed statement has aborted the transaction."""
        return resource.pgconn.transaction_status == INERROR

    def statement_error(self, resource: C) -> str:
        """Return the first line of the server's last error: its message, without the values that DETAIL has."""
        return resource.pgconn.get_error_message().partition("\n")[0].strip()

    def in_transaction(self, resource: C) -> bool:
        """Whether a transaction is open or promised, or a statement is running."""
        return resource._begin_due or resource.pgconn.transaction_status in (INTRANS, INERROR, ACTIVE)  # type: ignore[attr-defined]

    def abandon(self, resource: C) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        if resource.pgconn.status != pq.ConnStatus.BAD:
            _common.silence(resource.pgconn.socket)
            resource._pool = None  # at exit psycopg won't warn that it was left open

    # -- doing: generators, run by both -------------------------------------------------------------------------------

    def _begin(self, conn: C) -> PQGen[None]:
        yield from conn._set_autocommit_gen(False)
        yield from conn._start_query()

    def _commit(self, conn: C) -> PQGen[None]:
        try:
            if conn.pgconn.transaction_status == INERROR:  # COMMIT would roll back and call it a success
                yield from conn._rollback_gen()
                raise errors.InFailedSqlTransaction("a failed statement aborted the transaction: it was rolled back")
            yield from conn._commit_gen()
        finally:
            to_rest(conn)

    def _rollback(self, conn: C) -> PQGen[None]:
        try:
            yield from conn._rollback_gen()
        finally:
            to_rest(conn)

    def _reset(self, conn: C, *, full: bool) -> PQGen[None]:
        if conn.pgconn.transaction_status in (INTRANS, INERROR):
            yield from conn._rollback_gen()
        if full:
            yield from run(conn, _FULL_RESET)
        elif conn._notify_handlers or conn._notifies_backlog:
            yield from run(conn, b"UNLISTEN *")
        self._restore(conn)

    def _restore(self, conn: Any) -> None:
        """Set every attribute as it was when the connection was opened; none of them needs the server."""
        conn._autocommit = True
        conn._begin_due = False
        conn.row_factory = self._row_factory
        conn.cursor_factory = self._cursor_factory
        conn.prepare_threshold = self._threshold
        conn._isolation_level, conn._read_only, conn._deferrable = self._rest
        conn._begin_statement = b""  # psycopg keeps BEGIN ready made, with the options of then
        conn._notify_handlers.clear()
        conn._notice_handlers.clear()
        conn._notifies_backlog.clear()
        conn._touched = False


class PsycopgDriver(_Base["Connection[Row]"], Generic[Row]):
    """psycopg for threads. `Pool(PsycopgDriver("postgresql://..."))` lends `psycopg.Connection`.

    `source` is a URL, or a callable that returns one for each connect. `options` takes libpq's connection parameters
    and `row_factory`, `cursor_factory`, `context`, `prepare_threshold`, `isolation_level`, `read_only`,
    `deferrable` and `fold_begin`. Raises `ConfigError`.
    """

    _keywords = frozenset({"row_factory", "cursor_factory", "context", "prepare_threshold"})
    _cursor = psycopg.Cursor

    @overload
    def __init__(
        self: PsycopgDriver[TupleRow], source: _common.Source, *, options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None, where: str = "",
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self, source: _common.Source, *, row_factory: RowFactory[Row], options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None, where: str = "",
    ) -> None: ...  # fmt: skip
    def __init__(
        self, source: _common.Source, *, row_factory: RowFactory[Any] | None = None,
        options: Mapping[str, Any] | None = None, config: PoolConfig | None = None, where: str = "",
    ) -> None:  # fmt: skip
        super().__init__(source, options=_with_rows(options, row_factory), config=config, where=where)

    def open(self, timeout: float) -> Connection[Row]:
        """Connect within `timeout` seconds, whatever the number of hosts. Raises `psycopg.OperationalError`."""
        asked = _common.ask(self._source, self._where) if self._fixed is None else None
        conninfo = self._conninfo(timeout, asked)
        with within(timeout, conninfo):
            conn = PooledConnection.connect(**conninfo)
        self._fit(conn)
        return cast("Connection[Row]", conn)

    def close(self, resource: Connection[Row]) -> None:
        """Say goodbye and close; hang up where another thread is in the middle of a statement."""
        if not resource.lock.acquire(blocking=False):
            _hang_up(resource)
            return
        try:
            _hang_up(resource) if _is_active(resource) else resource.close()
        finally:
            resource.lock.release()

    def ping(self, resource: Connection[Row], timeout: float) -> bool:
        """Ask the server for an answer within `timeout` seconds; one round trip."""
        try:
            with resource.lock:
                resource.pgconn.send_query(b"SELECT 1")
                return answers(resource.pgconn, monotonic() + timeout)
        except psycopg.Error:
            return False

    def reset(self, resource: Connection[Row], *, full: bool) -> None:
        """Roll back what is open and put every attribute back; `full`: the whole session, in one round trip."""
        refuse_busy(resource)
        with resource.lock:
            nothing_begun(resource)
            resource.wait(self._reset(resource, full=full))

    def begin(self, resource: Connection[Row]) -> None:
        """Promise a transaction, with the isolation level and mode set: BEGIN rides with the first statement."""
        with resource.lock:
            if not due(resource):
                resource.wait(self._begin(resource))

    def commit(self, resource: Connection[Row]) -> None:
        """Commit, one round trip; none where nothing is open. Raises `InFailedSqlTransaction` for an aborted one."""
        with resource.lock:
            if not nothing_begun(resource):
                resource.wait(self._commit(resource))

    def rollback(self, resource: Connection[Row]) -> None:
        """Roll back, one round trip; none where nothing is open."""
        with resource.lock:
            if not nothing_begun(resource):
                resource.wait(self._rollback(resource))

    async def from_loop(self, op: TransactionOp, resource: Connection[Row]) -> bool:
        """Do one of the three while an event loop watches the socket. False on Windows, or while a thread uses it."""
        if sys.platform == "win32" or not resource.lock.acquire(blocking=False):
            return False
        try:
            if due(resource) if op == "begin" else nothing_begun(resource):
                return True
            steps = {"begin": self._begin, "commit": self._commit, "rollback": self._rollback}[op](resource)
            await wait_async(steps, resource.pgconn.socket, interval=LOOK_AGAIN)
        finally:
            resource.lock.release()
        return True


class AsyncPsycopgDriver(_Base["AsyncConnection[Row]"], Generic[Row]):
    """psycopg for asyncio; the same as `PsycopgDriver`, lending `psycopg.AsyncConnection`."""

    _keywords = PsycopgDriver._keywords
    _cursor = psycopg.AsyncCursor

    @overload
    def __init__(
        self: AsyncPsycopgDriver[TupleRow], source: _common.Source, *, options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None, where: str = "",
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self, source: _common.Source, *, row_factory: AsyncRowFactory[Row], options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None, where: str = "",
    ) -> None: ...  # fmt: skip
    def __init__(
        self, source: _common.Source, *, row_factory: AsyncRowFactory[Any] | None = None,
        options: Mapping[str, Any] | None = None, config: PoolConfig | None = None, where: str = "",
    ) -> None:  # fmt: skip
        super().__init__(source, options=_with_rows(options, row_factory), config=config, where=where)

    async def open(self, timeout: float) -> AsyncConnection[Row]:
        """Connect within `timeout` seconds, in the running loop."""
        asked = await _common.ask_aside(self._source, self._where) if self._fixed is None else None
        conninfo = self._conninfo(timeout, asked)
        with within(timeout, conninfo):
            conn = await AsyncPooledConnection.connect(**conninfo)
        self._fit(conn)
        return cast("AsyncConnection[Row]", conn)

    async def close(self, resource: AsyncConnection[Row]) -> None:
        """Say goodbye and close; hang up where another task is in the middle of a statement."""
        if resource.lock.locked() or _is_active(resource):
            _hang_up(resource)
        else:
            await resource.close()

    def terminate(self, resource: AsyncConnection[Row]) -> None:
        """Close at once, or hang up on a statement; needs no loop."""
        if resource.lock.locked() or _is_active(resource):
            _hang_up(resource)
            return
        resource._closed = True  # on purpose, so psycopg need not call it broken
        resource.pgconn.finish()

    async def ping(self, resource: AsyncConnection[Row], timeout: float) -> bool:
        """Ask the server for an answer within `timeout` seconds; one round trip."""
        asking = asyncio.ensure_future(self._ask(resource))
        try:
            await asyncio.wait([asking], timeout=timeout)
        finally:
            # Closing, not cancelling: psycopg would first ask the server, which does not answer, to cancel.
            if not asking.done():
                self.terminate(resource)
        return await asking

    async def _ask(self, conn: AsyncConnection[Row]) -> bool:
        try:
            async with conn.lock:
                await conn.wait(run(conn, b"SELECT 1"))
        except psycopg.Error:
            return False
        return True

    async def reset(self, resource: AsyncConnection[Row], *, full: bool) -> None:
        """Roll back what is open and put every attribute back; `full`: the whole session, in one round trip."""
        refuse_busy(resource)
        async with resource.lock:
            nothing_begun(resource)
            await resource.wait(self._reset(resource, full=full))

    async def begin(self, resource: AsyncConnection[Row]) -> None:
        """Promise a transaction, with the isolation level and mode set: BEGIN rides with the first statement."""
        async with resource.lock:
            if not due(resource):
                await resource.wait(self._begin(resource))

    async def commit(self, resource: AsyncConnection[Row]) -> None:
        """Commit, one round trip; none where nothing is open. Raises `InFailedSqlTransaction` for an aborted one."""
        async with resource.lock:
            if not nothing_begun(resource):
                await resource.wait(self._commit(resource))

    async def rollback(self, resource: AsyncConnection[Row]) -> None:
        """Roll back, one round trip; none where nothing is open."""
        async with resource.lock:
            if not nothing_begun(resource):
                await resource.wait(self._rollback(resource))


@contextmanager
def within(timeout: float, conninfo: Mapping[str, Any]) -> Iterator[None]:
    """Give the connects in this block so many seconds in all."""
    hosts = str(conninfo.get("hostaddr") or conninfo.get("host") or "").count(",") + 1
    patience = Patience(timeout, hosts)
    token = _patience.set(patience)
    try:
        yield
    finally:
        _patience.reset(token)
        patience.end()


def _bounded_connect(steps: Any) -> Any:
    patience = _patience.get()
    return steps if patience is None else patience.bound(steps)


def _is_active(conn: BaseConnection[Any]) -> bool:
    """Whether a statement was begun and not ended: perhaps a COPY, for which psycopg holds no lock."""
    return bool(conn.pgconn.transaction_status == ACTIVE)


def _hang_up(conn: BaseConnection[Any]) -> None:
    """Close a connection that somebody is using: what runs on it fails at once.

    libpq's memory is not freed here. psycopg's C code keeps a pointer to it while a statement runs, and would go on
    with it: that ends the process. It is freed when the last one lets go of the connection.
    """
    conn._closed = True  # on purpose, so psycopg need not call it broken
    conn._pool = None  # nor warn, once it is collected, that it was never closed
    _common.hang_up_on(partial(descriptor, conn))


def descriptor(conn: BaseConnection[Any]) -> int | None:
    """Return the descriptor of a connection's socket, None where it is closed or lost."""
    try:
        return conn.pgconn.socket
    except psycopg.OperationalError:
        return None


def _with_rows(options: Mapping[str, Any] | None, row_factory: object) -> dict[str, Any]:
    return {**(options or {}), **({} if row_factory is None else {"row_factory": row_factory})}
