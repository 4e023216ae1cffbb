"""A borrower's own `close()`: with no work open the connection is back at once, with work open the end is an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rigs import RIGS, Rig, _AsyncRig

from poolkit import AsyncPool, CommitFailed, LeaseError, Pool
from poolkit.config import PoolConfig

NAMES = [name for name in RIGS if "uvloop" not in name]
BY_CLOSE = r"given back by close\(\) at .*(test_closed_early|rigs)\.py:\d+ in"
NAMED = r"was closed, by its close\(\), with a transaction open: nothing was saved"


@pytest.fixture(params=NAMES)
def rig_name(request: pytest.FixtureRequest) -> str:
    """Every driver once."""
    name: str = request.param
    return name


@pytest.fixture(params=["auto", "full", "off"])
def pool(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Any]:
    """A pool with a single connection, for each way to reset."""
    kind: Any = AsyncPool if isinstance(rig, _AsyncRig) else Pool
    pool = kind(rig.driver, PoolConfig(max_size=1, timeout=2, reset=request.param))
    yield pool
    rig.run(pool.close(5))


class Block:
    """A `with` or an `async with`."""

    def __init__(self, rig: Rig, borrowing: Any) -> None:
        self.rig, self.borrowing = rig, borrowing

    def __enter__(self) -> Any:
        enter = self.borrowing.__aenter__ if isinstance(self.rig, _AsyncRig) else self.borrowing.__enter__
        return self.rig.run(enter())

    def __exit__(self, *error: object) -> None:
        leave = self.borrowing.__aexit__ if isinstance(self.rig, _AsyncRig) else self.borrowing.__exit__
        self.rig.run(leave(*error))


def inside(rig: Rig, borrowing: Any, work: Callable[[Any], Any], error: Exception | None = None) -> None:
    """Do it in such a block, and leave it with that error."""
    with Block(rig, borrowing) as conn:
        work(conn)
        if error is not None:
            raise error


def elsewhere(rig: Rig, work: Callable[[], Any]) -> Any:
    """Do it in another thread, but for asyncio."""
    if isinstance(rig, _AsyncRig):
        return rig.run(work())
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    thread.join()
    return done[0]


def ids(rig: Rig, pool: Any) -> list[int]:
    with Block(rig, pool.acquire()) as conn:
        return [row[0] for row in rig.rows(conn, "SELECT id FROM item ORDER BY id")]


@pytest.mark.parametrize("how", ["acquire", "transaction"])
@pytest.mark.parametrize("did", ["nothing", "read", "saved"])
def test_with_no_work_open_it_is_back_at_once(rig: Rig, pool: Any, how: str, did: str) -> None:
    """Another has it while the block goes on, the closed one is refused meanwhile, and the block ends quietly."""
    if did == "saved" and how == "transaction" and not rig.commits_midway:
        did = "read"
    with Block(rig, getattr(pool, how)()) as conn:
        if did == "read":
            rig.value(conn, "SELECT count(*) FROM item")
        elif did == "saved":
            rig.do(conn, "INSERT INTO item VALUES (1)")
            if how == "transaction":
                rig.run(conn.commit())
        rig.run(conn.close())
        assert pool.stats().out == 0
        rig.run(conn.close())
        lease = elsewhere(rig, pool.acquire)
        assert pool.stats().out == 1
        with pytest.raises(LeaseError, match=BY_CLOSE):
            rig.do(conn, "INSERT INTO item VALUES (3)")
        elsewhere(rig, lambda: rig.do(lease.resource, "INSERT INTO item VALUES (2)"))
        elsewhere(rig, lease.release)
    assert pool.stats().out == 0
    assert ids(rig, pool) == ([1, 2] if did == "saved" else [2])
    assert pool.stats().opened == 1


def test_what_was_made_of_it_is_refused_as_well(rig: Rig, pool: Any) -> None:
    """A cursor of before the close belongs to no borrowing any more."""
    with Block(rig, pool.acquire()) as conn:
        if not hasattr(conn, "cursor") or not rig.commits_midway:
            pytest.skip("asyncpg's cursors need a transaction")
        cursor = conn.cursor()
        rig.run(conn.close())
        with pytest.raises(LeaseError, match=BY_CLOSE):
            rig.run(cursor.execute("SELECT 1"))


def test_whoever_borrows_it_anew_may_use_it(rig: Rig, pool: Any) -> None:
    """In the block that closed the one before: the same thread, and the same session."""
    with Block(rig, pool.acquire()) as conn:
        rig.run(conn.close())
        with Block(rig, pool.acquire()) as again:
            rig.do(again, "INSERT INTO item VALUES (1)")
    assert ids(rig, pool) == [1]


def test_a_lease_that_was_closed_ends_once(rig: Rig, pool: Any) -> None:
    """Its end by hand is quiet, and so is an end with an error; its resource is refused with the place of the close."""
    for end in ("release", "discard"):
        lease = rig.run(pool.acquire())
        rig.run(lease.resource.close())
        assert lease.given_back
        with pytest.raises(LeaseError, match=BY_CLOSE):
            _ = lease.resource
        with pytest.raises(LeaseError, match=BY_CLOSE):
            lease.detach()
        rig.run(getattr(lease, end)())
    with pytest.raises(KeyError):
        inside(rig, pool.acquire(), lambda conn: rig.run(conn.close()), KeyError())
    assert pool.stats().opened == 1
    assert pool.stats().out == 0


@pytest.mark.parametrize("how", ["acquire", "transaction"])
def test_with_work_open_the_end_names_the_close(rig: Rig, pool: Any, how: str) -> None:
    """Nothing was saved, and the end of the block says why; the pool goes on."""

    def work(conn: Any) -> None:
        rig.do(conn, *(["BEGIN"] if how == "acquire" else []), "INSERT INTO item VALUES (1)")
        rig.run(conn.close())

    with pytest.raises(CommitFailed, match=NAMED):
        inside(rig, getattr(pool, how)(), work)
    with pytest.raises(KeyError):
        inside(rig, getattr(pool, how)(), work, KeyError())
    assert ids(rig, pool) == []
    assert pool.stats().out == 0


def test_a_transaction_of_ones_own_that_has_only_read(rig: Rig, pool: Any) -> None:
    """It has nothing to lose, whatever was written before it began: the connection is back at once."""
    with Block(rig, pool.acquire()) as conn:
        rig.do(conn, "INSERT INTO item VALUES (1)", "BEGIN", "SELECT * FROM item")
        rig.run(conn.close())
        assert pool.stats().out == 0
    assert ids(rig, pool) == [1]
    assert pool.stats().opened == 1


def test_an_aborted_transaction_is_not_given_back(rig: Rig, pool: Any) -> None:
    """A failed statement, its error ignored, and a close: the end of the transaction is an error all the same."""
    if not rig.postgres:
        pytest.skip("a failed statement aborts nothing here")

    def work(conn: Any) -> None:
        rig.do(conn, "INSERT INTO item VALUES (1)")
        with pytest.raises(rig.errors):
            rig.do(conn, "SELECT 1/0")
        rig.run(conn.close())

    with pytest.raises(CommitFailed, match="nothing was saved"):
        inside(rig, pool.transaction(), work)
    assert ids(rig, pool) == []


def test_what_left_the_pool_closes(rig: Rig, pool: Any) -> None:
    """A detached connection is its user's: its `close` closes."""
    lease = rig.run(pool.acquire())
    conn = lease.detach()
    rig.run(conn.close())
    assert rig.driver.is_broken(conn, None)
    assert pool.stats().size == 0


