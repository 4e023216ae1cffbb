"""asyncpg's connection, as it is lent: it notes what it leaves behind, and refuses all once it was given back.

Each borrowing has an object of its own. `renew` moves a session to another object of the same class; the old one, with
the cursors, prepared statements and transactions made from it, refuses whatever would touch the session.
"""

# ruff: noqa: SLF001  the driver, its connection and what belongs to its session are one thing in several objects

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import asyncpg
from asyncpg import compat, connect_utils
from asyncpg.transaction import Transaction

from poolkit.drivers import _common
from poolkit.drivers._asyncpg_session import Session
from poolkit.drivers._relay import IDLE, Gate, Relay
from poolkit.drivers._statements import CLEAN, PREPARED, traces
from poolkit.errors import Returned

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

__all__ = ["PooledConnection", "ReturnedConnection", "is_gone", "renew"]

# A bit of `_left` for what a borrower changed on asyncpg's object only; 1 << level for what it changed in the session.
_LOCAL = 1

_ROLLS_BACK = re.compile(r"\b(?:ROLLBACK|ABORT)\b", re.IGNORECASE)


def _noting(name: str) -> Any:
    """Make a method that does what asyncpg's does, and notes that its object was changed."""
    theirs = getattr(_Connection, name)

    @functools.wraps(theirs)
    def noted(conn: Any, *arguments: Any) -> Any:
        conn._left |= _LOCAL
        return theirs(conn, *arguments)

    return noted


