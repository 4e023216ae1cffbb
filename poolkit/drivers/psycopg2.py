"""psycopg2, for threads: `Psycopg2Driver`, which lends psycopg2's own connections.

A connection rests in autocommit. `begin` turns that off and has psycopg2 send its BEGIN at once, so inside a unit of
work the connection is what its user knows: after a `conn.commit()` in the middle the next statement begins a new
transaction, which can still be rolled back. `commit` and `rollback` turn autocommit on again.

Whether a connection is alive, clean or in a transaction is read from libpq's own state and from the socket, never from
what poolkit did with it. `isolation_level`, `readonly` and `deferrable` are the session's defaults, given to the server
with the connect, as `session_settings` and `statement_timeout` are: RESET returns to them.

What a borrower does to the session is seen by the text of the statements (`_statements`), by what the server reports
of it and by the attributes of the connection. It is undone by one message, in poolkit's helper thread, for psycopg2
can't send without waiting; what can't be undone (LOAD, dblink) costs the connection. What was set while the connection
was new is sent again.

Not seen: SQL in a parameter (`AsIs`), cursors made by `extensions.cursor(conn)`, and what `_statements` says of
functions. Never undone: what is registered for the whole process (`register_adapter`, `register_type` without a
connection). A connection that is kept beyond its return refuses while it is idle; in the next borrowing it works, for
it is the same object. Its cursors refuse for ever.

psycopg2 connects and waits inside of libpq, which counts in whole seconds: `open` rounds its limit up to whole seconds,
two at least, for each address.
"""

# ruff: noqa: SLF001  the driver and its connection are one thing in two objects

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, cast

import psycopg2
from psycopg2 import errors, extensions

from poolkit.config import PoolConfig
from poolkit.driver import TransactionOptions
from poolkit.drivers import _common, _dbapi, _startup
from poolkit.drivers._lending import Lending
from poolkit.drivers._pooler import Pooler
from poolkit.drivers._psycopg2_connect import (
    check_options,
    for_a_pool,
    is_refused,
    modes,
    own_options,
    parse,
    peer,
)
from poolkit.drivers._psycopg2_session import PooledConnection, closed, raw, set_autocommit, transaction_status
from poolkit.drivers._psycopg2_state import READ_ONLY, is_as_new, reported, reset_text, restore, settle
from poolkit.drivers._statements import CLEAN, LASTING, Traces
from poolkit.errors import Returned

__all__ = ["PooledConnection", "Psycopg2Driver", "closed"]

_IDLE = extensions.TRANSACTION_STATUS_IDLE
_OPEN = (extensions.TRANSACTION_STATUS_INTRANS, extensions.TRANSACTION_STATUS_INERROR)
_BUSY = (extensions.TRANSACTION_STATUS_ACTIVE, extensions.TRANSACTION_STATUS_UNKNOWN)


