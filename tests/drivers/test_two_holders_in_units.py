"""In a unit of work as well: never two holders of one connection, whichever thread closes it, and no lease is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from closing_rig import SAME_OBJECT, THREADED, Thread
from rigs import RIGS, Rig

from poolkit import AsyncUnitOfWork, LeaseError, Registry, UnitOfWork

SCHEMES = {"psycopg2": "postgresql+psycopg2", "mysqlclient": "mysql+mysqlclient"}


@pytest.fixture(params=THREADED)
def rig_name(request: pytest.FixtureRequest) -> str:
    """Every driver for threads once."""
    name: str = request.param
    return name


@pytest.fixture
def registry(rig: Rig, rig_name: str, url: str) -> Iterator[Registry]:
    """A pool with two connections, of which the last that came back is lent next."""
    scheme, _, rest = url.partition("://")
    made = Registry({"default": {"url": f"{SCHEMES.get(rig_name, scheme)}://{rest}", "max_size": 2, "timeout": 2}})
    yield made
    assert all(stats.out == 0 for stats in made.stats())
    made.close(5)


def test_what_the_unit_has_closed_is_refused_until_its_end(rig: Rig, registry: Registry) -> None:
    """Also when it has taken another since, and the first is lent to another thread."""
    unit = UnitOfWork(registry)
    with Thread() as other:
        closed = unit.get()
        closed.close()
        block = other(registry.pool("default").acquire)
        theirs = other(block.__enter__)
        mine = unit.get()
        assert mine is not theirs
        with pytest.raises(LeaseError, match=r"close\(\) at"):
            rig.do(closed, "INSERT INTO item VALUES (1)")
        other(lambda: rig.do(theirs, "INSERT INTO item VALUES (2)"))
        other(lambda: block.__exit__(None, None, None))
        rig.do(mine, "INSERT INTO item VALUES (3)")
        unit.finish()
    with registry.pool("default").acquire() as conn:
        assert [row[0] for row in rig.rows(conn, "SELECT id FROM item ORDER BY id")] == [2, 3]


@pytest.mark.parametrize("rig_name", sorted(SAME_OBJECT & RIGS.keys()), indirect=True)
def test_another_thread_can_not_close_that_of_a_unit(rig: Rig, registry: Registry) -> None:
    """The unit's work is saved."""
    with Thread() as other, UnitOfWork(registry) as unit:
        rig.do(unit.get(), "INSERT INTO item VALUES (1)")
        with pytest.raises(LeaseError, match="only that thread"):
            other(unit.get().close)
    with registry.pool("default").acquire() as conn:
        assert list(rig.rows(conn, "SELECT id FROM item")) == [(1,)]


@pytest.mark.parametrize("again", [True, False])
def test_in_a_unit_of_an_event_loop(rig: Rig, registry: Registry, again: bool) -> None:  # noqa: FBT001
    """Threads of the loop's close it: all of them are refused, and its end, or the next use, gives it back."""

    async def main() -> None:
        unit = AsyncUnitOfWork(registry)
        conn = await unit.get_sync()
        await asyncio.to_thread(conn.close)
        with pytest.raises(LeaseError, match=r"close\(\) at"):
            await asyncio.to_thread(rig.do, conn, "SELECT 1")
        if again:
            for _ in range(3):  # more than there are connections
                conn = await unit.get_sync()
                await asyncio.to_thread(rig.value, conn, "SELECT 1")
                await asyncio.to_thread(conn.close)
            await asyncio.to_thread(rig.do, await unit.get_sync(), "INSERT INTO item VALUES (1)")
        await unit.finish()
        await unit.close()

    asyncio.run(main())
    with registry.pool("default").acquire() as conn:
        assert rig.value(conn, "SELECT count(*) FROM item") == int(again)


def test_the_pool_closes_while_one_is_closed(rig: Rig, registry: Registry) -> None:
    """What a lease that goes on has closed is waited for, and gone at its end."""
    pool = registry.pool("default")

    async def main() -> Any:
        lease: Any = await asyncio.to_thread(pool.acquire)
        await asyncio.to_thread(lease.resource.close)
        return lease

    lease = asyncio.run(main())
    registry.close(0.1)
    lease.release()
    assert pool.stats().size == 0
