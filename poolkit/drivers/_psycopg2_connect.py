"""How psycopg2 connects: by which settings, to which addresses, for how long each, and what a failure says.

libpq tries the addresses of a name one after the other, each for the whole of `connect_timeout`, which is in whole
seconds and two at least. So the names are looked up here, and the time is shared out among all addresses.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import socket
from collections.abc import Mapping
from typing import Any

import psycopg2
from psycopg2 import extensions

from poolkit.config import shown
from poolkit.drivers import _common, _refusals, _service
from poolkit.drivers._startup import MODES
from poolkit.drivers._url_parameters import read_postgres
from poolkit.errors import ConfigError

__all__ = ["check_options", "for_a_pool", "is_refused", "modes", "own_options", "parse", "peer"]

_LEAST = 2  # seconds; libpq takes one for two

_REFUSED = {
    "autocommit": "connections rest in autocommit; use a transaction or a unit of work",
    "connection_factory": "the connection's class is poolkit's own",
    "async": "the pool is for threads",
    "async_": "the pool is for threads",
    "dsn": "it is the URL",
}
_LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")
# For the nearest name in an error; what is an option is for libpq to say.
_COMMON_NAMES = (
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname", "gssencmode", "host",
    "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts",
    "options", "passfile", "password", "port", "requirepeer", "service", "sslcert", "sslcrl", "sslkey", "sslmode",
    "sslpassword", "sslrootcert", "target_session_attrs", "tcp_user_timeout", "user",
)  # fmt: skip


def for_a_pool(given: Mapping[str, Any], timeout: float, worked: str = "") -> dict[str, Any]:
    """Add to the parameters of a connect what suits a pool.

    Args:
        given: The parameters, those of the URL and the user's options.
        timeout: Seconds in which the connect has to end; shared out among the addresses, and rounded up.
        worked: The address that was connected to last: of the addresses of its name it is tried first.
    """
    arguments = {
        "fallback_application_name": _common.application_name(),
        **_common.KEEPALIVE,
        **given,
    }
    attempts = _look_up(arguments, worked)
    if _setting(arguments, "target_session_attrs", "PGTARGETSESSIONATTRS") == "prefer-standby":
        attempts *= 2  # libpq goes through them twice
    if _setting(arguments, "connect_timeout", "PGCONNECT_TIMEOUT") is None:
        arguments["connect_timeout"] = max(_LEAST, math.ceil(timeout / attempts))
    return arguments


def own_options(arguments: Mapping[str, Any]) -> str | None:
    """Return the user's own `options`, wherever libpq would have found them."""
    return _setting(arguments, "options", "PGOPTIONS")


def _look_up(arguments: dict[str, Any], worked: str) -> int:
    """Put addresses in the place of names that have several; returns how many are tried."""
    hosts = _list(_setting(arguments, "host", "PGHOST"))
    literal = _list(_setting(arguments, "hostaddr", "PGHOSTADDR"))
    if literal or not hosts:
        return max(1, len(literal))
    ports = _list(_setting(arguments, "port", "PGPORT")) or [""]
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):  # for libpq to refuse
        return len(hosts)
    pairs = zip(hosts, ports, strict=True)
    found = [(host, port, address) for host, port in pairs for address in _addresses(host, worked)]
    if len(found) > len(hosts):
        for name, values in zip(("host", "port", "hostaddr"), zip(*found, strict=True), strict=True):
            arguments[name] = ",".join(values)
    return len(found)


def _addresses(host: str, worked: str) -> list[str]:
    """Look a name up; an empty address leaves it to libpq, which says what is wrong with it."""
    if not host or host.startswith(("/", "@")) or _is_address(host):
        return [""]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [""]
    # a link-local address needs its scope, which hostaddr takes as well
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return sorted(addresses, key=lambda address: address != worked)  # stable: the others stay in the system's order


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _list(value: str | None) -> list[str]:
    return value.split(",") if value else []


def _setting(arguments: Mapping[str, Any], name: str, variable: str) -> str | None:
    """Find a parameter where libpq finds it: in the connect's own, in the service's, in the environment."""
    value = arguments.get(name)
    if value is None:
        service = arguments.get("service") or os.environ.get("PGSERVICE")
        value = _service.parameters(str(service)).get(name) if service else None
    return os.environ.get(variable) if value is None else str(value)


def peer(fd: int) -> str:
    """Return the address at the other end of a connection; empty for a socket of the file system."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as view:
        name = view.getpeername()
        return str(name[0]) if isinstance(name, tuple) else ""
    return ""


def is_refused(error: BaseException) -> bool:
    """Whether a connect failed for good: trying again can't help before something is changed."""
    if isinstance(error, ConfigError):
        return True
    if not isinstance(error, psycopg2.Error):
        return False
    last = str(error).rpartition("connection to server ")[2]  # of several addresses, the one where libpq gave up
    own = isinstance(error, psycopg2.ProgrammingError) and error.pgcode is None  # the client's own parser
    return own or _refusals.is_refused(error.pgcode, last)


def parse(url: str, where: str) -> dict[str, str]:
    """Take a URL apart with libpq's own parser. Its errors quote the URL, so they are not passed on."""
    plain = _common.postgres_url(url, where)
    read = read_postgres(plain, _is_parameter, _COMMON_NAMES, where, refused=_REFUSED)  # it never prepares statements
    try:
        return dict(extensions.parse_dsn(read.url))
    except psycopg2.Error:
        pass  # it quotes the URL, and an error raised here would keep it as its context
    raise ConfigError(
        "malformed PostgreSQL URL: special characters in the user, the password and the database must be "
        "percent-encoded",
        where,
    )


def check_options(given: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` for options that are unknown, or can't work."""
    known = {"cursor_factory", "harmless_functions", "session_settings", "statement_timeout", *MODES, *_COMMON_NAMES}
    known |= {name for name in given if name not in _REFUSED and _is_parameter(name)}
    _common.check_options(given, known, _REFUSED, where)
    factory = given.get("cursor_factory")
    if factory is not None and not (isinstance(factory, type) and issubclass(factory, extensions.cursor)):
        raise ConfigError(f"cursor_factory must be a subclass of psycopg2's cursor, not {shown(factory)}", where)


def _is_parameter(name: str) -> bool:
    """Whether this libpq knows a connection parameter of that name."""
    if not name.isidentifier():
        return False
    try:
        extensions.parse_dsn(f"{name}=1")
    except psycopg2.Error:
        return False
    return True


def modes(wanted: Mapping[str, Any], where: str) -> dict[str, str]:
    """Spell the modes of transactions as the session's defaults."""
    level = wanted["isolation_level"]
    if isinstance(level, str):
        level = level.lower().replace("_", " ")
    if level is not None and level not in _LEVELS:
        raise ConfigError(f"isolation_level must be one of {', '.join(_LEVELS)}, not {shown(level)}", where)
    made = {} if level is None else {MODES["isolation_level"]: level}
    for name in ("readonly", "deferrable"):
        value = wanted[name]
        if not isinstance(value, (bool, type(None))):
            raise ConfigError(f"{name} must be True, False or None, not {shown(value)}", where)
        if value is not None:
            made[MODES[name]] = "on" if value else "off"
    return made
