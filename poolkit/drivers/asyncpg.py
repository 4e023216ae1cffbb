"""asyncpg: `AsyncpgDriver`, for asyncio only.

asyncpg refuses `conn.transaction()` inside a transaction that was begun by hand, so a unit of work is one of its own
transaction objects, and the user's are savepoints in it. Two things that asyncpg knows but does not tell are seen from
the outside:

- Whether a transaction is aborted. asyncpg says that one is open, not that it failed; its COMMIT then succeeds and is a
  silent ROLLBACK. A relay between the transport and asyncpg reads the status with which the server ends each answer.
- Whether the session was changed. asyncpg's own pool resets it each time, which is a round trip a borrowing. Here the
  connection judges the text of what it sends (see `_statements`), looks at the parameters that the server reports, and
  notes what was set on its own object. A borrowing that only read and wrote tables costs nothing; after any other, one
  text makes the session as it was at rest (see `_asyncpg_session`). What that can't undo (LOAD, dblink, setseed)
  discards the connection. `reset="full"` sends that text each time.

BEGIN rides with the first statement (see `_relay`): a transaction of one statement takes two round trips, one of none
takes none. `fold_begin=False` has `begin` send BEGIN at once.
"""

# ruff: noqa: SLF001  the driver, its connection and its relay are one thing in three objects

from __future__ import annotations

import asyncio
import inspect
import ssl
import traceback
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import asyncpg

from poolkit.config import PoolConfig, shown
from poolkit.driver import TransactionOptions
from poolkit.drivers import _common
from poolkit.drivers._asyncpg_connect import PARAMETERS, Connector, Target
from poolkit.drivers._asyncpg_connection import PooledConnection, is_gone, renew
from poolkit.drivers._asyncpg_session import Session
from poolkit.drivers._asyncpg_socket import close_socket, still_there
from poolkit.drivers._pooler import Pooler
from poolkit.drivers._refusals import is_refused
from poolkit.drivers._relay import IDLE, IN_ERROR, Gate, begin_text
from poolkit.drivers._startup import session_settings, set_local
from poolkit.drivers._statements import LASTING, PREPARED, STAINED, Traces
from poolkit.errors import ConfigError, Returned

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

__all__ = ["PARAMETERS", "AsyncpgDriver", "PooledConnection", "is_gone"]

_MODES = {"isolation_level": "isolation", "read_only": "readonly", "deferrable": "deferrable"}
_ISOLATION = ("read_uncommitted", "read_committed", "repeatable_read", "serializable")