class Psycopg2Driver(Lending, _common.UrlDriver):
    """psycopg2 for threads; lends `psycopg2.extensions.connection`.

    `source` is a URL, or a callable that returns one for each connect. `options` takes libpq's connection parameters,
    `cursor_factory`, `isolation_level`, `readonly` and `deferrable`; `session_settings`, a mapping of the server's
    settings; `statement_timeout` in seconds; `harmless_functions`, names of functions of your own that change nothing
    in the session that calls them. Raises `ConfigError`.
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
        given = dict(options or {})
        check_options(given, where)
        defaults = modes({name: given.pop(name, None) for name in _startup.MODES}, where)
        settings = _startup.session_settings(
            given.pop("session_settings", None), given.pop("statement_timeout", None), where
        )
        self._judge = Traces(_common.harmless_functions(given.pop("harmless_functions", ()), where)).__getitem__
        self._pooler = Pooler(config, settings, where)
        self._settings = {**defaults, **self._pooler.packet}
        self._read_only = self._settings.get(_startup.MODES["readonly"]) == "on"
        self._parameters = given
        self._fixed = parse(source, where) if isinstance(source, str) else None
        # A session then lasts as long as a transaction: the next one may meet another.
        self._has_no_session = self._pooler.by_transaction
        self._worked = ""  # the address that was connected to last
        self._stale_plans = 0

    alive_bypass = _common.ALIVE_BYPASS

    # -- opening and closing ------------------------------------------------------------------------------------------

    def open(self, timeout: float) -> extensions.connection:
        """Connect within `timeout`, rounded up to seconds that libpq can count. Raises `psycopg2.OperationalError`."""
        conn: PooledConnection = psycopg2.connect(connection_factory=PooledConnection, **self._arguments(timeout))
        self._fit(conn)
        return conn

    def _fit(self, conn: PooledConnection) -> None:
        """Prepare a new connection for its life in the pool."""
        session = conn._session
        session.fd = raw.fileno(conn)
        session.readable = _common.poller(session.fd)
        session.judge = _nothing if self._has_no_session else self._judge
        session.is_ours = not self._has_no_session
        session.plans, session.stale = self._stale_plans, self._note_stale_plan
        self._worked = peer(session.fd)
        settle(conn)
        self._pooler.look(raw.get_backend_pid(conn), "psycopg2")
        if self._pooler.local:
            session.settings = session.local = _startup.set_local(self._pooler.local)

    def _note_stale_plan(self) -> None:
        self._stale_plans += 1

    def _arguments(self, timeout: float) -> dict[str, Any]:
        """All parameters for one connect: what suits a pool, under the URL, under the options."""
        url = self._fixed if self._fixed is not None else parse(_common.ask(self._source, self._where), self._where)
        return self._for_a_pool({**url, **self._parameters}, timeout)

    def _for_a_pool(self, given: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        arguments = for_a_pool(given, timeout, self._worked)
        if self._settings:
            arguments["options"] = _startup.joined(own_options(given), self._settings)
        return arguments

    def settled(self, resource: extensions.connection) -> None:
        """Take what the connection is now for its state of rest: `clean` compares with it, and a reset restores it.

        Raises `psycopg2.ProgrammingError` where it was left in a transaction. No I/O.
        """
        settle(cast("PooledConnection", resource))

    def failure_kind(self, error: BaseException) -> Literal["away", "refused"]:
        """Whether a connect failed for good. psycopg2 tells only by its text; one that isn't English counts as away."""
        return "refused" if is_refused(error) else "away"

    def close(self, resource: extensions.connection) -> None:
        """Close; hang up where another thread is in the middle of a statement, or of a reset."""
        conn = cast("PooledConnection", resource)
        if closed(conn):
            return
        if transaction_status(conn) in _BUSY or conn._session.resetting:
            # closing would wait for the statement; it is closed as the last one lets go
            _common.hang_up_on(conn._descriptor)
            return
        _dbapi.say_little(conn._session.fd)
        raw.close(conn)

    def abandon(self, resource: extensions.connection) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        conn = cast("PooledConnection", resource)
        if not closed(conn):
            _common.silence(conn._session.fd)

    def retire(self, resource: Any, returned: Returned) -> None:
        """End a borrowing: its cursors refuse from now on, and the connection until it is lent again. No I/O."""
        resource._session.end(returned)
        if resource.notices and type(resource.notices) is list:
            resource.notices.clear()

    # -- looking: no I/O but a look at the socket ---------------------------------------------------------------------

    def alive(self, resource: extensions.connection) -> bool:
        """Look at the socket. A readable one is looked at closer, and its notifications are kept in `conn.notifies`."""
        conn = cast("PooledConnection", resource)
        if closed(conn):
            return False
        session = conn._session
        if session.readable(0) and not _still_there(conn):
            return False
        if session.plans != self._stale_plans and session.rest:  # it may have prepared the statement, too
            return False
        return transaction_status(conn) == _IDLE

    def clean(self, resource: extensions.connection) -> bool:
        """Whether the session is as when it was new, as far as statements, server, libpq and psycopg2 tell."""
        conn = cast("PooledConnection", resource)
        session = conn._session
        return (
            session.traces == CLEAN
            and not closed(conn)
            and transaction_status(conn) == _IDLE
            and not session.held
            and not session.entered
            and is_as_new(conn, session)
        )

    def is_broken(self, resource: extensions.connection, error: BaseException | None) -> bool:
        """Whether the session is over, is in the middle of something, or is one that has to be left.

        An interrupt (Ctrl-C, a SIGTERM that raises SystemExit) may have struck anywhere: not worth the doubt. A refusal
        to write where nobody asked for read-only means that the server is no longer the primary.
        """
        conn = cast("PooledConnection", resource)
        if closed(conn) or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        if transaction_status(conn) in _BUSY:
            return True
        return any(_ends_session(cause) or self._demotes(cause, conn) for cause in _common.causes(error))

    def demoted(self, resource: extensions.connection, error: BaseException | None) -> bool:
        """Whether a write was refused because the server is no longer the primary."""
        conn = cast("PooledConnection", resource)
        return any(self._demotes(cause, conn) for cause in _common.causes(error))

    def _demotes(self, error: BaseException, conn: PooledConnection) -> bool:
        if not isinstance(error, errors.ReadOnlySqlTransaction):
            return False
        known = not closed(conn)
        standby = raw.get_parameter_status(conn, "in_hot_standby") if known else None
        by_default = conn._session.read_only and standby == "off"
        return _common.demotes(
            "25006",
            read_only=self._read_only or by_default or (known and bool(conn.readonly)),
            standby=standby,
            read_only_server=raw.get_parameter_status(conn, READ_ONLY) if known else None,
        )

    def is_retryable(self, error: BaseException) -> bool:
        """Whether the same work may succeed when it is done again: a serialization failure or a deadlock."""
        return isinstance(error, (errors.SerializationFailure, errors.DeadlockDetected))

    def aborted(self, resource: extensions.connection) -> bool:
        """Whether a failed statement has aborted the transaction."""
        return _status(resource) == extensions.TRANSACTION_STATUS_INERROR

    def statement_error(self, resource: extensions.connection) -> str:
        """Return what the server said of the statement that aborted the transaction, without what DETAIL has."""
        return cast("PooledConnection", resource)._session.failed if self.aborted(resource) else ""

    def in_transaction(self, resource: extensions.connection) -> bool:
        """Whether a transaction is open, or a statement is running."""
        return _status(resource) in (*_OPEN, extensions.TRANSACTION_STATUS_ACTIVE)

    # -- doing --------------------------------------------------------------------------------------------------------

    def ping(self, resource: extensions.connection, timeout: float) -> bool:
        """Ask the server for an answer within `timeout` seconds; one round trip."""
        conn = cast("PooledConnection", resource)
        if closed(conn):
            return False
        try:
            with _dbapi.Deadline(conn._session.fd, timeout) as deadline:
                _run(conn, "SELECT 1")
        except psycopg2.Error:
            return False
        return not deadline.passed

    def begin(self, resource: extensions.connection, options: TransactionOptions | None = None) -> None:
        """Send BEGIN; one round trip, and one more for settings: psycopg2 sends its BEGIN alone."""
        conn = cast("PooledConnection", resource)
        set_autocommit(conn, False)
        try:
            if options is not None:
                conn._choose(self._pooler.options(options))
            # psycopg2 sends BEGIN before the first thing that is done in a transaction. This is one that needs nothing
            # else of the server: a large object that is named, and not opened.
            raw.lobject(conn, 1, "n")
            if conn._session.settings is not None:
                _run(conn, conn._session.settings)
        except BaseException:
            _to_rest(conn)
            raise
        conn._session.begun = True

    def commit(self, resource: extensions.connection) -> None:
        """Commit, one round trip; none where nothing is open.

        Raises `InFailedSqlTransaction` for an aborted transaction, and `InterfaceError` where the connection was closed
        in one.
        """
        conn = cast("PooledConnection", resource)
        conn._session.explicit_end = None
        begun, conn._session.begun = conn._session.begun, False
        try:
            if self.aborted(conn):  # COMMIT would roll back and call it a success
                _end(conn, "ROLLBACK")
                raise errors.InFailedSqlTransaction("a failed statement aborted the transaction: it was rolled back")
            if begun and closed(conn):
                who = "by conn.close()" if conn._session.closed_by_user else "or lost"
                raise psycopg2.InterfaceError(f"the connection was closed {who} before the COMMIT: nothing was saved")
            _end(conn, "COMMIT")
        finally:
            _to_rest(conn)

    def rollback(self, resource: extensions.connection) -> None:
        """Roll back, one round trip; none where nothing is open."""
        conn = cast("PooledConnection", resource)
        conn._session.explicit_end = None
        conn._session.begun = False
        try:
            _end(conn, "ROLLBACK")
        finally:
            _to_rest(conn)

    background_reset = True
    """psycopg2 waits for the answer to all it sends: the pool resets in a thread of its own."""

    def reset(self, resource: extensions.connection, *, full: bool) -> None:
        """Roll back what is open, make the session as new and put every attribute back.

        One round trip, two where psycopg2 has begun a transaction that is still open; none where only attributes
        differ, unless it is `full`. Raises `psycopg2.Error` where that can't be.
        """
        conn = cast("PooledConnection", resource)
        session = conn._session
        if closed(conn) or transaction_status(conn) in _BUSY:
            raise psycopg2.OperationalError("the connection came back closed, or with a statement under way")
        if conn.status == extensions.STATUS_PREPARED:
            raise psycopg2.OperationalError("the connection came back in a two-phase commit")
        session.resetting = True  # from here on `close` hangs up
        try:
            if session.entered:
                conn._leave_block()
            _end(conn, "ROLLBACK")
            _to_rest(conn)
            changed = session.traces or session.held or conn.notifies or reported(conn, session) != session.reported
            if session.is_ours and (full or changed):
                _renew(conn)
            session.held = 0
            restore(conn)
        finally:
            session.resetting = False
        session.begun = False
        if not self.clean(conn):
            raise psycopg2.OperationalError("the session could not be made as new")


