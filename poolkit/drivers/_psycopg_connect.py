"""The time for one connect, shared among the addresses that psycopg tries one after the other.

A host may be a name with several addresses, and several hosts may come from the URL, the environment or a service file.
Each address gets its share of the time that is left, so that one which swallows everything leaves the others theirs.
Those that failed in the last minute are tried last.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from poolkit.drivers import _service
from poolkit.drivers._libpq import failure_kind

__all__ = ["Addresses", "Patience", "hosts_of_service", "within"]

T = TypeVar("T")
_Address = tuple[str, str, str]

_REMEMBERED = 60.0  # seconds for which an address that failed is tried last
_PLACE = ("host", "hostaddr", "port")


class Addresses:
    """Which of a driver's addresses failed of late."""

    def __init__(self) -> None:
        self._failed: dict[_Address, float] = {}

    def in_order(self, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Put those that failed of late behind the others, the last to fail last."""
        now = monotonic()
        self._failed = {address: when for address, when in self._failed.items() if now - when < _REMEMBERED}
        return sorted(attempts, key=lambda attempt: self._failed.get(_address(attempt), 0.0))

    def worked(self, address: _Address) -> None:
        """Note that a connect to an address succeeded, or was refused by a server that is there."""
        self._failed.pop(address, None)

    def failed(self, address: _Address) -> None:
        """Note that no server was reached at an address in time."""
        self._failed[address] = monotonic()


def _address(attempt: Mapping[str, Any]) -> _Address:
    host, hostaddr, port = (str(attempt.get(name) or "") for name in _PLACE)
    return host, hostaddr, port


class Patience:
    """The time for one connect."""

    current: ContextVar[Patience | None] = ContextVar("poolkit_psycopg_patience", default=None)

    def __init__(self, seconds: float, addresses: Addresses) -> None:
        self._deadline = monotonic() + seconds
        self._seconds = seconds
        self._addresses = addresses
        self._left = 1  # addresses that were not tried yet
        self._begun: list[Generator[Any, Any, Any]] = []

    def spread(self, params: dict[str, Any], attempts: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the attempts that psycopg would make of `params` into them, in the order in which to make them."""
        if params.get("load_balance_hosts") != "random":
            attempts = self._addresses.in_order(attempts)
        self._left = len(attempts)
        if params.get("target_session_attrs") == "prefer-standby":
            self._left *= 2  # psycopg tries each for a standby, and then for any server
        lists = {name: [str(attempt.get(name) or "") for attempt in attempts] for name in _PLACE}
        return {**params, **{name: ",".join(values) for name, values in lists.items() if any(values)}}

    def bound(self, steps: Generator[Any, Any, T], conninfo: str) -> Generator[Any, Any, T]:
        """Give psycopg's steps of a connect the next address's share of the time."""
        self._begun.append(self._bounded(steps, _address(conninfo_to_dict(conninfo)), self.share()))
        return self._begun[-1]

    def end(self) -> None:
        """Close what was begun: a cancelled connect's socket would stay open as long as the error is kept."""
        for steps in self._begun:
            steps.close()

    def share(self) -> float:
        """Seconds for the next address, none where the time is up."""
        left = max(0.0, self._deadline - monotonic())
        addresses, self._left = self._left, max(1, self._left - 1)
        return left / addresses

    def _bounded(self, steps: Generator[Any, Any, T], address: _Address, seconds: float) -> Generator[Any, Any, T]:
        """Run the steps for so long at most: psycopg's own limit is in whole seconds, and two at least."""
        deadline = monotonic() + seconds
        reached = False
        try:
            if not seconds:
                raise errors.ConnectionTimeout(f"no time left of {self._seconds:.2f} s for this address")
            wanted = next(steps)
            while True:
                ready = yield wanted
                if monotonic() >= deadline:
                    raise errors.ConnectionTimeout(f"no connection within {seconds:.2f} s")
                wanted = steps.send(ready)
        except StopIteration as end:
            reached = True
            result: T = end.value
            return result
        except psycopg.Error as error:
            reached = failure_kind(error) == "refused"
            raise
        finally:
            steps.close()
            self._addresses.worked(address) if reached else self._addresses.failed(address)


@contextmanager
def within(timeout: float, addresses: Addresses) -> Iterator[None]:
    """Give the connects in this block so many seconds in all."""
    patience = Patience(timeout, addresses)
    token = Patience.current.set(patience)
    try:
        yield
    finally:
        Patience.current.reset(token)
        patience.end()


def hosts_of_service(params: Mapping[str, Any]) -> dict[str, str]:
    """Read where a service file says the server is: libpq would try its hosts without an end to each."""
    service = params.get("service") or os.environ.get("PGSERVICE")
    if not service or any(params.get(name) for name in ("host", "hostaddr")):
        return {}
    given = _service.parameters(str(service))
    return {name: given[name] for name in _PLACE if name in given and name not in params}
