"""Registry: the pools and shared clients of one process, by name, each made on first use.

Settings are checked as a whole when the registry is made, and nothing is opened then: a registry may be made at
import, in a master process, in a test. Thread pools and clients are one per process; async pools are one per name and
running loop, because a connection of asyncio belongs to its loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from itertools import chain
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from poolkit import fork
from poolkit.aio import AsyncPool, no_loop
from poolkit.config import PoolConfig, nearest, overlay, shown
from poolkit.driver import SharedClient
from poolkit.drivers import (
    Url,
    async_kind,
    check_scheme,
    check_url,
    is_shared,
    shared_client,
    split_settings,
    sync_kind,
)
from poolkit.errors import ConfigError
from poolkit.own_driver import OwnDriver, driver_faults
from poolkit.stats import PoolStats
from poolkit.tally import Tally
from poolkit.threads import Pool
from poolkit.uncopied import Uncopied
from poolkit.unit_settings import UnitSettings
from poolkit.workers import Workers

__all__ = [
    "Registry",
    "add_finder",
    "configure",
    "default_registry",
    "settings_from_environ",
    "unread_urls",
    "with_environ",
    "with_urls",
]

T = TypeVar("T")
logger = logging.getLogger("poolkit")

IO_THREADS = 32  # for sync connections used from asyncio: only begins and ends run here, each a round trip or two
LAST_WORDS = 0.5  # seconds that a begin or an end under way is given when the program ends


class Registry(Uncopied):
    """The pools of one process, by name.

    `settings` maps a name to its settings: `{"default": {"url": "postgresql://...", "max_size": 8}}`. Beside `url` each
    takes the fields of `PoolConfig` and `options`, a mapping for the driver; `driver` is one of your own, see
    `poolkit.own_driver`; `scheme` says which driver the URLs of a callable are for. Raises one `ConfigError` that names
    everything that is wrong. `where` says where the settings stand, for that error. `units` is how units of work on
    these connections behave.
    """

    _instead = "it has the pools of this process: make one of your own, from the same settings"

    def __init__(
        self, settings: Mapping[str, Mapping[str, Any]], *, where: str = "poolkit settings",
        units: UnitSettings | None = None,
    ) -> None:  # fmt: skip
        self._where = where
        self.units = units or UnitSettings()
        self._settings = _checked(settings, where)
        self._drivers = {
            name: OwnDriver(options, self._at(name)) for name, options in self._settings.items() if "driver" in options
        }
        self._start()
        fork.know(self)

    advice = ""
    """What a framework has to say to code that uses a connection after its return; see `Returned`."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ, *, units: UnitSettings | None = None) -> Registry:
        """Read `DATABASE_URL`, `POOLKIT_<NAME>_URL` and `POOLKIT_<NAME>_<SETTING>`."""
        return cls(settings_from_environ(environ), where="environment", units=units)

    def _start(self) -> None:
        self._lock = threading.RLock()
        self.tally = Tally()  # a child of a fork counts afresh
        self._pools: dict[str, Pool[Any]] = {}
        self._clients: dict[str, SharedClient[Any]] = {}
        self._shared: dict[str, bool] = {}
        self._async_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncPool[Any]]] = WeakKeyDictionary()
        self._workers: Workers | None = None

    # -- by name --------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, in the order of the settings."""
        return tuple(self._settings)

    def __contains__(self, name: object) -> bool:
        return name in self._settings

    def url(self, name: str = "default") -> Url:
        """The URL, password included: for code that connects by itself, not for a page.

        Raises `ConfigError` for an unknown name, and for a name with a driver and no URL.
        """
        url: Url | None = self._of(name).get("url")
        if url is None:
            raise ConfigError("has a driver of its own, and no url", self._at(name))
        return url

    def check(self, name: str) -> None:
        """Raise `ConfigError` for an unknown name, with the nearest right one."""
        self._of(name)

    def source(self, name: str = "default") -> Any:
        """What the name connects with: a driver of its own, else the URL. Raises `ConfigError` for an unknown name."""
        own = self._drivers.get(name)
        return self.url(name) if own is None else own.get()

    def shares(self, name: str) -> bool:
        """Whether this name is a shared client, which is used and not leased."""
        shared = self._shared.get(name)
        if shared is None:  # looked up once: each request asks, and to take a URL apart is 3 us
            own = self._drivers.get(name)
            shared = self._shared[name] = (
                is_shared(self.url(name), where=self._at(name), scheme=self._of(name).get("scheme"))
                if own is None
                else own.kind == "shared"
            )
        return shared

    def is_for_threads(self, name: str) -> bool:
        """Whether this name is leased, and a thread pool can be made of it."""
        own = self._drivers.get(name)
        if own is not None:
            return own.kind == "threads"
        return not self.shares(name) and sync_kind(self.url(name), self._of(name).get("scheme"))

    def is_for_asyncio(self, name: str) -> bool:
        """Whether this name is leased, and an async pool can be made of it."""
        own = self._drivers.get(name)
        if own is not None:
            return own.kind == "asyncio"
        return not self.shares(name) and async_kind(self.url(name), self._of(name).get("scheme"))

    def pool(self, name: str = "default") -> Pool[Any]:
        """Return this process's thread pool, made on first use. Raises `ConfigError` for an unknown name."""
        pool = self._pools.get(name)
        if pool is None:
            with self._lock:
                pool = self._pools.get(name)
                if pool is None:  # making it may ask for a URL, and let another greenlet come here first
                    pool = self._pools.setdefault(name, self._make(name, Pool))
        return pool

    def async_pool(self, name: str = "default") -> AsyncPool[Any]:
        """Return the running loop's pool, made on first use."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop(name) from None
        pools = self._async_pools.get(loop)
        if pools is None:
            with self._lock:
                self._leave_closed_loops()
                pools = self._async_pools.setdefault(loop, {})
        pool = pools.get(name)
        if pool is None:
            pool = pools[name] = self._make(name, AsyncPool)
        return pool

    def _leave_closed_loops(self) -> None:
        """Let go of the connections of loops that were closed before their pools: a loop per call, say, in tests."""
        for loop in [loop for loop in self._async_pools if loop.is_closed()]:
            for pool in self._async_pools.pop(loop).values():
                pool.at_exit()

    def client(self, name: str) -> SharedClient[Any]:
        """Return this process's shared client, made on first use."""
        client = self._clients.get(name)
        if client is None:
            with self._lock:
                client = self._clients.get(name)
                if client is None:
                    settings = dict(self._of(name))
                    own = self._drivers.get(name)
                    client = (
                        shared_client(settings.pop("url"), settings, where=self._at(name))
                        if own is None
                        else self._shared_of(name, own)
                    )
                    self._clients[name] = client
        return client

    def _make(self, name: str, kind: Callable[..., T]) -> T:
        settings = dict(self._of(name))
        own = self._drivers.get(name)
        source = settings.pop("url", None)
        if own is not None:
            source = own.get()
            del settings["driver"]
            settings.pop("options", None)
        pool: Any = kind(source, name=name, **settings)
        pool.advice = self.advice
        made: T = pool
        return made

    def _shared_of(self, name: str, own: OwnDriver) -> SharedClient[Any]:
        client: SharedClient[Any] = own.get()
        if own.kind != "shared":
            raise ConfigError("is a pool, and no shared client", self._at(name))
        return client

    def _of(self, name: str) -> Mapping[str, Any]:
        settings = self._settings.get(name)
        if settings is None:
            guess = nearest(str(name), self._settings)
            known = (
                f"did you mean {guess!r}?" if guess else f"known are {', '.join(map(repr, self._settings)) or 'none'}"
            )
            hint = "" if self._settings else ". Set POOLKIT in the app's settings, or DATABASE_URL in the environment"
            raise ConfigError(f"no connection named {shown(name)}: {known}{hint}", self._where)
        return settings

    def _at(self, name: str) -> str:
        return f"{self._where}, {name!r}"

    # -- life -----------------------------------------------------------------------------------------------------

    def warm(self, timeout: float | None = None) -> bool:
        """Open the thread pools' first connections; returns whether all are there.

        Never raises for an absent server.
        """
        names = [name for name in self._settings if self.is_for_threads(name)]
        results = [self.pool(name).warm(timeout) for name in names]  # a list: every pool is to be tried
        return all(results)

    async def awarm(self, timeout: float | None = None) -> bool:
        """Open the running loop's first connections, all pools at once."""
        names = [name for name in self._settings if self.is_for_asyncio(name)]
        return all(await asyncio.gather(*(self.async_pool(name).warm(timeout) for name in names)))

    def live_pools(self) -> Iterator[Pool[Any] | AsyncPool[Any]]:
        """Every pool that exists in this process now: thread pools, and the async pools of all loops."""
        with self._lock:
            loops = [list(pools.values()) for pools in self._async_pools.values()]
            return chain(list(self._pools.values()), *loops)

    def live_clients(self) -> dict[str, SharedClient[Any]]:
        """The shared clients made so far."""
        with self._lock:
            return dict(self._clients)

    def stats(self) -> list[PoolStats]:
        """One snapshot per live pool."""
        return [pool.stats() for pool in self.live_pools()]

    def ready(self, timeout: float = 1.0) -> bool:
        """Whether every thread pool in use can serve (see `Pool.ready`); one is made for a name never used before."""
        names = [name for name in self._settings if self.is_for_threads(name)]
        return all(self.pool(name).ready(timeout) for name in names)

    async def aready(self, timeout: float = 1.0) -> bool:
        """The same for the running loop's pools, at once. Names that only threads can use are asked in a thread."""
        checks: list[Coroutine[Any, Any, bool]] = []
        for name in self._settings:
            if self.shares(name):
                continue
            if self.is_for_asyncio(name):
                checks.append(self.async_pool(name).ready(timeout))
            else:
                checks.append(self.in_thread(self.pool(name).ready, timeout))
        return all(await asyncio.gather(*checks))

    def close(self, timeout: float | None = None) -> None:
        """Close thread pools and clients, waiting up to `timeout` seconds in all for what is out.

        They are made anew if asked for.
        """
        self._close_pools(self._take_pools(), timeout)
        self._close_clients()

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the running loop's pools and the thread pools, all at once, then the clients; the loop goes on."""
        own = list(self._async_pools.pop(asyncio.get_running_loop(), {}).values())
        pools = self._take_pools()
        aside = Workers(1, "poolkit-close")  # its own: all the others may be waiting for a server that is gone
        try:
            threads = [aside.submit(self._close_pools, pools, timeout)] if pools else []
            await asyncio.gather(
                *(self._aclose_pool(pool, timeout) for pool in own), *map(asyncio.wrap_future, threads)
            )
            if self._clients or self._workers is not None:
                await asyncio.wrap_future(aside.submit(self._close_clients))
        finally:
            aside.stop()

    def _take_pools(self) -> list[Pool[Any]]:
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        return pools

    def _close_pools(self, pools: list[Pool[Any]], timeout: float | None) -> None:
        began = monotonic()
        for pool in pools:  # from now on nobody new comes in, while the first of them is waited for
            pool.close(0)
        for pool in pools:
            limit = pool.config.close_timeout if timeout is None else timeout
            _report(pool, complete=pool.close(max(0.0, limit - (monotonic() - began))))

    async def _aclose_pool(self, pool: AsyncPool[Any], timeout: float | None) -> None:
        _report(pool, complete=await pool.close(timeout))

    def _close_clients(self) -> None:
        """Last, for who still had a connection may have needed them: the clients, and the threads for asyncio."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
            workers, self._workers = self._workers, None
        for client in clients:
            client.close()
        if workers is not None:
            workers.stop()

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run sync I/O of poolkit's own in threads of its own, so that no other limit on threads can block it."""
        with self._lock:
            if self._workers is None:
                self._workers = Workers(IO_THREADS, "poolkit-io")
            workers = self._workers
        return await asyncio.wrap_future(workers.submit(work, *arguments))

    def after_fork_in_child(self) -> None:
        """The pools know by themselves; clients are told, and the lock may be held by a thread that isn't here."""
        for client in self._clients.values():
            client.abandon()
        for own in self._drivers.values():
            own.after_fork_in_child()
        pools, clients, async_pools = self._pools, self._clients, self._async_pools
        fork.keep((async_pools, self._workers))
        self._start()
        self._pools, self._clients = pools, clients

    def at_exit(self) -> None:
        """Let a begin or an end under way come to its end, and close the clients; the pools close by themselves."""
        if self._workers is not None:
            self._workers.settle(LAST_WORDS)
        for client in self._clients.values():
            client.close()

    def __repr__(self) -> str:
        return f"<Registry of {', '.join(self._settings) or 'nothing'}>"


