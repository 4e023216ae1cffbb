"""What the MySQL drivers know without their library: a URL, the options, and what an error number means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from poolkit.drivers import _common
from poolkit.drivers._url_parameters import check_names, well_formed
from poolkit.errors import ConfigError

__all__ = [
    "AUTOCOMMIT",
    "IN_TRANSACTION",
    "MORE_RESULTS",
    "OPTIONS",
    "REFUSED",
    "check_values",
    "demotes",
    "ends_session",
    "ends_transaction_itself",
    "isolation",
    "number_of",
    "parse",
]

# The status flags that the server sends with each success.
IN_TRANSACTION = 1
AUTOCOMMIT = 2
MORE_RESULTS = 8

OPTIONS = frozenset(
    {
        "charset", "client_flag", "collation", "connect_timeout", "conv", "cursorclass", "database", "host",
        "init_command", "isolation_level", "local_infile", "password", "port", "read_default_file",
        "read_default_group", "read_timeout", "sql_mode", "ssl", "unix_socket", "use_unicode", "user", "write_timeout",
    }
)  # fmt: skip
REFUSED = {
    "autocommit": "connections rest in autocommit; use a transaction or a unit of work",
    "db": "it is called 'database'",
    "passwd": "it is called 'password'",
    "defer_connect": "the pool connects when it needs to",
    "named_pipe": "poolkit has to look at a socket",
}
_LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")
_SECONDS = ("connect_timeout", "read_timeout", "write_timeout")
_NUMBERS = {"port", "client_flag", "max_allowed_packet"}
_FLAGS = {
    "local_infile", "use_unicode", "compress", "multi_statements", "ssl_disabled", "ssl_verify_cert",
    "ssl_verify_identity",
}  # fmt: skip
_NOT_IN_URLS = {"conv", "cursorclass", "auth_plugin_map", "ssl", "server_public_key"}
_YES_OR_NO = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}

# Of the server: shutting down, a session killed or dropped, packets that could not be read or written, idle too long.
# Of the client (2000 and up): gone, lost, out of step, malformed; nearly all of them, so all but the harmless ones.
_ENDING = {
    1043, 1047, 1053, 1077, 1079, 1080, 1152, 1153, 1154, 1155, 1156, 1157, 1158, 1159, 1160, 1161, 1184, 1835, 1927,
    3032, 3169, 4031,
}  # fmt: skip
_HARMLESS = {2033, 2034, 2035, 2036, 2050, 2051, 2053, 2054}  # of parameters and of rows already gone
_CLIENT = range(2000, 3000)
_READ_ONLY = 1290  # "is running with the --read-only option", and with any other option as well: the text tells
_READ_ONLY_MODE = 1836

_ENDS_ITSELF = re.compile(
    rb"\s*(?:ALTER|ANALYZE|BEGIN|CACHE|CHANGE|CHECK|COMMIT|CREATE|DROP|FLUSH|GRANT|INSTALL|LOCK|OPTIMIZE|RENAME|REPAIR|"
    rb"RESET|REVOKE|ROLLBACK|SET|START|STOP|TRUNCATE|UNINSTALL|UNLOCK|XA)\b",
    re.IGNORECASE,
)


def number_of(error: BaseException) -> int:
    """Return MySQL's number of an error, 0 where it has none."""
    number = error.args[0] if error.args else 0
    return number if isinstance(number, int) else 0


def ends_session(number: int) -> bool:
    """Whether the session is over with this error, or can't be trusted to be in step with the server."""
    return number in _ENDING or (number in _CLIENT and number not in _HARMLESS)


def demotes(error: BaseException) -> bool:
    """Whether this error says that the server takes no writes: `read_only` was switched on, as in a failover.

    A transaction that its own user made read-only has another number (1792).
    """
    number = number_of(error)
    if number == _READ_ONLY_MODE:
        return True
    return number == _READ_ONLY and re.search(r"read[-_]only", str(error)) is not None


