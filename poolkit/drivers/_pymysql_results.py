"""What PyMySQL reads for a query, with what it leaves out: the status flags behind the rows."""

# ruff: noqa: SLF001  the connection and its results are one thing in two objects

from __future__ import annotations

from typing import Any, Never

from pymysql import err
from pymysql.connections import MySQLResult
from pymysql.protocol import EOFPacketWrapper

__all__ = ["Left", "Result"]


class Result(MySQLResult):
    """A result that keeps the status flags which come behind its rows; PyMySQL passes them over."""

    # PyMySQL's own, which its stubs leave out
    connection: Any
    server_status: Any

    def _check_packet_is_eof(self, packet: Any) -> bool:
        if not packet.is_eof_packet():
            return False
        end = EOFPacketWrapper(packet)
        self.warning_count = end.warning_count
        self.has_next = end.has_next
        self.server_status = end.server_status & 0xFFFF
        return True

    def _read_rowdata_packet_unbuffered(self) -> Any:
        conn = self.connection
        if not self.unbuffered_active or conn is None:
            return None
        return conn._read_row(super()._read_rowdata_packet_unbuffered)  # type: ignore[misc]


class Left(Result):
    """What becomes of a result whose rows were not all read when its connection was given back, or closed."""

    def __del__(self) -> None:
        """Read nothing more."""

    def _finish_unbuffered_query(self) -> None:
        self.unbuffered_active = False

    def _read_rowdata_packet_unbuffered(self) -> Never:
        raise err.InterfaceError(0, "the connection was given back or closed before all rows were read")
