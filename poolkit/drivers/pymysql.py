"""PyMySQL, for threads: `PymysqlDriver`, which lends PyMySQL's own connections. See `poolkit.drivers.mysql`.

A reset is sent in one piece (COM_RESET_CONNECTION, COM_INIT_DB, SET NAMES, and what is said in each session), and its
answers are read later, from the socket itself: PyMySQL's own way of reading would wait for them. A server that takes
only one command at a time, Amazon's Aurora, gets each when the one before is answered.

Each borrowing has an object of its own where the last borrower keeps a reference to the old one: `renew` makes a fresh
one that has the session, and the old one, with every cursor made from it, refuses from then on.
"""

# ruff: noqa: SLF001  the driver and its connection are one thing in two objects

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any, cast

from pymysql import err
from pymysql.connections import Connection

from poolkit.drivers import _common, _dbapi, _mysql
from poolkit.drivers._mysql_answers import COM_INIT_DB, COM_QUERY, COM_RESET_CONNECTION, command
from poolkit.drivers._mysql_guard import Converters
from poolkit.drivers._mysql_statements import LEVEL
from poolkit.drivers._pymysql_connect import context, dial, no_connection
from poolkit.drivers._pymysql_connection import Ended, PooledConnection
from poolkit.drivers.mysql import MysqlDriver
from poolkit.errors import ConfigError, Returned

__all__ = ["PooledConnection", "PymysqlDriver"]

_OPEN_OR_NOT = _mysql.IN_TRANSACTION | _mysql.AUTOCOMMIT
_PATIENCE = 10.0  # seconds for a reset that is waited for
_ONE_AT_A_TIME = ".rds.amazonaws.com"  # ends of names of hosts whose servers take one command at a time
# What this PyMySQL takes, and what is for poolkit alone to do.
_KNOWN = frozenset(inspect.signature(Connection.__init__).parameters) - {"self", "compress"} - _mysql.REFUSED.keys()


