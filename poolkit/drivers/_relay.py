"""What stands around asyncpg's protocol: it knows things that asyncpg does not tell, and lets BEGIN ride along.

A `Relay` between transport and protocol reads what comes from the server. A `Gate` stands in the protocol's place while
a transaction is promised of which the server does not know yet. Whatever sends a statement asks the protocol of its
connection for it, so no way leads round the gate, and it decides how the transaction begins:

- A statement with parameters, or prepared: BEGIN goes out right before it, as messages of the extended protocol without
  an end of their own. Where BEGIN fails the server skips what follows up to the statement's own end, so no statement
  runs outside, and BEGIN's error is the statement's. The answers to BEGIN are for nobody, and the relay drops them.
- A text of the simple protocol: BEGIN is put before it. A failing BEGIN ends the whole text.
- All else (COPY, executemany, cursors): BEGIN is sent by itself, for a round trip of its own.
"""

# ruff: noqa: SLF001  the driver, its connection, its relay and its gate are one thing in four objects

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
from asyncpg.transaction import TransactionState

from poolkit.drivers._startup import set_local

__all__ = ["IDLE", "IN_ERROR", "IN_TRANSACTION", "Gate", "Relay", "begin_text", "harmless"]

_READY = b"Z\0\0\0\5"  # ReadyForQuery; the byte that follows is the status of the transaction
_STATUSES = IDLE, IN_TRANSACTION, IN_ERROR = b"ITE"
_ENDS = tuple(_READY + bytes([status]) for status in _STATUSES)
_TRIES = 16  # so often a status is looked for in one piece: data may be full of what looks like one

# The fields of an error after which the server closes: its severity, as it is and untranslated.
_GOODBYES = (b"SFATAL", b"SPANIC", b"VFATAL", b"VPANIC")
_LONGEST_ERROR = 4096

_REPORT = b"S\0\0\0"  # how a ParameterStatus shorter than 16 MB begins
_REPORTS_FROM = -512  # the server sends all that changed right before ReadyForQuery

_SYNC = b"S\0\0\0\4"
_UNASKED = b"ANS"  # notification, notice, changed parameter: they come between any two answers
_ANSWERS = (b"1", b"2", b"C")  # to Parse, Bind and Execute
_ANSWER = (b"C",)  # to BEGIN before a text of the simple protocol
_SETTINGS_ANSWERS = (b"1", b"2", b"D", b"C")  # the same for the settings of a transaction, which are a SELECT
_SETTINGS_ANSWER = (b"T", b"D", b"C")
_END = (b"Z",)  # the answer to Sync
_BEGUN = b"C\0\0\0\x0aBEGIN\0"
_AS_EVER = {_ANSWERS: b"1\0\0\0\4" + b"2\0\0\0\4" + _BEGUN, _ANSWER: _BEGUN}