_OWN = ("fold_begin", "harmless_functions", "session_settings", "statement_timeout")
_REFUSED = {
    "dsn": "it is the URL",
    "loop": "it is the running one",
    "connection_class": "the driver needs its own",
}
_UNPREPARED = "26000"  # the server does not know a prepared statement that asyncpg believes in
_DEAD = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class AsyncpgDriver(_common.UrlDriver):
    """asyncpg for asyncio; lends `asyncpg.Connection`.

    `source` is a URL, or a callable that returns one for each connect. `options` takes the arguments of
    `asyncpg.connect`; `isolation_level`, `read_only`, `deferrable` and `fold_begin` for the transactions of units of
    work; `session_settings` ({name: value}) and `statement_timeout` (seconds), which every session starts with and
    returns to; `harmless_functions`, names of functions that change nothing in a session. Raises `ConfigError`.
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
        _common.check_options(given, {*_known(), *_MODES, *_OWN}, _REFUSED, where)
        self._traces = Traces(_common.harmless_functions(given.pop("harmless_functions", ()), where)).__getitem__
        settings = session_settings(given.pop("session_settings", None), given.pop("statement_timeout", None), where)
        self._pooler = Pooler(self._config, settings, where)
        if self._pooler.packet:
            given["server_settings"] = {**(given.get("server_settings") or {}), **self._pooler.packet}
        self._folds = given.pop("fold_begin", True)
        if not isinstance(self._folds, bool):
            raise ConfigError(f"fold_begin must be True or False, not {shown(self._folds)}", where)
        self._mode = _mode({name: given.pop(name) for name in _MODES if name in given}, where)
        self._begin = begin_text(self._mode, self._pooler.local)
        if self._config.pooler == "transaction":  # the next transaction may meet another session
            given.setdefault("statement_cache_size", 0)
        self._arguments = given
        self._fixed = self._target(source) if isinstance(source, str) else None
        self._connector = Connector()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    alive_bypass = _common.ALIVE_BYPASS

    # -- opening and closing ------------------------------------------------------------------------------------------

    async def open(self, timeout: float) -> _Connection:
        """Connect within `timeout` seconds, in the running loop, to whichever of the hosts and addresses answers."""
        try:
            return cast("_Connection", await self._open(timeout))
        except BaseException as error:
            # Their variables hold the password, and error trackers show variables. All that is below here has ended.
            for cause in _common.causes(error):
                traceback.clear_frames(cause.__traceback__)
            raise

    async def _open(self, timeout: float) -> Any:
        target = self._fixed or self._target(await _common.ask_aside(self._source, self._where))
        conn = await self._connector.connect(target, PooledConnection, timeout)
        conn._traces = conn._session.judge = self._traces
        conn._session.family = self._sessions
        self._sessions.add(conn._session)
        self.settle(conn)
        if self._pooler.look(conn.get_server_pid(), "asyncpg"):
            self._begin = begin_text(self._mode, self._pooler.local)
        return conn

    def _target(self, url: str) -> Target:
        return Target(url, self._arguments, self._where)

    def settle(self, resource: Any) -> None:
        """Take what a new connection is now for its state of rest; it may be changed further and settled again."""
        resource._session.settle(resource)
        resource._left = 0

    def settled(self, resource: Any) -> None:
        """Take what the connection is now, after `configure`, for its state of rest."""
        self.settle(resource)
        resource._session.noted = None

    def connections(self) -> list[Any]:
        """Return the objects that have the open sessions now."""
        found = [session.conn() for session in list(self._sessions)]
        return [conn for conn in found if conn is not None and not is_gone(conn)]

    def renew(self, resource: _Connection, returned: Returned) -> _Connection:
        """Give the session to another object; `resource` and what was made from it refuse all from now on. 1 us."""
        return cast("_Connection", renew(resource, returned))

    def closed_by_user(self, resource: Any) -> bool:
        """Whether the borrower closed it with a transaction open."""
        return bool(resource._closed)

    def on_user_close(self, resource: Any, give_back: Callable[[Any], bool] | None) -> None:
        """Have `close` give the connection back; None: it is its borrower's for good."""
        resource._session.give_back = give_back

    async def close(self, resource: Any) -> None:
        """Say goodbye and close."""
        await _Connection.close(resource, timeout=self._config.close_timeout or None)

    def terminate(self, resource: Any) -> None:
        """Close at once, also where the loop is closed already."""
        if not resource._loop.is_closed():
            _Connection.terminate(resource)
        elif not resource._aborted:  # the transport can do nothing without its loop, but the socket is ours to close
            resource._aborted = True
            resource._cancellations.clear()
            resource._cleanup()
            close_socket(resource._transport)

    def abandon(self, resource: Any) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        if not is_gone(resource):
            _common.silence(resource._transport.get_extra_info("socket").fileno())
            resource._aborted = True  # closed, as far as asyncpg is concerned: its finalizer must not act

    # -- looking: no I/O but a look at the socket ---------------------------------------------------------------------

    def alive(self, resource: Any) -> bool:
        """Look at what the loop has seen, and at the socket for what it has not."""
        if is_gone(resource) or resource._relay.ended or resource._transport.is_closing():
            return False
        return not resource._session.readable(0) or still_there(resource._transport)

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

    async def _ask(self, conn: Any) -> bool:
        if is_gone(conn):
            return False
        try:
            await conn._protocol.query("SELECT 1", None)
        except (*_DEAD, asyncpg.InternalClientError):  # the latter where the server's goodbye has just been read
            return False
        return True

    def clean(self, resource: Any) -> bool:
        """Whether nothing is open, nothing outlives its transaction, and asyncpg's object is as at rest."""
        # Every return asks this, so nothing is called that Python would have to run: 0.3 us less.
        protocol = resource._protocol
        return (
            not resource._left
            and not resource._aborted
            and protocol.is_connected()
            and not protocol.is_in_transaction()
            and resource._relay.status == IDLE
            and not resource._running
            and not resource._stmt_exclusive_section._acquired
            and resource._top_xact is None
            and not protocol._is_cancelling()
            and not (resource._makes and resource._session.is_talking())
            and not (resource._relay.reported and not resource._session.is_as_reported(resource))
        )

    def is_broken(self, resource: Any, error: BaseException | None) -> bool:
        """Whether the session is over, was interrupted, or is one that has to be left."""
        if is_gone(resource) or resource._relay.ended or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        states = [_sqlstate(cause) for cause in _common.causes(error)]
        ended = any(state == _UNPREPARED or _common.ends_session(state) for state in states)
        return ended or self.demoted(resource, error)

    def failure_kind(self, error: BaseException) -> Literal["away", "refused"]:
        """Say of a failed connect whether trying again can help before something is changed."""
        state = _sqlstate(error)
        if state is not None:
            return "refused" if is_refused(state) else "away"
        return "refused" if isinstance(error, (ValueError, TypeError, ssl.SSLCertVerificationError)) else "away"

    def is_retryable(self, error: BaseException) -> bool:
        """Whether a transaction failed for another's sake, and can be run again: deadlock, serialization failure."""
        return _sqlstate(error) in {"40001", "40P01"}

    def demoted(self, resource: _Connection, error: BaseException | None) -> bool:
        """Whether a write was refused because the server is no longer the primary."""
        return any(self._demotes(cause, resource) for cause in _common.causes(error))

    def _demotes(self, error: BaseException, resource: Any) -> bool:
        reported = None if is_gone(resource) else resource._protocol.get_settings()  # asyncpg forgets them as it closes
        return _common.demotes(
            _sqlstate(error),
            read_only=bool(self._mode.get("readonly")) or resource._session.rest.read_only,
            standby=getattr(reported, "in_hot_standby", None),
            read_only_server=getattr(reported, "default_transaction_read_only", None),
        )

    def in_transaction(self, resource: Any) -> bool:
        """Whether a transaction is open, or promised."""
        # BEGIN may have been sent and its answer not be here: a first statement that was cancelled
        return not is_gone(resource) and (resource.is_in_transaction() or bool(resource._relay.unseen))

    def aborted(self, resource: Any) -> bool:
        """Whether a failed statement has aborted the transaction, by the last word of the server."""
        return self.in_transaction(resource) and resource._relay.status == IN_ERROR

    # -- doing --------------------------------------------------------------------------------------------------------

    async def begin(self, resource: Any, options: TransactionOptions | None = None) -> None:
        """Start a transaction: BEGIN goes with the first statement, or at once, for a round trip, if that is off."""
        mode, begin = (self._mode, self._begin)
        if options is not None:
            options = self._pooler.options(options)
            mode, begin = self._chosen(options)
        if self._folds and resource._top_xact is None and not resource.is_in_transaction():
            resource._unit = Gate.put_before(resource, mode, *begin)
            return
        unit = resource.transaction(**mode)
        await unit.start()
        settings = self._pooler.local if options is None else options.settings
        if settings:
            await resource._protocol.query(set_local(settings), None)
        resource._unit = unit
        resource._begun = resource._relay.began = True

    def _chosen(self, options: TransactionOptions) -> tuple[dict[str, Any], tuple[str, bytes, int]]:
        given = {
            "isolation": options.isolation_level and options.isolation_level.replace(" ", "_"),
            "readonly": options.read_only,
            "deferrable": options.deferrable,
        }
        mode = {**self._mode, **{name: value for name, value in given.items() if value is not None}}
        return mode, begin_text(mode, options.settings)

    def statement_error(self, resource: Any) -> str:
        """Return what the server said of the statement that aborted the transaction."""
        relay = resource._relay
        return str(relay.error) if relay.status == IN_ERROR else ""

    async def commit(self, resource: Any) -> None:
        """Commit, one round trip or none.

        Raises `InFailedSQLTransactionError` for an aborted transaction, `InterfaceError` where the connection is lost.
        """
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
        begun, conn._begun = conn._begun, False
        if Gate.taken_away(conn):
            return verb
        if not is_gone(conn) and conn._relay.unseen and conn._protocol._is_cancelling():
            await conn._protocol._wait_for_cancellation()
        if is_gone(conn) or not conn.is_in_transaction():
            if verb == "COMMIT" and begun:
                _tell_what_became_of_it(conn)
            conn._top_xact = None
            return verb
        if unit is not None and conn._top_xact is unit:
            await (unit.commit() if verb == "COMMIT" else unit.rollback())
        else:
            conn._top_xact = None
            await conn.execute(verb)
        return str(conn._tag)

    async def reset(self, resource: Any, *, full: bool) -> None:
        """Make as at rest: one round trip where the session was changed or a transaction is open, none otherwise."""
        if is_gone(resource) or resource._relay.ended:
            raise asyncpg.InterfaceError("the connection came back closed")
        Gate.taken_away(resource)
        session, protocol = resource._session, resource._protocol
        if resource._left >> LASTING and self._config.pooler != "transaction":
            raise asyncpg.InterfaceError("what was done in this session can't be undone (LOAD, dblink or setseed)")
        if protocol._is_cancelling():
            await protocol._wait_for_cancellation()
        if resource._running or resource._stmt_exclusive_section._acquired or session.is_talking():
            raise asyncpg.InterfaceError("the connection came back with a statement under way")
        await self._reset(resource, session, full=full)

    async def _reset(self, conn: Any, session: Session, *, full: bool) -> None:
        open_now = conn.is_in_transaction()
        session.noted = None  # a borrower's, from here on
        conn._traces = session.judge
        conn._unit = conn._top_xact = None
        conn._begun = conn._makes = False
        conn._pool_release_ctr += 1  # statements, cursors and transactions of before refuse to work from now on
        forgets = bool(conn._left >> PREPARED)
        changed = session.put_back(conn) or full or bool(conn._left >> STAINED) or not session.is_as_reported(conn)
        if self._config.pooler == "transaction":  # it would reach another session
            if not session.is_as_reported(conn):  # what a pooler keeps for each of its clients
                raise asyncpg.InterfaceError("a setting was changed behind a pooler in transaction mode; use SET LOCAL")
            changed = False
            session.settle(conn)
        text = ("ROLLBACK;\n" if open_now else "") + (session.reset_text(conn, forgets=forgets) if changed else "")
        if changed and session.rest.unrepeatable:
            raise asyncpg.InterfaceError("what `configure` did by COPY or executemany can't be done again by a reset")
        if text:
            await conn._protocol.query(text, None)
        if forgets:
            conn._mark_stmts_as_closed()
        if changed:
            await session.repeat_bound(conn)
        await session.put_back_codecs(conn)
        if changed:
            session.settle(conn)
        conn._left = 0


