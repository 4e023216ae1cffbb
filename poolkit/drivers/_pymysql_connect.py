"""How PyMySQL gets its connection: every address in its share of the time, and TLS as MySQL's modes say."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from pymysql import err

from poolkit.errors import ConfigError

__all__ = ["context", "dial", "no_connection", "plain_context"]

_CANNOT_CONNECT = 2003

_plain: list[Any] = []


def plain_context(make: Callable[[dict[str, Any]], Any]) -> Any:
    """Return this process's one context for TLS without demands: it checks nothing, so it holds nothing that ages."""
    if not _plain:
        _plain.append(make({}))
    return _plain[0]


def context(mode: str, files: Mapping[str, Any], where: str) -> ssl.SSLContext:
    """Return a context for TLS that asks what the mode says. An authority that is named is used in any mode."""
    try:
        context = ssl.create_default_context(cafile=files["ssl_ca"])
        if files["ssl_cert"] is not None:
            context.load_cert_chain(files["ssl_cert"], files["ssl_key"], files["ssl_key_password"])
    except OSError as error:
        raise ConfigError(f"the files of ssl_ca, ssl_cert and ssl_key can't be used: {error.strerror}", where) from None
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # certificates that MySQL makes for itself don't pass it
    context.check_hostname = mode == "VERIFY_IDENTITY"
    if mode == "REQUIRED" and files["ssl_ca"] is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def dial(conn: Any, until: float) -> socket.socket:
    """Connect a socket to where the connection is to go, one address after the other, each with its share of time."""
    trouble: OSError | None = None
    try:
        if conn.unix_socket:
            return _reach(socket.AF_UNIX, conn.unix_socket, None, until)
        found = socket.getaddrinfo(conn.host, conn.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise no_connection(conn, str(error)) from error
    for left, (family, _, _, _, address) in zip(range(len(found), 0, -1), found, strict=True):
        now = monotonic()
        try:
            return _reach(family, address, conn.bind_address, now + (until - now) / left)
        except OSError as error:
            trouble = error
    raise no_connection(conn, str(trouble)) from trouble


def _reach(family: int, address: Any, bind_address: str | None, until: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(sock.close)
        sock.settimeout(max(0.001, until - monotonic()))
        if bind_address is not None:
            sock.bind((bind_address, 0))
        sock.connect(address)
        if family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cleanup.pop_all()
    return sock


def no_connection(conn: Any, why: str) -> err.OperationalError:
    return err.OperationalError(_CANNOT_CONNECT, f"Can't connect to MySQL server on {conn.host!r} ({why})")