class PooledConnection(_Connection):
    """An asyncpg connection that knows what it left behind in its session."""

    __slots__ = (
        *(
            "_begun",
            "_closed",
            "_left",
            "_makes",
            "_relay",
            "_returned",
            "_running",
            "_session",
            "_tag",
            "_traces",
            "_unit",
        ),
    )

    _addr: Any
    _cancellations: set[Any]
    _config: Any
    _loop: Any
    _params: Any
    _protocol: Any

    def __init__(self, protocol: Any, transport: Any, *args: Any, **kwargs: Any) -> None:
        self._closed = False  # by its borrower, with a transaction open
        super().__init__(protocol, transport, *args, **kwargs)
        self._relay = Relay(protocol)
        transport.set_protocol(self._relay)
        readable = _common.poller(transport.get_extra_info("socket").fileno())
        self._session = Session(self, self._relay, readable)
        self._stmt_cache._on_remove = self._session.statement_removed  # type: ignore[attr-defined]
        self._traces = traces
        self._left = 0
        self._running = 0  # statements and copies under way
        self._makes = False  # whether it made a cursor or a prepared statement
        self._tag = ""  # what the last command was, in the server's words
        self._unit: Any = None  # the transaction object of the unit of work
        self._begun = False  # whether the server was told of that transaction

    @property
    def _readable(self) -> Callable[[int], object]:
        return self._session.readable

    # -- its state ----------------------------------------------------------------------------------------------------

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open, or promised."""
        protocol = self._protocol
        if protocol is None:
            return False
        return protocol.__class__ is Gate or self._relay.status != IDLE or bool(protocol.is_in_transaction())

    async def close(self, *, timeout: float | None = None) -> None:
        """Give a pool's connection back at once, unless work is open on it; close any other."""
        if type(self) is ReturnedConnection:  # a method that was kept
            return
        session = self._session
        if session.give_back is not None and not is_gone(self):
            if await self._rests():
                Gate.taken_away(self)
                self._unit = self._top_xact = None
                self._begun = False
                if session.give_back(self):
                    return
            self._closed = self.is_in_transaction() or self._begun
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        """Close at once."""
        if type(self) is ReturnedConnection:
            return
        # asyncpg itself does so where the server does not confirm a cancellation
        if self._session.give_back is not None and not is_gone(self) and not self._protocol._is_cancelling():
            self._closed = self._closed or self.is_in_transaction()
        super().terminate()

    async def _rests(self) -> bool:
        """Whether nothing is open: a transaction that has written nothing is rolled back for that."""
        relay = self._relay
        if relay.unseen or self._running or self._protocol._is_cancelling() or self._session.is_talking():
            return False
        if self._begun and not relay.began:  # rolled back behind the back of the unit of work
            return False
        return await self._session.has_nothing_to_save()

    # -- what it sends ------------------------------------------------------------------------------------------------

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Execute one or more statements; returns the status of the last."""
        level = CLEAN if args else self._traces(query)  # with arguments it goes through `_execute`
        if level:
            self._note(level, query, args)
        self._running += 1
        try:
            self._tag = tag = await super().execute(query, *args, timeout=timeout)
        finally:
            self._running -= 1
            if level:
                self._forget(level)
        if tag == "ROLLBACK" and self._begun and not _ROLLS_BACK.search(query):
            self._relay.began = False  # COMMIT, of a transaction that had failed: the unit of work has to tell
        return tag

    # Everything else that asyncpg sends goes through these.

    def _execute(self, query: str, args: Any, limit: int, timeout: float | None, **kwargs: Any) -> Any:
        level = self._traces(query)
        if level:
            return self._stain(level, query, args, limit, timeout, **kwargs)
        return _Connection._execute(self, query, args, limit, timeout, **kwargs)  # type: ignore[attr-defined]

    async def _stain(self, level: int, query: str, args: Any, *rest: Any, **kwargs: Any) -> Any:
        self._note(level, query, tuple(args))
        try:
            return await super()._execute(query, args, *rest, **kwargs)  # type: ignore[misc]
        finally:
            self._forget(level)

    async def _executemany(self, query: str, args: Any, timeout: float | None, **kwargs: Any) -> Any:
        level = self._traces(query)
        if level:
            self._note(level, query, None)
        return await super()._executemany(query, args, timeout, **kwargs)  # type: ignore[misc]

    async def _prepare(self, query: str, **kwargs: Any) -> Any:
        level = self._traces(query)
        if level:
            self._note(level, query, ())
        self._makes = True
        self._running += 1
        try:
            return await super()._prepare(query, **kwargs)  # type: ignore[misc]
        finally:
            self._running -= 1

    def cursor(self, query: str, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor, to be awaited or iterated over."""
        level = self._traces(query)
        if level:
            self._note(level, query, args)
        self._makes = True
        return super().cursor(query, *args, **kwargs)

    async def copy_records_to_table(self, table_name: str, **arguments: Any) -> Any:
        """Copy records to a table; returns the server's word for it."""
        return await self._copy(f"COPY {table_name}", super().copy_records_to_table(table_name, **arguments))

    async def _copy_in(self, copy_stmt: str, *args: Any, **kwargs: Any) -> Any:
        return await self._copy(copy_stmt, super()._copy_in(copy_stmt, *args, **kwargs))  # type: ignore[misc]

    async def _copy_out(self, copy_stmt: str, *args: Any, **kwargs: Any) -> Any:
        return await self._copy(copy_stmt, super()._copy_out(copy_stmt, *args, **kwargs))  # type: ignore[misc]

    async def _copy(self, query: str, work: Any) -> Any:
        level = self._traces(query)
        if level:
            self._note(level, query, None)
        self._running += 1
        try:
            return await work
        finally:
            self._running -= 1

    def _note(self, level: int, query: str, args: tuple[Any, ...] | None) -> None:
        self._left |= 1 << level
        self._session.note(self, level, query, args)

    def _forget(self, level: int) -> None:
        if level >= PREPARED:  # the server may have forgotten its prepared statements: asyncpg's are worth nothing then
            self._mark_stmts_as_closed()  # type: ignore[attr-defined]

    # -- what it keeps ------------------------------------------------------------------------------------------------

    def transaction(self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False) -> Any:
        """Make a transaction, or a savepoint in the one that is open."""
        self._check_open()  # type: ignore[attr-defined]
        return _Block(self, isolation, readonly, deferrable)

    # Until the connection is given back.
    add_log_listener = _noting("add_log_listener")
    remove_log_listener = _noting("remove_log_listener")
    add_termination_listener = _noting("add_termination_listener")
    remove_termination_listener = _noting("remove_termination_listener")
    add_query_logger = _noting("add_query_logger")
    remove_query_logger = _noting("remove_query_logger")
    add_listener = _noting("add_listener")
    remove_listener = _noting("remove_listener")

    async def set_type_codec(self, typename: str, *, schema: str = "public", **arguments: Any) -> None:
        """Convert a data type in another way, until the connection is given back."""
        await super().set_type_codec(typename, schema=schema, **arguments)
        self._note_codec(schema, typename, ("set_type_codec", arguments))

    async def set_builtin_type_codec(self, typename: str, *, schema: str = "public", **arguments: Any) -> None:
        """Convert a data type as asyncpg converts another, until the connection is given back."""
        await super().set_builtin_type_codec(typename, schema=schema, **arguments)
        self._note_codec(schema, typename, ("set_builtin_type_codec", arguments))

    async def reset_type_codec(self, typename: str, *, schema: str = "public") -> None:
        """Convert a data type as asyncpg does, until the connection is given back."""
        await super().reset_type_codec(typename, schema=schema)
        self._note_codec(schema, typename, None)

    def _note_codec(self, schema: str, name: str, codec: tuple[str, dict[str, Any]] | None) -> None:
        self._left |= _LOCAL
        if codec is None:
            self._session.codecs.pop((schema, name), None)
        else:
            self._session.codecs[schema, name] = codec

    async def _introspect_type(self, typename: str, schema: str) -> Any:
        found = await super()._introspect_type(typename, schema)  # type: ignore[misc]
        self._session.oids[schema, typename] = found["oid"]
        return found

    # -- what all connections of a pool have in common ----------------------------------------------------------------

    def _drop_global_statement_cache(self) -> None:
        for conn in self._siblings():
            conn._drop_local_statement_cache()

    def _drop_global_type_cache(self) -> None:
        for conn in self._siblings():
            conn._drop_local_type_cache()

    def _siblings(self) -> list[Any]:
        found = [session.conn() for session in list(self._session.family)]
        return [conn for conn in found if conn is not None and not is_gone(conn)]

    # -- cancelling ---------------------------------------------------------------------------------------------------

    def _cancel_current_command(self, waiter: Any, cancel_waiter: Any = None) -> None:
        """Have the server cancel what it does: in a task of the session's, for it may outlive the borrowing."""
        cancel = functools.partial(
            connect_utils._cancel, # type: ignore[attr-defined]
            loop=self._session.way or self._loop, addr=self._addr, params=self._params,
            backend_pid=self._protocol.backend_pid, backend_secret=self._protocol.backend_secret,
        )  # fmt: skip
        seconds = self._config.command_timeout
        task = self._loop.create_task(_cancelled(self._session, cancel, waiter, cancel_waiter, seconds))
        self._cancellations.add(task)
        task.add_done_callback(self._cancellations.discard)


