"""asyncpg: `AsyncpgDriver`, for asyncio only.

asyncpg refuses `conn.transaction()` inside a transaction that was begun by hand, so a unit of work is one of its own
transaction objects, and the user's are savepoints in it. Two things that asyncpg knows but does not tell are seen from
the outside:

- Whether a transaction is aborted. asyncpg says that one is open, not that it failed; its COMMIT then succeeds and is a
  silent ROLLBACK. A relay between the transport and asyncpg reads the status with which the server ends each answer.
- Whether the session was changed. asyncpg's own pool resets it each time, which is a round trip a borrowing. Here the
  connection notes the text of what it sends (see `_statements`), so that returning one that only read and wrote tables
  costs nothing, and any other is reset: settings, role, listened channels, cursors, advisory locks, temporary tables
  and sequences. What a reset can't undo (PREPARE in SQL, LOAD, dblink) discards the connection.

Not undone: type codecs set on the connection, and session changes made inside of functions of your own; use
`reset="full"` for the latter.

BEGIN rides with the first statement (see `_relay`): a transaction of one statement takes two round trips, one of none
takes none. `fold_begin=False` has `begin` send BEGIN at once.
"""

# ruff: noqa: SLF001  the driver, its connection and its relay are one thing in three objects

from __future__ import annotations

import asyncio
import inspect
import os
import select
import socket
from collections.abc import Mapping
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg

from poolkit.config import PoolConfig
from poolkit.drivers import _common
from poolkit.drivers._relay import IDLE, IN_ERROR, Gate, Relay, begin_text, harmless
from poolkit.drivers._statements import CLEAN, PREPARED, traces
from poolkit.errors import ConfigError

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

__all__ = ["AsyncpgDriver", "PooledConnection"]

_TLS_ALERT = 21
_MODES = {"isolation_level": "isolation", "read_only": "readonly", "deferrable": "deferrable"}
_ISOLATION = ("read_uncommitted", "read_committed", "repeatable_read", "serializable")
_REFUSED = {
    "dsn": "it is the URL",
    "loop": "it is the running one",
    "connection_class": "the driver needs its own",
}
_DEAD = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

# Beside asyncpg's own reset, which leaves the role and what is temporary.
_RESET_MORE = "SET SESSION AUTHORIZATION DEFAULT; DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES;"


