"""What may stand in a URL: its form, the pool's settings, and the parameters that other libraries have for PostgreSQL.

No error here quotes what may be a part of a password. A password that was not percent-encoded cuts a URL in the wrong
places: what stands behind its `/`, `?` or `#` looks like a path, or like the name of a parameter. So a URL with an `@`
behind such a character is refused before anything of it is looked up or shown, and an unknown parameter is named only
where it resembles a known one.

Every library adds parameters of its own to the same URL, and a platform hands all its users the same one. What is known
to belong to another library is translated where it means something here (`pgbouncer=true`: no prepared statements),
left out where it means nothing (`supa=...`), and else refused with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote

from poolkit.config import PoolConfig, nearest
from poolkit.errors import ConfigError

__all__ = ["Postgres", "check_names", "pairs", "read_postgres", "take_settings", "well_formed"]

_ENCODE = "special characters in the user, the password and the database must be percent-encoded (an @ is %40)"
_FILES = {"sqlite"}  # without a user, a password and a server
_WEB = {"http", "https"}


def well_formed(url: str, where: str) -> str:
    """Return the URL without white space around it.

    Raises `ConfigError` where an unencoded character may have cut a password in two, without quoting any of it.
    """
    url = url.strip()
    scheme, found, rest = url.partition("://")
    kind = scheme.lower().partition("+")[0]
    if not found or kind in _FILES:
        return url
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    encodes_nothing = bool(re.search(r"[\x00-\x20\x7f]|%(?![0-9A-Fa-f]{2})", authority))
    cut = "@" in tail and (re.search("[:@]", authority) if kind in _WEB else authority)
    if cut or encodes_nothing or (kind not in _WEB and ("#" in rest or re.search(r"[\x00-\x1f\x7f]", rest))):
        raise ConfigError(f"malformed {_kind_of(kind)}: {_ENCODE}", where)
    return url


def _kind_of(scheme: str) -> str:
    """What to call a URL of this scheme in an error: never more of it than is known to be no secret."""
    names = {"postgres": "PostgreSQL", "postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MySQL"}
    return f"{names[scheme]} URL" if scheme in names else "URL"


def pairs(url: str) -> list[tuple[str, str, str]]:
    """List a URL's parameters: name and value decoded, and the text as it stands."""
    query = url.partition("?")[2]
    return [(unquote(raw.partition("=")[0]), unquote(raw.partition("=")[2]), raw) for raw in query.split("&") if raw]


def _with_query(url: str, raws: Collection[str]) -> str:
    """Return the URL with these parameters, each as it is to stand there."""
    base = url.partition("?")[0]
    return f"{base}?{'&'.join(raws)}" if raws else base


def _unknown(url: str, number: int, name: str, known: Collection[str]) -> str:
    """Say that the parameter of that number is unknown; by name, where that can't be a part of a password."""
    guess = nearest(name, known)
    hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(sorted(known))}"
    authority = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]
    may_be_cut = (":" in authority and "@" not in authority) or "@" in url.partition("?")[2]
    if may_be_cut or not re.fullmatch(r"[A-Za-z_][\w-]{0,40}", name):
        return f"parameter {number} of the URL is unknown: {hint}"
    return f"unknown option {name!r}: {hint}"


def check_names(
    url: str, given: Collection[str], known: Collection[str], refused: Mapping[str, str], where: str
) -> None:
    """Raise one `ConfigError` for the parameters of a URL that are unknown, or that `refused` explains away."""
    problems = []
    for number, name in enumerate(given, start=1):
        if name in refused:
            problems.append(f"option {name!r} can't be set: {refused[name]}")
        elif name not in known:
            problems.append(_unknown(url, number, name, known))
    if problems:
        raise ConfigError(problems, where)


# -- the pool's settings ---------------------------------------------------------------------------------------------


def take_settings(url: str, where: str) -> tuple[str, dict[str, object]]:
    """Split a URL into one without the pool's settings, and these: `?pool_max_size=8&pool_timeout=2`.

    Every setting of `PoolConfig` with `pool_` before it, and SQLAlchemy's names for them. Raises one `ConfigError` with
    all that is wrong.
    """
    mine = [(name, value, raw) for name, value, raw in pairs(url) if name.startswith("pool_")]
    if not mine:
        return url, {}
    options, problems = PoolConfig.options_from_query([(name, value) for name, value, _ in mine])
    if problems:
        raise ConfigError(problems, where)
    own = {raw for _, _, raw in mine}
    return _with_query(url, [raw for _, _, raw in pairs(url) if raw not in own]), options


