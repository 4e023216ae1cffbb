"""The costs of pools for threads, as the suite `growth` asks for them."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.report import Table, interleaved
from benchmarks.stand_ins import SYNC, Borrow, Line, LineDriver, StandIn, there
from poolkit import Pool
from poolkit.bench.measuring import quiet

__all__ = ["EACH", "HANDOFFS", "LOOPS", "SETTLE", "SyncGrowth", "repeat"]

EACH = 10  # connections in each of many pools
FEW = 100  # as many pools as a library gets that starts threads for each
LOOPS = 1000  # borrowings for one sample
HANDOFFS = 2000
SETTLE = 1.0  # seconds after which what opening has left behind is done with
PEERS = ("poolkit", "psycopg_pool", "SQLAlchemy")
FAIR = ("poolkit", "psycopg_pool")  # these hand over; others let the last borrower take it again, and wake nobody


def repeat(work: Callable[[], object], times: int) -> float:
    """Seconds for one call of `work`, of so many in a row."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def borrow_often(borrows: Sequence[Borrow]) -> float:
    """Seconds for one borrowing; all of the pools in turn."""
    turns = max(1, LOOPS // len(borrows))
    began = time.perf_counter()
    for _ in range(turns):
        for borrow in borrows:
            with borrow():
                pass
    return (time.perf_counter() - began) / (turns * len(borrows))


def filled(borrow: Borrow, number: int) -> Borrow:
    """Have so many connections open, all of them idle."""
    with contextlib.ExitStack() as held:
        for _ in range(number):
            held.enter_context(borrow())
    return borrow


def hand_over(borrow: Borrow, waiting: int) -> float:
    """Seconds for one hand-off of the only connection, with so many in the queue all the time."""
    turns = max(4, HANDOFFS // (waiting + 1))
    start = threading.Barrier(waiting + 2)

    def one() -> None:
        start.wait()
        for _ in range(turns):
            with borrow():
                pass

    threads = [threading.Thread(target=one) for _ in range(waiting + 1)]
    for thread in threads:
        thread.start()
    with borrow():  # until all are in the queue, or about to be
        start.wait()
        time.sleep(0.02 + waiting / 10000)
        began = time.perf_counter()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) / (turns * (waiting + 1))


@contextlib.contextmanager
def crowd(number: int) -> Iterator[None]:
    """Have so many threads asleep."""
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


class SyncGrowth:
    """The probes; each fills one table."""

    def __init__(self, decades: Sequence[int], idle: Sequence[int]) -> None:
        self._decades = decades
        self._idle = idle
        self._peers = [peer for peer in SYNC if peer.name in PEERS and there(peer.needs)]

    def by_idle(self, table: Table, rounds: int) -> None:
        """One borrowing, with so many connections idle in the pool."""
        with contextlib.ExitStack() as stack:
            borrows: dict[tuple[str, int], Sequence[Borrow]] = {}
            for peer in self._peers:
                for number in self._idle:
                    borrow = stack.enter_context(peer.opened(Line(), number))
                    borrows[peer.name, number] = [filled(borrow, number)]
            self._measure(table, borrows, rounds)

    def by_pools(self, table: Table, rounds: int) -> None:
        """One borrowing from one of so many pools, and from all of them in turn."""
        with contextlib.ExitStack() as stack:
            borrows: dict[tuple[str, int], Sequence[Borrow]] = {}
            for peer in self._peers:
                for number in self._steps(peer):
                    pools = self._pools(stack, peer, number)
                    borrows[f"{peer.name}, one of them", number] = pools[:1]
                    borrows[f"{peer.name}, all in turn", number] = pools
            self._measure(table, borrows, rounds)

    def by_waiters(self, table: Table, rounds: int) -> None:
        """One hand-off to the first of so many."""
        for peer in self._peers:
            if peer.name in FAIR:
                with peer.opened(Line(), 1) as borrow:
                    for _, number in interleaved(self._decades, rounds):
                        table.add(peer.name, **{str(number): hand_over(borrow, number) * 1e6})

    def stats(self, table: Table, rounds: int) -> None:
        """One snapshot of a pool with so many idle connections."""
        self._of_poolkit(table, rounds, lambda pool: repeat(pool.stats, 200) * 1e6)

    def sweep(self, table: Table, rounds: int) -> None:
        """One visit to a pool with so many idle connections."""
        self._of_poolkit(table, rounds, lambda pool: repeat(pool.sweep, 3) * 1e3)

    def housekeeping(self, table: Table, rounds: int, seconds: float) -> None:
        """The share of a core that so many pools take while nobody uses them."""
        for _ in range(rounds):
            for peer in self._peers:
                for number in self._steps(peer):
                    with contextlib.ExitStack() as stack:
                        self._pools(stack, peer, number)
                        gc.collect()
                        time.sleep(SETTLE)
                        used, began = time.process_time(), time.perf_counter()
                        time.sleep(seconds)
                        share = (time.process_time() - used) / (time.perf_counter() - began)
                    table.add(peer.name, **{str(number): 100 * share})

    def by_threads(self, table: Table, rounds: int) -> None:
        """One borrowing, while so many other threads sleep."""
        with contextlib.ExitStack() as stack:
            borrows = {peer.name: filled(stack.enter_context(peer.opened(Line(), EACH)), EACH) for peer in self._peers}
            for number in self._decades:
                with crowd(number), quiet():
                    for _, name in interleaved(list(borrows), rounds):
                        table.add(name, **{str(number): borrow_often([borrows[name]]) * 1e6})

    def threads(self, table: Table) -> None:
        """How many threads so many pools keep."""
        for peer in self._peers:
            for number in self._steps(peer):
                before = threading.active_count()
                with contextlib.ExitStack() as stack:
                    self._pools(stack, peer, number)
                    time.sleep(SETTLE)
                    table.add(peer.name, **{str(number): threading.active_count() - before})

    def _steps(self, peer: StandIn) -> Sequence[int]:
        return [step for step in self._decades if peer.name != "psycopg_pool" or step <= FEW]

    def _pools(self, stack: contextlib.ExitStack, peer: StandIn, number: int) -> list[Borrow]:
        return [filled(stack.enter_context(peer.opened(Line(), EACH)), EACH) for _ in range(number)]

    def _measure(self, table: Table, borrows: dict[tuple[str, int], Sequence[Borrow]], rounds: int) -> None:
        with quiet():
            for _, (name, number) in interleaved(list(borrows), rounds):
                table.add(name, **{str(number): borrow_often(borrows[name, number]) * 1e6})

    def _of_poolkit(self, table: Table, rounds: int, measure: Callable[[Pool[Any]], float]) -> None:
        with contextlib.ExitStack() as stack:
            pools: dict[int, Pool[Any]] = {}
            for number in self._idle:
                pools[number] = stack.enter_context(Pool(LineDriver(Line()), max_size=number))
                filled(functools.partial(pools[number].acquire, 60), number)
            with quiet():
                for _, number in interleaved(self._idle, rounds):
                    table.add("poolkit", **{str(number): measure(pools[number])})