def _tell_what_became_of_it(conn: Any) -> None:
    """Raise where a transaction that had begun is over, and it was not its borrower's own COMMIT or ROLLBACK."""
    relay = conn._relay
    if is_gone(conn):
        if not relay.began or relay.status != IDLE or relay.unseen:
            raise asyncpg.InterfaceError("the connection was closed before the COMMIT")
    elif not relay.began:
        raise asyncpg.InFailedSQLTransactionError("the transaction was rolled back, or never began: nothing was saved")


# -- asyncpg ------------------------------------------------------------------------------------------------------


def _known() -> set[str]:
    return set(inspect.signature(asyncpg.connect).parameters) - set(_REFUSED)


def _mode(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    level = values.get("isolation_level")
    if isinstance(level, str):
        level = level.lower().replace(" ", "_")
    problems = []
    if level not in (*_ISOLATION, None):
        problems.append(f"isolation_level must be one of {', '.join(_ISOLATION)}, not {shown(level)}")
    problems += [
        f"{name} must be True or False, not {shown(values[name])}"
        for name in ("read_only", "deferrable")
        if not isinstance(values.get(name, False), bool)
    ]
    if problems:
        raise ConfigError(problems, where)
    return {_MODES[name]: (level if name == "isolation_level" else value) for name, value in values.items()}


def _sqlstate(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None
