"""From a URL to a driver. Each driver's module imports its library on first use, so the core depends on none.

postgresql://          psycopg 3, threads and asyncio
postgresql+asyncpg://  asyncpg, asyncio
postgresql+psycopg2:// psycopg2, threads
mysql://, mariadb://   mysqlclient where that is installed, else PyMySQL, threads; mysql+mysqlclient:// and
                       mysql+pymysql:// name one
sqlite:///             sqlite3, threads
https:// and http://   requests, one session per process and thread (a shared client, not a pool)
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from poolkit.config import PoolConfig, beside_url, nearest, overlay, shown
from poolkit.driver import AsyncDriver, Driver, SharedClient
from poolkit.drivers._url_parameters import take_settings, well_formed
from poolkit.errors import ConfigError

__all__ = [
    "SCHEMES",
    "Url",
    "async_driver",
    "async_kind",
    "check_scheme",
    "check_url",
    "hide_password",
    "is_shared",
    "shared_client",
    "split_settings",
    "sync_driver",
    "sync_kind",
]

Url: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]


class _Entry(NamedTuple):
    """Where a scheme's driver lives: module, class per kind, the library it needs and the extra that brings it."""

    module: str
    library: str
    extra: str | None
    sync: str | None = None
    asynchronous: str | None = None
    shared: str | None = None


_PSYCOPG = _Entry("poolkit.drivers.psycopg", "psycopg", "psycopg", "PsycopgDriver", "AsyncPsycopgDriver")
_REQUESTS = _Entry("poolkit.drivers.http", "requests", "requests", shared="HttpClient")
_PSYCOPG2 = _Entry("poolkit.drivers.psycopg2", "psycopg2", "psycopg2", "Psycopg2Driver")
_PYMYSQL = _Entry("poolkit.drivers.pymysql", "pymysql", "mysql", "PymysqlDriver")
_MYSQLCLIENT = _Entry("poolkit.drivers.mysqlclient", "MySQLdb", "mysqlclient", "MysqlclientDriver")

SCHEMES: dict[str, _Entry] = {
    "postgresql": _PSYCOPG,
    "postgres": _PSYCOPG,
    "postgresql+psycopg": _PSYCOPG,
    "postgresql+asyncpg": _Entry("poolkit.drivers.asyncpg", "asyncpg", "asyncpg", asynchronous="AsyncpgDriver"),
    "postgresql+psycopg2": _PSYCOPG2,
    "mysql": _PYMYSQL,
    "mysql+pymysql": _PYMYSQL,
    "mysql+mysqlclient": _MYSQLCLIENT,
    "mariadb": _PYMYSQL,
    "mariadb+pymysql": _PYMYSQL,
    "mariadb+mysqlclient": _MYSQLCLIENT,
    "sqlite": _Entry("poolkit.drivers.sqlite", "sqlite3", None, "SqliteDriver"),
    "https": _REQUESTS,
    "http": _REQUESTS,
}
# As SQLAlchemy's users have them: its names for the libraries, and the older `postgres`.
SCHEMES.update(
    {
        "postgresql+psycopg_async": _PSYCOPG,
        "postgres+psycopg": _PSYCOPG,
        "postgres+psycopg2": _PSYCOPG2,
        "postgres+asyncpg": SCHEMES["postgresql+asyncpg"],
        "mysql+mysqldb": _MYSQLCLIENT,
        "mariadb+mysqldb": _MYSQLCLIENT,
    }
)


def sync_driver(
    source: Driver[Any] | Url, config: PoolConfig | None, settings: dict[str, Any], *, where: str
) -> tuple[Driver[Any], PoolConfig]:
    """Find the driver for threads, and the pool's settings: what the user set, over what suits the driver."""
    return _resolve(source, config, settings, where, "sync")


def async_driver(
    source: AsyncDriver[Any] | Url, config: PoolConfig | None, settings: dict[str, Any], *, where: str
) -> tuple[AsyncDriver[Any], PoolConfig]:
    """Find the driver for asyncio, and the pool's settings."""
    return _resolve(source, config, settings, where, "asynchronous")


def shared_client(source: Url, settings: dict[str, Any], *, where: str) -> SharedClient[Any]:
    """Find the shared client; the pool settings are its to use."""
    client: SharedClient[Any] = _resolve(source, None, settings, where, "shared")[0]
    return client


def is_shared(source: object, *, where: str, scheme: str | None = None) -> bool:
    """Whether the URL names a shared client rather than something that is leased. Raises for a malformed URL."""
    return _entry_of(source, scheme, where).shared is not None


