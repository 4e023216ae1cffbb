"""mysqlclient, for threads: `MysqlclientDriver`, which lends MySQLdb's own connections. See `poolkit.drivers.mysql`.

The C library keeps the status flags that the server sends, and mysqlclient shows only one of them (`get_autocommit`).
Whether a transaction is open is another, so it is read where the C library keeps it: within the connection object, just
after three values that mysqlclient does show. The place is searched for by those values and then proved, once in each
process: a transaction that is begun and rolled back has to show there. A build that keeps it elsewhere is refused.

mysqlclient waits in C, which counts in whole seconds: `open` rounds its limit up to the next one.
"""

# ruff: noqa: SLF001  the driver and its connection are one thing in two objects

from __future__ import annotations

import contextlib
import ctypes
import math
import struct
from collections.abc import Mapping
from time import monotonic
from typing import Any

from MySQLdb import _mysql as client
from MySQLdb.connections import Connection

from poolkit.drivers import _dbapi, _mysql
from poolkit.drivers.mysql import Guarded, MysqlDriver
from poolkit.errors import ConfigError

__all__ = ["MysqlclientDriver", "PooledConnection"]

_OPTIONS = _mysql.OPTIONS | {
    "auth_plugin", "compress", "local_infile_dir", "multi_statements", "server_public_key_path", "ssl_mode",
}  # fmt: skip


class PooledConnection(Guarded, Connection):  # type: ignore[misc]  # mysqlclient has no types
    """A MySQLdb connection that knows its unit of work, and where its socket and its status are."""

    _as_new: tuple[object, ...]
    _status: Any = None
    _query = b""

    def query(self, query: Any) -> None:
        """Send a query; every cursor comes by here. The result, also an empty one, has to be fetched afterwards."""
        head = bytes(query[:80]) if not isinstance(query, str) else query[:80].encode("ascii", "replace")
        head = head if len(query) <= 80 else head + b"~"
        if self._in_unit:
            self._before(head)
        self._query, self._busy = head, True
        try:
            super().query(query)
        except client.Error as error:
            self._fail(error)
            raise

    def store_result(self) -> Any:
        """Fetch the whole result; an error may come only here, among the rows."""
        try:
            result = super().store_result()
        except client.Error as error:
            self._fail(error)
            raise
        self._busy = False
        return result

    def use_result(self) -> Any:
        """Begin to fetch the result row by row."""
        result = super().use_result()
        self._busy, self._streamed = False, True
        return result

    def begin(self) -> None:
        """Begin a transaction; MySQLdb's own leaves the answer unread."""
        self._run(b"BEGIN")

    def _fail(self, error: Exception) -> None:
        self._busy = False
        if self._in_unit:
            self._after(self._query, error)

    def _run(self, query: bytes) -> None:
        self._busy = True
        try:
            client.connection.query(self, query)
            client.connection.store_result(self)
        except client.Error:
            self._busy = False
            raise
        self._busy = False

    def _flags(self) -> int:
        flags: int = self._status.value
        return flags

    def _is_open(self) -> bool:
        return bool(self.open)


class MysqlclientDriver(MysqlDriver):
    """mysqlclient for threads; lends `MySQLdb.connections.Connection`.

    `source` is a URL (`mysql+mysqlclient://user:password@host:3306/database`), or a callable that returns one for each
    connect. `options` takes the arguments of MySQLdb's `connect`, and `isolation_level`. Raises `ConfigError`.
    """

    _options = frozenset(_OPTIONS)

    def open(self, timeout: float) -> PooledConnection:
        """Connect within `timeout`, in whole seconds, at each address. Raises `MySQLdb.OperationalError`."""
        arguments, session = self._arguments()
        timeout = min(timeout, arguments.pop("connect_timeout", timeout))
        for name in ("read_timeout", "write_timeout"):
            if name in arguments:
                arguments[name] = math.ceil(arguments[name])
        until = monotonic() + timeout
        conn = PooledConnection(**arguments, autocommit=True, connect_timeout=max(1, math.ceil(timeout)))
        try:
            conn._fd = conn.fileno()
            with _dbapi.Deadline(conn._fd, max(1.0, until - monotonic())):
                conn._status = _find_status(conn)
                self._fit(conn, session)
        except BaseException:
            with contextlib.suppress(client.Error):  # what went wrong before is the error to tell
                conn.close()
            raise
        return conn

    def _attributes(self, conn: Any) -> tuple[object, ...]:
        return conn.cursorclass, conn.encoding, conn.character_set_name()

    def _restore(self, conn: Any) -> None:
        factory, encoding, charset = conn._as_new
        if (conn.encoding, conn.character_set_name()) != (encoding, charset):
            conn.set_character_set(charset)
        conn.cursorclass, conn.encoding = factory, encoding

    def _forget(self, conn: Any, arguments: Mapping[str, Any]) -> None:
        # Not `change_user`, which mysqlclient has: MariaDB's library ends the process where the server is gone.
        _reset_connection(conn)
        if "database" in arguments:
            conn.select_db(arguments["database"])


def _reset_connection(conn: PooledConnection) -> None:
    """Call the C library's mysql_reset_connection, one round trip; mysqlclient has no method for it.

    Raises where this build hides it, so that the connection is discarded: a new one is as good as reset.
    """
    try:
        reset = ctypes.CDLL(client.__file__).mysql_reset_connection
        capsule = conn._get_native_connection()
    except (AttributeError, OSError) as error:
        raise client.NotSupportedError(0, "this build of mysqlclient can't reset a session") from error
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    reset.argtypes, reset.restype = [ctypes.c_void_p], ctypes.c_int
    if reset(pointer(capsule, b"_mysql.connection.native_connection")):
        raise client.OperationalError(conn.errno(), conn.error())


_place: int | None = None  # of the status flags within a connection object, once proved


def _find_status(conn: PooledConnection) -> ctypes.c_uint:
    """Return the status flags of a connection, as a view of the C library's own memory: it lives as long as that."""
    global _place  # noqa: PLW0603  a fact about the library of this process
    if _place is None:
        place = _search(conn)
        view = ctypes.c_uint.from_address(id(conn) + place)
        shown = []
        for statement in (b"BEGIN", b"ROLLBACK"):
            conn._run(statement)
            shown.append(view.value & (_mysql.IN_TRANSACTION | _mysql.AUTOCOMMIT))
        if shown != [_mysql.IN_TRANSACTION | _mysql.AUTOCOMMIT, _mysql.AUTOCOMMIT]:
            raise _misfit()
        _place = place
    return ctypes.c_uint.from_address(id(conn) + _place)


def _search(conn: PooledConnection) -> int:
    """Find the flags by what stands before them: two sets of capabilities, the protocol, the number of columns."""
    raw = ctypes.string_at(id(conn), client.connection.__basicsize__)
    before = struct.pack("@LLII", conn.client_flag, conn.server_capabilities, conn.get_proto_info(), conn.field_count())
    place = raw.find(before) + len(before)
    if raw.count(before) != 1 or place + 4 > len(raw):
        raise _misfit()
    return place


def _misfit() -> ConfigError:
    return ConfigError(
        f"this build of mysqlclient ({client.get_client_info()}) keeps its status where poolkit can't find it: "
        "use PyMySQL (mysql+pymysql://)"
    )
