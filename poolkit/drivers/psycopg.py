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

Each statement's text is read for what it changes in the session (see `_statements`), and what the server reports is
compared with what it reported at rest. A session that may have changed is made as new with its return (see
`_psycopg_reset`), and one that can't be (LOAD, dblink) is replaced. Not seen: what is sent by hand through libpq, and
what triggers, views, operators and defaults of one's own do, unless the server reports it. After a migration has made
prepared statements stale, the first error has all connections of the driver forget theirs.
"""

# ruff: noqa: SLF001  see above: one spelling of each operation, for threads and for asyncio

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any, Generic, Literal, TypeVar, cast, overload
from weakref import WeakSet

import psycopg
from psycopg import AsyncConnection, BaseConnection, Connection, errors, pq
from psycopg.abc import PQGen
from psycopg.rows import AsyncRowFactory, RowFactory, TupleRow
from psycopg.waiting import wait_async

from poolkit.config import PoolConfig
from poolkit.driver import TransactionOp, TransactionOptions
from poolkit.drivers import _common
from poolkit.drivers._fold import can_fold, due
from poolkit.drivers._libpq import (
    ACTIVE,
    INERROR,
    INTRANS,
    UNKNOWN,
    check_arguments,
    conninfo_keywords,
    demotes,
    ends_session,
    failure_kind,
    parse,
    read_answer,
    rest_state,
    run,
    still_there,
    to_rest,
)  # fmt: skip
from poolkit.drivers._pooler import Pooler
from poolkit.drivers._psycopg_connect import Addresses, within
from poolkit.drivers._psycopg_connection import AsyncPooledConnection, PooledConnection, nothing_to_end, renew
from poolkit.drivers._psycopg_reset import begin_reset, end_reset, send
from poolkit.drivers._psycopg_session import Plans, Session
from poolkit.drivers._startup import joined, session_settings, set_local
from poolkit.drivers._statements import Traces
from poolkit.errors import Returned

__all__ = ["AsyncPsycopgDriver", "PooledConnection", "PsycopgDriver"]

C = TypeVar("C", bound="BaseConnection[Any]")
Row = TypeVar("Row")

LOOK_AGAIN = 1.0  # seconds; the socket wakes who waits for it, and 0 would have psycopg ask without a pause

_PREPARE_AFTER = 5  # psycopg's own default: how often a statement runs before it is prepared
_REST = ("isolation_level", "read_only", "deferrable")
_OURS = frozenset({*_REST, "fold_begin", "harmless_functions", "session_settings", "statement_timeout"})
_REFUSED = {
    "autocommit": "connections rest in autocommit; use a transaction or a unit of work",
    "conninfo": "it is the URL",
}


_RETRYABLE = ("40001", "40P01")  # serialization failure, deadlock
_WHOLE_RESET = 10.0  # seconds; for who waits for it


class _Base(_common.UrlDriver, Generic[C]):
    """What both drivers share: all that needs no waiting."""

    _keywords: frozenset[str]

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
        _common.check_options(options, self._keywords | conninfo_keywords() | _OURS, _REFUSED, where)
        check_arguments(options, where)
        settings = session_settings(
            options.pop("session_settings", None), options.pop("statement_timeout", None), where
        )
        self._pooler = Pooler(self._config, settings, where)
        self._levels = Traces(_common.harmless_functions(options.pop("harmless_functions", ()), where))
        self._plans = Plans()
        self._opened: WeakSet[Session] = WeakSet()
        self._addresses = Addresses()
        self._folds = options.pop("fold_begin", True) and can_fold()
        self._rest = rest_state({name: options.pop(name, None) for name in _REST}, where)
        self._arguments = {name: options.pop(name) for name in list(options) if name in self._keywords}
        self._parameters = options
        self._fixed = parse(source, where) if isinstance(source, str) else None

    alive_bypass = _common.ALIVE_BYPASS

    def _conninfo(
        self, timeout: float, asked: str | None = None, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """All parameters for one connect: what suits a pool, under the URL, under the options, under `more`.

        `asked` is what a URL callable has answered.
        """
        url = parse(asked, self._where) if asked is not None else self._fixed or {}
        conninfo: dict[str, Any] = {
            "prepare_threshold": None if self._config.pooler == "transaction" else _PREPARE_AFTER,
            # libpq counts whole seconds, and psycopg makes it at least two
            "connect_timeout": max(2, math.ceil(timeout)),
            "fallback_application_name": _common.application_name(),
            **_common.KEEPALIVE,
            **url,
            **self._parameters,
            **self._arguments,
            **(more or {}),
            "autocommit": True,
        }
        if self._pooler.packet:
            given = conninfo.get("options") or os.environ.get("PGOPTIONS")
            conninfo["options"] = joined(given, self._pooler.packet)
        return conninfo

    def _within(self, timeout: float) -> AbstractContextManager[None]:
        """Give the connects in a block so many seconds in all, and each address its share."""
        return within(timeout, self._addresses)

    def _fit(self, conn: Any) -> None:
        """Prepare a new connection for its life in the pool. What it is now is its state of rest."""
        conn._readable = _common.poller(conn.pgconn.socket)
        conn._folds = self._folds
        conn._isolation_level, conn._read_only, conn._deferrable = self._rest
        session: Session = conn._session
        session.is_ours = self._config.pooler != "transaction"
        session.levels = self._levels
        session.plans = self._plans
        session.epoch = self._plans.epoch
        self._pooler.look(conn.pgconn.backend_pid, "psycopg")
        if self._pooler.local:
            session.local = set_local(self._pooler.local).encode(conn.pgconn._encoding)
        session.settle()
        self._opened.add(session)

    def settled(self, resource: C) -> None:
        """Take what the connection is now, after it was configured, for its state of rest.

        `clean` compares with it, and a reset returns to it: attributes, handlers, adapters, and the statements that
        have changed the session since it was opened.
        """
        session: Session = resource._session  # type: ignore[attr-defined]
        session.settle()
        session.noting = False

    def on_user_close(self, resource: C, give_back: Callable[[C], bool] | None) -> None:
        """Have `close` give the connection back, and `with` close nothing; None: it is its user's now."""
        resource._session.give_back = give_back  # type: ignore[attr-defined]

    def closed_by_user(self, resource: C) -> bool:
        """Whether the borrower closed it with a transaction open."""
        return resource._session.closed_by_user  # type: ignore[attr-defined,no-any-return]

    renew: Callable[[C, Returned], C] = staticmethod(renew)

    # -- looking: no I/O but a look at the socket ---------------------------------------------------------------------

    def alive(self, resource: C) -> bool:
        """Look at the socket; 0.5 us. A readable one is looked at closer, and its notifications are kept."""
        if resource._readable(0):  # type: ignore[attr-defined]
            return still_there(resource)
        return not resource.pgconn.transaction_status  # IDLE is 0

    def clean(self, resource: C) -> bool:
        """Whether the connection is as at rest, as far as libpq, psycopg and the statements' texts tell."""
        conn: Any = resource
        session: Session = conn._session
        rest = session.rest
        if (
            conn.pgconn.transaction_status  # IDLE is 0
            or session.level  # CLEAN is 0
            or conn.lock.locked()  # a thread that still uses it, and has not sent its statement yet
            or not conn._autocommit
            or conn._pipeline is not None
            or conn._num_transactions
            or session.resetting
            or conn.row_factory is not rest[0]
            or conn.cursor_factory is not rest[1]
            or conn.server_cursor_factory is not rest[2]
            or (conn._notifies_backlog and not session.drops_backlog(conn))
            or (session.touched and not session.restored(conn))
        ):
            return False
        if session.ran:
            if tuple(map(conn.pgconn.parameter_status, session.reports)) != session.reported:
                return False
            session.ran = False
        return True

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
        """Return what the server said of the statement that aborted the transaction, without what DETAIL has."""
        return resource._session.failed if self.aborted(resource) else ""  # type: ignore[attr-defined]

    def in_transaction(self, resource: C) -> bool:
        """Whether a transaction is open or promised, or a statement is running."""
        return resource._begin_due or resource.pgconn.transaction_status in (INTRANS, INERROR, ACTIVE)  # type: ignore[attr-defined]

    def abandon(self, resource: C) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        if resource.pgconn.status != pq.ConnStatus.BAD:
            _common.silence(resource.pgconn.socket)
            resource._pool = None  # at exit psycopg won't warn that it was left open

    def cut(self) -> None:
        """End every session at once, in use or not, from any thread: their database is about to be dropped."""
        for session in list(self._opened):
            # Not close(): another thread may be inside the connection. It finds the end of the stream.
            _common.hang_up_on(session.descriptor)

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

    def on_explicit_end(self, resource: C, callback: Callable[[str], None] | None) -> None:
        """Have the connection's own `commit` and `rollback` call `callback` before they do anything."""
        resource._explicit_end = callback  # type: ignore[attr-defined]

    # -- errors -------------------------------------------------------------------------------------------------------

    def failure_kind(self, error: BaseException) -> Literal["away", "refused"]:
        """Tell a connect that can't succeed before something is changed from one that may, soon."""
        return failure_kind(error)

    def is_retryable(self, error: BaseException) -> bool:
        """Whether it is psycopg's error for a serialization failure or a deadlock."""
        return isinstance(error, psycopg.Error) and error.sqlstate in _RETRYABLE


