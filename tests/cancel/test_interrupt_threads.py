"""Pool and UnitOfWork interrupted wherever Python lets a signal handler raise: Ctrl-C, SystemExit, a soft time limit.

What the interrupted thread had is back or closed, what others need is done, and no lock is held.
"""

from __future__ import annotations

import contextlib
import gc
import threading

import pytest
from cancel_rig import check_books

from poolkit import CommitFailed, Pool, Registry, UnitOfWork, ending, enlisted, scope, shell, state, threads
from poolkit.testing import FakeDriver, FakeServer, ManualRuntime, fakes
from poolkit.testing.fakes import FakeError
from poolkit.testing.interrupts import Interrupt, interrupt_everywhere

MODULES = [threads, state, shell, enlisted, scope, ending, fakes]


class Surroundings(ManualRuntime):
    """What would be done by another thread is not interrupted."""

    def __init__(self, cut):
        super().__init__()
        self._cut = cut

    def spawn(self, work):
        with self._cut.elsewhere():
            super().spawn(work)

    def advance(self, seconds):
        with self._cut.elsewhere():
            super().advance(seconds)


class Rig:
    """Two thread pools in a registry, for one run of a scenario."""

    def __init__(self, cut, **settings):
        self.runtime = Surroundings(cut)
        self.registry = Registry({name: {"url": "sqlite:///never"} for name in ("default", "other")})
        self.servers = {name: FakeServer() for name in self.registry.names}
        for name, server in self.servers.items():
            options = {"max_size": 2, "check_after": 50, "timeout": 1, **settings}
            pool = Pool(FakeDriver(server), runtime=self.runtime, name=name, **options)
            self.registry._pools[name] = pool
        self.pool, self.server = self.registry.pool(), self.servers["default"]

    def idle(self):
        self.pool.acquire().release()
        return self

    def long_idle(self):
        self.idle().runtime.advance(60)
        return self

    def check_closed(self):
        """What holds where the call was `close`: it may have to be made again, and nothing is left then."""
        gc.collect(0)
        assert self.pool.close(0)
        assert self.server.open_now == 0
        assert not self.pool._state.slots

    def check(self):
        """What holds after the interrupt, wherever it was."""
        gc.collect(0)
        self.runtime.advance(1)  # what the interrupt has lost, before there was a lease or after, the next sweep finds
        for connection in self.server.connections:
            connection.mute = False
        pools = [self.registry.pool(name) for name in self.servers]
        assert _in_thread(lambda: [_is_usable(pool) for pool in pools]) == [True, True], (
            "locked up, or short of a place"
        )
        for pool, server in zip(pools, self.servers.values(), strict=True):
            check_books(pool)
            assert server.open_now == pool.stats().size, "a connection was forgotten open"
            left = [connection for connection in server.connections if not connection.closed]
            assert not any(c.in_transaction or c.dirty for c in left), "a connection lies idle as its borrower left it"
            assert pool.close(0)
            assert server.open_now == 0


def _is_usable(pool):
    """Whether another thread finds the lock free and gets all that the pool may lend."""
    if not pool._lock.acquire(blocking=False):
        return False
    pool._lock.release()
    leases = [pool.acquire(0) for _ in range(pool.config.max_size)]
    for lease in leases:
        lease.resource.execute("select")
        lease.release()
    return True


def _in_thread(work):
    result = []

    def life():
        with contextlib.suppress(TimeoutError):
            result.append(work())

    thread = threading.Thread(target=life, daemon=True)
    thread.start()
    thread.join(10)
    return result[0] if result else None


# -- what is interrupted -----------------------------------------------------------------------------------------------


def block(rig):
    with rig.pool.acquire() as connection:
        connection.execute("select")


def dirty_block(rig):
    with rig.pool.acquire() as connection:
        connection.execute("dirty")


def by_hand(rig):
    lease = rig.pool.acquire()
    try:
        lease.resource.execute("dirty")
    finally:
        lease.release()


def discard(rig):
    rig.pool.acquire().discard()


def commit(rig):
    with rig.pool.transaction() as connection:
        connection.execute("insert")


def rollback(rig):
    with contextlib.suppress(KeyError), rig.pool.transaction() as connection:
        connection.execute("insert")
        raise KeyError


def aborted(rig):
    with contextlib.suppress(CommitFailed), rig.pool.transaction() as connection, contextlib.suppress(FakeError):
        connection.execute("bad")


def timing_out(rig):
    with contextlib.suppress(TimeoutError):
        rig.pool.acquire(0)