async def _cancelled(session: Session, cancel: Any, waiter: Any, cancel_waiter: Any, seconds: float | None) -> None:
    """Do what `asyncpg.Connection._cancel` does, whichever object has the session meanwhile."""
    try:
        async with compat.timeout(seconds):
            with contextlib.suppress(ConnectionResetError):  # some servers do so once they have read the request
                await cancel()
            if not waiter.done():
                waiter.set_result(None)
            if cancel_waiter is not None:
                await asyncio.shield(cancel_waiter)
    except asyncio.CancelledError:  # the connection is being closed
        pass
    except Exception:  # noqa: BLE001  whatever it was: the server may go on with the statement
        conn = session.conn()
        if conn is not None and not conn._aborted:
            _Connection.terminate(conn)
    finally:
        if not waiter.done():
            waiter.set_result(None)


class _Block(Transaction):
    """A transaction whose end, after the return of its connection, is an error unless it ends with one anyway."""

    __slots__ = ()

    _connection: Any

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        conn = self._connection
        if conn.__class__ is not ReturnedConnection:
            await super().__aexit__(kind, error, trace)
        elif kind is None:
            raise place_of_return(conn).error("transaction")


# -- one object for each borrowing --------------------------------------------------------------------------------

_COPIED = (
    *("_protocol", "_transport", "_loop", "_top_xact", "_aborted", "_pool_release_ctr", "_stmt_cache"),
    *("_stmts_to_close", "_stmt_cache_enabled", "_listeners", "_server_version", "_server_caps", "_intro_query"),
    *("_reset_query", "_proxy", "_stmt_exclusive_section", "_config", "_params", "_addr", "_log_listeners"),
    *("_termination_listeners", "_cancellations", "_pool_holder", "_source_traceback", "_query_loggers"),
)
_NEWER = tuple(name for name in asyncpg.Connection.__slots__ if name not in (*_COPIED, "__weakref__"))