class PsycopgDriver(_Base["Connection[Row]"], Generic[Row]):
    """psycopg for threads. `Pool(PsycopgDriver("postgresql://..."))` lends `psycopg.Connection`.

    `source` is a URL, or a callable that returns one for each connect. `options` takes libpq's connection parameters
    and `row_factory`, `cursor_factory`, `context`, `prepare_threshold`, `isolation_level`, `read_only`,
    `deferrable`, `fold_begin`, `session_settings` (a mapping, to which a reset returns), `statement_timeout` (seconds)
    and `harmless_functions` (names of SQL functions that change nothing in the session). Raises `ConfigError`.
    """

    _keywords = frozenset({"row_factory", "cursor_factory", "context", "prepare_threshold"})

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
        with self._within(timeout):
            conn = PooledConnection.connect(**conninfo)
        self._fit(conn)
        return cast("Connection[Row]", conn)

    def close(self, resource: Connection[Row]) -> None:
        """Say goodbye and close; hang up where another thread is in the middle of a statement."""
        if not resource.lock.acquire(blocking=False):
            _hang_up(resource)
            return
        try:
            _hang_up(resource) if _is_active(resource) else _finish(resource)
        finally:
            resource.lock.release()

    def ping(self, resource: Connection[Row], timeout: float) -> bool:
        """Ask the server for an answer within `timeout` seconds; one round trip."""
        try:
            with resource.lock:
                send(resource, b"SELECT 1")
                return read_answer(resource.pgconn, monotonic() + timeout, resource.pgconn.notify_handler)
        except psycopg.Error:
            return False

    def send_reset(self, resource: Connection[Row], *, full: bool) -> bool:
        """Send what makes the session as new, and wait for nothing. False where there was nothing to send.

        Raises `psycopg.OperationalError` where the session can't be made as new, is in use, or is lost.
        """
        text = begin_reset(resource, full=full)
        if text:
            send(resource, text)
        return bool(text)

    def finish_reset(self, resource: Connection[Row], timeout: float) -> bool:
        """Read the answer, within `timeout` seconds; False where it is not there yet.

        Raises psycopg's own error where the reset failed or the line is lost.
        """
        if not read_answer(resource.pgconn, monotonic() + timeout):  # notifications are nobody's, and dropped
            return False
        if not self.alive(resource):
            raise psycopg.OperationalError("the server closed the connection after its session was made as new")
        end_reset(resource)
        return True

    def reset(self, resource: Connection[Row], *, full: bool) -> None:
        """Roll back what is open and make the session as new, in one round trip; none where nothing differs."""
        if self.send_reset(resource, full=full) and not self.finish_reset(resource, _WHOLE_RESET):
            raise psycopg.OperationalError(f"the server did not answer a reset within {_WHOLE_RESET:.0f} s")

    def begin(self, resource: Connection[Row], options: TransactionOptions | None = None) -> None:
        """Promise a transaction, with the isolation level and mode set: BEGIN rides with the first statement."""
        with resource.lock:
            if options is not None:
                _choose(resource, self._pooler.options(options))
            if not due(resource):
                resource.wait(self._begin(resource))

    def commit(self, resource: Connection[Row]) -> None:
        """Commit, one round trip; none where nothing is open. Raises `InFailedSqlTransaction` for an aborted one."""
        with resource.lock:
            if not nothing_to_end(resource):
                Connection.wait(resource, self._commit(resource))  # past the gate: it has nothing to do

    def rollback(self, resource: Connection[Row]) -> None:
        """Roll back, one round trip; none where nothing is open."""
        with resource.lock:
            if not nothing_to_end(resource):
                Connection.wait(resource, self._rollback(resource))  # past the gate: it has nothing to do

    async def from_loop(self, op: TransactionOp, resource: Connection[Row]) -> bool:
        """Do one of the three while an event loop watches the socket. False on Windows, or while a thread uses it."""
        if sys.platform == "win32" or not resource.lock.acquire(blocking=False):
            return False
        try:
            if due(resource) if op == "begin" else nothing_to_end(resource):
                return True
            steps = {"begin": self._begin, "commit": self._commit, "rollback": self._rollback}[op](resource)
            await wait_async(steps, resource.pgconn.socket, interval=LOOK_AGAIN)
        finally:
            resource.lock.release()
        return True


