"""Options of a unit's transactions: they are sent with each BEGIN of it, and nobody asks for others meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from rig import Deadlock, Rig

from poolkit import AsyncUnitOfWork, ConfigError, Pool, UnitOfWork, UnitOfWorkError, unit_of_work
from poolkit.driver import TransactionOptions
from poolkit.retrying import run_retryable, run_retryable_async
from poolkit.testing import FakeConnection, FakeDriver

TENANT = {"app.tenant": "acme"}
BEGIN = "begin settings=(('app.tenant', 'acme'),)"


class Asker:
    """A unit for threads, or for asyncio with connections of either kind, behind one spelling."""

    def __init__(self, kind: str) -> None:
        self.rig = Rig()
        self.kind = kind
        make: Any = UnitOfWork if kind == "threads" else AsyncUnitOfWork
        self.unit = make((self.rig if kind == "threads" else self.rig.in_loop()).registry, "GET /")

    async def get(self, *args: Any, **options: Any) -> Any:
        if self.kind == "threads":
            return self.unit.get(*args, **options)
        return await (self.unit.get_sync if self.kind == "sync in a loop" else self.unit.get)(*args, **options)

    async def awaited(self, result: Any) -> Any:
        return result if self.kind == "threads" else await result

    async def retry(self, work: Any) -> None:
        if self.kind == "threads":
            run_retryable(self.unit, work, 3)
        else:

            async def run() -> None:
                await work()

            await run_retryable_async(self.unit, run, 3)


@pytest.fixture(params=["threads", "asyncio", "sync in a loop"])
async def asker(request: pytest.FixtureRequest) -> Asker:
    return Asker(request.param)


async def test_they_are_sent_with_begin_and_asked_for_once_or_again(asker: Asker) -> None:
    """The same options again, and none, give the connection that is there; `Begin` went with them once."""
    options = {"settings": TENANT, "read_only": True, "isolation_level": "SERIALIZABLE", "deferrable": False}
    first = await asker.get(**options)
    assert await asker.get(**options) is await asker.get() is first
    await asker.awaited(asker.unit.finish())
    (begin, end) = asker.rig.said()
    assert "isolation_level=serializable" in begin
    assert "read_only=True" in begin
    assert end == "commit"


async def test_other_options_in_one_unit_are_an_error(asker: Asker) -> None:
    """A second tenant in one unit is a program's error, also where the first use named none."""
    await asker.get(settings=TENANT)
    with pytest.raises(UnitOfWorkError, match="with other options than its transaction began with"):
        await asker.get(settings={"app.tenant": "other"})
    await asker.get("other")
    with pytest.raises(UnitOfWorkError, match="'other' was asked for with other options"):
        await asker.get("other", settings=TENANT)
    await asker.awaited(asker.unit.close())
    assert asker.rig.out() == 0


async def test_a_second_try_begins_with_them(asker: Asker) -> None:
    """A retry is a later transaction of the same unit: it has the same tenant."""
    errors: list[Exception] = [Deadlock()]

    async def work() -> None:
        await asker.get(settings=TENANT)
        if errors:
            raise errors.pop()

    def sync_work() -> None:
        asker.unit.get(settings=TENANT)
        if errors:
            raise errors.pop()

    await asker.retry(sync_work if asker.kind == "threads" else work)
    assert asker.rig.said() == [BEGIN, "rollback", BEGIN, "commit"]


async def test_after_the_end_nothing_is_lent_without_them(asker: Asker) -> None:
    """Without a transaction they can't hold: a body after the commit is not served as no tenant, or as all of them."""
    await asker.get(settings=TENANT)
    await asker.awaited(asker.unit.commit())
    with pytest.raises(UnitOfWorkError, match="had options in this unit"):
        await asker.get()
    with pytest.raises(UnitOfWorkError, match="after the end of the unit there is none"):
        await asker.get(settings=TENANT)
    await asker.get("other")
    await asker.awaited(asker.unit.close())
    assert asker.rig.out() == 0


async def test_wrong_ones_are_refused_before_anything_is_leased(asker: Asker) -> None:
    """One error names all that is wrong, and no value, which may be a secret."""
    wrong = {"a b": 1, "app.token": b"secret", "x": "sec\0ret", "1.a": "v"}
    with pytest.raises(ConfigError) as caught:
        await asker.get(settings=wrong, isolation_level="snapshot", read_only=1)
    text = str(caught.value)
    for part in ("'a b' is no name", "'app.token' must be a text", "'x' has a NUL", "'1.a' is no name", "'snapshot'"):
        assert part in text, part
    assert "secret" not in text
    assert asker.rig.servers["default"].opened == 0


def test_a_driver_without_options_refuses_them_in_one_sentence() -> None:
    """A driver of one's own that knows `begin(resource)` alone works as before, and takes no options."""

    class Old(FakeDriver):
        def begin(self, connection: FakeConnection) -> None:  # type: ignore[override]
            super().begin(connection)

    pool = Pool(Old(), max_size=1)
    with pool.transaction():
        pass
    with pytest.raises(ConfigError, match="Old begins transactions without options"):
        pool.transaction(read_only=True)


def test_a_shared_client_has_no_options() -> None:
    """What is not leased has no transaction."""
    rig = Rig()
    rig.registry._shared["default"] = True
    with pytest.raises(UnitOfWorkError, match="has no transactions"):
        UnitOfWork(rig.registry).get(read_only=True)


async def test_the_pools_transaction_has_them_too() -> None:
    """`pool.transaction(settings=...)` sends them with its one BEGIN, for threads and for asyncio."""
    rig = Rig()
    with rig.registry.pool().transaction(settings=TENANT):
        pass
    async with rig.in_loop().registry.async_pool().transaction(settings=TENANT):
        pass
    assert rig.said() == [BEGIN, "commit"] * 2


def test_a_nested_block_that_leased_begins_anew_with_them() -> None:
    """What a savepoint can't undo is begun again as it was."""
    rig = Rig()
    with unit_of_work(rig.registry) as unit:
        with pytest.raises(LookupError), unit_of_work(nested=True):  # noqa: PT012
            unit.get(settings=TENANT)
            raise LookupError
        unit.get().execute("insert")
    assert rig.said() == [BEGIN, "rollback", BEGIN, "insert", "commit"]


def test_values_become_the_texts_that_servers_read() -> None:
    """Numbers and bools are written as settings have them; nothing given is no options at all."""
    options = TransactionOptions.of(settings={"a": True, "b.c": 5, "d": 0.5, "e": "x'y"})
    assert options is not None
    assert options.settings == (("a", "on"), ("b.c", "5"), ("d", "0.5"), ("e", "x'y"))
    assert TransactionOptions.of(settings={}) is None
    assert TransactionOptions.of(isolation_level="READ_COMMITTED") == TransactionOptions(None, "read committed")