_STILL = frozenset(("_maybe_gc_stmt", "close", "is_closed", "terminate"))  # what may be asked of an object given back


class ReturnedConnection(PooledConnection):
    """A connection that was given back: it refuses all but to be asked whether it is closed, and to be closed."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in _STILL or name.startswith("__"):
            return object.__getattribute__(self, name)
        raise place_of_return(self).error()

    def __del__(self) -> None:
        """Nothing: the session is another's."""

    def is_closed(self) -> bool:
        """Whether its borrower may not use it any more."""
        return True

    async def close(self, *, timeout: float | None = None) -> None:
        """Nothing is left to close."""

    def terminate(self) -> None:
        """Nothing is left to close."""

    def _maybe_gc_stmt(self, stmt: Any) -> None:
        """A cursor or prepared statement of this borrowing is collected: the session has it closed by and by."""
        object.__getattribute__(self, "_session").statement_removed(stmt)


def place_of_return(conn: Any) -> Returned:
    """Return where a connection was given back."""
    return cast("Returned", object.__getattribute__(conn, "_returned"))


def renew(old: Any, returned: Returned) -> Any:
    """Give the session of `old` to a new object, which is returned; the old one refuses all from now on."""
    Gate.taken_away(old)
    new: Any = PooledConnection.__new__(PooledConnection)
    new._protocol = protocol = old._protocol
    new._transport = old._transport
    new._loop = old._loop
    new._top_xact = None
    new._aborted = old._aborted
    new._pool_release_ctr = old._pool_release_ctr
    new._stmt_cache = old._stmt_cache
    new._stmts_to_close = old._stmts_to_close
    new._stmt_cache_enabled = old._stmt_cache_enabled
    new._listeners = old._listeners
    new._server_version = old._server_version
    new._server_caps = old._server_caps
    new._intro_query = old._intro_query
    new._reset_query = old._reset_query
    new._proxy = None
    new._stmt_exclusive_section = old._stmt_exclusive_section
    new._config = old._config
    new._params = old._params
    new._addr = old._addr
    new._log_listeners = old._log_listeners
    new._termination_listeners = old._termination_listeners
    new._cancellations = old._cancellations
    new._pool_holder = None
    new._source_traceback = old._source_traceback
    new._query_loggers = old._query_loggers
    for name in _NEWER:  # of an asyncpg newer than this
        setattr(new, name, getattr(old, name))
    new._begun = False
    new._closed = False
    new._left = old._left
    new._makes = old._makes and protocol is not None and (protocol._is_cancelling() or old._session.is_talking())
    new._relay = old._relay
    new._running = old._running
    new._session = session = old._session
    new._tag = ""
    new._traces = old._traces
    new._unit = None
    session.conn = weakref.ref(new)
    if protocol is not None:
        protocol.set_connection(new)
    old._returned = returned
    old.__class__ = ReturnedConnection
    return new


def is_gone(conn: Any) -> bool:
    """Whether the session is over, as far as asyncpg knows."""
    return conn._aborted or not conn._protocol.is_connected()