class AsyncPsycopgDriver(_Base["AsyncConnection[Row]"], Generic[Row]):
    """psycopg for asyncio; the same as `PsycopgDriver`, lending `psycopg.AsyncConnection`."""

    _keywords = PsycopgDriver._keywords

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
        with self._within(timeout):
            conn = await AsyncPooledConnection.connect(**conninfo)
        self._fit(conn)
        return cast("AsyncConnection[Row]", conn)

    async def close(self, resource: AsyncConnection[Row]) -> None:
        """Say goodbye and close; hang up where another task is in the middle of a statement."""
        self.terminate(resource)

    def terminate(self, resource: AsyncConnection[Row]) -> None:
        """Close at once, or hang up on a statement; needs no loop."""
        if resource.lock.locked() or _is_active(resource):
            _hang_up(resource)
        else:
            _finish(resource)

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
        """Roll back what is open and make the session as new, in one round trip; none where nothing differs.

        Raises psycopg's own error where that can't be.
        """
        text = begin_reset(resource, full=full)
        if not text:
            return
        async with resource.lock:
            await resource.wait(run(resource, text))
        end_reset(resource)

    async def begin(self, resource: AsyncConnection[Row], options: TransactionOptions | None = None) -> None:
        """Promise a transaction, with the isolation level and mode set: BEGIN rides with the first statement."""
        async with resource.lock:
            if options is not None:
                _choose(resource, self._pooler.options(options))
            if not due(resource):
                await resource.wait(self._begin(resource))

    async def commit(self, resource: AsyncConnection[Row]) -> None:
        """Commit, one round trip; none where nothing is open. Raises `InFailedSqlTransaction` for an aborted one."""
        async with resource.lock:
            if not nothing_to_end(resource):
                await AsyncConnection.wait(resource, self._commit(resource))  # past the gate

    async def rollback(self, resource: AsyncConnection[Row]) -> None:
        """Roll back, one round trip; none where nothing is open."""
        async with resource.lock:
            if not nothing_to_end(resource):
                await AsyncConnection.wait(resource, self._rollback(resource))  # past the gate


def _choose(conn: Any, options: TransactionOptions) -> None:
    conn._session.choose(conn, options)


def _is_active(conn: BaseConnection[Any]) -> bool:
    """Whether a statement was begun and not ended: perhaps a COPY, for which psycopg holds no lock."""
    return bool(conn.pgconn.transaction_status == ACTIVE)


def _finish(conn: BaseConnection[Any]) -> None:
    conn._closed = True  # on purpose, so psycopg need not call it broken
    conn.pgconn.finish()


def _hang_up(conn: BaseConnection[Any]) -> None:
    """Close a connection that somebody is using: what runs on it fails at once.

    libpq's memory is not freed here. psycopg's C code keeps a pointer to it while a statement runs, and would go on
    with it: that ends the process. It is freed when the last one lets go of the connection.
    """
    conn._closed = True  # on purpose, so psycopg need not call it broken
    conn._pool = None  # nor warn, once it is collected, that it was never closed
    _common.hang_up_on(conn._session.descriptor)  # type: ignore[attr-defined]


def _with_rows(options: Mapping[str, Any] | None, row_factory: object) -> dict[str, Any]:
    return {**(options or {}), **({} if row_factory is None else {"row_factory": row_factory})}
