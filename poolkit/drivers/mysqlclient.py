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
from threading import get_ident
from time import monotonic
from typing import Any

from MySQLdb import _mysql as client
from MySQLdb.connections import Connection

from poolkit.driver import GiveBack
from poolkit.drivers import _dbapi, _mysql
from poolkit.drivers._lending import Closings, still_closed, stranger
from poolkit.drivers._mysql_guard import ASK, TRACK, Converters, Guarded, one_at_a_time
from poolkit.drivers._mysql_statements import ENDS, LASTING, LEVEL, STAINED, Traces
from poolkit.drivers.mysql import MysqlDriver
from poolkit.errors import ConfigError, Returned

__all__ = ["MysqlclientDriver", "PooledConnection"]

_OPTIONS = _mysql.OPTIONS | {
    "auth_plugin", "compress", "local_infile_dir", "multi_statements", "server_public_key_path", "ssl_ca", "ssl_cert",
    "ssl_key",
}  # fmt: skip


_OPEN_OR_MORE = _mysql.IN_TRANSACTION | _mysql.AUTOCOMMIT | _mysql.MORE_RESULTS


class PooledConnection(Guarded, Connection):  # type: ignore[misc]  # mysqlclient has no types
    """A MySQLdb connection that knows its unit of work, and where its socket and its status are."""

    _status: Any = None  # None: while connecting
    _seen = 0  # what the text of the statement under way says
    _borrowing = 0  # their number: a cursor of another one refuses
    _ended: Returned | None = None  # the last one that is over
    _closings: Closings | None = None
    _rest_charset: tuple[str, str | None] = ("utf8mb4", None)

    def _prepare(self) -> None:
        super()._prepare()
        for name in ("_seen", "_borrowing", "_ended", "_closings"):
            self.__dict__.setdefault(name, getattr(self, name))

    def cursor(self, cursorclass: Any = None) -> Any:
        """Make a cursor for this borrowing; afterwards it refuses."""
        if self._refuses is not None:
            raise self._refuses()
        cursor = _bound(cursorclass or self.cursorclass)(self)
        cursor._borrowing = self._borrowing
        return cursor

    def query(self, query: Any) -> None:
        """Send a query; every cursor comes by here. The result, also an empty one, has to be fetched afterwards."""
        seen = self._traces[query] if isinstance(query, (bytes, str)) else self._traces.read(query)
        if self._busy or self._refuses is not None:
            raise self._refusal()
        if seen:
            self._note(query, seen)
        if self._in_unit:
            self._before(query, seen)
        self._busy, self._seen = True, seen
        try:
            super().query(query)
        except client.Error as error:
            self._fail(error)
            raise
        except Exception:  # the library could not even send it
            self._busy = False
            raise

    def store_result(self) -> Any:
        """Fetch the whole result; an error may come only here, among the rows."""
        try:
            result = super().store_result()
        except client.Error as error:
            self._fail(error)
            raise
        self._busy = False
        self._listen()
        return result

    def use_result(self) -> Any:
        """Begin to fetch the result row by row."""
        result = super().use_result()
        self._busy, self._streamed = False, True
        self._listen()
        return result

    def _listen(self) -> None:
        if self._status is None:  # while connecting
            return
        if self._status.value & _mysql.STATE_CHANGED:
            self._heard(self._seen)
        if self._seen & ENDS and self._in_unit:
            self._passed()

    def begin(self) -> None:
        """Begin a transaction; MySQLdb's own leaves the answer unread."""
        self._check_free()
        self._run(b"BEGIN")

    @one_at_a_time
    def ping(self, *reconnect: Any) -> None:  # noqa: ARG002  MySQLdb's own signature
        """Ask the server for an answer; raise where there is none, whatever `reconnect` says."""
        client.connection.ping(self)

    @one_at_a_time
    def next_result(self) -> Any:
        """Go on to the next result of several."""
        return super().next_result()

    def change_user(self, *arguments: Any, **more: Any) -> None:
        """Log in as another; the connection is not lent again."""
        self._check_free()
        self._changed |= LASTING
        self._change_user(*arguments, **more)

    @one_at_a_time
    def _change_user(self, *arguments: Any, **more: Any) -> None:
        super().change_user(*arguments, **more)

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Choose a character set; the next borrower has the usual one again."""
        if self._status is None:  # while connecting
            self._traces = _ANY
        else:
            self._check_free()
            self._changed |= STAINED
        super().set_character_set(charset, collation)

    def autocommit(self, on: Any) -> None:
        """Turn autocommit on or off."""
        if self._status is not None:
            self._check_free()
        super().autocommit(on)

    def _fail(self, error: Exception) -> None:
        self._busy, self._failed = False, error.args
        if self._in_unit:
            self._after(self._seen, error)

    def _run(self, query: bytes) -> None:
        if self._busy:
            raise self._refusal()
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

    def _begin_close(self, give_back: GiveBack) -> None:
        place = give_back.begin(self)
        if place is not None:
            self._refuses = place.error

    def _end(self) -> None:
        client.connection.close(self)

    def _charset(self) -> tuple[str, str | None]:
        return self._rest_charset


class _Beside(PooledConnection):
    """One that a borrower has closed, and may still refer to while the next one has it: see `_lending`."""

    @property
    def _refuses(self) -> Any:
        refuses = self.__dict__["_refuses"]
        if refuses is None and (place := stranger(self, self._closings or [], self._give_back)) is not None:
            return place.error
        return refuses

    @_refuses.setter
    def _refuses(self, refuses: Any) -> None:
        self.__dict__["_refuses"] = refuses


_ANY = Traces()  # for what is said before a connection is settled


class _Bound:
    """Mixed into a cursor's class: it works in the borrowing it was made in, and in no other."""

    connection: Any
    _borrowing = 0

    def _get_db(self) -> Any:
        db = super()._get_db()  # type: ignore[misc]  # MySQLdb's
        if self._borrowing != db._borrowing:
            raise db._ended.error("cursor")
        return db

    def close(self) -> None:
        """Close; of an ended borrowing there is nothing to read."""
        conn = self.connection
        if conn is not None and self._borrowing != conn._borrowing:
            self.connection = None
            return
        super().close()  # type: ignore[misc]  # MySQLdb's


