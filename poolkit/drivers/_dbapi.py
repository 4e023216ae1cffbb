"""What drivers over blocking PEP 249 libraries share: an end to a call that has none, and a goodbye that can't block.

Such a library gives no say in how long it waits. But a connection is a socket, and a socket can be shut down from
outside: whoever waits on it wakes at once, with the library's own error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from types import TracebackType
from typing import Self

from poolkit.drivers import _common

__all__ = ["Deadline", "keep_alive", "say_little"]


class Deadline:
    """Hang up on the connection `fd` unless the block ends within `seconds`.

    For what is rare (a connect, a ping): it costs a thread, 0.1 ms. Afterwards `passed` tells whether it came to that.
    """

    def __init__(self, fd: int, seconds: float) -> None:
        # Another descriptor of the same connection: the library may close its own, and the number be given out again.
        self._view = socket.socket(fileno=os.dup(fd))
        self._lock = threading.Lock()
        self._timer = threading.Timer(max(0.0, seconds), self._strike)
        self._timer.daemon = True
        self._over = False
        self.passed = False

    def _strike(self) -> None:
        with self._lock:
            if self._over:
                return
            self.passed = True
            with contextlib.suppress(OSError):  # the peer was faster
                self._view.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        """Let the time run."""
        try:
            self._timer.start()
        except BaseException:
            self._view.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it be over; from here on nothing happens to the connection."""
        with self._lock:
            self._over = True
            self._view.close()
        self._timer.cancel()


def say_little(fd: int) -> None:
    """Prepare a connection for the library's own close: nothing more is read, and what can't be sent at once is not.

    A library may wait for the peer's part of a goodbye (TLS has one), or for room to write its own. A dead peer gives
    neither.
    """
    if _common.wait_for(fd, 0, read=False, write=True):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as view:
            view.shutdown(socket.SHUT_RD)
    else:
        _common.hang_up(fd)


def keep_alive(fd: int) -> None:
    """Have the system look after a silent TCP connection, as `_common` says; others are left alone."""
    with socket.socket(fileno=os.dup(fd)) as view:
        _common.keep_alive(view)
