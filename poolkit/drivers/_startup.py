"""What a PostgreSQL session gets with the connect: settings to which a reset returns, and the statements of that.

The settings go into the parameter `options` of the startup packet, behind those of the user.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from poolkit.config import shown
from poolkit.drivers import _common
from poolkit.errors import ConfigError

__all__ = ["MODES", "RESET", "joined", "session_settings", "set_local"]

MODES = {
    "isolation_level": "default_transaction_isolation",
    "readonly": "default_transaction_read_only",
    "deferrable": "default_transaction_deferrable",
}
"""The settings that have the modes of a session's transactions, by psycopg2's names of them."""

RESET = (
    "SET statement_timeout = 0", "SET lock_timeout = 0", "SET SESSION AUTHORIZATION DEFAULT", "RESET ROLE",
    "CLOSE ALL", "UNLISTEN *", "SELECT pg_catalog.pg_advisory_unlock_all()", "DISCARD TEMP", "DISCARD SEQUENCES",
    "RESET ALL",
)  # fmt: skip
"""What makes a session as it was when it began, but for what was prepared. Limits and roles come first, which could
keep the rest from working. DISCARD ALL would not do: it can't run beside anything else, and deallocates what a library
keeps prepared."""

# The server splits the options at white space; a backslash protects it, and itself.
_PROTECTED = re.compile(r"([\\\s])")
_WITH_BACKSLASH = r"\\\1"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$.]*")


def session_settings(settings: object, statement_timeout: object, where: str) -> dict[str, str]:
    """Check `session_settings` (a mapping of names to values) and `statement_timeout` (seconds), and join them.

    Returns the settings as the server takes them. Raises `ConfigError`.
    """
    if settings is None:
        settings = {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"session_settings must map names to values, not {type(settings).__name__}", where)
    problems = []
    for name, value in settings.items():
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            problems.append(f"session_settings: {name!r} is no name of a setting")
        elif not isinstance(value, (str, bool, int, float)) or "\0" in str(value):
            problems.append(f"session_settings[{name!r}] must be a string, a number, True or False")
    if statement_timeout is not None and not _common.is_seconds(statement_timeout):
        problems.append(f"statement_timeout must be a number of seconds, not {shown(statement_timeout)}")
    if problems:
        raise ConfigError(problems, where)
    made = {name: _spelt(value) for name, value in settings.items()}
    if statement_timeout is not None:
        made["statement_timeout"] = str(math.ceil(float(str(statement_timeout)) * 1000))
    return made


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def joined(options: str | None, settings: Mapping[str, str]) -> str:
    """Put settings behind the user's own `options`."""
    added = [f"-c {name}={_PROTECTED.sub(_WITH_BACKSLASH, value)}" for name, value in settings.items()]
    return " ".join([*([options] if options else []), *added])


def set_local(settings: Iterable[tuple[str, str]]) -> str:
    """Write a SELECT that sets these, as they stand in postgresql.conf, to the end of the transaction."""
    return "SELECT " + ", ".join(f"pg_catalog.set_config({_quoted(n)}, {_quoted(v)}, true)" for n, v in settings)


def _quoted(text: str) -> str:
    """Quote a literal, whatever `standard_conforming_strings` is."""
    doubled = text.replace("'", "''")
    return f"'{doubled}'" if "\\" not in doubled else " E'" + doubled.replace("\\", "\\\\") + "'"