def _nothing(_query: str | bytes) -> int:
    """Say of a statement that it leaves nothing."""
    return CLEAN


def _status(conn: extensions.connection) -> int:
    return extensions.TRANSACTION_STATUS_UNKNOWN if closed(conn) else transaction_status(conn)


def _renew(conn: PooledConnection) -> None:
    """Have the server make the session as new, in one round trip."""
    session = conn._session
    if session.traces >= LASTING:
        raise psycopg2.OperationalError("the session was changed by what no reset undoes (LOAD, dblink, ...)")
    if session.cannot_be_repeated:
        raise psycopg2.OperationalError("the session was changed, and a reset can't repeat how it was configured")
    session.news = None
    _run(conn, reset_text(session))
    session.traces, session.held = CLEAN, 0


def _run(conn: extensions.connection, statement: str) -> None:
    with extensions.cursor(conn) as cursor:  # psycopg2's own class: the user's may do anything with a statement
        cursor.execute(statement)


def _end(conn: extensions.connection, statement: str) -> None:
    """End what is open, whether psycopg2 began it or somebody's own SQL."""
    if conn.status == extensions.STATUS_BEGIN:
        raw.commit(conn) if statement == "COMMIT" else raw.rollback(conn)
    elif not closed(conn) and transaction_status(conn) in _OPEN:
        _run(conn, statement)