class Relay(asyncio.Protocol):
    """Stands between the transport and asyncpg, and reads the transaction status at the end of each answer.

    Rows may hold any bytes, also those of a status or of an error that ends the session. Taking every message apart
    would cost as much as asyncpg's own reading of the rows. It is not needed, for both are the last thing that is said:
    what stands at the end of an answer is a status, for the server always ends it with one, and `ended`, that the
    server took its leave, is true only as long as nothing came after the error that says so. (asyncpg itself waits for
    the end of the stream, which may be long in coming.)

    `unseen`: the answers to a BEGIN that are still to come, and not for asyncpg. `began`: that it was carried out.
    `error`: what the server said of the statement that aborted the transaction.
    `reported`: that the server may have told of a changed parameter since this was last set to False.
    """

    __slots__ = ("_held", "_inner", "_over", "_tail", "began", "ended", "error", "reported", "status", "unseen")

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._tail = b""
        self._held = b""
        self._over: asyncio.Future[None] | None = None
        self.status = IDLE
        self.ended = False
        self.began = False
        self.error = ""
        self.reported = False
        self.unseen: tuple[bytes, ...] = ()

    def data_received(self, data: bytes) -> None:
        if self.unseen:
            data = self._less_begin(data)
            if not data:
                return
        if data.endswith(_ENDS):
            if data[-1] == IN_ERROR and self.status != IN_ERROR:
                self._note_error(data)
            self.status = data[-1]
            if self._tail or self.ended:
                self._tail, self.ended = b"", False
        else:
            self._look(data)
        if data.find(_REPORT, _REPORTS_FROM) >= 0:
            self.reported = True
        self._inner.data_received(data)

    def _look(self, data: bytes) -> None:
        """Read what does not end with a status: a part of an answer, what comes unasked, or a last error."""
        joint = self._tail[-5:] + data if self._tail else data
        at = len(joint)
        for _ in range(_TRIES):
            at = joint.rfind(_READY, 0, at)
            if at < 0:
                break
            rest = joint[at + 6 :]
            if joint.startswith(_ENDS, at) and (harmless(rest) or _is_goodbye(rest)):
                self.status = joint[at + 5]
                break
        self._tail = (self._tail + data)[-_LONGEST_ERROR:] if len(data) < _LONGEST_ERROR else data[-_LONGEST_ERROR:]
        self.ended = _is_goodbye(self._tail)

    def _note_error(self, data: bytes) -> None:
        fields = _last_error((self._tail + data)[-_LONGEST_ERROR:-6])
        texts = [field[1:] for field in fields if field.startswith(b"M")]
        self.error = texts[0].decode("utf-8", "replace").partition("\n")[0] if texts else ""

    def _less_begin(self, data: bytes) -> bytes:
        """Drop the answers to BEGIN; an error in their place is the statement's, and passes with all that follows."""
        as_ever = _AS_EVER.get(self.unseen)
        if as_ever is not None and not self._held and data.startswith(as_ever):
            self.unseen = ()
            self.began = True
            self.status = IN_TRANSACTION  # asyncpg prepares without asking for a status
            return data[len(as_ever) :]
        data, passed = self._held + data, b""
        while self.unseen and len(data) >= 5:
            kind, end = data[:1], 1 + int.from_bytes(data[1:5], "big")
            if self._over is None and kind != self.unseen[0] and kind not in _UNASKED:
                self.unseen = ()
                break
            if len(data) < end:
                break
            if kind in _UNASKED:
                passed += data[:end]
            else:
                self._drop(kind, data[end - 1])
            data = data[end:]
        self._held = data if self.unseen else b""
        return passed if self.unseen else passed + data

    def _drop(self, kind: bytes, last: int) -> None:
        if kind == b"Z":
            self.status = last
            self._end_of_settling()
        else:
            self.unseen = self.unseen[1:] if kind == self.unseen[0] else _END
            if kind == b"C":
                self.began = True
                self.status = IN_TRANSACTION

    async def settle(self, transport: Any) -> None:
        """Ask for an end of the answers to BEGIN, where nothing followed it, and wait for that."""
        self.unseen += _END
        self._over = asyncio.get_running_loop().create_future()
        transport.write(_SYNC)
        await self._over

    def _end_of_settling(self) -> None:
        over, self._over, self.unseen = self._over, None, ()
        if over is not None and not over.done():
            over.set_result(None)

    def eof_received(self) -> bool | None:
        answer: bool | None = self._inner.eof_received()
        return answer

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over is not None:
            self._end_of_settling()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class Gate:
    """Stands in for the protocol of a connection until its first statement; BEGIN waits in it."""

    __slots__ = ("_begin", "_conn", "_messages", "_more", "_real")

    def __init__(self, conn: Any, begin: str, messages: bytes, more: int = 0) -> None:
        self._conn = conn
        self._real = conn._protocol
        self._begin = begin
        self._messages = messages
        self._more = more

    @staticmethod
    def put_before(conn: Any, mode: dict[str, Any], begin: str, messages: bytes, more: int = 0) -> Any:
        """Promise a transaction, without a word to the server; returns asyncpg's object for it."""
        unit = conn.transaction(**mode)
        unit._state = TransactionState.STARTED
        conn._top_xact = unit
        conn._relay.began = False
        conn._protocol = Gate(conn, begin, messages, more)
        return unit

    @staticmethod
    def taken_away(conn: Any) -> bool:
        """Take a promise back; whether there was one, so that the server never heard of the transaction."""
        gate = conn._protocol
        if gate.__class__ is not Gate:
            return False
        conn._protocol = gate._real
        conn._top_xact = None
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    @staticmethod
    def is_in_transaction() -> bool:
        """Not yet, as far as the server knows; the connection says otherwise."""
        return False

    async def query(self, query: str, timeout: float | None) -> Any:
        """Send a text of the simple protocol."""
        # Empty, or begun with a comment: the last command of the text might be our own, and be told as its result.
        relay = self._conn._relay
        if not query.lstrip()[:1].isalpha() or self._real._is_cancelling() or not self._real.is_connected():
            return await self._through(lambda real: real.query(query, timeout), alone=True)
        relay.unseen, relay.began = _ANSWER + _SETTINGS_ANSWER * self._more, False
        try:
            return await self._through(lambda real: real.query(self._begin + query, timeout))
        except asyncpg.PostgresError as error:
            if error.position is not None:
                error.position = str(int(error.position) - len(self._begin))
            if not relay.began and self._conn._protocol is self:
                await self._abort()
            raise

    async def _abort(self) -> None:
        """Begin a transaction that has failed already.

        A text with a syntax error is refused as a whole, BEGIN included. Without this, what follows would be the first
        statement of a transaction that never knew of the error.
        """
        conn, real = self._conn, self._real
        try:
            await real.query(f'{self._begin}ROLLBACK TO SAVEPOINT "the first statement was refused"', None)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if conn._relay.status == IN_ERROR:
                conn._protocol = real
                conn._begun = conn._relay.began = True

    async def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Have a statement prepared."""
        return await self._along(lambda real: real.prepare(*args, **kwargs))

    async def bind_execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a prepared statement."""
        try:
            return await self._along(lambda real: real.bind_execute(*args, **kwargs))
        except asyncpg.InvalidCachedStatementError:
            await self._begin_again()
            raise

    async def _begin_again(self) -> None:
        """Take back what has begun: a table was changed, and asyncpg prepares anew where no transaction is open."""
        conn, real = self._conn, self._real
        if conn._protocol is real and conn._relay.status == IN_ERROR:
            await real.query("ROLLBACK", None)
            conn._begun = conn._relay.began = False
            conn._protocol = self

    async def bind_execute_many(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a prepared statement many times."""
        return await self._through(lambda real: real.bind_execute_many(*args, **kwargs), alone=True)

    async def bind(self, *args: Any, **kwargs: Any) -> Any:
        """Open a cursor."""
        return await self._through(lambda real: real.bind(*args, **kwargs), alone=True)

    async def copy_in(self, *args: Any, **kwargs: Any) -> Any:
        """Copy to the server."""
        return await self._through(lambda real: real.copy_in(*args, **kwargs), alone=True)

    async def copy_out(self, *args: Any, **kwargs: Any) -> Any:
        """Copy from the server."""
        return await self._through(lambda real: real.copy_out(*args, **kwargs), alone=True)

    async def _along(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        conn = self._conn
        if self._real._is_cancelling() or not self._real.is_connected():  # it waits before it sends, or sends nothing
            return await self._through(work, alone=True)
        conn._relay.unseen = _ANSWERS + _SETTINGS_ANSWERS * self._more
        conn._transport.write(self._messages)
        return await self._through(work)

    async def _through(self, work: Callable[[Any], Awaitable[Any]], *, alone: bool = False) -> Any:
        """Do the first work, after BEGIN `alone` or with it; where no transaction came of it, the next is the first."""
        conn, real = self._conn, self._real
        conn._protocol = real
        conn._begun = True
        try:
            if alone:
                await real.query(self._begin, None)
                conn._relay.began = True
            return await work(real)
        except Exception:
            await self._after_failure()
            raise

    async def _after_failure(self) -> None:
        conn, real = self._conn, self._real
        if conn.is_closed() or real._is_cancelling():
            return
        if conn._relay.unseen:  # asyncpg refused to send a statement after BEGIN
            await conn._relay.settle(conn._transport)
        if not (conn.is_closed() or conn.is_in_transaction()):
            conn._begun = False
            conn._protocol = self


def _last_error(data: bytes) -> list[bytes]:
    """Return the fields of the last message, if that is a whole error."""
    size, at = len(data), len(data)
    if not data.endswith(b"\0\0"):
        return []
    while (at := data.rfind(b"E\0\0", 0, at)) >= 0:
        if int.from_bytes(data[at + 1 : at + 5], "big") == size - at - 1:
            return data[at + 5 : -2].split(b"\0")
    return []


def _is_goodbye(data: bytes) -> bool:
    """Whether the last message is an error after which the server closes."""
    return any(field in _GOODBYES for field in _last_error(data))


def harmless(data: bytes) -> bool:
    """Whether all these messages are of the kind that a server sends to a client that asked nothing."""
    at = 0
    while at < len(data):
        if data[at] not in _UNASKED:
            return False
        at += 1 + int.from_bytes(data[at + 1 : at + 5], "big")
    return True


def begin_text(mode: dict[str, Any], settings: Sequence[tuple[str, str]] = ()) -> tuple[str, bytes, int]:
    """Write the BEGIN of a mode: as a text to be put before others, and as messages of the extended protocol.

    Its settings are another command; the last of the three is how many of those there are.
    """
    words = ["BEGIN"]
    if mode.get("isolation"):
        words.append("ISOLATION LEVEL " + mode["isolation"].replace("_", " ").upper())
    if mode.get("readonly") is not None:
        words.append("READ ONLY" if mode["readonly"] else "READ WRITE")
    if mode.get("deferrable") is not None:
        words.append("DEFERRABLE" if mode["deferrable"] else "NOT DEFERRABLE")
    texts = [" ".join(words), *([set_local(settings)] if settings else ())]
    nothing = b"\0\0"
    messages = b"".join(
        _message(b"P", b"\0" + text.encode() + b"\0" + nothing)
        + _message(b"B", b"\0\0" + nothing * 3)
        + _message(b"E", b"\0" + nothing * 2)
        for text in texts
    )
    return ";".join(texts) + ";", messages, len(texts) - 1


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body
