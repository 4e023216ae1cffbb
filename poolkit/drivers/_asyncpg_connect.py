"""How asyncpg comes to a connection: what a URL says, which addresses it means, and the time for each of them.

asyncpg gives all of the time to the first address that swallows what is sent to it, and takes every parameter of a URL
that it does not know for a setting of the server. So a URL is read here. Then each of its addresses (several hosts, a
name with several addresses, those of PGHOST or of a service) is tried by itself, for its share of the time that is
left; the one that worked is tried first for the next minute.
"""

# ruff: noqa: SLF001  asyncpg keeps its reading of URLs, environment and service files to itself

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import socket
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit

import asyncpg
from asyncpg import connect_utils

from poolkit.drivers import _common
from poolkit.drivers._url_parameters import pairs, read_postgres
from poolkit.errors import ConfigError

__all__ = ["PARAMETERS", "Connector", "OneAddress", "Place", "Target"]

_FILES = frozenset(
    (
        *("sslcert", "sslcrl", "sslkey", "sslnegotiation", "sslpassword", "sslrootcert"),
        *("ssl_max_protocol_version", "ssl_min_protocol_version"),
    )
)
_ARGUMENTS = frozenset(("gsslib", "krbsrvname", "passfile", "password", "service", "target_session_attrs", "user"))
_NUMBERS = frozenset((*_common.KEEPALIVE, "connect_timeout", "keepalives"))
PARAMETERS = (
    frozenset(("application_name", "dbname", "fallback_application_name", "host", "options", "port", "sslmode"))
    | _FILES
    | _ARGUMENTS
    | _NUMBERS
)
"""libpq's parameters that do here what they do there."""

