"""An asyncpg connection that is closed already when the pool asks about it."""

from __future__ import annotations

import asyncpg

from poolkit.drivers.asyncpg import AsyncpgDriver


async def test_a_closed_connection_can_be_asked_whether_its_server_was_demoted(pg_dsn):
    """The borrower's own error is what it gets, whatever has become of the connection: asking raises nothing."""
    driver = AsyncpgDriver(pg_dsn)
    conn = await driver.open(10)
    driver.terminate(conn)
    assert driver.is_broken(conn, OSError())
    assert not driver.demoted(conn, OSError())
    assert not driver.demoted(conn, asyncpg.ConnectionDoesNotExistError())
