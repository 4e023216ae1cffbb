"""How an AsyncUnitOfWork tells what went wrong at its end."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from poolkit import AsyncUnitOfWork, CommitFailed, Registry


@pytest.mark.asyncio
async def test_the_error_of_a_commit_comes_alone(pg_dsn: str) -> None:
    """What `finish` raises was not raised "during the handling of" something of poolkit's own."""
    registry = Registry({"default": {"url": pg_dsn}})
    unit = AsyncUnitOfWork(registry)
    conn = await unit.get()
    with suppress(psycopg.Error):
        await conn.execute("SELECT 1 / 0")
    with pytest.raises(CommitFailed, match="a failed statement") as caught:
        await unit.finish()
    assert caught.value.__context__ is None
    await registry.aclose()
