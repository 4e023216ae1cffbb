"""Looking at asyncpg's socket, and closing it, where its transport can't: no I/O but a look at what has come."""

# ruff: noqa: SLF001  what has the socket is the transport's own

from __future__ import annotations

import os
import select
import socket
from typing import Any

from poolkit.drivers._relay import harmless

__all__ = ["close_socket", "still_there"]

_TLS_ALERT = 21


def still_there(transport: Any) -> bool:
    """Look, without taking it, at what the loop has not read yet: the end, a last error, or a notification."""
    fd = transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(fd)) as view:
        try:
            data = view.recv(65536, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
        except BlockingIOError:
            return True
        except OSError:
            return False
    if not data or _is_half_closed(fd):
        return False
    if transport.get_extra_info("ssl_object") is not None:
        return data[0] != _TLS_ALERT  # what is inside is encrypted
    return harmless(data)


def _is_half_closed(fd: int) -> bool:
    if not hasattr(select, "POLLRDHUP"):
        return False
    watch = select.poll()
    watch.register(fd, select.POLLRDHUP)
    return bool(watch.poll(0))


def close_socket(transport: Any) -> None:
    """Close the socket of a transport whose loop is closed."""
    inner = transport
    tls = getattr(transport, "_ssl_protocol", None)
    if tls is not None:
        inner, transport._closed = tls._transport, True
    sock = getattr(inner, "_sock", None)
    if sock is not None:  # uvloop closes its own when the loop is closed
        sock.close()
        inner._sock = None  # so that the transport's finalizer has nothing to complain about
