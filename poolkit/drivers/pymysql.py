"""PyMySQL, for threads: `PymysqlDriver`, which lends PyMySQL's own connections. See `poolkit.drivers.mysql`."""

# ruff: noqa: SLF001  the driver and its connection are one thing in two objects

from __future__ import annotations

import contextlib
import inspect
import socket
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from pymysql import err
from pymysql.connections import Connection

from poolkit.drivers import _common, _dbapi, _mysql
from poolkit.drivers.mysql import Guarded, MysqlDriver

__all__ = ["PooledConnection", "PymysqlDriver"]

_RESET_CONNECTION = 0x1F
_CANNOT_CONNECT = 2003
# What this PyMySQL takes, and what is for poolkit alone to do.
_KNOWN = frozenset(inspect.signature(Connection.__init__).parameters) - {"self", "compress"} - _mysql.REFUSED.keys()


if TYPE_CHECKING:
    _Connection = Connection[Any]
else:  # generic in its stubs alone
    _Connection = Connection


class PooledConnection(Guarded, _Connection):
    """A PyMySQL connection that knows its unit of work, and how to look at its socket."""

    _as_new: tuple[object, ...]
    # PyMySQL's own, which its stubs leave out
    server_status: int
    _result: Any
    _sock: Any

    def query(self, sql: Any, unbuffered: bool = False) -> int:  # noqa: FBT001, FBT002  PyMySQL's own signature
        """Send a query; every cursor comes by here."""
        if self._in_unit:
            self._before(_head(sql))
        self._busy = True
        try:
            affected: int = super().query(sql, unbuffered)
        except err.Error as error:
            self._busy = False
            if self._in_unit:
                self._after(_head(sql), error)
            raise
        self._busy = False
        if unbuffered:
            self._streamed = True
        return affected

    def _create_ssl_ctx(self, sslp: Any) -> Any:
        # Where nothing is asked of TLS, newer PyMySQLs make a context all the same, at each connect: 30 ms of CPU.
        return super()._create_ssl_ctx(sslp) if sslp else _plain_context(super()._create_ssl_ctx)  # type: ignore[misc]

    def _run(self, query: bytes) -> None:
        self._busy = True
        try:
            super().query(query)
        except err.Error:
            self._busy = False
            raise
        self._busy = False

    def _flags(self) -> int:
        return self.server_status | (_mysql.MORE_RESULTS if self._has_results() else 0)

    def _has_results(self) -> bool:
        result = self._result
        return result is not None and bool(result.unbuffered_active or result.has_next)

    def _leave_results(self) -> None:
        """Give up rows that are still on their way: PyMySQL would go on reading them as the result is collected."""
        if self._result is not None:
            self._result.unbuffered_active = False

    def _is_open(self) -> bool:
        return self._sock is not None


_plain: list[Any] = []


def _plain_context(make: Callable[[dict[str, Any]], Any]) -> Any:
    """Return this process's one context for TLS without demands: it checks nothing, so it holds nothing that ages."""
    if not _plain:
        _plain.append(make({}))
    return _plain[0]


def _head(sql: Any) -> bytes:
    """Return enough of a statement to tell what it is."""
    begin = sql[:80]
    plain: bytes = begin.encode("ascii", "replace") if isinstance(begin, str) else bytes(begin)
    return plain if len(sql) <= 80 else plain + b"~"


class PymysqlDriver(MysqlDriver):
    """PyMySQL for threads; lends `pymysql.connections.Connection`.

    `source` is a URL (`mysql+pymysql://user:password@host:3306/database`), or a callable that returns one for each
    connect. `options` takes the arguments of PyMySQL's `connect`, and `isolation_level`. Raises `ConfigError`.
    """

    _options = _KNOWN | _mysql.OPTIONS

    def open(self, timeout: float) -> PooledConnection:
        """Connect within `timeout` seconds, whatever the number of addresses. Raises `pymysql.err.OperationalError`."""
        arguments, session = self._arguments()
        timeout = min(timeout, arguments.pop("connect_timeout", timeout))
        until = monotonic() + timeout
        arguments.setdefault("program_name", _common.application_name())
        conn: Any = PooledConnection(**arguments, autocommit=True, defer_connect=True)
        try:
            sock = _dial(conn, until)
            with _dbapi.Deadline(sock.fileno(), until - monotonic()) as deadline:
                try:
                    conn.connect(sock)
                    self._fit(conn, session)
                except err.Error as error:
                    if deadline.passed:
                        raise _no_connection(conn, f"none within {timeout:g} s") from error
                    raise
        except BaseException:
            conn._force_close()
            raise
        return cast("PooledConnection", conn)

    def close(self, resource: Any) -> None:
        """Say goodbye and close; hang up where another thread is in the middle of a statement."""
        if not resource._busy:
            resource._leave_results()
        super().close(resource)

    def abandon(self, resource: Any) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        resource._leave_results()
        super().abandon(resource)

    def _fit(self, conn: Any, session: list[bytes]) -> None:
        conn._fd = conn._sock.fileno()
        super()._fit(conn, session)

    def _attributes(self, conn: Any) -> tuple[object, ...]:
        return (
            conn.cursorclass,
            conn.charset,
            conn.collation,
            conn.autocommit_mode,
            conn.use_unicode,
            conn._read_timeout,
            conn._write_timeout,
        )

    def _restore(self, conn: Any) -> None:
        factory, charset, collation, mode, use_unicode, read_timeout, write_timeout = conn._as_new
        if (conn.charset, conn.collation) != (charset, collation):
            conn.set_character_set(charset, collation)
        conn.cursorclass, conn.autocommit_mode, conn.use_unicode = factory, mode, use_unicode
        conn._read_timeout, conn._write_timeout = read_timeout, write_timeout

    def _forget(self, conn: Any, arguments: Mapping[str, Any]) -> None:
        conn._execute_command(_RESET_CONNECTION, b"")
        conn._read_ok_packet()
        if "database" in arguments:
            conn.select_db(arguments["database"])


def _dial(conn: Any, until: float) -> socket.socket:
    """Connect a socket to where the connection is to go, one address after the other, each with its share of time."""
    trouble: OSError | None = None
    try:
        if conn.unix_socket:
            return _reach(socket.AF_UNIX, conn.unix_socket, None, until)
        found = socket.getaddrinfo(conn.host, conn.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _no_connection(conn, str(error)) from error
    for left, (family, _, _, _, address) in zip(range(len(found), 0, -1), found, strict=True):
        now = monotonic()
        try:
            return _reach(family, address, conn.bind_address, now + (until - now) / left)
        except OSError as error:
            trouble = error
    raise _no_connection(conn, str(trouble)) from trouble


def _reach(family: int, address: Any, bind_address: str | None, until: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(sock.close)
        sock.settimeout(max(0.001, until - monotonic()))
        if bind_address is not None:
            sock.bind((bind_address, 0))
        sock.connect(address)
        if family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cleanup.pop_all()
    return sock


def _no_connection(conn: Any, why: str) -> err.OperationalError:
    return err.OperationalError(_CANNOT_CONNECT, f"Can't connect to MySQL server on {conn.host!r} ({why})")
