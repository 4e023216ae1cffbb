"""psycopg in asyncio, connected and configured as the ORM's own connections are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection

from poolkit import PoolConfig
from poolkit.drivers.psycopg import AsyncPsycopgDriver
from poolkit_django.drivers.session import Session

__all__ = ["NativePsycopg"]


class NativePsycopg(AsyncPsycopgDriver[Any]):
    """Opens what `Session` describes. `options` go over the settings of the alias. Raises `ConfigError`."""

    def __init__(self, session: Session, options: Mapping[str, Any], config: PoolConfig, where: str) -> None:
        self._session = session
        self._given = dict(options)
        fixed = {"isolation_level": session.isolation_level, **session.ours, **session.parameters(), **options}
        super().__init__("postgresql://", options=fixed, config=config, where=where)

    def _conninfo(
        self, timeout: float, asked: str | None = None, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        # Asked anew for each connect: an engine may make its password or its host then.
        fresh = {name: value for name, value in self._session.parameters().items() if name not in self._given}
        return super()._conninfo(timeout, asked, {**fresh, **(more or {})})

    async def open(self, timeout: float) -> AsyncConnection[Any]:
        """Connect within `timeout` seconds, and set time zone and role: once for the life of the connection."""
        conn = await super().open(timeout)
        try:
            await self._configure(conn)
        except BaseException:
            self.terminate(conn)
            raise
        self._fit(conn)  # what it is now is its state of rest
        return conn

    async def _configure(self, conn: AsyncConnection[Any]) -> None:
        wanted = {} if self._session.role is None else {"role": self._session.role}
        zone = self._session.time_zone
        if zone and conn.info.parameter_status("TimeZone") != zone:
            wanted["TimeZone"] = zone
        if wanted:
            calls = ", ".join("set_config(%s, %s, false)" for _ in wanted)
            await conn.execute(f"SELECT {calls}".encode(), [text for pair in wanted.items() for text in pair])
