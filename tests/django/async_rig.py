"""What the tests of native async connections share: statements on either driver, and an alias made for one test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
from django.db import connections
from django_rig import database

from poolkit_django import native

DRIVERS = ["psycopg", "asyncpg"]


async def ask(conn: Any, sql: str) -> Any:
    """Return the one value of a query, from either driver's connection."""
    if isinstance(conn, asyncpg.Connection):
        return await conn.fetchval(sql)
    row = await (await conn.execute(sql)).fetchone()
    return row[0] if row else None


async def do(conn: Any, sql: str) -> None:
    """Carry a statement out, on either driver's connection."""
    await conn.execute(sql)


async def until(what: Callable[[], Any], seconds: float = 10.0) -> None:
    """Let the loop go on until the answer is true; fail after so many seconds."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(0.01)


def lent() -> int:
    return sum(pool.stats().out for pool in native.live())


@contextmanager
def another_alias(dsn: str, entries: dict[str, Any] | None = None, **options: Any) -> Iterator[str]:
    """Give DATABASES one more alias, "extra", with such entries and options."""
    given = {**database(dsn, **options), **(entries or {})}
    connections.settings["extra"] = connections.configure_settings({"default": given})["default"]
    try:
        yield "extra"
    finally:
        if hasattr(connections["extra"], "close_pool"):
            connections["extra"].close_pool()
        del connections["extra"], connections.settings["extra"]