_NOT_HERE = "asyncpg has nothing like it: leave it out, or use psycopg (postgresql://)"
# libpq's, with the values with which they ask for what is so anyway.
_AS_EVER: dict[str, tuple[str, ...]] = {
    "channel_binding": ("prefer", "disable"),
    "client_encoding": ("utf8", "utf-8", "auto"),
    "gssencmode": ("prefer", "disable"),
    "load_balance_hosts": ("random", "disable"),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
_REFUSED = {
    "database": "here it is dbname, or the path of the URL",
    "hostaddr": "write the address in the place of the host",
    **dict.fromkeys(
        (
            *("gssdelegation", "keylogfile", "max_protocol_version", "min_protocol_version", "replication"),
            *("require_auth", "requirepeer", "requiressl", "sslcrldir", "sslkeylogfile", "scram_client_key"),
            *("scram_server_key", "authtype", "tty", "servicefile"),
        ),
        _NOT_HERE,
    ),
}

_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_LEAST = 0.5  # seconds; with less than this no address answers over a long way
_REMEMBERED = 60.0  # seconds for which the address that worked is tried first


class Place(NamedTuple):
    """One address: a path of a socket, or host and port, with the address of the host where that is a name."""

    host: str
    port: int | None
    address: str | None = None

    def __str__(self) -> str:
        if self.port is None:
            return self.host
        return f"{self.host}:{self.port}" + (f" ({self.address})" if self.address else "")


class Target:
    """What a URL says, together with the options: the arguments of `asyncpg.connect`. Its repr shows none of it.

    Raises `ConfigError` for what asyncpg can't do, or would take for a setting of the server; no value is shown.
    """

    __slots__ = ("arguments", "keepalive", "limit", "places", "shuffles", "wanted")

    def __init__(self, url: str, options: Mapping[str, Any], where: str) -> None:
        read = read_postgres(
            _common.postgres_url(url, where), (PARAMETERS | _AS_EVER.keys()).__contains__, PARAMETERS, where,
            refused=_REFUSED,
        )  # fmt: skip
        given = {name: value for name, value, _ in pairs(read.url)}
        _check_values(given, where)
        self.keepalive = {name: int(given[name]) for name in _NUMBERS - {"connect_timeout"} if name in given}
        self.shuffles = given.get("load_balance_hosts") == "random"
        self.arguments = {**_arguments(read.url, given, where), **options}
        if not read.prepares:
            self.arguments.setdefault("statement_cache_size", 0)
        self.arguments["server_settings"] = {**_settings(given), **(options.get("server_settings") or {})}
        self.limit = _least(self.arguments.pop("timeout", None), float(given.get("connect_timeout", 0)) or None)
        self.places, self.wanted = _parsed(self.arguments, where)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def _check_values(given: Mapping[str, str], where: str) -> None:
    problems = [
        f"{name} can only be {' or '.join(values)} with asyncpg: leave it out, or use psycopg (postgresql://)"
        for name, values in _AS_EVER.items()
        if name in given and given[name].lower() not in values
    ]
    problems += [
        f"{name} must be a whole number" for name in sorted(_NUMBERS & given.keys()) if not given[name].isdecimal()
    ]
    if given.get("sslrootcert") == "system" and (given.get("sslmode", "verify-full") != "verify-full"):
        problems.append("sslrootcert=system goes with sslmode=verify-full")
    if given.get("sslrootcert") == "system" and _FILES & given.keys() - {"sslrootcert", "sslnegotiation"}:
        problems.append("sslrootcert=system can't be had with other certificates: name the file of the system's")
    if problems:
        raise ConfigError(problems, where)


def _arguments(url: str, given: Mapping[str, str], where: str) -> dict[str, Any]:
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    database = given.get("dbname") or unquote(parts.path[1:])
    arguments: dict[str, Any] = {"user": unquote(name), "password": unquote(password), "database": database}
    arguments |= {key: value for key, value in given.items() if key in _ARGUMENTS}
    arguments = {key: value for key, value in arguments.items() if value}
    if hosts:
        arguments["host"], arguments["port"] = _split(hosts)
    elif given.get("host"):
        arguments["host"] = [host.strip("[]") for host in given["host"].split(",")]
    if given.get("port") and not hosts:
        ports = given["port"].split(",")
        if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
            raise ConfigError("port must be a number, or one for each host", where)
        arguments["port"] = [int(port) for port in ports]
    files = {key: value for key, value in given.items() if key in _FILES or key == "sslmode"}
    if files.get("sslrootcert") == "system":
        arguments["ssl"] = True
        files = {key: value for key, value in files.items() if key == "sslnegotiation"}
    # asyncpg takes these in a URL only, and reads no service file without one
    arguments["dsn"] = f"postgresql://?{urlencode(files, quote_via=quote)}" if files else "postgresql://"
    if os.environ.get("PGSERVICE"):
        arguments.setdefault("service", os.environ["PGSERVICE"])
    return arguments


def _split(hosts: str) -> tuple[list[str], list[int]]:
    default = os.environ.get("PGPORT", "")
    names, ports = [], []
    for host in hosts.split(","):
        before, bracket, rest = host.rpartition("]")
        name, _, port = rest.partition(":") if bracket else host.partition(":")
        names.append(unquote(before[1:] if bracket else name) or "localhost")
        ports.append(int(port or (default if default.isdecimal() else 5432)))
    return names, ports


def _settings(given: Mapping[str, str]) -> dict[str, str]:
    """Return what goes to the server with the connect: its name for this process, and the user's `options`."""
    name = given.get("application_name") or os.environ.get("PGAPPNAME")
    name = name or given.get("fallback_application_name") or _common.application_name()
    return {"application_name": name, **({"options": given["options"]} if "options" in given else {})}


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


_DEFAULTS = {"statement_cache_size": 100, "max_cached_statement_lifetime": 300, "max_cacheable_statement_size": 15360}
_READ = (
    *("command_timeout", "database", "direct_tls", "dsn", "gsslib", "host", "krbsrvname", "passfile", "password"),
    *("port", "server_settings", "service", "servicefile", "ssl", "target_session_attrs", "user"),
)


def _parsed(arguments: Mapping[str, Any], where: str) -> tuple[list[Place], str]:
    """Have asyncpg read the arguments, the environment and the service file, and check them."""
    read = {**dict.fromkeys(_READ), **_DEFAULTS, **arguments}
    read.pop("record_class", None)
    try:
        found, parameters, _ = connect_utils._parse_connect_arguments(**read)  # type: ignore[attr-defined]
    except (asyncpg.ClientConfigurationError, OSError) as error:
        raise ConfigError(f"asyncpg can't connect like this: {error}", where) from None
    except (KeyError, ValueError, TypeError):
        raise ConfigError(
            "asyncpg can't connect like this: look at the options, and at the ports in PGPORT and in the service file",
            where,
        ) from None
    places = [Place(one, None) if isinstance(one, str) else Place(*one) for one in found]
    return places, str(parameters.target_session_attrs.value)


class OneAddress:
    """The running loop, but that the host of a connect means one of its addresses.

    The certificate is still checked against the host's name. A request to cancel goes to the server that is to cancel.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._loop = loop
        self._address = address

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def create_connection(self, factory: Any, host: str, port: int, **options: Any) -> Any:
        """Connect to the address."""
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        return self._loop.create_connection(factory, self._address, port, **options)


class Connector:
    """Connects to whatever a target means, and remembers which address worked."""

    def __init__(self) -> None:
        self._good: Place | None = None
        self._until = 0.0

    async def connect(self, target: Target, connection_class: type[Any], timeout: float) -> Any:
        """Connect within `timeout` seconds, shared among the addresses that are left.

        Where all fail the error is that of a server that refused, if one did, else that of the last; the others are
        noted with it.
        """
        deadline = monotonic() + timeout
        todo = self._todo(target)
        failures: list[tuple[Place, Exception]] = []
        while todo:
            place, wanted = todo.popleft()
            left = deadline - monotonic()
            if left <= 0 and failures:
                break
            share = max(left / (len(todo) + 1), min(left, _LEAST))
            try:
                if place.address is None and _is_name(place):
                    todo.extendleft((one, wanted) for one in reversed(await self._resolve(place, target, share)))
                    continue
                conn = await _attempt(place, target, wanted, connection_class, _least(share, target.limit) or share)
            except _FAILURES as error:
                failures.append((place, error))
                continue
            if failures:
                self._good, self._until = place, monotonic() + _REMEMBERED
            sock = conn._transport.get_extra_info("socket")
            if sock is not None and target.keepalive.get("keepalives") != 0:
                _common.keep_alive(sock, target.keepalive)  # asyncpg does not
            return conn
        raise _most_telling(failures)

    def _todo(self, target: Target) -> deque[tuple[Place, str]]:
        places = list(target.places)
        if target.shuffles:
            random.shuffle(places)
        good = self._remembered()
        if good is not None:
            places.sort(key=lambda place: (place.host, place.port) != (good.host, good.port))
        wanted = [target.wanted]
        if target.wanted == "prefer-standby":  # asyncpg would take the first that it is told of
            wanted = ["standby", "any"]
        return deque((place, one) for one in wanted for place in places)

    def _remembered(self) -> Place | None:
        if monotonic() > self._until:
            self._good = None
        return self._good

    async def _resolve(self, place: Place, target: Target, seconds: float) -> list[Place]:
        try:
            async with asyncio.timeout(seconds):
                found = await asyncio.get_running_loop().getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise TimeoutError(f"the name {place.host!r} was not resolved within {seconds:.1f} s") from None
        places = list(dict.fromkeys(place._replace(address=str(one[4][0])) for one in found))
        if target.shuffles:
            random.shuffle(places)
        places.sort(key=lambda one: one != self._good)
        return places


async def _attempt(place: Place, target: Target, wanted: str, connection_class: type[Any], seconds: float) -> Any:
    loop: Any = asyncio.get_running_loop()
    if place.address is not None:
        loop = OneAddress(loop, place.address)
    at = {"host": place.host, "port": place.port or 5432, "target_session_attrs": wanted, "loop": loop}
    connect: Any = asyncpg.connect
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            conn = await connect(**{**target.arguments, **at}, timeout=None, connection_class=connection_class)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutError(f"no connection to {place} within {seconds:.1f} s") from error
    if place.address is not None:
        conn._session.way, conn._loop = loop, asyncio.get_running_loop()
    return conn


def _is_name(place: Place) -> bool:
    if place.port is None:
        return False
    with suppress(ValueError):
        ipaddress.ip_address(place.host.partition("%")[0])
        return False
    return True


def _most_telling(failures: list[tuple[Place, Exception]]) -> Exception:
    refusals = [failure for failure in failures if isinstance(failure[1], asyncpg.PostgresError)]
    told = (refusals or failures)[-1]
    for place, error in failures:
        if error is not told[1]:
            told[1].add_note(f"before that, {place}: {type(error).__name__}: {error}")
    return told[1]
