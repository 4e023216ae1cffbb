"""Registries over servers in memory, and drivers that fail where they are told to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from poolkit import AsyncPool, Pool, Registry
from poolkit.testing import FakeAsyncDriver, FakeConnection, FakeDriver, FakeServer, ManualRuntime
from poolkit.unit_settings import UnitSettings


class Deadlock(Exception):
    """What a server raises that has to end one of two."""

    sqlstate = "40P01"


@dataclass
class Faults:
    """What to raise, by the driver's method: each fault once, or as often as it is listed."""

    planned: dict[str, list[BaseException]] = field(default_factory=dict)

    def plan(self, method: str, *errors: BaseException) -> None:
        self.planned.setdefault(method, []).extend(errors)

    def strike(self, method: str) -> None:
        if self.planned.get(method):
            raise self.planned[method].pop(0)


class FaultyDriver(FakeDriver):
    """A fake that raises where `faults` says so, after the server has done its part of a rollback or reset."""

    def __init__(self, server: FakeServer, faults: Faults) -> None:
        super().__init__(server)
        self.faults = faults

    def begin(self, connection: FakeConnection, options: Any = None) -> None:
        self.faults.strike("begin")
        super().begin(connection, options)

    def commit(self, connection: FakeConnection) -> None:
        self.faults.strike("commit")
        super().commit(connection)

    def rollback(self, connection: FakeConnection) -> None:
        super().rollback(connection)
        self.faults.strike("rollback")

    def reset(self, connection: FakeConnection, *, full: bool) -> None:
        super().reset(connection, full=full)
        self.faults.strike("reset")

    def aborted(self, connection: FakeConnection) -> bool:
        self.faults.strike("aborted")
        return super().aborted(connection)

    def statement_error(self, connection: FakeConnection) -> str:
        self.faults.strike("statement_error")
        return "FakeError: bad statement" if connection.aborted else ""

    def is_broken(self, connection: FakeConnection, error: BaseException | None) -> bool:
        self.faults.strike("is_broken")
        return super().is_broken(connection, error)


class FaultyAsyncDriver(FakeAsyncDriver):
    """The same for asyncio; `gate` holds up each step with a name in `held` until it is set."""

    def __init__(self, server: FakeServer, faults: Faults) -> None:
        super().__init__(server)
        self.faults = faults
        self.held: set[str] = set()
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()

    async def _pass(self, method: str) -> None:
        if method in self.held:
            self.reached.set()
            await self.gate.wait()
        self.faults.strike(method)

    async def begin(self, connection: FakeConnection, options: Any = None) -> None:
        await self._pass("begin")
        await super().begin(connection, options)

    async def commit(self, connection: FakeConnection) -> None:
        await self._pass("commit")
        await super().commit(connection)

    async def rollback(self, connection: FakeConnection) -> None:
        await super().rollback(connection)
        await self._pass("rollback")

    async def reset(self, connection: FakeConnection, *, full: bool) -> None:
        await super().reset(connection, full=full)
        await self._pass("reset")

    def aborted(self, connection: FakeConnection) -> bool:
        self.faults.strike("aborted")
        return super().aborted(connection)

    def statement_error(self, connection: FakeConnection) -> str:
        self.faults.strike("statement_error")
        return "FakeError: bad statement" if connection.aborted else ""

    def is_broken(self, connection: FakeConnection, error: BaseException | None) -> bool:
        self.faults.strike("is_broken")
        return super().is_broken(connection, error)


class Rig:
    """A registry with pools "default" and "other" over a server each, for threads; `in_loop` adds those of the loop."""

    def __init__(self, units: UnitSettings | None = None) -> None:
        settings = {name: {"url": "sqlite:///never", "max_size": 2} for name in ("default", "other")}
        self.registry = Registry(settings, units=units)
        self.servers = {name: FakeServer() for name in self.registry.names}
        self.faults = {name: Faults() for name in self.registry.names}
        self.async_drivers: dict[str, FaultyAsyncDriver] = {}
        for name in self.registry.names:
            driver = FaultyDriver(self.servers[name], self.faults[name])
            self.registry._pools[name] = Pool(driver, name=name, max_size=2, runtime=ManualRuntime())

    def in_loop(self) -> Rig:
        pools: dict[str, AsyncPool[Any]] = {}
        for name in self.registry.names:
            driver = self.async_drivers[name] = FaultyAsyncDriver(self.servers[name], self.faults[name])
            pools[name] = AsyncPool(driver, name=name, max_size=2)
        self.registry._async_pools[asyncio.get_running_loop()] = pools
        return self

    def said(self, name: str = "default") -> list[str]:
        """What a server was told, without the numbers of its connections."""
        return [line.partition(":")[2] for line in self.servers[name].log]

    def out(self) -> int:
        """How many connections are borrowed now, of all pools."""
        return sum(stats.out for stats in self.registry.stats())
