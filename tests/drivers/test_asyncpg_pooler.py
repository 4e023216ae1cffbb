"""asyncpg behind a pooler: no reset to a session that may be another's, and a word where one is seen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from poolkit.config import PoolConfig
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.testing import FaultProxy

KEY = b"K\0\0\0\x0c"


@asynccontextmanager
async def pooler(url: str) -> AsyncIterator[str]:
    """Forward to the server, and make up the process ids of its sessions, as poolers do."""
    parts = urlsplit(url)
    tasks: set[asyncio.Task[None]] = set()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await reader.read(65536):
            at = data.find(KEY) if answers else -1
            if at >= 0:
                data, answers = data[: at + 5] + b"\xde\xad\xbe\xef" + data[at + 9 :], False
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(parts.hostname, parts.port)
        for work in (pour(reader, there[1], answers=False), pour(there[0], writer, answers=True)):
            tasks.add(asyncio.ensure_future(work))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    place = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield parts._replace(netloc=place, query="sslmode=disable").geturl()
    server.close()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("settings", "said"), [({}, 1), ({"pooler": "session"}, 0), ({"pooler": "transaction"}, 0), ({"reset": "off"}, 0)]
)
def test_a_pooler_is_told_of_once(
    tables: str, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], said: int
) -> None:
    """A pooler is seen for nothing, and told of once, unless the settings show that it is known."""

    async def main() -> None:
        async with pooler(tables) as url:
            driver = AsyncpgDriver(url, config=PoolConfig(**settings), where="pool 'shop'")
            for _ in range(2):
                conn = await driver.open(10)
                driver.terminate(conn)

    with caplog.at_level(logging.WARNING, "poolkit"):
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records].count(
        "pool 'shop': a pooler stands between here and the server. Where it lends server sessions for one transaction "
        "only, a reset may reach another session: set pooler='transaction', which sends none, or pooler='session'"
    ) == said


def test_a_server_is_not_taken_for_a_pooler(tables: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said of a server itself."""

    async def main() -> None:
        driver = AsyncpgDriver(tables)
        driver.terminate(await driver.open(10))

    asyncio.run(main())
    assert not caplog.records


def test_no_reset_through_a_pooler_of_transactions(tables: str, proxy: FaultProxy) -> None:
    """With pooler="transaction" a return sends nothing but the ROLLBACK of what is open, and nothing is prepared."""

    async def main() -> None:
        driver = AsyncpgDriver(proxy.url(tables), config=PoolConfig(pooler="transaction"))
        conn: Any = await driver.open(10)
        await conn.execute("SET work_mem = '70kB'")
        await conn.fetch("SELECT 1")
        assert await conn.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
        assert not driver.clean(conn)
        for full, trips in ((False, 0), (True, 0)):
            before = proxy.round_trips
            await driver.reset(conn, full=full)
            assert proxy.round_trips - before == trips
            assert driver.clean(conn)
        await conn.execute("BEGIN")
        before = proxy.round_trips
        await driver.reset(conn, full=False)
        assert proxy.round_trips - before == 1
        assert await conn.fetchval("SHOW work_mem") == "70kB"
        driver.terminate(conn)

    asyncio.run(main())
