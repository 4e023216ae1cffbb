"""What the MySQL drivers know without their library: a URL, the options, and what an error number means."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from poolkit.config import shown
from poolkit.drivers import _common
from poolkit.drivers._url_parameters import check_names, well_formed
from poolkit.errors import ConfigError

__all__ = [
    "AUTOCOMMIT",
    "GONE",
    "IN_TRANSACTION",
    "LOST",
    "MORE_RESULTS",
    "NO_BACKSLASH_ESCAPES",
    "OPTIONS",
    "REFUSED",
    "RETRYABLE",
    "SESSION_TRACK",
    "STATE_CHANGED",
    "check_values",
    "codec",
    "demotes",
    "ends_session",
    "isolation",
    "number_of",
    "parse",
    "refuses",
    "session_settings",
    "ssl_mode",
    "statement_timeout",
]

# The status flags that the server sends with each success.
IN_TRANSACTION = 1
AUTOCOMMIT = 2
MORE_RESULTS = 8
NO_BACKSLASH_ESCAPES = 0x200
STATE_CHANGED = 0x4000

SESSION_TRACK = 1 << 23  # a capability: the answers tell of changes to the session

GONE, LOST = 2006, 2013

OPTIONS = frozenset(
    {
        "charset", "client_flag", "collation", "connect_timeout", "conv", "cursorclass", "database", "host",
        "harmless_functions", "init_command", "isolation_level", "local_infile", "password", "port",
        "read_default_file", "read_default_group", "read_timeout", "session_settings", "sql_mode", "ssl", "ssl_mode",
        "statement_timeout", "unix_socket", "use_unicode", "user", "write_timeout",
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
_SECONDS = ("connect_timeout", "read_timeout", "statement_timeout", "write_timeout")
_NUMBERS = {"port", "client_flag", "max_allowed_packet"}
_FLAGS = {
    "local_infile", "use_unicode", "compress", "multi_statements", "ssl_disabled", "ssl_verify_cert",
    "ssl_verify_identity",
}  # fmt: skip
_NOT_IN_URLS = {
    "auth_plugin_map", "conv", "cursorclass", "harmless_functions", "server_public_key", "session_settings",
}  # fmt: skip
# What other tools call it in a URL, and what they have that means something else here.
_ALIASES = {"socket": "unix_socket", "sslcert": "ssl_ca", "sslaccept": "ssl_mode"}
_URL_REFUSED = {
    "connection_limit": "it is the pool's max_size",
    "pool_timeout": "it is the pool's timeout",
    "socket_timeout": "it is called 'read_timeout'",
    "sslmode": "it is called 'ssl_mode', and takes DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY",
    "sslidentity": "a client's certificate is 'ssl_cert' and 'ssl_key'",
    "sslpassword": "it is called 'ssl_key_password'",
    "tls": "it is called 'ssl_mode'",
    "usessl": "it is called 'ssl_mode'",
}
_MODES = {
    "DISABLED": "DISABLED", "PREFERRED": "PREFERRED", "REQUIRED": "REQUIRED", "VERIFY_CA": "VERIFY_CA",
    "VERIFY_IDENTITY": "VERIFY_IDENTITY", "STRICT": "VERIFY_IDENTITY", "ACCEPT_INVALID_CERTS": "REQUIRED",
    "TRUE": "REQUIRED", "FALSE": "DISABLED", "1": "REQUIRED", "0": "DISABLED",
}  # fmt: skip
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

# Of a connect: what the server or the client's library refuses until an account, an option or a name is changed.
_REFUSING = {
    1044, 1045, 1049, 1064, 1115, 1129, 1130, 1142, 1193, 1227, 1229, 1231, 1232, 1238, 1251, 1273, 1275, 1298, 1524,
    1698, 1820, 1862, 2019, 2049, 2054, 2058, 2059, 2061, 3118, 3159, 3955, 4151,
}  # fmt: skip
_TLS_FAILED = 2026

RETRYABLE = {1020, 1213, 1614, 3101}
"""A row that has changed since it was read, a deadlock, one in an XA transaction, a conflict in a group."""


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


def refuses(error: BaseException) -> bool:
    """Whether a failed connect will fail again until something is changed."""
    number = number_of(error)
    if number in _REFUSING:
        return True
    cause = getattr(error, "original_exception", None) or error.__cause__ or error.__context__
    if type(cause).__name__ == "SSLCertVerificationError":
        return True
    return (
        number == _TLS_FAILED and re.search(r"required|certificate|not support", str(error), re.IGNORECASE) is not None
    )


def codec(encoding: object) -> str:
    """Return Python's name of an encoding for reading statements; what it does not know is read as UTF-8."""
    try:
        return codecs.lookup(str(encoding)).name
    except LookupError:
        return "utf-8"