def _to_rest(conn: PooledConnection) -> None:
    """Turn autocommit on again, and forget the options of a transaction, unless one is still open."""
    if not closed(conn) and conn.status == extensions.STATUS_READY and not conn.autocommit:
        conn._forget_choice()
        set_autocommit(conn, True)


def _still_there(conn: PooledConnection) -> bool:
    """Read what has come, without waiting: the end, a goodbye of the server, or only a notification.

    What a server says unasked, besides notifications, is a goodbye: it comes as a notice, ahead of the end.
    """
    kept, heard = conn.notices, list[str]()
    object.__setattr__(conn, "notices", heard)
    try:
        for _ in range(100):  # bounded: a flood of notifications must not keep the borrower
            raw.poll(conn)
            if heard or not conn._session.readable(0):
                break
    except psycopg2.Error:
        return False
    finally:
        object.__setattr__(conn, "notices", kept)
    if heard:  # it is read now and won't be seen again: make sure that nobody takes the connection for alive
        _common.hang_up(conn._session.fd)
        raw.close(conn)
    return not heard


def _classes(codes: Iterable[str]) -> Iterator[type[Exception]]:
    for code in codes:
        with contextlib.suppress(KeyError):  # newer than this psycopg2, which then raises a class that has the code
            yield errors.lookup(code)


_ENDING = tuple(_classes([*_common.ENDING, "08000", "08001", "08003", "08004", "08006", "08P01"]))


def _ends_session(error: BaseException) -> bool:
    if not isinstance(error, psycopg2.Error):
        return False
    return isinstance(error, _ENDING) or _common.ends_session(error.pgcode)
