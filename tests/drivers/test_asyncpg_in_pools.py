"""asyncpg in a pool: what one borrower did or kept is no matter of the next one's."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from state_kinds import POSTGRES, PostgresKind, prepare

from poolkit.aio import AsyncPool
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.errors import LeaseError
from poolkit.testing import FaultProxy


@pytest.mark.parametrize("kind", POSTGRES, ids=str)
def test_the_next_borrower_finds_it_as_new(tables: str, admin: psycopg.Connection[Any], kind: PostgresKind) -> None:
    """Whatever a borrower left in its session, kept or not, the next one finds what it finds on a new connection."""
    prepare(admin.execute)  # type: ignore[arg-type]

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(tables), max_size=1) as pool:
            async with pool.acquire() as conn:
                before = await conn.fetchval(kind.look)
            for _ in range(2):
                async with pool.acquire() as conn:
                    for statement in kind.dirty:
                        await conn.execute(statement)
                async with pool.acquire() as other:
                    assert await other.fetchval(kind.look) == before
                    with pytest.raises(LeaseError):
                        await conn.execute("SELECT 1")
                    assert await other.fetchval(kind.look) == before

    asyncio.run(main())


def test_a_kept_connection_is_refused_while_another_works(tables: str, admin: psycopg.Connection[Any]) -> None:
    """A write through a connection that was given back is refused with the place, and touches nobody's transaction."""

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(tables), max_size=1) as pool:
            for mode in (pool.acquire, pool.transaction):
                async with mode() as kept:
                    await kept.fetch("SELECT 1")
                async with pool.transaction() as conn:
                    await conn.execute("INSERT INTO item VALUES (1)")
                    with pytest.raises(LeaseError, match="was given back at"):
                        await kept.execute("INSERT INTO item VALUES (66)")
                    await conn.execute("DELETE FROM item")
                    await conn.execute("INSERT INTO item VALUES (2) ON CONFLICT DO NOTHING")
            assert pool.stats().opened == 1

    asyncio.run(main())
    assert admin.execute("SELECT id FROM item").fetchall() == [(2,)]


def test_configured_connections(tables: str) -> None:
    """What `configure` did to each new connection is there for every borrower, whatever the one before did."""

    async def configure(conn: Any) -> None:
        await conn.execute("SET search_path TO app")
        await conn.set_type_codec("json", encoder=str, decoder=lambda text: f"<{text}>", schema="pg_catalog")

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(tables), max_size=1, configure=configure) as pool:
            for _ in range(3):
                async with pool.acquire() as conn:
                    assert await conn.fetchval("SHOW search_path") == "app"
                    assert await conn.fetchval("SELECT '1'::json") == "<1>"
                    await conn.execute("SET search_path TO public")
                    await conn.reset_type_codec("json", schema="pg_catalog")
            assert pool.stats().opened == 1

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["cut", "blackhole"])
def test_a_reset_that_fails_is_nobodys(tables: str, proxy: FaultProxy, fault: str) -> None:
    """A session whose reset got no answer is never lent again: the next borrower has another one."""

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(proxy.url(tables)), max_size=1, timeout=10, open_timeout=5) as pool:
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                await conn.execute("SET application_name = 'unclean'")
                getattr(proxy, fault)()
            while pool.stats().resetting:  # noqa: ASYNC110  a pool tells of no such event
                await asyncio.sleep(0.01)
            proxy.heal()
            async with pool.acquire() as other:
                assert other.get_server_pid() != pid
                assert await other.fetchval("SHOW application_name") != "unclean"

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["acquire", "transaction"])
def test_a_migration(tables: str, admin: psycopg.Connection[Any], mode: str) -> None:
    """After a migration no borrower fails whose transaction begins with the statement in question."""

    async def main() -> None:
        admin.execute("DROP TABLE IF EXISTS plan_t; CREATE TABLE plan_t (id int)")
        async with AsyncPool(AsyncpgDriver(tables), max_size=5, order="fifo") as pool:

            async def use() -> None:
                async with getattr(pool, mode)() as conn:
                    await conn.fetch("SELECT * FROM plan_t WHERE id = $1", 1)
                    await asyncio.sleep(0.01)

            await asyncio.gather(*[use() for _ in range(5)])
            admin.execute("ALTER TABLE plan_t ADD COLUMN extra int")
            await asyncio.gather(*[use() for _ in range(10)])

    asyncio.run(main())
