"""Behind a pooler in transaction mode no reset is sent: the session that it would reach is another client's."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from rigs import RIGS, Rig, _AsyncRig

from poolkit import AsyncPool, Pool, PoolConfig
from poolkit.drivers import _pooler
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


@pytest.fixture(params=POSTGRES)
def limited(request: pytest.FixtureRequest, tables: str, proxy: FaultProxy) -> Any:
    """A function that makes a rig with a `statement_timeout`, and a pool over it."""
    made: list[Any] = []

    def make(pooler: str, limit: float | None = 0.5) -> Any:
        config = PoolConfig(pooler=pooler, max_size=1)
        kind = RIGS[request.param]

        def again(**arguments: Any) -> Any:
            options = {
                "statement_timeout": limit,
                "session_settings": {"search_path": "sales, public"} if limit else None,
            }
            return kind.kind(proxy.url(tables), config=config, options=options, **arguments)

        rig: Rig = kind(again(), again)
        pool_type: Any = AsyncPool if isinstance(rig, _AsyncRig) else Pool
        made.append((rig, pool_type(rig.driver, config)))
        return made[-1]

    yield make
    for rig, pool in made:
        rig.run(pool.close())
        rig.close_all()


def shown(rig: Rig, pool: Any, name: str = "statement_timeout") -> list[str]:
    """A setting outside of a transaction, in one, and in one that begins by itself after a commit."""
    seen: list[str] = []
    lease = rig.run(pool.acquire())
    seen.append(rig.value(lease.resource, f"SHOW {name}"))
    rig.run(lease.release())
    rig.transaction(pool, lambda conn: seen.append(rig.value(conn, f"SHOW {name}")))

    def twice(conn: Any) -> None:
        rig.do(conn, "SELECT 1")
        if rig.commits_midway:
            rig.run(conn.commit())
        seen.append(rig.value(conn, f"SHOW {name}"))

    rig.transaction(pool, twice)
    return seen


@pytest.mark.parametrize(("pooler", "outside"), [("auto", "500ms"), ("session", "500ms"), ("transaction", "0")])
def test_a_limit_is_in_the_startup_packet_or_goes_with_each_begin(limited: Any, pooler: str, outside: str) -> None:
    """A pooler in transaction mode has other sessions: there a statement outside of a transaction has none."""
    assert shown(*limited(pooler)) == [outside, "500ms", "500ms"]


@pytest.mark.parametrize("pooler", ["auto", "session", "transaction"])
def test_settings_of_a_session_hold_in_each_transaction(limited: Any, pooler: str) -> None:
    """Also where no session is the pool's own: a statement outside of a transaction then has the server's."""
    ours = "sales, public"
    outside = '"$user", public' if pooler == "transaction" else ours
    assert shown(*limited(pooler), name="search_path") == [outside, ours, ours]


def test_a_limit_goes_with_begin_in_the_same_trip(limited: Any, proxy: FaultProxy) -> None:
    """Where BEGIN rides with the first statement: no round trip more than without a limit."""
    trips: list[int] = []
    for limit in (None, 0.5):
        rig, pool = limited("transaction", limit)
        if not rig.folds:
            pytest.skip("its library sends BEGIN alone")
        rig.transaction(pool, lambda conn, rig=rig: rig.do(conn, "SELECT 1"))
        before = proxy.round_trips
        rig.transaction(pool, lambda conn, rig=rig: rig.do(conn, "SELECT 1"))
        trips.append(proxy.round_trips - before)
    assert trips[0] == trips[1]


def test_a_limit_of_a_pooler_that_was_only_seen(limited: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not have passed the startup packet on, so the limit goes with each BEGIN as well."""
    monkeypatch.setattr(_pooler, "_LARGEST_PID", 0)
    rig, pool = limited("auto")
    lease = rig.run(pool.acquire())
    rig.do(lease.resource, "SET statement_timeout = 0")
    assert rig.driver._pooler.local
    rig.run(lease.release())
    assert shown(rig, pool)[1:] == ["500ms", "500ms"]


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
