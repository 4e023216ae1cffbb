"""The answer to a ping, in pieces: poolkit waits for it and knows when to give up; libpq never does."""

from __future__ import annotations

import socket
from time import monotonic
from types import SimpleNamespace

import pytest
from psycopg import pq

from poolkit.drivers._libpq import read_answer


class Pieces:
    """Stands in for libpq's object: each byte that comes is one piece of the answer, `r` a result and `z` its end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.socket = end.fileno()
        self._read = b""

    def flush(self) -> int:
        return 0

    def is_busy(self) -> bool:
        return not self._read

    def consume_input(self) -> None:
        self._read += self._end.recv(100)

    def notifies(self) -> None:
        return None

    def get_result(self) -> object:
        assert not self.is_busy(), "libpq would wait here, without a limit and with the GIL"
        piece, self._read = self._read[:1], self._read[1:]
        return SimpleNamespace(status=pq.ExecStatus.TUPLES_OK) if piece == b"r" else None


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_an_answer_whose_end_does_not_come(ends):
    """The result is there, its end is lost on the way: no answer, in time."""
    ours, theirs = ends
    theirs.sendall(b"r")
    began = monotonic()
    assert not read_answer(Pieces(ours), began + 0.05)
    assert monotonic() - began < 5


def test_a_whole_answer(ends):
    """The result and its end, at once."""
    ours, theirs = ends
    theirs.sendall(b"rz")
    assert read_answer(Pieces(ours), monotonic() + 5)
