"""The answers to commands that were sent to MySQL or MariaDB together, read from bytes as they come. No I/O here.

Each command is answered by an OK, an error, or a result, and a result may have further ones behind it. Only what tells
one answer from the next is read: the status flags, the first error.
"""

from __future__ import annotations

import struct

__all__ = ["COM_INIT_DB", "COM_QUERY", "COM_RESET_CONNECTION", "Answers", "command"]

COM_INIT_DB, COM_QUERY, COM_RESET_CONNECTION = 2, 3, 31

_HEAD = 4  # bytes: three for the length, one for the number within the answer
_OK, _LOCAL_FILE, _END, _ERROR = 0x00, 0xFB, 0xFE, 0xFF
_LONGEST_END = 9  # a row may begin with the same byte, and is longer then
_MORE_RESULTS = 8


def command(number: int, text: bytes = b"") -> bytes:
    """Return a command as it is sent."""
    return struct.pack("<IB", len(text) + 1, number) + text


class Answers:
    """Reads a number of answers. `error` is the first error's number and text; nothing is read behind it."""

    __slots__ = ("_bytes", "_columns", "_in_rows", "error", "left", "status")

    def __init__(self, count: int) -> None:
        self.left = count
        self.status = 0
        self.error: tuple[int, str] | None = None
        self._bytes = bytearray()
        self._columns = 0  # of them, and of the end that follows, what is still to come
        self._in_rows = False

    @property
    def done(self) -> bool:
        """Whether all is read, with no error."""
        return not self.left and self.error is None

    def feed(self, data: bytes) -> None:
        """Take what has come. What does not belong to the answers is an error."""
        self._bytes += data
        while self.error is None and len(self._bytes) >= _HEAD:
            end = _HEAD + int.from_bytes(self._bytes[:3], "little")
            if len(self._bytes) < end:
                return
            packet = bytes(self._bytes[_HEAD:end])
            del self._bytes[:end]
            if not self.left or not packet:
                self.error = 2027, "malformed packet: more was answered than asked"
                return
            self._take(packet)

    def _take(self, packet: bytes) -> None:
        kind = packet[0]
        if kind == _ERROR:
            text = packet[9:] if packet[3:4] == b"#" else packet[3:]
            self.error = int.from_bytes(packet[1:3], "little"), text.decode("utf-8", "replace")
        elif self._columns:
            self._columns -= 1
            self._in_rows = not self._columns
        elif self._in_rows:
            if kind == _END and len(packet) < _LONGEST_END:
                self._in_rows = False
                self._end(int.from_bytes(packet[3:5], "little"))
        elif kind == _OK:
            at = _behind_a_number(packet, _behind_a_number(packet, 1))
            self._end(int.from_bytes(packet[at : at + 2], "little"))
        elif kind == _LOCAL_FILE:
            self.error = 2027, "malformed packet: the server asks for a file"
        else:
            self._columns = _number(packet) + 1

    def _end(self, status: int) -> None:
        self.status = status
        if not status & _MORE_RESULTS:
            self.left -= 1


_WIDTHS = {0xFC: 2, 0xFD: 3, 0xFE: 8}  # of numbers that do not fit into one byte


def _behind_a_number(packet: bytes, at: int) -> int:
    return at + 1 + _WIDTHS.get(packet[at], 0)


def _number(packet: bytes) -> int:
    width = _WIDTHS.get(packet[0], 0)
    return int.from_bytes(packet[1 : 1 + width], "little") if width else packet[0]