def check_url(url: str) -> None:
    """Raise `ConfigError` for a malformed URL, an unknown scheme or a library that isn't there. Imports no driver."""
    entry = _entry(url, "")
    well_formed(url, "")
    if not _is_installed(entry.library):
        raise ConfigError(_missing(entry))


def check_scheme(scheme: object) -> None:
    """Raise `ConfigError` where the `scheme` of a URL callable is none, or its library isn't there."""
    entry = _known_entry(scheme, "") if isinstance(scheme, str) else None
    if entry is None:
        raise ConfigError(f"scheme must be a text like 'postgresql', not {type(scheme).__name__}")
    if not _is_installed(entry.library):
        raise ConfigError(_missing(entry))


def sync_kind(source: object, scheme: str | None = None) -> bool:
    """Whether threads can use this URL, or what a callable returns: a URL of `scheme`."""
    return _entry_of(source, scheme, "").sync is not None


def async_kind(source: object, scheme: str | None = None) -> bool:
    """Whether asyncio can use this URL, or what a callable returns."""
    return _entry_of(source, scheme, "").asynchronous is not None


def hide_password(url: str) -> str:
    """Return the URL fit for a page or a log: without the password, and without what might be one in the query."""
    scheme, found, rest = url.strip().partition("://")
    if not found or scheme.lower() not in SCHEMES:
        return "(malformed URL)"
    try:
        rest = well_formed(url, "").partition("://")[2]
        urlsplit(url)
    except ValueError:
        return "(malformed URL)"
    place = rest.partition("?")[0].partition("#")[0]
    authority, slash, path = place.partition("/")
    user, at, host = authority.rpartition("@")
    name, colon, _ = user.partition(":")
    if SCHEMES[scheme.lower()].shared and not colon:  # a token, more often than a name
        name = "***" if name else ""
    return f"{scheme}://{name}{at}{host}{slash}{path}"


def split_settings(url: str, options: Mapping[str, Any], where: str = "") -> tuple[str, dict[str, Any]]:
    """Return a URL without the pool's settings in it (`?pool_max_size=8`), and these together with `options`.

    Raises `ConfigError` for settings that are wrong, or given in both places.
    """
    plain, from_url = take_settings(well_formed(url, where), where)
    return plain, beside_url(options, from_url, where)


def _resolve(
    source: Any, config: PoolConfig | None, settings: dict[str, Any], where: str, kind: str
) -> tuple[Any, PoolConfig]:
    if config is not None and settings:
        names = ", ".join(sorted(settings))
        raise ConfigError(f"settings come either as config or as keywords, not both (here also: {names})", where)
    if config is not None and not isinstance(config, PoolConfig):
        raise ConfigError(f"config must be a PoolConfig, not {type(config).__name__}; settings go as keywords", where)
    rest = dict(settings)
    made_with = {name: rest.pop(name, None) for name in ("options", "scheme")}
    if isinstance(source, str):
        source, rest = split_settings(source, rest, where)
        if config is not None and rest:
            names = ", ".join(f"pool_{name}" for name in sorted(rest))
            raise ConfigError(f"settings come either as config or in the URL, not both (in the URL: {names})", where)
    wanted = config or PoolConfig.from_mapping(rest, where=where)
    driver = _make(source, made_with, wanted, where, kind)
    if config is None:
        wanted = PoolConfig.from_mapping(overlay(driver.defaults, rest), where=where)
    return driver, wanted


def _make(source: Any, made_with: Mapping[str, Any], config: PoolConfig, where: str, kind: str) -> Any:
    options = {} if made_with["options"] is None else made_with["options"]
    scheme = made_with["scheme"]
    if not isinstance(options, Mapping):
        raise ConfigError(f"options must be a mapping of driver settings, not {type(options).__name__}", where)
    if scheme is not None and (isinstance(source, str) or not callable(source)):
        raise ConfigError("scheme is for a URL callable: a URL has its own, and a driver needs none", where)
    if not isinstance(source, str) and not callable(source):
        if options:
            raise ConfigError("options go to the driver you made, not to the pool", where)
        _refuse_misfit(source, where, kind)
        return source
    if scheme is None and kind == "shared" and not isinstance(source, str):
        scheme = "https"
    entry = _entry_of(source, scheme, where)
    class_name = getattr(entry, kind)
    if class_name is None:
        raise ConfigError(_wrong_kind(_scheme(source) or scheme or _ASSUMED, entry, kind), where)
    if not isinstance(source, str):
        source = _checked(source, entry, where, kind)
    return getattr(_import(entry, where), class_name)(source, options=options, config=config, where=where)