# -- in a unit of work ------------------------------------------------------------------------------------------------


def test_the_next_use_in_the_unit_takes_another(rig: Rig, unit: Any) -> None:
    """What the first wrote and committed is saved, what the second did is committed at the end."""
    work = unit()
    for number in (1, 2):
        conn = rig.run(work.get())
        if rig.commits_midway:
            rig.do(conn, f"INSERT INTO item VALUES ({number})")
            rig.run(conn.commit())
        rig.run(conn.close())
        assert [stats.out for stats in work.registry.stats()] == [0]
    rig.do(rig.run(work.get()), "INSERT INTO item VALUES (3)")
    rig.run(work.finish())
    assert work.committed
    check = unit()
    saved = [row[0] for row in rig.rows(rig.run(check.get()), "SELECT id FROM item ORDER BY id")]
    assert saved == ([1, 2, 3] if rig.commits_midway else [3])
    rig.run(check.finish())


@pytest.mark.parametrize("end", ["finish", "restart", "commit_in_place", "error", "status"])
def test_a_unit_whose_connection_is_back_ends_as_it_was_to_end(rig: Rig, unit: Any, end: str) -> None:
    """Nothing is left to commit, to roll back or to be aborted."""
    work = unit()
    rig.value(rig.run(work.get()), "SELECT count(*) FROM item")
    rig.run(rig.run(work.get()).close())
    if end in ("restart", "commit_in_place"):
        rig.run(getattr(work, end)())
    rig.run(work.finish(KeyError() if end == "error" else None, status=409 if end == "status" else None))
    assert work.committed is (end != "error")
    rig.run(work.close())


def test_work_that_is_open_fails_the_unit(rig: Rig, unit: Any) -> None:
    """The error names the close."""
    work = unit()
    conn = rig.run(work.get())
    rig.do(conn, "INSERT INTO item VALUES (1)")
    rig.run(conn.close())
    with pytest.raises(CommitFailed, match=NAMED):
        rig.run(work.finish())
    rig.run(work.close())
