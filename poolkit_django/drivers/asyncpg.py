"""asyncpg, connected and configured as the ORM's own connections are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from asyncpg.utils import _quote_ident
from django.core.exceptions import ImproperlyConfigured

from poolkit import ConfigError, PoolConfig
from poolkit.drivers._common import hang_up_on
from poolkit.drivers.asyncpg import PARAMETERS, AsyncpgDriver, is_gone
from poolkit_django.drivers.session import Session

__all__ = ["NativeAsyncpg"]

# Said otherwise than as a parameter of the URL, and those that are.
_PLACE = {"client_encoding", "connect_timeout", "dbname", "host", "password", "port", "user"}
_TAKEN = PARAMETERS - _PLACE
_LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")  # as psycopg numbers them, from 1


class NativeAsyncpg(AsyncpgDriver):
    """Opens what `Session` describes. `options` are arguments of `asyncpg.connect`. Raises `ConfigError`."""

    def __init__(self, session: Session, options: Mapping[str, Any], config: PoolConfig, where: str) -> None:
        self._session = session
        given = {**self._suited(where), **session.ours, **options}
        # Sent with the start of the session, so that a reset goes back to them.
        given["server_settings"] = {**self._lasting(where), **(options.get("server_settings") or {})}
        self._check(where)
        super().__init__(self._url, options=given, config=config, where=where)

    def _suited(self, where: str) -> dict[str, Any]:
        suited: dict[str, Any] = {}
        if self._session.is_behind_a_pooler:
            suited["statement_cache_size"] = 0
        patience = self._session.parameters().get("connect_timeout")
        if patience is not None:
            try:
                suited["timeout"] = float(patience)
            except (TypeError, ValueError):
                raise ConfigError(f"connect_timeout must be a number of seconds, not {patience!r}", where) from None
        return suited

    def _lasting(self, where: str) -> dict[str, str]:
        lasting = {}
        if self._session.time_zone:
            lasting["TimeZone"] = self._session.time_zone
        level = self._session.isolation_level
        if level is not None:
            if not isinstance(level, int) or not 1 <= level <= len(_LEVELS):
                raise ConfigError(f"isolation_level must be one of psycopg.IsolationLevel, not {level!r}", where)
            lasting["default_transaction_isolation"] = _LEVELS[level - 1]
        return lasting

    def _check(self, where: str) -> None:
        known = _TAKEN | _PLACE | {"prepare_threshold"}  # the last is the ORM's cursors', as is said on the page
        foreign = sorted(self._session.parameters().keys() - known)
        if foreign:
            raise ConfigError(
                [f"{name!r} in OPTIONS of the alias is libpq's, and asyncpg has nothing like it" for name in foreign]
                + ["remove it, or let POOLKIT_ASYNC name the driver 'psycopg'"],
                where,
            )

    def _url(self) -> str:
        params = self._session.parameters()
        user, password = (quote(str(params.get(name, "")), safe="") for name in ("user", "password"))
        who = f"{user}:{password}@" if password else f"{user}@" if user else ""
        query = {name: str(params[name]) for name in params if name in _TAKEN}
        host, port = str(params.get("host", "")), str(params.get("port", ""))
        if host.startswith("/"):
            query |= {"host": host, **({"port": port} if port else {})}
            hosts = ""
        else:
            hosts = _hosts(host, port)
        name = quote(str(params.get("dbname", "")), safe="")
        return f"postgresql://{who}{hosts}/{name}?{urlencode(query, quote_via=quote)}"

    async def open(self, timeout: float) -> Any:
        """Connect within `timeout` seconds, and take the role: it belongs to the state of rest."""
        conn: Any = await super().open(timeout)
        if self._session.role is not None:
            try:
                await conn.execute(f"SET ROLE {_quote_ident(self._session.role)}")
            except BaseException:
                self.terminate(conn)
                raise
            self.settle(conn)
        return conn

    def cut(self) -> None:
        """End every session at once, whoever uses it, from any thread: their database is about to be dropped."""
        for conn in self.connections():
            hang_up_on(partial(_descriptor, conn))


def _descriptor(conn: Any) -> int | None:
    return None if is_gone(conn) else int(conn._transport.get_extra_info("socket").fileno())  # noqa: SLF001


def _hosts(host: str, port: str) -> str:
    """Put hosts and ports together: PostgreSQL takes several of each, or one port for all."""
    names, ports = host.split(","), port.split(",")
    if len(ports) not in {1, len(names)}:
        raise ImproperlyConfigured(f"HOST names {len(names)} hosts and PORT {len(ports)} ports")
    if len(ports) == 1:
        ports *= len(names)
    pairs = zip(names, ports, strict=True)
    return ",".join((f"[{name}]" if ":" in name else name) + (f":{number}" if number else "") for name, number in pairs)