def _checked(source: Callable[[], Any], entry: _Entry, where: str, kind: str) -> Callable[[], Any]:
    """Look at what a URL callable returns, each time: a string, for the driver that the pool was made with."""

    def check(url: Any) -> str:
        if not isinstance(url, str):
            raise ConfigError(f"the URL callable must return a string, not {type(url).__name__}", where)
        if _entry(url, where) is not entry:
            raise ConfigError(
                f"the URL callable returned a {_scheme(url)}:// URL, and the pool was made for {_named(entry)}: "
                f"say scheme={_scheme(url)!r} where the pool is made",
                where,
            )
        if take_settings(url.strip(), where)[1]:
            raise ConfigError("settings of the pool can't be in a URL that a callable returns", where)
        return url.strip()

    async def check_awaited(answer: Awaitable[Any]) -> str:
        return check(await answer)

    def ask() -> Any:
        answer = source()
        return check_awaited(answer) if kind == "asynchronous" and inspect.isawaitable(answer) else check(answer)

    async def ask_awaited() -> str:
        return check(await source())

    if not _is_coroutine_function(source):
        return ask
    if kind != "asynchronous":
        raise ConfigError("a coroutine function as the URL is for an AsyncPool: here a plain one is needed", where)
    return ask_awaited


def _is_coroutine_function(source: Callable[[], Any]) -> bool:
    return inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(getattr(source, "__call__", None))  # noqa: B004


def _refuse_misfit(driver: Any, where: str, kind: str) -> None:
    """Refuse what is no driver, or one for the other kind of pool, which would fail in strange ways later."""
    name = type(driver).__name__
    if not (hasattr(driver, "open") and hasattr(driver, "defaults")):
        raise ConfigError(f"expected a URL, a callable that returns one, or a driver, not {name}", where)
    if kind == "sync" and inspect.iscoroutinefunction(driver.open):
        raise ConfigError(f"{name} is a driver for asyncio: use AsyncPool", where)
    if kind == "asynchronous" and not hasattr(driver, "terminate"):
        raise ConfigError(f"{name} is a driver for threads: use Pool, or give it terminate() and coroutines", where)


_ASSUMED = (
    "postgresql"  # what a URL callable returns where `scheme` does not say otherwise: it is not asked before a connect
)


def _entry_of(source: object, scheme: str | None, where: str) -> _Entry:
    return _entry(source, where) if isinstance(source, str) else _known_entry(scheme or _ASSUMED, where)


def _entry(url: str, where: str) -> _Entry:
    scheme, colon, rest = url.strip().partition(":")
    if not colon or not scheme or not rest.startswith("//"):
        begin = repr(scheme + ":") if colon else "no scheme"  # never more of it: what is malformed may hold a password
        raise ConfigError(
            f"malformed URL ({begin}): expected scheme://..., as in postgresql://user@host/database", where
        )
    return _known_entry(scheme, where)


def _known_entry(scheme: str, where: str) -> _Entry:
    entry = SCHEMES.get(scheme.lower())
    if entry is None:
        guess = nearest(scheme, SCHEMES)
        hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(SCHEMES)}"
        raise ConfigError(f"unknown URL scheme {shown(scheme)}: {hint}", where)
    if entry is _PYMYSQL and "+" not in scheme and _is_installed(_MYSQLCLIENT.library):
        return _MYSQLCLIENT
    return entry


def _scheme(source: object) -> str:
    return source.strip().partition(":")[0].lower() if isinstance(source, str) else ""


def _named(entry: _Entry) -> str:
    """Name the scheme that stands for this driver."""
    return next(scheme for scheme, one in SCHEMES.items() if one is entry) + "://"


def _is_installed(library: str) -> bool:
    """Whether there is such a library, and not another under its name (PyMySQL can pass itself off as MySQLdb)."""
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.name == library


def _wrong_kind(scheme: str, entry: _Entry, kind: str) -> str:
    nouns = {"sync": "threads", "asynchronous": "asyncio", "shared": "shared clients"}
    offered = [noun for field, noun in nouns.items() if getattr(entry, field) is not None]
    return f"{scheme}:// is for {' and '.join(offered)} and can't be used with {nouns[kind]}"


def _import(entry: _Entry, where: str) -> Any:
    try:
        library = importlib.import_module(entry.library)
    except ImportError as error:
        raise ConfigError(f"{_missing(entry)} ({error})", where) from error
    whose = library.__name__ if library.__spec__ is None else library.__spec__.name
    if whose != entry.library:
        raise ConfigError(f"{_missing(entry)} ({whose} stands in its place)", where)
    return importlib.import_module(entry.module)


def _missing(entry: _Entry) -> str:
    advice = f": pip install 'poolkit[{entry.extra}]'" if entry.extra else ""
    return f"the driver library {entry.library!r} is not installed{advice}"
