"""An end to calls that have none, and a goodbye that can't block: what drivers over blocking libraries share."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkit.drivers._common import hang_up_on
from poolkit.drivers._dbapi import Deadline, keep_alive, say_little

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.settimeout(10)
        yield ours, theirs


def test_a_call_that_never_ends(ends: Ends) -> None:
    """Who waits on the connection wakes when the time is over, and is told that it was."""
    ours, _ = ends
    began = time.monotonic()
    with Deadline(ours.fileno(), 0.02) as deadline:
        assert ours.recv(1) == b""
    assert deadline.passed
    assert time.monotonic() - began < 10


def test_a_call_in_time(ends: Ends) -> None:
    """A block that ends in time leaves the connection as it is, and no thread behind."""
    ours, theirs = ends
    before = threading.active_count()
    with Deadline(ours.fileno(), 30) as deadline:
        theirs.send(b"x")
        assert ours.recv(1) == b"x"
    assert not deadline.passed
    deadline._strike()  # too late: it was under way as the block ended
    theirs.send(b"y")
    assert ours.recv(1) == b"y"
    deadline._timer.join(10)
    assert threading.active_count() <= before


def test_a_descriptor_that_was_given_out_again(ends: Ends) -> None:
    """The library closes its socket and somebody else's gets the number: that one is left alone."""
    ours, theirs = ends
    number = ours.detach()
    with Deadline(number, 0.02) as deadline:
        os.close(number)
        strange, other = socket.socketpair()
        assert strange.fileno() == number  # the lowest that is free, says POSIX
        assert theirs.recv(1) == b""  # the deadline's doing: it holds a descriptor of its own
    assert deadline.passed
    other.send(b"x")
    assert strange.recv(1) == b"x"
    strange.close()
    other.close()


def test_a_goodbye_is_sent_and_no_answer_read(ends: Ends) -> None:
    """What the library says still arrives; what it waits for afterwards it has at once."""
    ours, theirs = ends
    say_little(ours.fileno())
    ours.send(b"bye")
    assert theirs.recv(3) == b"bye"
    assert ours.recv(1) == b""


def test_no_goodbye_where_nobody_takes_it(ends: Ends) -> None:
    """A connection that takes nothing more is hung up on: writing fails instead of waiting."""
    ours, theirs = ends
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(b"x" * 65536)
    ours.setblocking(True)
    say_little(ours.fileno())
    with pytest.raises(BrokenPipeError):
        ours.send(b"bye")
    theirs.close()


def test_only_tcp_is_kept_alive(ends: Ends) -> None:
    """A Unix socket has no keepalive, and that is no error."""
    keep_alive(ends[0].fileno())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        keep_alive(client.fileno())
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_hanging_up_from_outside(ends: Ends) -> None:
    """Both sides see the end, and the descriptor stays with whoever has it."""
    ours, theirs = ends
    before = descriptors()
    hang_up_on(ours.fileno)
    assert (ours.recv(1), theirs.recv(1)) == (b"", b"")
    assert descriptors() == before


def test_hanging_up_on_what_is_closed_in_this_moment(ends: Ends) -> None:
    """Its number may have been given out again before the copy was made: that one is left alone, and no copy stays."""
    ours, theirs = ends
    before = descriptors()
    answers = [ours.fileno(), None]
    hang_up_on(lambda: answers.pop(0))
    assert answers == []
    assert descriptors() == before
    theirs.send(b"x")
    assert ours.recv(1) == b"x"


def test_hanging_up_on_what_was_closed(ends: Ends) -> None:
    """A number that nobody has any more, or none at all: there is nothing to do."""
    number = ends[0].fileno()
    ends[0].close()
    hang_up_on(lambda: number)
    hang_up_on(lambda: None)