# -- other libraries' parameters, for PostgreSQL ---------------------------------------------------------------------

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_YES, _NO = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}

# These mean nothing to a client, or say what is so anyway: with any value, or with these.
_MEANINGLESS: dict[str, set[str] | None] = {
    "supa": None,  # Supabase's, for its own statistics
    "workaround": None,  # the same, of an older day
    "uselibpqcompat": {"true"},  # node-postgres: sslmode as libpq means it
    "schema": None,  # Prisma's: see `_set_schema`
    "async_fallback": None,  # SQLAlchemy's asyncpg dialect: how it runs in threads
}
# These forbid prepared statements with one of these values, and with these others allow them, which is the default.
_UNPREPARED: dict[str, tuple[set[str], set[str]]] = {
    "pgbouncer": (_YES, _NO),  # Prisma, Supabase, Neon
    "prepared_statements": (_NO, _YES),  # Rails
    "preparethreshold": ({"0"}, set()),  # JDBC
    "statement_cache_size": ({"0"}, set()),  # asyncpg, Prisma
    "statement_cache_capacity": ({"0"}, set()),  # pgx
    "prepared_statement_cache_size": ({"0"}, set()),  # SQLAlchemy's asyncpg dialect
}
_SERVER = "is a setting of the server: write options=-c{name}%3DVALUE"
_POOL = "is another pool's setting: here it is {instead}"
_OTHER = "is another library's parameter, and has no meaning here: leave it out"
_REFUSED: dict[str, str] = {
    # Prisma
    "connection_limit": _POOL.format(instead="pool_max_size"),
    "socket_timeout": "is Prisma's: here it is tcp_user_timeout, in milliseconds",
    "sslaccept": "is Prisma's: here it is sslmode (require encrypts, verify-full also checks the server)",
    "sslidentity": "is Prisma's: here it is sslcert and sslkey",
    # JDBC
    "currentschema": "is JDBC's: write options=-csearch_path%3DNAME",
    "applicationname": "is JDBC's: here it is application_name",
    "logintimeout": "is JDBC's: here it is connect_timeout",
    "connecttimeout": "is JDBC's: here it is connect_timeout",
    "sockettimeout": "is JDBC's: here it is tcp_user_timeout, in milliseconds",
    "tcpkeepalive": "is JDBC's: here it is keepalives",
    "targetservertype": "is JDBC's: here it is target_session_attrs",
    "sslfactory": "is JDBC's: here it is sslmode",
    "stringtype": _OTHER,
    "rewritebatchedinserts": _OTHER,
    "binarytransfer": _OTHER,
    # SQLAlchemy, Django and dj-database-url, django-environ
    "max_overflow": _POOL.format(instead="pool_max_size, which is pool_size and max_overflow together"),
    "conn_max_age": _POOL.format(instead="pool_max_lifetime"),
    "conn_health_checks": _POOL.format(instead="pool_check_after=0"),
    "ssl_require": "is dj-database-url's: here it is sslmode=require",
    "atomic_requests": _OTHER,
    "disable_server_side_cursors": _OTHER,
    "autocommit": "can't be set: connections rest in autocommit; use a transaction or a unit of work",
    "dsn": "can't be set: it is the URL itself",
    "driver": "is another library's: the driver stands in the scheme, as in postgresql+psycopg2://",
    # Rails, node-postgres, pgx, lib/pq
    "pool": _POOL.format(instead="pool_max_size"),
    "max": _POOL.format(instead="pool_max_size"),
    "min": _POOL.format(instead="pool_min_size"),
    "checkout_timeout": _POOL.format(instead="pool_timeout"),
    "idletimeoutmillis": _POOL.format(instead="pool_idle_timeout, in seconds"),
    "connectiontimeoutmillis": _POOL.format(instead="pool_timeout, in seconds"),
    "reaping_frequency": _OTHER,
    "variables": "is Rails': write options=-cNAME%3DVALUE",
    "encoding": "is Rails': here it is client_encoding",
    "query_timeout": _SERVER.format(name="statement_timeout"),
    "binary_parameters": _OTHER,
    "default_query_exec_mode": "is pgx's: pgbouncer=true leaves prepared statements out",
    # asyncpg
    "command_timeout": "is asyncpg's: write options=-cstatement_timeout%3DMILLISECONDS",
    "direct_tls": "is asyncpg's: here it is sslnegotiation=direct",
    **{
        name: _SERVER.format(name=name)
        for name in (
            "search_path", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "timezone",
            "idle_session_timeout", "default_transaction_isolation", "default_transaction_read_only", "role", "jit",
            "work_mem", "datestyle", "intervalstyle", "standard_conforming_strings",
        )
    },
}  # fmt: skip