def ends_transaction_itself(query: bytes) -> bool:
    """Whether a statement, by its first word, ends the open transaction by itself, or may.

    MySQL commits before each change of the schema. What is hidden behind a comment counts as no.
    """
    return _ENDS_ITSELF.match(query) is not None


def parse(url: str, known: frozenset[str], where: str) -> dict[str, Any]:
    """Take a URL apart into the library's arguments. No error quotes any of it, for it may hold a password."""
    url = well_formed(url, where)
    scheme, _, _ = url.partition("://")
    if scheme.lower().partition("+")[0] not in ("mysql", "mariadb"):
        raise ConfigError("expected a URL like mysql://user@host:3306/database", where)
    place = None if re.search(r"%(?![0-9A-Fa-f]{2})", url) else _place(url)
    if place is None:
        raise ConfigError(
            "malformed MySQL URL: expected mysql://user:password@host:port/database with one host, a port that is a "
            "number, and special characters in the user, the password and the database percent-encoded",
            where,
        )
    given = dict(parse_qsl(url.partition("?")[2], keep_blank_values=True))
    check_names(url, given, known - _NOT_IN_URLS, REFUSED, where)
    named = {name: unquote(value) if isinstance(value, str) else value for name, value in place.items() if value}
    return named | {name: _value(name, text, where) for name, text in given.items()}


def _place(url: str) -> dict[str, Any] | None:
    """Return where the URL leads, and as whom; None where that can't be told."""
    try:
        parts = urlsplit(url)
        place = {"host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password}
    except ValueError:
        return None
    if place["port"] == 0 or "/" in parts.path[1:] or "," in parts.netloc.rpartition("@")[2]:
        return None
    return place | {"database": parts.path[1:]}


def _value(name: str, text: str, where: str) -> Any:
    """Read a parameter of a URL as what it has to be."""
    readers: tuple[tuple[object, Callable[[str], Any], str], ...] = (
        (_SECONDS, float, "a number of seconds"),
        (_NUMBERS, int, "a whole number"),
        (_FLAGS, lambda word: _YES_OR_NO[word.lower()], "true or false"),
    )
    for names, read, what in readers:
        if name in names:  # type: ignore[operator]
            try:
                return read(text)
            except (ValueError, KeyError):
                raise ConfigError(f"{name} in the URL must be {what}", where) from None
    return text


def check_values(options: Mapping[str, Any], where: str) -> None:
    """Check what a library would stumble over only when it connects, or not at all."""
    problems = []
    for name in _SECONDS:
        value = options.get(name)
        if value is not None and not _common.is_seconds(value):
            problems.append(f"{name} must be a number of seconds, not {value!r}")
    for name in ("charset", "collation"):
        value = options.get(name)
        if value is not None and not (isinstance(value, str) and re.fullmatch(r"\w+", value)):
            problems.append(f"{name} must be a plain name, not {value!r}")
    mode, command = options.get("sql_mode"), options.get("init_command")
    if mode is not None and not (isinstance(mode, str) and re.fullmatch(r"[\w, ]*", mode)):
        problems.append(f"sql_mode must be names with commas between them, not {mode!r}")
    if command is not None and not (isinstance(command, str) and command.strip()):
        problems.append(f"init_command must be a statement, not {command!r}")
    if options.get("use_unicode") is not None and not isinstance(options["use_unicode"], bool):
        problems.append(f"use_unicode must be True or False, not {options['use_unicode']!r}")
    factory = options.get("cursorclass")
    if factory is not None and not isinstance(factory, type):
        problems.append(f"cursorclass must be a class, not {factory!r}")
    if problems:
        raise ConfigError(problems, where)


def isolation(level: object, where: str) -> str | None:
    """Return the isolation level as SQL spells it."""
    if level is None:
        return None
    plain = level.lower().replace("_", " ").replace("-", " ") if isinstance(level, str) else level
    if plain not in _LEVELS:
        raise ConfigError(f"isolation_level must be one of {', '.join(_LEVELS)}, not {level!r}", where)
    return str(plain).upper()