_classes: dict[Any, Any] = {}


def _bound(cursor_class: Any) -> Any:
    """Return the class of cursors that know their borrowing, under the same name."""
    found = _classes.get(cursor_class)
    if found is None:
        if not isinstance(cursor_class, type):  # a function that makes one
            return cursor_class
        found = _classes[cursor_class] = type(cursor_class.__name__, (_Bound, cursor_class), {})
    return found


class MysqlclientDriver(MysqlDriver):
    """mysqlclient for threads; lends `MySQLdb.connections.Connection`.

    Args:
        source: A URL (`mysql+mysqlclient://user:password@host:3306/database`), or a callable that returns one for each
            connect.
        options: The arguments of MySQLdb's `connect`, and `isolation_level`, `ssl_mode`, `ssl_ca`, `ssl_cert`,
            `ssl_key`, `statement_timeout` (seconds), `session_settings` (a mapping of the session's variables) and
            `harmless_functions` (names of stored functions that change nothing in the session).

    Raises:
        ConfigError: A URL or option that can't work.
    """

    _options = frozenset(_OPTIONS)
    _errors = client.Error
    background_reset = True  # the C library sends nothing without waiting

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
                home = arguments.get("database")
                conn._home = home.decode() if isinstance(home, bytes) else home or None
                conn._rest_charset = arguments.get("charset") or conn.character_set_name(), arguments.get("collation")
                if conn.server_capabilities & _mysql.SESSION_TRACK:
                    conn._run(f"SET {TRACK}".encode())
                self._fit(conn, session)
        except BaseException:
            with contextlib.suppress(client.Error):  # what went wrong before is the error to tell
                conn._end()
            raise
        return conn

    def settled(self, resource: Any) -> None:
        """Take the session and the object as they are for their state of rest."""
        if resource.character_set_name() != resource._rest_charset[0]:
            resource._rest_charset = resource.character_set_name(), None
        super().settled(resource)

    def lend(self, resource: Any) -> None:
        """Let a connection be used."""
        resource._refuses = None
        if resource._closings:
            resource.__class__ = _Beside if still_closed(resource._closings) else PooledConnection

    def retire(self, resource: Any, returned: Returned) -> None:
        """Have a connection refuse until it is lent again; cursors made so far refuse for good."""
        resource._borrowing += 1
        resource._ended = returned
        resource._refuses = returned.error
        if returned.block is not None:
            resource._closings = [*(resource._closings or ()), (get_ident(), returned)]

    def reset(self, resource: Any, *, full: bool) -> None:
        """Roll back what is open, and make the session new where it was changed; `full`: in any case."""
        conn = resource
        self._check_fit(conn, full=full)
        if conn._streamed:
            conn._run(ASK)  # refused by the library where rows are still under way
        self._restore(conn)
        if conn._changed & LEVEL:
            self._renew(conn)
        else:
            self.rollback(conn)
        self._is_new(conn)

    def _renew(self, conn: Any) -> None:
        """Make the session a new one, and say again what is said in each."""
        # Not `change_user`, which mysqlclient has: MariaDB's library ends the process where the server is gone.
        if conn._busy:  # closed meanwhile
            raise conn._refusal()
        conn._busy = True
        try:
            _reset_connection(conn)
            if conn._home is not None:
                client.connection.select_db(conn, conn._home)
            if conn.character_set_name() != conn._rest_charset[0]:  # the C library quotes by it
                client.connection.set_character_set(conn, conn._rest_charset[0])
        except client.Error:
            conn._busy = False
            raise
        conn._busy = False
        for text in conn._rest():
            conn._run(text)

    def _is_quiet(self, conn: Any) -> bool:
        return bool(
            conn.open
            and conn._status.value & _OPEN_OR_MORE == _mysql.AUTOCOMMIT
            and not (conn.encoders.touched or conn.converter.touched)
        )

    def _attributes(self, conn: Any) -> tuple[object, ...]:
        return conn.cursorclass, conn.encoding, id(conn.encoders), id(conn.converter)

    def _keep_converters(self, conn: Any) -> None:
        conn._converters = dict(conn.encoders), dict(conn.converter)
        self._renew_converters(conn)

    def _renew_converters(self, conn: Any) -> None:
        conn.encoders, conn.converter = conn._watched = tuple(Converters(kept) for kept in conn._converters)

    def _restore(self, conn: Any) -> None:
        conn.cursorclass, conn.encoding, *_ = conn._as_new
        self._renew_converters(conn)
        conn._as_new = self._attributes(conn)

    def _encrypt(self, merged: dict[str, Any]) -> None:
        mode = _mysql.ssl_mode(merged.get("ssl_mode"))
        if mode is not None:
            merged["ssl_mode"] = mode
        files = {name: merged.pop(f"ssl_{name}", None) for name in ("ca", "cert", "key")}
        given = {name: path for name, path in files.items() if path is not None}
        if given:
            merged["ssl"] = {**(merged.get("ssl") or {}), **given}


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