def _report(pool: Pool[Any] | AsyncPool[Any], *, complete: bool) -> None:
    if not complete:
        logger.warning("pool %r: still in use at close: %s", pool.name, "; ".join(map(str, pool.holders())))


def _checked(settings: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Mapping[str, Any]]:
    """Check all settings without opening anything or importing a driver; raise one error for all."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"must map names to settings, not {type(settings).__name__}", where)
    problems: list[str] = []
    for name, options in settings.items():
        problems += [f"{shown(name)}: {text}" for text in (*_name_faults(name), *_faults(options))]
    if problems:
        raise ConfigError(problems, where)
    return {name: _joined(options) for name, options in settings.items()}


def _joined(options: Mapping[str, Any]) -> dict[str, Any]:
    """Put the pool's settings that stand in the URL beside it: what is left of it is for anybody to connect with."""
    rest = dict(options)
    if "driver" in rest:
        return rest
    url = rest.pop("url")
    if isinstance(url, str):
        url, rest = split_settings(url, rest)
    return {"url": url, **rest}


def _name_faults(name: object) -> list[str]:
    if not isinstance(name, str) or not name:
        return ["a name is a text that is not empty"]
    return ["a name is a word, and the URL goes into its settings"] if "://" in name else []


def _faults(options: object) -> list[str]:
    if not isinstance(options, Mapping):
        return [f"must be a mapping with a url, not {type(options).__name__}"]
    rest = dict(options)
    faults: list[str] = []
    url = rest.pop("url", None)
    if "driver" in rest:
        faults += driver_faults(options)
        rest.pop("driver")
    elif url is None or url == "":
        faults.append("has no url; give one, for instance postgresql://user@host/database")
    elif isinstance(url, str):
        faults += _problems(lambda: check_url(url))
        if "scheme" in rest:
            faults.append("scheme is for a URL callable: this URL has its own")
    elif not callable(url):
        faults.append(f"url must be a string or a callable that returns one, not {type(url).__name__}")
    elif rest.get("scheme") is not None:
        faults += _problems(lambda: check_scheme(rest["scheme"]))
    rest.pop("scheme", None)
    driver_options = rest.pop("options", None)
    if driver_options is not None and not isinstance(driver_options, Mapping):
        faults.append(f"options must be a mapping of driver settings, not {type(driver_options).__name__}")
    if isinstance(url, str) and not faults and "driver" not in options:
        return _problems(lambda: PoolConfig.from_mapping(split_settings(url, rest)[1]))
    return faults + _problems(lambda: PoolConfig.from_mapping(rest))


