"""One unit of work, several threads: an async view that asks in threads, a thread that outlives its request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest

from poolkit import Pool, Registry, UnitOfWork, UnitOfWorkError
from poolkit.testing import FakeConnection, FakeDriver, FakeServer
from poolkit.unit_settings import UnitSettings


class OnePool:
    """A registry of one pool."""

    units = UnitSettings()

    def __init__(self, pool: Pool[FakeConnection]) -> None:
        self._pool = pool

    def shares(self, name: str) -> bool:
        return False

    def pool(self, name: str) -> Pool[FakeConnection]:
        return self._pool


class Rig:
    """A unit on a server whose connects wait until they are let through."""

    def __init__(self) -> None:
        self.server = FakeServer()
        self.asked = threading.Semaphore(0)
        self.go = threading.Event()
        self.pool = Pool(FakeDriver(self.server, self._on_open), max_size=4, timeout=30)
        self.unit = UnitOfWork(cast("Registry", OnePool(self.pool)), "unit")

    def _on_open(self) -> None:
        self.asked.release()
        assert self.go.wait(30)

    def ask(self, threads: int) -> list[Future[Any]]:
        """Ask from so many threads at once; return when the first of them waits for the server."""
        executor = ThreadPoolExecutor(threads)
        started = threading.Barrier(threads)

        def work() -> Any:
            started.wait(30)
            return self.unit.get()

        futures = [executor.submit(work) for _ in range(threads)]
        executor.shutdown(wait=False)
        assert self.asked.acquire(timeout=30)
        return futures


@pytest.fixture
def rig() -> Any:
    rig = Rig()
    yield rig
    rig.go.set()
    rig.pool.close(5)


def test_threads_that_ask_at_once_get_the_same(rig: Rig) -> None:
    """The second to ask for a name gets what the first one leased, and nothing is leased that nobody ends."""
    futures = rig.ask(4)
    rig.go.set()
    got = {id(future.result(30)) for future in futures}
    assert len(got) == 1
    assert rig.pool.stats().out == 1
    rig.unit.finish()
    assert rig.pool.stats().out == 0


def end_by(how: str) -> Callable[[UnitOfWork], None]:
    return {"finish": UnitOfWork.finish, "close": UnitOfWork.close}[how]


@pytest.mark.parametrize("how", ["finish", "close"])
def test_a_unit_that_ends_while_a_thread_waits_leaves_nothing_out(how: str, rig: Rig) -> None:
    """The end does not wait for it; the thread gives back what it got too late, its transaction undone, and is told."""
    (future,) = rig.ask(1)
    end_by(how)(rig.unit)
    rig.go.set()
    with pytest.raises(UnitOfWorkError, match="ended while 'default' was waited for"):
        future.result(30)
    assert rig.pool.stats().out == 0
    assert not any(connection.in_transaction for connection in rig.server.connections)
    assert "1:commit" not in rig.server.log


class Closed:
    """The lease of a connection that its borrower has closed. When it is asked the second time, another thread asks."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._asked = 0
        self.other: Future[Any] = Future()

    @property
    def given_back(self) -> bool:
        self._asked += 1
        if self._asked == 2:
            asking = threading.Thread(target=lambda: self.other.set_result(self._unit.get()))
            asking.start()
            asking.join(0.2)
        return True

    def forget(self) -> None: ...


def test_what_another_thread_has_leased_is_not_forgotten() -> None:
    """Of two threads that find the connection closed, one leases anew, and the other gets the same one."""
    rig = Rig()
    rig.go.set()
    unit = rig.unit
    unit.get()
    entry = unit._enlisted["default"]
    entry.lease.release()
    entry.lease = Closed(unit)
    mine = unit.get()
    assert entry.lease.other.result(30) is mine
    assert list(unit._enlisted) == ["default"]
    unit.finish()
    rig.pool.close()
