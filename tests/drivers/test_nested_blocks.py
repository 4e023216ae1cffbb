"""A nested block whose connection the work itself ends or closes, with each library for threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolkit import Registry, UnitOfWorkError, async_unit_of_work, unit_of_work

SCHEMES = ["postgresql", "postgresql+psycopg2", "mysql+pymysql", "sqlite"]


def run(conn: Any, statement: str) -> list[Any]:
    cursor = conn.cursor()
    cursor.execute(statement)
    return list(cursor.fetchall()) if cursor.description else []


@pytest.fixture(params=SCHEMES)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    scheme: str = request.param
    if scheme == "sqlite":
        url = f"sqlite:///{tmp_path}/x.db"
    else:
        url = request.getfixturevalue("mysql_tables" if scheme.startswith("mysql") else "tables")
        url = f"{scheme}://{url.partition('://')[2]}"
    registry = Registry({"default": {"url": url, "max_size": 2}})
    if scheme == "sqlite":
        with unit_of_work(registry) as uow:
            run(uow.get(), "CREATE TABLE item (id integer PRIMARY KEY)")
    yield registry
    registry.close()


def saved(registry: Registry) -> list[Any]:
    with unit_of_work(registry) as uow:
        return [row[0] for row in run(uow.get(), "SELECT id FROM item ORDER BY id")]


@pytest.mark.parametrize("again", [False, True])
def test_a_connection_that_the_block_closed(registry: Registry, *, again: bool) -> None:
    """With nothing written on it there is nothing to undo: the block ends well, and what comes after is saved."""
    with unit_of_work(registry) as uow:
        run(uow.get(), "SELECT 1")
        with unit_of_work(registry, nested=True):
            uow.get().close()
            if again:
                run(uow.get(), "INSERT INTO item VALUES (1)")
        run(uow.get(), "INSERT INTO item VALUES (2)")
    assert saved(registry) == ([1, 2] if again else [2])


def test_a_connection_that_was_closed_before_the_block(registry: Registry) -> None:
    """It has no savepoint."""
    with unit_of_work(registry) as uow:
        run(uow.get(), "SELECT 1")
        uow.get().close()
        with unit_of_work(registry, nested=True):
            run(uow.get(), "INSERT INTO item VALUES (1)")
    assert saved(registry) == [1]


def test_what_a_failed_block_did_after_it_had_closed(registry: Registry) -> None:
    """It is undone with the transaction that the block itself has begun."""
    with unit_of_work(registry) as uow:
        run(uow.get(), "SELECT 1")
        with pytest.raises(LookupError), unit_of_work(registry, nested=True):  # noqa: PT012
            uow.get().close()
            run(uow.get(), "INSERT INTO item VALUES (1)")
            raise LookupError
        run(uow.get(), "INSERT INTO item VALUES (2)")
    assert saved(registry) == [2]


def end_inside(registry: Registry, op: str, *, fails: bool) -> None:
    with unit_of_work(registry) as uow:
        run(uow.get(), "INSERT INTO item VALUES (1)")
        with unit_of_work(registry, nested=True):
            getattr(uow.get(), op)()
            run(uow.get(), "INSERT INTO item VALUES (2)")
            if fails:
                raise LookupError


@pytest.mark.parametrize("op", ["commit", "rollback"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_transaction_that_the_block_ended(registry: Registry, op: str, *, fails: bool) -> None:
    """Its savepoint is gone with it: the end of the block is an error that says so, and nothing after is saved."""
    with pytest.raises(UnitOfWorkError, match=r"savepoint of this nested block on 'default' is gone"):
        end_inside(registry, op, fails=fails)
    assert saved(registry) == ([1] if op == "commit" else [])


async def close_inside(registry: Registry) -> None:
    async with async_unit_of_work(registry) as uow:
        await (await uow.get()).execute("SELECT 1")
        async with async_unit_of_work(registry, nested=True):
            await (await uow.get()).close()
        await (await uow.get()).execute("INSERT INTO item VALUES (2)")


async def commit_inside(registry: Registry) -> None:
    async with async_unit_of_work(registry) as uow:
        await (await uow.get()).execute("SELECT 1")
        async with async_unit_of_work(registry, nested=True):
            await (await uow.get()).execute("COMMIT")


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg"])
async def test_in_asyncio(tables: str, scheme: str) -> None:
    """The same for the libraries for asyncio: one that was closed has no savepoint, one that ended says so."""
    registry = Registry({"default": {"url": tables.replace("postgresql", scheme, 1), "max_size": 2}})
    try:
        await close_inside(registry)
        with pytest.raises(UnitOfWorkError, match=r"savepoint of this nested block on 'default' is gone"):
            await commit_inside(registry)
    finally:
        await registry.aclose()