class PooledConnection(_Connection):
    """An asyncpg connection that knows what it left behind in its session."""

    __slots__ = ("_readable", "_relay", "_running", "_tag", "_traces", "_unit")

    _protocol: Any

    def __init__(self, protocol: Any, transport: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(protocol, transport, *args, **kwargs)
        self._relay = Relay(protocol)
        transport.set_protocol(self._relay)
        self._readable = _common.poller(transport.get_extra_info("socket").fileno())
        self._traces = CLEAN
        self._running = 0  # statements and copies under way
        self._tag = ""  # what the last command was, in the server's words
        self._unit: Any = None  # the transaction object of the unit of work

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open, or promised."""
        protocol = self._protocol
        return protocol is not None and (bool(protocol.is_in_transaction()) or self._relay.status != IDLE)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Execute one or more statements; returns the status of the last."""
        self._note(query)
        self._running += 1
        try:
            self._tag = await super().execute(query, *args, timeout=timeout)
        finally:
            self._running -= 1
        return self._tag

    # asyncpg sends everything else through these three.

    async def _get_statement(self, query: str, *args: Any, **kwargs: Any) -> Any:
        self._note(query)
        return await super()._get_statement(query, *args, **kwargs)  # type: ignore[misc]

    async def _copy_in(self, copy_stmt: str, *args: Any, **kwargs: Any) -> Any:
        self._note(copy_stmt)
        self._running += 1
        try:
            return await super()._copy_in(copy_stmt, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._running -= 1

    async def _copy_out(self, copy_stmt: str, *args: Any, **kwargs: Any) -> Any:
        self._note(copy_stmt)
        self._running += 1
        try:
            return await super()._copy_out(copy_stmt, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._running -= 1

    def _note(self, query: str) -> None:
        level = traces(query)
        self._traces = max(self._traces, level)


class AsyncpgDriver:
    """asyncpg for asyncio; lends `asyncpg.Connection`.

    `source` is a URL, or a callable that returns one for each connect. `options` takes the arguments of
    `asyncpg.connect`, and `isolation_level`, `read_only`, `deferrable` and `fold_begin` for the transactions of units
    of work. Raises `ConfigError`.
    """

    def __init__(
        self,
        source: _common.Source,
        *,
        options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None,
        where: str = "",
    ) -> None:
        self._source = source
        self._where = where
        self._config = config or PoolConfig()
        given = dict(options or {})
        _common.check_options(given, {*_known(), *_MODES, "fold_begin"}, _REFUSED, where)
        self._folds = given.pop("fold_begin", True)
        if not isinstance(self._folds, bool):
            raise ConfigError(f"fold_begin must be True or False, not {self._folds!r}", where)
        self._mode = _mode({name: given.pop(name) for name in _MODES if name in given}, where)
        self._begin = begin_text(self._mode)
        self._arguments = given
        self._fixed = _common.postgres_url(source, where) if isinstance(source, str) else None

    alive_bypass = _common.ALIVE_BYPASS

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    @property
    def defaults(self) -> Mapping[str, object]:
        """Nothing: the defaults of `PoolConfig` are made for PostgreSQL."""
        return MappingProxyType({})

    # -- opening and closing ------------------------------------------------------------------------------------------

    async def open(self, timeout: float) -> _Connection:
        """Connect within `timeout` seconds, in the running loop.

        asyncpg would give all of it to the first host that swallows what is sent to it. So that gets its share only;
        then the hosts are tried again, from the next one on.
        """
        url = self._fixed or _common.postgres_url(await _common.ask_aside(self._source, self._where), self._where)
        deadline = monotonic() + timeout
        hosts = _hosts(url)
        for turn in range(hosts - 1):
            try:
                return await self._connect(_rotated(url, turn), (deadline - monotonic()) / (hosts - turn))
            except TimeoutError:
                pass
        return await self._connect(_rotated(url, hosts - 1), deadline - monotonic())

    async def _connect(self, url: str, timeout: float) -> _Connection:
        arguments: dict[str, Any] = {"timeout": timeout, **self._arguments}
        if "application_name" not in parse_qs(urlsplit(url).query):
            name = os.environ.get("PGAPPNAME") or _common.application_name()
            arguments["server_settings"] = {"application_name": name, **(arguments.get("server_settings") or {})}
        conn: Any = await asyncpg.connect(url, connection_class=PooledConnection, **arguments)
        _keep_alive(conn._transport.get_extra_info("socket"))
        conn._traces = CLEAN
        return cast("_Connection", conn)

    async def close(self, resource: _Connection) -> None:
        """Say goodbye and close."""
        await resource.close(timeout=self._config.close_timeout or None)

    def terminate(self, resource: Any) -> None:
        """Close at once, also where the loop is closed already."""
        if not resource._loop.is_closed():
            resource.terminate()
        elif not resource._aborted:  # the transport can do nothing without its loop, but the socket is ours to close
            resource._aborted = True
            resource._cancellations.clear()
            resource._cleanup()
            _close_socket(resource._transport)

    def abandon(self, resource: Any) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        if not resource.is_closed():
            _common.silence(resource._transport.get_extra_info("socket").fileno())
            resource._aborted = True  # closed, as far as asyncpg is concerned: its finalizer must not act

    # -- looking: no I/O but a look at the socket ---------------------------------------------------------------------

    def alive(self, resource: Any) -> bool:
        """Look at what the loop has seen, and at the socket for what it has not."""
        if resource.is_closed() or resource._relay.ended or resource._transport.is_closing():
            return False
        return not resource._readable(0) or _still_there(resource._transport)

    async def ping(self, resource: _Connection, timeout: float) -> bool:
        """Ask the server for an answer within `timeout` seconds; one round trip."""
        asking = asyncio.ensure_future(self._ask(resource))
        try:
            await asyncio.wait([asking], timeout=timeout)
        finally:
            # Closing, not cancelling: asyncpg would first open another connection to have the server cancel.
            if not asking.done():
                self.terminate(resource)
        return await asking

    async def _ask(self, conn: _Connection) -> bool:
        try:
            await conn.execute("SELECT 1")
        except (*_DEAD, asyncpg.InternalClientError):  # the latter where the server's goodbye has just been read
            return False
        return True

    def clean(self, resource: Any) -> bool:
        """Whether nothing is open, nothing listens, and nothing was sent that outlives its transaction."""
        # Every return asks this, so nothing is called that Python would have to run: 0.3 us less.
        protocol = resource._protocol
        return (
            resource._traces == CLEAN
            and not resource._aborted
            and protocol.is_connected()
            and not protocol.is_in_transaction()
            and resource._relay.status == IDLE
            and not resource._running
            and not resource._stmt_exclusive_section._acquired
            and resource._top_xact is None
            and not protocol._is_cancelling()
            and not resource._listeners
            and not resource._log_listeners
            and not resource._termination_listeners
            and not resource._query_loggers
        )

    def is_broken(self, resource: Any, error: BaseException | None) -> bool:
        """Whether the session is over, was interrupted, or is one that has to be left."""
        if resource.is_closed() or resource._relay.ended or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        ended = any(_common.ends_session(_sqlstate(cause)) for cause in _common.causes(error))
        return ended or self.demoted(resource, error)

    def demoted(self, resource: _Connection, error: BaseException | None) -> bool:
        """Whether a write was refused because the server is no longer the primary."""
        return any(self._demotes(cause, resource) for cause in _common.causes(error))

    def _demotes(self, error: BaseException, resource: _Connection) -> bool:
        reported = None if resource.is_closed() else resource.get_settings()  # asyncpg forgets them as it closes
        return _common.demotes(
            _sqlstate(error),
            read_only=bool(self._mode.get("readonly")),
            standby=getattr(reported, "in_hot_standby", None),
            read_only_server=getattr(reported, "default_transaction_read_only", None),
        )

    def in_transaction(self, resource: Any) -> bool:
        """Whether a transaction is open, or promised."""
        # BEGIN may have been sent and its answer not be here: a first statement that was cancelled
        return not resource.is_closed() and (resource.is_in_transaction() or bool(resource._relay.unseen))

    def aborted(self, resource: Any) -> bool:
        """Whether a failed statement has aborted the transaction, by the last word of the server."""
        return self.in_transaction(resource) and resource._relay.status == IN_ERROR

    # -- doing --------------------------------------------------------------------------------------------------------

    async def begin(self, resource: Any) -> None:
        """Start a transaction: BEGIN goes with the first statement, or at once, for a round trip, if that is off."""
        if self._folds and resource._top_xact is None and not resource.is_in_transaction():
            resource._unit = Gate.put_before(resource, self._mode, *self._begin)
            return
        unit = resource.transaction(**self._mode)
        await unit.start()
        resource._unit = unit

    async def commit(self, resource: Any) -> None:
        """Commit, one round trip or none. Raises `InFailedSQLTransactionError` for an aborted transaction."""
        aborted = self.aborted(resource)
        if aborted:
            await self.rollback(resource)
        else:
            aborted = await self._end(resource, "COMMIT") == "ROLLBACK"
        if aborted:
            raise asyncpg.InFailedSQLTransactionError("a failed statement aborted the transaction: it was rolled back")

    async def rollback(self, resource: Any) -> None:
        """Roll back, one round trip; none where nothing is open."""
        await self._end(resource, "ROLLBACK")

    async def _end(self, conn: Any, verb: str) -> str:
        """End the transaction, by its own object where that is still in charge. Returns the server's word for it."""
        unit, conn._unit = conn._unit, None
        if Gate.taken_away(conn):
            return verb
        if conn.is_closed():
            if verb == "COMMIT" and (conn._relay.status != IDLE or conn._relay.unseen):
                raise asyncpg.InterfaceError("the connection was closed before the COMMIT")
            return verb
        if conn._relay.unseen and conn._protocol._is_cancelling():
            await conn._protocol._wait_for_cancellation()
        if not conn.is_in_transaction():
            conn._top_xact = None
            return verb
        if unit is not None and conn._top_xact is unit:
            await (unit.commit() if verb == "COMMIT" else unit.rollback())
        else:
            conn._top_xact = None
            await conn.execute(verb)
        return str(conn._tag)

    async def reset(self, resource: Any, *, full: bool) -> None:
        """Roll back what is open, and make the session as new if it was changed; one round trip for both."""
        if resource.is_closed() or _is_busy(resource):
            raise asyncpg.InterfaceError("the connection came back closed, or with a statement under way")
        Gate.taken_away(resource)
        if resource._traces >= PREPARED:
            raise asyncpg.InterfaceError(
                "what was done in this session can't be undone (PREPARE, DISCARD ALL, LOAD, dblink)"
            )
        if resource._protocol._is_cancelling():
            await resource._protocol._wait_for_cancellation()
        work = "ROLLBACK;" if resource.is_in_transaction() else ""
        if full or resource._traces or resource._listeners:
            work += f"{resource.get_reset_query()}\n{_RESET_MORE}"
        resource._unit = resource._top_xact = None
        resource._pool_release_ctr += 1  # statements, cursors and transactions of before refuse to work from now on
        for listeners in _listeners(resource):
            listeners.clear()
        if work:
            await resource.execute(work)
        resource._traces = CLEAN


# -- asyncpg ------------------------------------------------------------------------------------------------------


def _known() -> set[str]:
    return set(inspect.signature(asyncpg.connect).parameters) - set(_REFUSED)


def _mode(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    level = values.get("isolation_level")
    if isinstance(level, str):
        level = level.lower().replace(" ", "_")
    problems = []
    if level not in (*_ISOLATION, None):
        problems.append(f"isolation_level must be one of {', '.join(_ISOLATION)}, not {level!r}")
    problems += [
        f"{name} must be True or False, not {values[name]!r}"
        for name in ("read_only", "deferrable")
        if not isinstance(values.get(name, False), bool)
    ]
    if problems:
        raise ConfigError(problems, where)
    return {_MODES[name]: (level if name == "isolation_level" else value) for name, value in values.items()}


def _sqlstate(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def _hosts(url: str) -> int:
    return urlsplit(url).netloc.count(",") + 1


def _rotated(url: str, turns: int) -> str:
    """Put the first hosts of a URL behind the others."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    names = hosts.split(",")
    first = turns % len(names)
    return urlunsplit(parts._replace(netloc=user + at + ",".join(names[first:] + names[:first])))


def _listeners(conn: Any) -> tuple[Any, ...]:
    return conn._listeners, conn._log_listeners, conn._termination_listeners, conn._query_loggers


def _is_busy(conn: Any) -> bool:
    return bool(conn._running or conn._stmt_exclusive_section._acquired)


def _keep_alive(sock: Any) -> None:
    """Find a server that vanished: asyncpg sets none of this."""
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _common.KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", _common.KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", _common.KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", _common.USER_TIMEOUT * 1000),
    ):
        if hasattr(socket, name):  # not every system has every one
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _still_there(transport: Any) -> bool:
    """Look, without taking it, at what the loop has not read yet: the end, a goodbye, or only a notification."""
    fd = transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(fd)) as view:
        try:
            data = view.recv(65536, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
        except BlockingIOError:
            return True
        except OSError:
            return False
    if not data or _is_half_closed(fd):
        return False
    if transport.get_extra_info("ssl_object") is not None:
        return data[0] != _TLS_ALERT  # what is inside is encrypted
    return harmless(data)


def _is_half_closed(fd: int) -> bool:
    if not hasattr(select, "POLLRDHUP"):
        return False
    watch = select.poll()
    watch.register(fd, select.POLLRDHUP)
    return bool(watch.poll(0))


def _close_socket(transport: Any) -> None:
    inner = transport
    tls = getattr(transport, "_ssl_protocol", None)
    if tls is not None:
        inner, transport._closed = tls._transport, True
    sock = getattr(inner, "_sock", None)
    if sock is not None:  # uvloop closes its own when the loop is closed
        sock.close()
        inner._sock = None  # so that the transport's finalizer has nothing to complain about
