"""psycopg in asyncio, connected and configured as the ORM's own connections are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakSet

from psycopg import AsyncConnection

from poolkit import PoolConfig
from poolkit.drivers._common import hang_up_on
from poolkit.drivers.psycopg import AsyncPsycopgDriver, descriptor
from poolkit_django.drivers.session import Session

__all__ = ["NativePsycopg"]


class NativePsycopg(AsyncPsycopgDriver[Any]):
    """Opens what `Session` describes. `options` go over the settings of the alias. Raises `ConfigError`."""

    def __init__(self, session: Session, options: Mapping[str, Any], config: PoolConfig, where: str) -> None:
        self._session = session
        self._given = dict(options)
        self._opened: WeakSet[AsyncConnection[Any]] = WeakSet()
        fixed = {"isolation_level": session.isolation_level, **session.parameters(), **options}
        super().__init__("postgresql://", options=fixed, config=config, where=where)

    def _conninfo(self, timeout: float, asked: str | None = None) -> dict[str, Any]:
        # Asked anew for each connect: an engine may make its password or its host then.
        fresh = {name: value for name, value in self._session.parameters().items() if name not in self._given}
        return {**super()._conninfo(timeout, asked), **fresh}

    async def open(self, timeout: float) -> AsyncConnection[Any]:
        """Connect within `timeout` seconds, and set time zone and role: once for the life of the connection."""
        conn = await super().open(timeout)
        try:
            await self._configure(conn)
        except BaseException:
            self.terminate(conn)
            raise
        self._opened.add(conn)
        return conn

    async def reset(self, resource: AsyncConnection[Any], *, full: bool) -> None:
        """Make as new; a full reset takes time zone and role away, so they are set again."""
        await super().reset(resource, full=full)
        if full:
            await self._configure(resource)

    async def _configure(self, conn: AsyncConnection[Any]) -> None:
        wanted = {} if self._session.role is None else {"role": self._session.role}
        zone = self._session.time_zone
        if zone and conn.info.parameter_status("TimeZone") != zone:
            wanted["TimeZone"] = zone
        if wanted:
            calls = ", ".join("set_config(%s, %s, false)" for _ in wanted)
            await conn.execute(f"SELECT {calls}".encode(), [text for pair in wanted.items() for text in pair])

    def cut(self) -> None:
        """End every session at once, whoever uses it, from any thread: their database is about to be dropped."""
        for conn in list(self._opened):
            hang_up_on(partial(descriptor, conn))