def _problems(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return error.problems
    return []


def settings_from_environ(environ: Mapping[str, str] = os.environ) -> dict[str, dict[str, Any]]:
    """Read settings from environment variables.

    `DATABASE_URL` is "default"; `POOLKIT_<NAME>_URL` adds a name; `POOLKIT_<NAME>_MAX_SIZE` and so on set a field of
    it. Raises `ConfigError` naming the variable.
    """
    if environ.get("POOLKIT_URL"):
        raise ConfigError("POOLKIT_URL has no name in it: it is DATABASE_URL, or POOLKIT_<NAME>_URL", "environment")
    settings: dict[str, dict[str, Any]] = {}
    if environ.get("DATABASE_URL"):
        settings["default"] = {"url": environ["DATABASE_URL"]}
    settings.update({name: {"url": environ[variable]} for name, variable in _url_variables(environ).items()})
    return with_environ(settings, environ)


def _url_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Find the `POOLKIT_<NAME>_URL` that are set, by name. POOLKIT_TEST_... are those of poolkit's own tests."""
    return {
        variable.removeprefix("POOLKIT_").removesuffix("_URL").lower(): variable
        for variable, value in environ.items()
        if variable.startswith("POOLKIT_") and variable.endswith("_URL") and value.strip()
        if len(variable) > len("POOLKIT_URL") and not variable.startswith("POOLKIT_TEST_")
    }


def with_urls(settings: Mapping[Any, Any], environ: Mapping[str, str]) -> dict[Any, Any]:
    """Let `POOLKIT_<NAME>_URL` take the place of a name's `url`; "default" without one has `DATABASE_URL`.

    Raises `ConfigError` where the variable is set for a name that has a driver of its own.
    """
    variables = _url_variables(environ)
    joined = dict(settings)
    for name, options in settings.items():
        if not isinstance(name, str) or not isinstance(options, Mapping):
            continue  # what is wrong with it is said by the registry
        url = environ.get(variables.get(name.lower(), ""), "")
        if url and "driver" in options:
            raise ConfigError(
                f"{variables[name.lower()]} is set, and {name!r} has a driver in the settings: take one of them away",
                "environment",
            )
        if not url and name == "default" and not options.get("url") and "driver" not in options:
            url = environ.get("DATABASE_URL", "")
        if url:
            joined[name] = {**{key: value for key, value in options.items() if key != "scheme"}, "url": url}
    return joined


def unread_urls(settings: Mapping[Any, Any], environ: Mapping[str, str]) -> list[str]:
    """List the `POOLKIT_<NAME>_URL` that are set for names that are not in the settings."""
    known = {name.lower() for name in settings if isinstance(name, str)}
    return sorted(variable for name, variable in _url_variables(environ).items() if name not in known)


def with_environ(settings: Mapping[str, Mapping[str, Any]], environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Let `POOLKIT_<NAME>_<SETTING>` override the settings: a deployment sizes its pools, the code need not."""
    return {
        name: overlay(options, PoolConfig.options_from_environ(environ, f"POOLKIT_{name.upper()}"))
        for name, options in settings.items()
    }


_default: Registry | None = None
_of_environ: Registry | None = None
_finders: list[Callable[[], Registry | None]] = []
_process_finders: list[Callable[[], Registry | None]] = []


def configure(settings: Mapping[str, Mapping[str, Any]] | Registry) -> Registry:
    """Set the registry that `poolkit.unit_of_work()` uses in this process. Returns it."""
    global _default  # noqa: PLW0603  one default per process is the point
    registry = settings if isinstance(settings, Registry) else Registry(settings)
    _default = registry
    return registry


def add_finder(find: Callable[[], Registry | None], *, last: bool = False) -> None:
    """For integrations: where to look for the registry of the app this code runs for.

    `last` is for one who speaks for the whole process (Django's settings) rather than for the request or app at hand:
    it is asked after all others, whichever was imported first.
    """
    finders = _process_finders if last else _finders
    if find not in finders:
        finders.append(find)


def default_registry() -> Registry:
    """Return the configured registry, else that of the app this code runs for, else one made from the environment."""
    global _of_environ  # noqa: PLW0603
    if _default is not None:
        return _default
    for find in (*_finders, *_process_finders):
        registry = find()
        if registry is not None:
            return registry
    with _making.lock:
        if _of_environ is None:
            _of_environ = Registry.from_environ()
        return _of_environ


class _Making:
    """The lock around making it, new in the child of a fork: a thread of the parent may have held it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        fork.know(self)

    def after_fork_in_child(self) -> None:
        self.lock = threading.Lock()

    def at_exit(self) -> None:
        """Nothing is open here."""


_making = _Making()
