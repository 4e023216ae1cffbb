"""Behind a pooler in transaction mode no reset is sent: the session that it would reach is another client's."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from rigs import RIGS, Rig, _AsyncRig

from poolkit import AsyncPool, Pool, PoolConfig
from poolkit.testing import FaultProxy

POSTGRES = [name for name, rig in RIGS.items() if rig.postgres and "uvloop" not in name]


@pytest.fixture(params=POSTGRES)
def behind(request: pytest.FixtureRequest, tables: str, proxy: FaultProxy) -> Any:
    """A rig whose driver is told of a pooler, and a pool over it."""
    config = PoolConfig(pooler="transaction", max_size=1)
    kind = RIGS[request.param]

    def again(**arguments: Any) -> Any:
        return kind.kind(proxy.url(tables), config=config, **arguments)

    rig: Rig = kind(again(), again)
    pool_type: Any = AsyncPool if isinstance(rig, _AsyncRig) else Pool
    pool = pool_type(rig.driver, config)
    yield rig, pool
    rig.run(pool.close())
    rig.close_all()


def borrow(rig: Rig, pool: Any, *statements: str) -> None:
    lease = rig.run(pool.acquire())
    for statement in statements:
        rig.rows(lease.resource, statement)
    rig.run(lease.release())


def test_no_reset_is_sent(behind: tuple[Rig, Any], proxy: FaultProxy) -> None:
    """What a borrower has SET stays where it is: with whoever has the server's session by then."""
    rig, pool = behind
    lease = rig.run(pool.acquire())
    rig.do(lease.resource, "SET work_mem = '1MB'", "SELECT pg_advisory_lock(1)", "LISTEN news")
    before = proxy.round_trips
    rig.run(lease.release())
    assert pool.stats().resetting == 0
    assert pool.stats().idle == 1
    assert proxy.round_trips == before
    borrow(rig, pool, "UNLISTEN *", "SELECT pg_advisory_unlock_all()")


def test_an_open_transaction_is_rolled_back(behind: tuple[Rig, Any]) -> None:
    """That reaches the right session, for the pooler lends it until the transaction ends."""
    rig, pool = behind
    borrow(rig, pool, "BEGIN", "INSERT INTO item VALUES (4)")
    lease = rig.run(pool.acquire())
    assert rig.value(lease.resource, "SELECT count(*) FROM item WHERE id = 4") == 0
    rig.run(lease.release())


def test_a_setting_that_the_pooler_keeps_replaces_the_connection(
    behind: tuple[Rig, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Poolers follow what the server reports, a time zone say, for each client: the next borrower would find it."""
    rig, pool = behind
    caplog.set_level(logging.WARNING)
    borrow(rig, pool, "SET TIME ZONE 'Asia/Tokyo'")
    lease = rig.run(pool.acquire())
    assert rig.value(lease.resource, "SHOW TimeZone") != "Asia/Tokyo"
    rig.run(lease.release())
