"""Forks with sessions of a real server. Each case runs in a fresh interpreter: `python fork_pg_cases.py NAME DSN`."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import sys
import traceback
from typing import Any

from fork_cases import PATIENCE, in_child, refused

from poolkit import AsyncPool, Pool


def _pid(pool: Pool[Any]) -> int:
    with pool.acquire() as conn:
        return conn.execute("select pg_backend_pid()").fetchone()[0]


def _echo(pool: Pool[Any], base: int, count: int) -> set[int]:
    """Ask many questions; the answers must be one's own."""
    pids = set()
    for number in range(base, base + count):
        with pool.acquire() as conn:
            answer, pid = conn.execute("select %s::int, pg_backend_pid()", (number,)).fetchone()
            assert answer == number, f"somebody else's answer: {answer} for {number}"
            pids.add(pid)
    return pids


def pg_children_have_sessions_of_their_own(dsn: str) -> None:
    """Four children and their parent ask at the same time: distinct sessions, one's own answers, and none is ended."""
    pool: Pool[Any] = Pool(dsn, max_size=3)
    leases = [pool.acquire() for _ in range(3)]
    parents = {lease.resource.info.backend_pid for lease in leases}
    for lease in leases:
        lease.release()
    reads = []
    children = []
    for number in range(4):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                payload = pickle.dumps((True, _echo(pool, 1000 * (number + 1), 200)))
            except BaseException:  # noqa: BLE001
                payload = pickle.dumps((False, traceback.format_exc()))
            os.write(write, payload)
            sys.exit(0)  # finalizers and atexit included
        os.close(write)
        reads.append(read)
        children.append(pid)
    own = _echo(pool, 9000, 300)
    seen: list[set[int]] = []
    for read, pid in zip(reads, children, strict=True):
        with os.fdopen(read, "rb") as pipe:
            good, result = pickle.load(pipe)
        assert good, result
        assert os.waitpid(pid, 0)[1] == 0
        seen.append(result)
    assert own <= parents
    everybody = set().union(*seen)
    assert len(everybody) == sum(map(len, seen))
    assert not everybody & parents
    assert _echo(pool, 5000, 50) <= parents, "a child ended a session of its parent"
    assert pool.close()


def pg_a_transaction_over_a_fork(dsn: str) -> None:
    """A transaction open at the fork commits in the parent, whatever the child does and however it ends."""
    pool: Pool[Any] = Pool(dsn, max_size=2)
    with pool.acquire() as conn:
        conn.execute("create table if not exists forked (n int)")
        conn.execute("delete from forked")
    lease_outside = pool.acquire()
    with pool.transaction() as conn:
        conn.execute("insert into forked values (1)")
        pid = os.fork()
        if pid == 0:
            assert refused(lambda: lease_outside.resource)
            assert _pid(pool)
            sys.exit(0)  # leaves the block, and runs every finalizer
        assert os.waitpid(pid, 0)[1] == 0
        conn.execute("insert into forked values (2)")
    lease_outside.release()
    with pool.acquire() as conn:
        assert conn.execute("select count(*) from forked").fetchone()[0] == 2
        conn.execute("drop table forked")
    assert pool.close()


def pg_multiprocessing(dsn: str) -> None:
    """A multiprocessing pool of four, twice, from a parent that uses its own connections meanwhile."""
    pool: Pool[Any] = Pool(dsn, max_size=2)
    mine = _pid(pool)
    _inherited.append(pool)
    for _ in range(2):
        with multiprocessing.get_context("fork").Pool(4) as workers:
            pending = workers.map_async(_mp_work, range(20))
            _echo(pool, 100, 50)
            answers = pending.get(PATIENCE)
            workers.close()
            workers.join()
        assert [answer for answer, _ in answers] == list(range(20))
        assert mine not in {pid for _, pid in answers}
    assert _pid(pool) == mine
    assert pool.close()


_inherited: list[Pool[Any]] = []


def _mp_work(number: int) -> tuple[int, int]:
    with _inherited[0].acquire() as conn:
        return conn.execute("select %s::int, pg_backend_pid()", (number,)).fetchone()


def pg_async_psycopg(dsn: str) -> None:
    """The same in asyncio, with psycopg."""
    _async_case(AsyncPool(dsn, max_size=2))


def pg_asyncpg(dsn: str) -> None:
    """The same in asyncio, with asyncpg."""
    _async_case(AsyncPool(dsn.replace("postgresql://", "postgresql+asyncpg://"), max_size=2))


def _async_case(pool: AsyncPool[Any]) -> None:
    async def pid_of() -> int:
        async with pool.acquire() as conn:
            if hasattr(conn, "fetchval"):
                return await conn.fetchval("select pg_backend_pid()")
            return (await (await conn.execute("select pg_backend_pid()")).fetchone())[0]

    async def main() -> None:
        mine = await pid_of()
        lease = await pool.acquire()

        def child() -> int:
            asyncio.events._set_running_loop(None)
            assert refused(lambda: lease.resource)
            try:
                return asyncio.run(pid_of())
            finally:
                gc.collect()

        theirs = {in_child(child), in_child(child)}
        assert len(theirs) == 2
        assert mine not in theirs
        await lease.release()
        assert await pid_of() == mine
        assert await pool.close()

    asyncio.run(main())


PG_CASES = [
    pg_children_have_sessions_of_their_own,
    pg_a_transaction_over_a_fork,
    pg_multiprocessing,
    pg_async_psycopg,
    pg_asyncpg,
]

if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
