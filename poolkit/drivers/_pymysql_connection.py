"""PyMySQL's connection as the pool lends it, and what becomes of the object when its borrowing is over."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pymysql import err
from pymysql.charset import charset_by_name
from pymysql.connections import Connection

from poolkit.drivers import _mysql
from poolkit.drivers._mysql_answers import COM_QUERY, Answers
from poolkit.drivers._mysql_guard import TRACK, Guarded, one_at_a_time
from poolkit.drivers._mysql_statements import ENDS, STAINED
from poolkit.drivers._pymysql_connect import plain_context
from poolkit.drivers._pymysql_results import Left, Result
from poolkit.errors import Returned

__all__ = ["Ended", "PooledConnection"]

if TYPE_CHECKING:
    _Connection = Connection[Any]
else:  # generic in its stubs alone
    _Connection = Connection


class PooledConnection(Guarded, _Connection):  # type: ignore[misc]  # both say how a block ends
    """A PyMySQL connection that knows its unit of work, and how to look at its socket."""

    # PyMySQL's own, which its stubs leave out
    server_status: int
    server_capabilities: int
    _result: Any
    _sock: Any
    _execute_command: Any
    _read_ok_packet: Any
    _read_timeout: float | None
    _current_timeout: float | None = None
    _affected_rows: int
    _closed: bool

    _answers: Answers | None = None  # of a reset that was sent
    _unsent: tuple[bytes, ...] = ()  # its commands that wait for an answer

    def _prepare(self) -> None:
        super()._prepare()
        for name in ("_answers", "_unsent", "_current_timeout"):
            self.__dict__.setdefault(name, getattr(self, name))

    def query(self, sql: Any, unbuffered: bool = False) -> int:  # noqa: FBT001, FBT002  PyMySQL's own signature
        """Send a query; every cursor comes by here."""
        seen = self._traces[sql] if sql.__class__ is str else self._traces.read(sql)
        if self._busy or self._refuses is not None:
            raise self._refusal()
        if seen:
            self._note(sql, seen)
        if self._in_unit:
            self._before(sql, seen)
        if sql.__class__ is str:  # before anything is under way: it may raise
            sql = sql.encode(self.encoding, "surrogateescape")
        self._busy = True
        try:
            affected: int = super().query(sql, unbuffered)
        except err.Error as error:
            self._busy, self._failed = False, error.args
            if self._in_unit:
                self._after(seen, error)
            raise
        self._busy = False
        if unbuffered:
            self._streamed = True
        if self.server_status & _mysql.STATE_CHANGED:
            self._heard(seen)
        if seen & ENDS and self._in_unit:
            self._passed()
        return affected

    def next_result(self, unbuffered: bool = False) -> int:  # noqa: FBT001, FBT002  PyMySQL's own signature
        """Read the next result of several."""
        affected: int = self._next_result(unbuffered)
        if self.server_status & _mysql.STATE_CHANGED:
            self._heard(0)
        return affected

    @one_at_a_time
    def _next_result(self, unbuffered: bool) -> int:  # noqa: FBT001
        return super().next_result(unbuffered)

    def _read_query_result(self, unbuffered: bool = False) -> int:  # noqa: FBT001, FBT002  PyMySQL's own signature
        self._result = None
        result: Any = Result(self)
        if unbuffered:
            result.init_unbuffered_query()
        else:
            result.read()
        self._result = result
        if result.server_status is not None:
            self.server_status = result.server_status
        return result.affected_rows  # type: ignore[no-any-return]

    def _read_row(self, read: Callable[[], Any]) -> Any:
        if self._busy or self._refuses is not None:
            raise self._refusal()
        self._busy = True
        try:
            row = read()
        except err.Error:
            self._busy = False
            raise
        self._busy = False
        return row

    def connect(self, sock: Any = None) -> None:
        """Connect, once: what was open in a session that was lost is not there in another."""
        if self._fd_known:
            raise err.InterfaceError(0, "a pooled connection is not connected again: acquire another one")
        super().connect(sock)

    @one_at_a_time
    def ping(self, reconnect: bool = False) -> None:  # type: ignore[override]  # noqa: ARG002, FBT001, FBT002
        """Ask the server for an answer; raise where there is none, whatever `reconnect` says."""
        super().ping(False)

    @one_at_a_time
    def begin(self) -> None:
        """Begin a transaction."""
        super().begin()

    @one_at_a_time
    def show_warnings(self) -> Any:
        """Return the warnings of the last statement."""
        return super().show_warnings()  # type: ignore[no-untyped-call]

    @one_at_a_time
    def _send_autocommit_mode(self) -> None:
        super()._send_autocommit_mode()  # type: ignore[misc]

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Choose a character set; the next borrower has the usual one again."""
        if not self._fd_known:  # while connecting: together with what is said in each session
            self._begin_session(charset, collation)
            return
        self._check_free()
        self._changed |= STAINED
        self._set_character_set(charset, collation)

    def autocommit(self, value: Any) -> None:
        """Turn autocommit on or off."""
        self._check_free()
        super().autocommit(value)

    @one_at_a_time
    def _set_character_set(self, charset: str, collation: str | None) -> None:
        super().set_character_set(charset, collation)

    @property
    def _fd_known(self) -> bool:
        return self._fd >= 0

    def _begin_session(self, charset: str, collation: str | None) -> None:
        self._tracks = bool(self.server_capabilities & _mysql.SESSION_TRACK)
        tail = (f" COLLATE {collation}" if collation else "") + (f", {TRACK}" if self._tracks else "")
        self.encoding = charset_by_name(charset).encoding
        self._execute_command(COM_QUERY, f"SET NAMES {charset}{tail}")
        self._read_ok_packet()
        self.charset, self.collation = charset, collation

    def _create_ssl_ctx(self, sslp: Any) -> Any:
        # Where nothing is asked of TLS, newer PyMySQLs make a context all the same, at each connect: 30 ms of CPU.
        return super()._create_ssl_ctx(sslp) if sslp else plain_context(super()._create_ssl_ctx)  # type: ignore[misc]

    def _run(self, query: bytes) -> None:
        if self._busy:
            raise self._refusal()
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
        result = self._result
        if result is not None and result.unbuffered_active:
            result.__class__ = Left  # the reset still sees that it is active

    def _is_open(self) -> bool:
        return self._sock is not None

    def _end(self) -> None:
        _Connection.close(self)

    def _charset(self) -> tuple[str, str | None]:
        return self.charset, self.collation

    @property
    def open(self) -> bool:
        """Whether the connection is open, and its borrower has not given it up."""
        return self._sock is not None and self._refuses is None

    # -- a reset on its way -------------------------------------------------------------------------------------------

    def _send(self, commands: tuple[bytes, ...], *, together: bool) -> None:
        """Send commands, and wait for nothing: neither for an answer nor for room to write."""
        now = commands if together else commands[:1]
        self._unsent = () if together else commands[1:]
        data = b"".join(now)
        self._answers = Answers(len(now))
        self._busy = True
        try:
            self._wait_for(0.0)
            sent = self._sock.send(data)
        except OSError as error:
            raise err.OperationalError(_mysql.GONE, f"a reset can't be sent: {error!r}") from error
        if sent < len(data):
            raise err.OperationalError(_mysql.GONE, "a reset can't be sent: the network takes no more")

    def _has_answers(self, until: float) -> bool:
        """Read what comes until then; whether it is all. Sends what had to wait for an answer."""
        data, answers = self._receive(max(0.0, until - monotonic())), self._answers
        if data is None or answers is None:
            return False
        answers.feed(data)
        if answers.error is not None:
            raise err.OperationalError(answers.error[0], f"a reset failed: {answers.error[1]}")
        if answers.done and self._unsent:
            self._send(self._unsent, together=False)
            return False
        return answers.done

    def _receive(self, seconds: float) -> bytes | None:
        """Return what has come, after at most so many seconds; None where nothing has."""
        if self._sock is None:
            raise err.OperationalError(_mysql.GONE, "the connection was closed in a reset")
        try:
            self._wait_for(seconds)
            data: bytes = self._sock.recv(65536)
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            raise err.OperationalError(_mysql.LOST, f"the connection was lost in a reset: {error!r}") from error
        if not data:
            raise err.OperationalError(_mysql.LOST, "the connection was lost in a reset")
        return data

    def _wait_for(self, seconds: float | None) -> None:
        """Let the socket wait for so long at most, as PyMySQL remembers."""
        self._sock.settimeout(seconds)
        self._current_timeout = seconds


