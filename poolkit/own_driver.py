"""A name whose settings have a driver: an object, a class or function that makes one, or the dotted path of either.

    {"ledger": {"driver": LedgerDriver(host), "max_size": 4}}
    {"ledger": {"driver": "shop.drivers.LedgerDriver", "url": "ledger://host", "options": {"limit": 5}, "max_size": 4}}

A class or function is called with the URL, if there is one, and with the options as keywords. It is imported and called
when it is first asked for: settings are read before the modules of the app are there.
"""

from __future__ import annotations

import inspect
import pkgutil
import threading
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from poolkit.config import shown
from poolkit.driver import SharedClient
from poolkit.errors import ConfigError

__all__ = ["Kind", "OwnDriver", "driver_faults"]

Kind: TypeAlias = Literal["threads", "asyncio", "shared"]


def driver_faults(settings: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a name's `driver`, and with what stands beside it. Imports nothing."""
    given, url, options = settings["driver"], settings.get("url"), settings.get("options")
    faults = []
    if isinstance(given, str):
        parts = given.replace(":", ".").split(".")
        if len(parts) == 1 or not all(part.isidentifier() for part in parts):
            faults.append(f"driver must be an object or its dotted path, not {shown(given)}")
    elif not _is_made(given) and not callable(given):
        faults.append(f"driver must be a driver, what makes one, or a dotted path, not {type(given).__name__}")
    elif _is_made(given) and (url is not None or options):
        faults.append("url and options are for a class or function that makes the driver: this is one already")
    if url is not None and not (isinstance(url, str) or callable(url)):
        faults.append(f"url must be a string or a callable that returns one, not {type(url).__name__}")
    if "scheme" in settings:
        faults.append("scheme is for a URL without a driver: this name has its own")
    return faults


def _is_made(given: object) -> bool:
    """Whether this is a driver or a shared client, and not what makes one."""
    return not inspect.isclass(given) and (hasattr(given, "open") or isinstance(given, SharedClient))


class OwnDriver:
    """The driver of one name, made on first use. `where` says where the settings stand."""

    def __init__(self, settings: Mapping[str, Any], where: str) -> None:
        self._given = settings["driver"]
        self._url = settings.get("url")
        self._options = dict(settings.get("options") or {})
        self._where = where
        self._made: Any = None
        self._lock = threading.Lock()

    def get(self) -> Any:
        """Return the driver: the same one each time. Raises `ConfigError` where it can't be had."""
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make()
        return self._made

    @property
    def kind(self) -> Kind:
        """What the driver is for."""
        driver = self.get()
        if isinstance(driver, SharedClient):
            return "shared"
        return "asyncio" if inspect.iscoroutinefunction(driver.open) else "threads"

    def after_fork_in_child(self) -> None:
        """Have a lock of one's own: a thread of the parent may have had it."""
        self._lock = threading.Lock()

    def _make(self) -> Any:
        given = _imported(self._given, self._where) if isinstance(self._given, str) else self._given
        if not _is_made(given):
            if not callable(given):
                raise ConfigError(f"driver: {self._given!r} is {type(given).__name__}, and no driver", self._where)
            try:
                given = given(*(() if self._url is None else (self._url,)), **self._options)
            except TypeError as error:
                raise ConfigError(f"driver: {self._given!r} can't be made: {error}", self._where) from error
        elif self._url is not None or self._options:
            raise ConfigError("url and options are for what makes the driver: this is one already", self._where)
        if not _is_made(given):
            raise ConfigError(f"driver: {self._given!r} made {type(given).__name__}, and no driver", self._where)
        return given


def _imported(path: str, where: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"driver: {path!r} can't be imported: {error}", where) from error