class PymysqlDriver(MysqlDriver):
    """PyMySQL for threads; lends `pymysql.connections.Connection`.

    Args:
        source: A URL (`mysql+pymysql://user:password@host:3306/database`; several hosts with commas between them are
            tried in turn), or a callable that returns one for each connect.
        options: The arguments of PyMySQL's `connect`, and `isolation_level`, `ssl_mode`, `statement_timeout` (seconds),
            `session_settings` (a mapping of the session's variables) and `harmless_functions` (names of stored
            functions that change nothing in the session).

    Raises:
        ConfigError: A URL or option that can't work.
    """

    _options = _KNOWN | _mysql.OPTIONS
    _errors = err.Error
    _several_hosts = True

    def open(self, timeout: float) -> PooledConnection:
        """Connect within `timeout` seconds, whatever the number of addresses. Raises `pymysql.err.OperationalError`."""
        arguments, session = self._arguments()
        timeout = min(timeout, arguments.pop("connect_timeout", timeout))
        until = monotonic() + timeout
        arguments.setdefault("program_name", _common.application_name())
        arguments["client_flag"] = arguments.get("client_flag", 0) | _mysql.SESSION_TRACK
        hosts = arguments.get("host")
        if not isinstance(hosts, list):
            return self._connect(arguments, session, until, timeout)
        for left, (host, port) in zip(range(len(hosts), 0, -1), hosts, strict=True):
            now = monotonic()
            share = (until - now) / left
            try:
                place = {"host": host, "port": port or arguments.get("port", 0)}
                return self._connect(arguments | place, session, now + share, share)
            except err.Error:
                if left == 1:
                    raise
        raise AssertionError  # there is at least one host

    def _connect(
        self, arguments: Mapping[str, Any], session: list[bytes], until: float, timeout: float
    ) -> PooledConnection:
        conn: Any = PooledConnection(**arguments, autocommit=True, defer_connect=True)
        try:
            sock = dial(conn, until)
            with _dbapi.Deadline(sock.fileno(), until - monotonic()) as deadline:
                try:
                    conn.connect(sock)
                    self._fit(conn, session)
                except err.Error as error:
                    if deadline.passed:
                        raise no_connection(conn, f"none within {timeout:g} s") from error
                    raise
        except BaseException:
            conn._force_close()
            raise
        return cast("PooledConnection", conn)

    def close(self, resource: Any) -> None:
        """Close; hang up where another thread is in the middle of a statement, or a reset under way."""
        if not resource._busy:
            resource._leave_results()
        super().close(resource)
        if resource._answers is not None:
            resource._force_close()

    def abandon(self, resource: Any) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        resource._leave_results()
        super().abandon(resource)

    def renew(self, resource: Any, returned: Returned) -> Any:
        """Return another object that has the session; the old one and its cursors refuse from now on."""
        new = PooledConnection.__new__(PooledConnection)
        new.__dict__ = resource.__dict__
        resource.__dict__ = {"_returned": returned}
        resource.__class__ = Ended
        new._leave_results()
        return new

    # -- the reset ----------------------------------------------------------------------------------------------------

    def send_reset(self, resource: Any, *, full: bool) -> bool:
        """Send all that makes the session new; True where `finish_reset` has to read the answers.

        Raises where the connection can't be lent again.
        """
        conn = resource
        self._check_fit(conn, full=full)
        self._restore(conn)
        commands = tuple(self._commands(conn))
        if not commands:
            self._is_new(conn)
            return False
        conn._send(commands, together=not conn.host.lower().endswith(_ONE_AT_A_TIME))
        return True

    def _commands(self, conn: Any) -> Iterator[bytes]:
        """Return what has to be said: all of it after a change of the session, else what ends a transaction."""
        if conn._changed & LEVEL:
            yield command(COM_RESET_CONNECTION)
            if conn._home is not None:
                yield command(COM_INIT_DB, conn._home)
            for text in conn._rest():
                yield command(COM_QUERY, text)
            return
        if self.in_transaction(conn):
            yield command(COM_QUERY, b"ROLLBACK")
        elif conn._streamed:
            yield command(COM_QUERY, b"DO 0")
        if not conn._flags() & _mysql.AUTOCOMMIT:
            yield command(COM_QUERY, b"SET autocommit = 1")

    def finish_reset(self, resource: Any, timeout: float) -> bool:
        """Read the answers to a reset; False where they are not complete after `timeout` seconds (0: only look).

        Raises where the reset failed or the connection is lost: then it is to be closed.
        """
        conn = resource
        until = monotonic() + timeout
        try:
            while not conn._has_answers(until):
                if monotonic() >= until:
                    return False
        except err.Error:
            conn._force_close()
            raise
        answers = conn._answers
        conn.server_status = answers.status & ~_mysql.STATE_CHANGED
        conn._answers, conn._result, conn._busy = None, None, False
        self._is_new(conn)
        if self.in_transaction(conn):
            raise err.OperationalError(_mysql.LOST, "a reset left a transaction open")
        return True

    def reset(self, resource: Any, *, full: bool) -> None:
        """Roll back what is open, and make the session new where it was changed; `full`: in any case."""
        if self.send_reset(resource, full=full) and not self.finish_reset(resource, _PATIENCE):
            raise err.OperationalError(_mysql.LOST, f"no answer to a reset within {_PATIENCE:g} s")

    # -- the state of rest --------------------------------------------------------------------------------------------

    def settled(self, resource: Any) -> None:
        """Take the session and the object as they are for their state of rest."""
        home = resource.db
        resource._home = home.encode(resource.encoding) if isinstance(home, str) else home or None
        super().settled(resource)

    def _fit(self, conn: Any, session: list[bytes]) -> None:
        conn._fd = conn._sock.fileno()
        super()._fit(conn, session)

    def _is_quiet(self, conn: Any) -> bool:
        result = conn._result
        return (
            conn._sock is not None
            and conn.server_status & _OPEN_OR_NOT == _mysql.AUTOCOMMIT
            and (result is None or not (result.unbuffered_active or result.has_next))
            and not (conn.encoders.touched or conn.decoders.touched)
        )

    def _attributes(self, conn: Any) -> tuple[object, ...]:
        return (
            conn.cursorclass,
            conn.charset,
            conn.collation,
            conn.autocommit_mode,
            conn.use_unicode,
            conn._read_timeout,
            conn._write_timeout,
            id(conn.encoders),
            id(conn.decoders),
        )

    def _keep_converters(self, conn: Any) -> None:
        conn._converters = dict(conn.encoders), dict(conn.decoders)
        self._renew_converters(conn)

    def _renew_converters(self, conn: Any) -> None:
        conn.encoders, conn.decoders = conn._watched = tuple(Converters(kept) for kept in conn._converters)

    def _restore(self, conn: Any) -> None:
        (
            conn.cursorclass, conn.charset, conn.collation, conn.autocommit_mode, conn.use_unicode,
            conn._read_timeout, conn._write_timeout, *_,
        ) = conn._as_new  # fmt: skip
        self._renew_converters(conn)
        conn._as_new = self._attributes(conn)

    def _encrypt(self, merged: dict[str, Any]) -> None:
        mode = _mysql.ssl_mode(merged.pop("ssl_mode", None))
        if mode == "DISABLED":
            merged["ssl_disabled"] = True
        if mode in (None, "DISABLED", "PREFERRED"):
            return
        files = {name: merged.pop(name, None) for name in ("ssl_ca", "ssl_cert", "ssl_key", "ssl_key_password")}
        for name in ("ssl", "ssl_verify_cert", "ssl_verify_identity", "ssl_disabled"):
            if merged.get(name) is not None:
                raise ConfigError(f"ssl_mode and {name} are two ways to say one thing: give one of them", self._where)
        merged["ssl"] = context(mode, files, self._where)