class Ended(PooledConnection):
    """What becomes of an object when its borrowing is over, and another has its session: it refuses everything."""

    _returned: Returned

    def __getattribute__(self, name: str) -> Any:
        if name in _HARMLESS:
            return object.__getattribute__(self, name)
        returned: Returned = object.__getattribute__(self, "__dict__")["_returned"]
        raise returned.error()

    def __setattr__(self, name: str, value: object) -> None:
        raise object.__getattribute__(self, "__dict__")["_returned"].error()

    def __delattr__(self, name: str) -> None:
        raise object.__getattribute__(self, "__dict__")["_returned"].error()

    def __repr__(self) -> str:
        return f"<PooledConnection, given back: {object.__getattribute__(self, '__dict__')['_returned']}>"

    def __enter__(self) -> Self:
        raise object.__getattribute__(self, "__dict__")["_returned"].error()

    def __exit__(  # type: ignore[override]  # the stubs know less of it
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End a block that went on beyond the return: there is nothing to end."""

    def close(self) -> None:
        """Close once more: nothing is open."""

    def __del__(self) -> None:
        """The session goes on with another object."""

    @property
    def open(self) -> bool:
        """Nothing is open here."""
        return False

    @property
    def _refuses(self) -> Callable[[], Exception]:  # type: ignore[override]  # asked by a `close` that was kept
        returned: Returned = object.__getattribute__(self, "__dict__")["_returned"]
        return returned.error

    @property
    def _result(self) -> None:  # asked for by a cursor that is collected
        return None


_HARMLESS = frozenset({
    "__class__", "__dict__", "__doc__", "__module__", "__exit__", "_refuses", "_result", "close", "open",
})  # fmt: skip