def drained_while_out(rig):
    with rig.pool.acquire():
        rig.pool.drain()


def sweep(rig):
    rig.pool.sweep()


def forget(rig):
    rig.pool.acquire()
    rig.pool.sweep()


def close(rig):
    rig.pool.acquire()
    rig.pool.close(0)


def unit(rig):
    with UnitOfWork(rig.registry, "unit") as work:
        work.get().execute("insert")


def unit_of_two(rig):
    with UnitOfWork(rig.registry, "unit") as work:
        work.get().execute("insert")
        work.get("other").execute("insert")


def unit_rolled_back(rig):
    with contextlib.suppress(KeyError), UnitOfWork(rig.registry, "unit") as work:
        work.get().execute("insert")
        raise KeyError


def unit_and_late(rig):
    with UnitOfWork(rig.registry, "unit") as work:
        work.get().execute("insert")
        work.commit()
        work.get().execute("dirty")


def unit_restarted(rig):
    with UnitOfWork(rig.registry, "unit") as work:
        work.get().execute("insert")
        work.restart()
        work.commit_in_place()


def plain(work, prepare=Rig.idle, **settings):
    def run(cut):
        rig = Rig(cut, **settings)
        prepare(rig)
        cut(lambda: work(rig))
        rig.check()

    return run


def closing(cut):
    rig = Rig(cut).idle()
    cut(lambda: close(rig))
    rig.check_closed()


def empty(rig):
    """Nothing is open yet."""


def dead(rig):
    rig.long_idle()
    for connection in rig.server.connections:
        connection.mute = True


def both_out(work):
    """All connections are lent to another."""

    def run(cut):
        rig = Rig(cut)
        leases = [rig.pool.acquire() for _ in range(2)]
        cut(lambda: work(rig))
        for lease in leases:
            lease.release()
        del leases, lease
        rig.check()

    return run


def handing_over(cut):
    """Who gives back hands over to one who waits: that one is woken, whatever becomes of the giver."""
    rig = Rig(cut, max_size=1)
    lease = rig.pool.acquire()
    served = []
    waiter = threading.Thread(target=lambda: served.append(rig.pool.acquire(5).release()), daemon=True)
    waiter.start()
    while not rig.pool.stats().waiting:
        pass
    cut(lease.release)
    del lease
    gc.collect(0)
    rig.runtime.advance(1)
    waiter.join(2)
    assert served, "one who waits was forgotten"
    check_books(rig.pool)


SCENARIOS = {
    "idle": plain(block),
    "opening": plain(block, empty),
    "ping": plain(block, Rig.long_idle),
    "dead": plain(block, dead),
    "reset": plain(dirty_block),
    "by hand": plain(by_hand),
    "discard": plain(discard),
    "last use": plain(block, max_uses=2),
    "drained": plain(drained_while_out),
    "commit": plain(commit),
    "rollback": plain(rollback),
    "aborted": plain(aborted),
    "timeout": both_out(timing_out),
    "hand over": handing_over,
    "sweep": plain(sweep, Rig.long_idle, idle_timeout=10),
    "forgotten": plain(forget),
    "close": closing,
    "unit": plain(unit),
    "unit, opening": plain(unit, empty),
    "unit of two": plain(unit_of_two),
    "unit, rolled back": plain(unit_rolled_back),
    "unit, late": plain(unit_and_late),
    "unit, restarted": plain(unit_restarted),
}


# What takes the same ways as others, and some more.
RARE = ("dead", "last use", "drained", "aborted", "sweep", "unit, opening", "unit of two", "unit, restarted", "discard")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in RARE else ()) for n in SCENARIOS])
def test_interrupted_everywhere(name):
    """By what is neither Ctrl-C nor SystemExit, and caught by no `except Exception`."""
    assert interrupt_everywhere(SCENARIOS[name], MODULES, [Interrupt]) > 3


AT_EVERY_LINE = ("idle", "opening", "ping", "reset", "by hand", "timeout", "commit")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "idle" else pytest.mark.slow) for n in AT_EVERY_LINE]
)
def test_taking_and_giving_back_hold_at_every_line(name):
    """More than the interpreter does; only where a slot is ended does it matter that it comes after calls alone."""
    assert interrupt_everywhere(SCENARIOS[name], MODULES, [Interrupt], boundary="lines") > 50


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", SCENARIOS)
def test_ended_everywhere(name, error):
    """By Ctrl-C, and by a signal handler that ends the process."""
    assert interrupt_everywhere(SCENARIOS[name], MODULES, [error]) > 3