def parse(url: str, known: frozenset[str], where: str, *, several_hosts: bool = False) -> dict[str, Any]:
    """Take a URL apart into the library's arguments. No error quotes any of it, for it may hold a password.

    Several hosts with commas between them, each with a port or without, are a list in `host` of (host, port).
    """
    url = well_formed(url, where)
    scheme, _, rest = url.partition("://")
    if scheme.lower().partition("+")[0] not in ("mysql", "mariadb"):
        raise ConfigError("expected a URL like mysql://user@host:3306/database", where)
    place = None if re.search(r"%(?![0-9A-Fa-f]{2})", url) else _place(rest)
    if place is None:
        raise ConfigError(
            "malformed MySQL URL: expected mysql://user:password@host:port/database with a port that is a number, and "
            "special characters in the user, the password and the database percent-encoded",
            where,
        )
    if isinstance(place["host"], list) and not several_hosts:
        raise ConfigError("mysqlclient takes one host: name one, or use mysql+pymysql:// for several", where)
    given = _parameters(url.partition("?")[2], where)
    check_names(url, given, known - _NOT_IN_URLS, REFUSED | _URL_REFUSED, where)
    named = {name: unquote(value) if isinstance(value, str) else value for name, value in place.items() if value}
    return named | {name: _value(name, text, where) for name, text in given.items()}


def _place(rest: str) -> dict[str, Any] | None:
    """Return where a well-formed URL leads, and as whom; None where that can't be told."""
    authority, _, path = rest.partition("?")[0].partition("/")
    account, _, places = authority.rpartition("@")
    user, _, password = account.partition(":")
    if "@" in account or "/" in path:
        return None
    try:
        hosts = [_host(text) for text in places.split(",")]
    except ValueError:
        return None
    if len(hosts) > 1 and not all(host for host, _ in hosts):
        return None
    host, port = (hosts, None) if len(hosts) > 1 else hosts[0]
    return {"host": host, "port": port, "user": user, "password": password, "database": path}


def _host(text: str) -> tuple[str | None, int | None]:
    parts = urlsplit(f"//{text}")
    if parts.port == 0 or parts.username is not None or parts.path:
        raise ValueError(text)
    return parts.hostname, parts.port


def _pairs(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query, keep_blank_values=True)


def _parameters(query: str, where: str) -> dict[str, str]:
    """Return the parameters by the names they have here."""
    given = {}
    for name, text in _pairs(query):
        plain = name.replace("-", "_")
        plain = _ALIASES.get(plain, plain if plain in OPTIONS or plain.startswith("ssl_") else name)
        if plain == "reconnect":
            continue  # of a lost connection: what the pool does
        if plain == "ssl":
            plain, text = "ssl_mode", _mode_of(text, where)  # noqa: PLW2901
        given[plain.lower() if plain.lower() in _URL_REFUSED else plain] = text
    return given


def _mode_of(text: str, where: str) -> str:
    """Read `ssl=true`, and the JSON that Node's libraries take."""
    try:
        asked = json.loads(text)
    except ValueError:
        return text
    if isinstance(asked, dict) and asked.keys() <= {"rejectUnauthorized"}:
        return "VERIFY_IDENTITY" if asked.get("rejectUnauthorized", True) else "REQUIRED"
    if isinstance(asked, dict):
        raise ConfigError("ssl in the URL can't be JSON: use ssl_mode, ssl_ca, ssl_cert and ssl_key", where)
    return text


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


