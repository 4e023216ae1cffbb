"""Checked by mypy, never run: what a user's editor knows about each object."""

from __future__ import annotations

from typing import Any, assert_type

import psycopg
from psycopg.rows import DictRow, dict_row

import poolkit
from poolkit import AsyncPool, AsyncUnitOfWork, Lease, Pool, PoolConfig, PoolStats, Registry, UnitOfWork
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.drivers.sqlite import SqliteDriver
from poolkit.testing import FakeConnection, FakeDriver


def of_a_driver(url: str) -> None:
    pool = Pool(PsycopgDriver(url))
    with pool.acquire() as conn:
        assert isinstance(conn, psycopg.Connection)
        assert_type(conn.execute("SELECT 1").fetchone(), tuple[Any, ...] | None)
    with pool.transaction() as conn:
        conn.execute("SELECT 1")
        conn.no_such_method()  # type: ignore[attr-defined]
    lease = pool.acquire()
    lease.resource.execute("SELECT 1")
    lease.detach().close()
    assert_type(pool.stats(), PoolStats)
    assert_type(pool.close(), bool)


def of_a_row_factory(url: str) -> None:
    pool = Pool(PsycopgDriver(url, row_factory=dict_row))
    with pool.acquire() as conn:
        assert_type(conn.execute("SELECT 1").fetchone(), DictRow | None)


async def of_an_async_driver(url: str) -> None:
    pool = AsyncPool(AsyncPsycopgDriver(url))
    async with pool.acquire() as conn:
        cursor = await conn.execute("SELECT 1")
        assert_type(await cursor.fetchone(), tuple[Any, ...] | None)
    async with pool.transaction() as conn:
        conn.no_such_method()  # type: ignore[attr-defined]
    lease = await pool.acquire()
    await lease.release()
    lease.release()  # type: ignore[unused-coroutine]


def of_ones_own(driver: FakeDriver) -> None:
    pool = Pool(driver, PoolConfig(max_size=2))
    assert_type(pool, Pool[FakeConnection])
    assert_type(pool.acquire(), Lease[FakeConnection])


def of_a_url(url: str) -> None:
    pool = Pool(url, max_size=8)
    assert_type(pool, Pool[Any])
    with pool.acquire() as conn:
        assert_type(conn, Any)
    assert_type(AsyncPool(lambda: url), AsyncPool[Any])


def what_is_no_source() -> None:
    Pool(5)  # type: ignore[call-overload]
    Pool(AsyncPsycopgDriver("postgresql://db"))  # type: ignore[call-overload]
    AsyncPool(SqliteDriver("sqlite:///x"))  # type: ignore[call-overload]


def units(registry: Registry) -> None:
    with poolkit.unit_of_work() as uow:
        assert_type(uow, UnitOfWork)
        uow.on_commit(lambda: None)
        uow.on_commit(len)  # type: ignore[arg-type]
    with poolkit.unit_of_work(registry, new=True, label="x") as uow:
        assert_type(uow.committed, bool | None)


async def async_units() -> None:
    async with poolkit.async_unit_of_work() as uow:
        assert_type(uow, AsyncUnitOfWork)


@poolkit.retryable()
def transfer(uow: UnitOfWork, amount: int, *, fee: float = 0.0) -> str:
    return f"{amount + fee}"


def retried() -> None:
    assert_type(transfer(5, fee=1.0), str)
    transfer("5")  # type: ignore[arg-type]
    transfer()  # type: ignore[call-arg]