class Postgres(NamedTuple):
    """What a URL for PostgreSQL says: itself in the library's own parameters, and whether statements are prepared."""

    url: str
    prepares: bool


def read_postgres(
    url: str,
    is_known: Callable[[str], bool],
    names: Collection[str],
    where: str,
    *,
    refused: Mapping[str, str] | None = None,
) -> Postgres:
    """Translate a well-formed URL's parameters into those that a library knows.

    `is_known` says whether it knows a name, and `names` are those to show; `refused` are names of its own that can't be
    set in a URL, each with the reason. Raises one `ConfigError` with all that is wrong. Values are never shown.
    """
    problems: list[str] = []
    raws: list[str] = []
    prepares = True
    seen: set[str] = set()
    for number, (name, value, raw) in enumerate(pairs(url), start=1):
        lowered = name.lower()
        if name in seen:
            hint = (
                ": several hosts stand side by side, as in //one:5432,two:5432/" if lowered in ("host", "port") else ""
            )
            problems.append(f"{name} is given twice{hint}")
        elif lowered in ("ssl", "sslmode"):
            raws.append(f"sslmode={_mode(lowered, value, problems)}")
        elif lowered in _UNPREPARED and not is_known(name):
            prepares &= _allows(name, value, problems)
        elif lowered in _MEANINGLESS and _means_nothing(lowered, value):
            continue
        elif fault := _fault(name, is_known, refused or {}):
            problems.append(fault if fault != _NOBODYS else _unknown(url, number, name, names))
        else:
            raws.append(raw)
        if is_known(name) or lowered in ("ssl", "sslmode"):
            seen.add(name)
    problems += _set_schema(raws, {value for name, value, _ in pairs(url) if name.lower() == "schema"}, prepares)
    if problems:
        raise ConfigError(problems, where)
    return Postgres(_with_query(url, raws), prepares)


_NOBODYS = "unknown"
_NO_SCHEMA = (
    "schema is set at the start of a session, which a pooler in transaction mode does not pass on: leave it out, and "
    "set search_path for the role (ALTER ROLE ... SET search_path)"
)
_PROTECTED = re.compile(r"([\\\s])")  # the server splits its options at white space


def _set_schema(raws: list[str], schemas: set[str], prepares: bool) -> list[str]:  # noqa: FBT001
    """Have the session start with a search path of this schema alone, as Prisma does. Returns what is wrong with it."""
    if len(schemas) > 1:
        return ["schema is given twice"]
    schema = "".join(schemas)
    if not prepares:
        return [] if schema in ("", "public") else [_NO_SCHEMA]
    if schema:
        _set_search_path(raws, schema)
    return []


def _set_search_path(raws: list[str], schema: str) -> None:
    quoted = _PROTECTED.sub(r"\\\1", '"' + schema.replace('"', '""') + '"')
    option = quote(f"-csearch_path={quoted}", safe="")
    given = next((raw for raw in raws if raw.startswith("options=")), None)
    if given is None:
        raws.append(f"options={option}")
    else:
        raws[raws.index(given)] = f"{given}%20{option}"


def _fault(name: str, is_known: Callable[[str], bool], refused: Mapping[str, str]) -> str | None:
    if name in refused:
        return f"option {name!r} can't be set: {refused[name]}"
    if is_known(name):
        return None
    return f"{name} {_REFUSED[name.lower()]}" if name.lower() in _REFUSED else _NOBODYS


def _mode(name: str, value: str, problems: list[str]) -> str:
    """Return libpq's sslmode for what `ssl=` and `sslmode=` say in one library or another."""
    plain = value.lower()
    if plain in _SSL_MODES:
        return plain
    if name == "ssl" and plain in _YES:
        return "require"
    if name == "ssl" and plain in _NO:
        return "disable"
    if plain == "no-verify":
        problems.append(f"{name}=no-verify is node-postgres's: here it is sslmode=require")
    else:
        problems.append(f"{name} must be one of {', '.join(_SSL_MODES)}" + (", true or false" if name == "ssl" else ""))
    return "require"


def _allows(name: str, value: str, problems: list[str]) -> bool:
    forbids, allows = _UNPREPARED[name.lower()]
    plain = value.lower()
    if plain not in forbids | allows:
        problems.append(f"{name} can only be {' or '.join(sorted(forbids | allows))} here")
    return plain not in forbids


def _means_nothing(name: str, value: str) -> bool:
    values = _MEANINGLESS[name]
    return values is None or value.lower() in values