def check_values(options: Mapping[str, Any], where: str) -> None:  # noqa: C901  one list of what can be wrong
    """Check what a library would stumble over only when it connects, or not at all."""
    problems = []
    for name in _SECONDS:
        value = options.get(name)
        if value is not None and not _common.is_seconds(value):
            problems.append(f"{name} must be a number of seconds, not {shown(value)}")
    for name in ("charset", "collation"):
        value = options.get(name)
        if value is not None and not (isinstance(value, str) and re.fullmatch(r"\w+", value)):
            problems.append(f"{name} must be a plain name, not {shown(value)}")
    mode, command = options.get("sql_mode"), options.get("init_command")
    if mode is not None and not (isinstance(mode, str) and re.fullmatch(r"[\w, ]*", mode)):
        problems.append(f"sql_mode must be names with commas between them, not {shown(mode)}")
    if command is not None and not (isinstance(command, str) and command.strip()):
        problems.append(f"init_command must be a statement, not {shown(command)}")
    if options.get("use_unicode") is not None and not isinstance(options["use_unicode"], bool):
        problems.append(f"use_unicode must be True or False, not {shown(options['use_unicode'])}")
    tls = options.get("ssl_mode")
    if tls is not None and not (isinstance(tls, str) and tls.upper() in _MODES):
        problems.append("ssl_mode must be DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY")
    factory = options.get("cursorclass")
    if factory is not None and not isinstance(factory, type):
        problems.append(f"cursorclass must be a class, not {shown(factory)}")
    if problems:
        raise ConfigError(problems, where)


def isolation(level: object, where: str) -> str | None:
    """Return the isolation level as SQL spells it."""
    if level is None:
        return None
    plain = level.lower().replace("_", " ").replace("-", " ") if isinstance(level, str) else level
    if plain not in _LEVELS:
        raise ConfigError(f"isolation_level must be one of {', '.join(_LEVELS)}, not {shown(level)}", where)
    return str(plain).upper()


def ssl_mode(mode: object) -> str | None:
    """Return the mode of TLS by MySQL's own name."""
    return _MODES[mode.upper()] if isinstance(mode, str) else None


def statement_timeout(seconds: float | None, where: str) -> str | None:
    """Return what is said for a limit to each statement: MariaDB reads one of the comments, MySQL the other.

    MySQL limits only those that read.
    """
    if seconds is None:
        return None
    if not _common.is_seconds(seconds) or seconds > _MOST_SECONDS:
        raise ConfigError(f"statement_timeout must be a number of seconds, not {shown(seconds)}", where)
    milliseconds = max(1, math.ceil(seconds * 1000))
    return (
        f"SET /*M!100101 SESSION max_statement_time = {milliseconds / 1000:g} */"
        f"/*!50708 SESSION max_execution_time = {milliseconds} */"
    )


_MOST_SECONDS = 1_000_000


def session_settings(settings: object, where: str) -> str | None:
    """Return the statement that sets variables of the session, given as a mapping from name to value."""
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise ConfigError(f"session_settings must be a mapping, not {type(settings).__name__}", where)
    problems, parts = [], []
    for name, value in settings.items():
        literal = _literal(value)
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*", name)):
            problems.append(f"session_settings: {name!r} is no name of a variable")
        elif literal is None:
            problems.append(f"session_settings: {name} must be a number, True, False or a text without backslashes")
        else:
            parts.append(f"SESSION {name} = {literal}")
    if problems:
        raise ConfigError(problems, where)
    return f"SET {', '.join(parts)}" if parts else None


def _literal(value: object) -> str | None:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, float)) and math.isfinite(value):
        return str(value)
    if isinstance(value, str) and "\\" not in value and "\0" not in value:
        quoted = value.replace("'", "''")
        return f"'{quoted}'"
    return None
