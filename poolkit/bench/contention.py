"""Many want few: how much is got done, how long each waits, who gets nothing, and what it costs the processor.

So many workers borrow, hold and return, over and over, for a second or two. The ideal is as many workers as there are
connections, each owning one. A pool that lends to whoever asks in the right moment looks good in throughput: see the
longest wait, and the fairness (operations of the worker served least by those of the one served most).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any, NamedTuple

from poolkit.bench import async_peers, sync_peers
from poolkit.bench.figures import fairness, percentile
from poolkit.bench.peers import AsyncPeer, Peer, Settings, installed
from poolkit.bench.report import Column, Report, Table, Target
from poolkit.bench.sampling import Plan, sampled

__all__ = [
    "COLUMNS",
    "Crowd",
    "Outcome",
    "begun",
    "contend",
    "contend_async",
    "contenders",
    "hold_settings",
    "measure",
    "run",
    "targets",
]

THREADS, TASKS, SIZE, HOLD = 32, 200, 8, 0.002
COLUMNS = (
    Column("rate", "ops/s", 0, "ops/s", "more"),
    Column("ideal", "% of ideal", 1, "%", "more"),
    Column("p50", "wait p50 ms", 2, "ms", "less"),
    Column("p99", "p99 ms", 2, "ms", "less"),
    Column("max", "max ms", 1, "ms", "less"),
    Column("spread", "p99 / p50", 2, "times", "less"),
    Column("fairness", "fairness", 2, "share", "more"),
    Column("cpu", "CPU us/op", 0, "us", "less"),
)
Loop = Callable[[], asyncio.AbstractEventLoop] | None


class Outcome(NamedTuple):
    """One contention: how often each worker was served, every wait, the time it took and the processor's."""

    counts: Sequence[int]
    waits: Sequence[float]
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return sum(self.counts) / self.seconds

    def cells(self, ideal: float | None) -> dict[str, float]:
        """The cells of a row, against the ideal rate of the same round."""
        middle, high = percentile(self.waits, 0.5), percentile(self.waits, 0.99)
        cells = {
            "rate": self.rate,
            "p50": middle * 1e3,
            "p99": high * 1e3,
            "max": max(self.waits) * 1e3,
            "fairness": fairness(self.counts),
            "cpu": self.cpu / max(1, sum(self.counts)) * 1e6,
        }
        if middle > 0.0001:  # else nobody waits but those who starve, and the quotient says nothing
            cells["spread"] = high / middle
        if ideal is not None:
            cells["ideal"] = 100 * self.rate / ideal
        return cells


def contend(works: Sequence[Callable[[], float]], seconds: float) -> Outcome:
    """Let one thread for each of these do it over and over for so long; who waits at the end is waited for."""
    counts = [0] * len(works)
    waits: list[list[float]] = [[] for _ in works]
    start = threading.Barrier(len(works) + 1)
    end = [0.0]
    failed: list[BaseException] = []

    def worker(number: int, work: Callable[[], float], own: list[float]) -> None:
        start.wait()
        try:
            while not counts[number] or time.perf_counter() < end[0]:  # once at least, however late it was started
                own.append(work())
                counts[number] += 1
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that asked
            failed.append(error)

    threads = [
        threading.Thread(target=worker, args=(number, work, waits[number]), name=f"bench-{number}")
        for number, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    began, cpu = time.perf_counter(), time.process_time()
    end[0] = began + seconds
    start.wait()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    took = time.perf_counter() - began
    return Outcome(counts, [wait for own in waits for wait in own], took, time.process_time() - cpu)


async def contend_async(works: Sequence[Callable[[], Any]], seconds: float) -> Outcome:
    """The same with tasks."""
    counts = [0] * len(works)
    waits: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    end = began + seconds

    async def worker(number: int, work: Callable[[], Any]) -> None:
        while not counts[number] or time.perf_counter() < end:
            waits.append(await work())
            counts[number] += 1

    async with asyncio.TaskGroup() as group:
        for number, work in enumerate(works):
            group.create_task(worker(number, work))
    return Outcome(counts, waits, time.perf_counter() - began, time.process_time() - cpu)


def alone(peer: Peer, settings: Settings, seconds: float) -> Outcome:
    """The ideal: as many workers as connections, each with one of its own."""
    with ExitStack() as stack:
        own = settings._replace(size=1)
        return contend([stack.enter_context(peer.opened(own)).timed for _ in range(settings.size)], seconds)


def together(peer: Peer, settings: Settings, workers: int, seconds: float) -> Outcome:
    """All at one pool, whose connections are open before the clock runs."""
    with peer.opened(settings) as bench:
        contend([bench.timed] * settings.size, min(0.1, seconds))
        return contend([bench.timed] * workers, seconds)


async def alone_async(peer: AsyncPeer, settings: Settings, seconds: float) -> Outcome:
    """The ideal, with tasks."""
    async with AsyncExitStack() as stack:
        own = settings._replace(size=1)
        benches = [await stack.enter_async_context(peer.opened(own)) for _ in range(settings.size)]
        return await contend_async([bench.timed for bench in benches], seconds)


async def together_async(peer: AsyncPeer, settings: Settings, workers: int, seconds: float) -> Outcome:
    """All tasks at one pool."""
    async with peer.opened(settings) as bench:
        await contend_async([bench.timed] * settings.size, min(0.1, seconds))
        return await contend_async([bench.timed] * workers, seconds)


class Crowd(NamedTuple):
    """Who wants connections: so many workers, in which kind of loop where they are tasks, and p99 / p50 to aim at."""

    who: str
    workers: int
    most: float
    loop: Loop = None


def outcome(peer: Peer | AsyncPeer, settings: Settings, crowd: Crowd, seconds: float) -> Outcome:
    """One contention for a peer of either kind; a bare connection is measured as the ideal."""
    bare = peer.name.startswith("bare")
    if isinstance(peer, Peer):
        return alone(peer, settings, seconds) if bare else together(peer, settings, crowd.workers, seconds)
    with asyncio.Runner(loop_factory=crowd.loop) as runner:
        if bare:
            return runner.run(alone_async(peer, settings, seconds))
        return runner.run(together_async(peer, settings, crowd.workers, seconds))


def measure(table: Table, peers: Sequence[Peer | AsyncPeer], settings: Settings, crowd: Crowd, plan: Plan) -> None:
    """Fill a table; each row against the ideal of its own driver, where there is one."""
    samples = sampled(peers, plan.contentions, lambda peer: outcome(peer, settings, crowd, plan.contention))
    bare = {peer.driver: samples.taken[peer.name] for peer in peers if peer.name.startswith("bare")}
    for peer in peers:
        for number, result in enumerate(samples.taken.get(peer.name, ())):
            ideals = bare.get(peer.driver, [])
            table.add(peer.name, **result.cells(ideals[number].rate if number < len(ideals) else None))
    table.note = "; ".join(part for part in (table.note, samples.note()) if part)


def hold_settings(url: str, size: int) -> Settings:
    """Two milliseconds: of the server, where it can sleep; else of the client."""
    if url.startswith("postgres"):
        return Settings(url, size, statement=f"SELECT pg_sleep({HOLD})")
    return Settings(url, size, hold=HOLD)


def run(report: Report, url: str, drivers: Sequence[str], plan: Plan, *, size: int = SIZE) -> None:
    """Threads and tasks, four and twenty-five times as many as there are connections; tasks under uvloop as well."""
    settings = hold_settings(url, size)
    threads, tasks = size * THREADS // SIZE, size * TASKS // SIZE
    crowds = [Crowd("threads", threads, 1.4), Crowd("tasks, asyncio", tasks, 1.15)]
    uvloop = uvloop_factory()
    if uvloop is not None:
        crowds.append(Crowd("tasks, uvloop", tasks, 1.15, uvloop))
    for crowd in crowds:
        rows = contenders(sync_peers.SYNC if crowd.who == "threads" else async_peers.ASYNC, drivers)
        if rows:
            title = f"{crowd.workers} {crowd.who}, on {size} connections, {HOLD * 1000:g} ms each"
            note = "bare: as many workers as connections, which is the ideal"
            measure(begun(report, title, note, crowd, rows), rows, settings, crowd, plan)


def begun(report: Report, title: str, note: str, crowd: Crowd, peers: Sequence[Peer | AsyncPeer]) -> Table:
    """Begin a table for a crowd."""
    own = [peer.name for peer in peers if peer.name.startswith("poolkit")]
    goals = [target for name in own for target in targets(name, crowd.most)]
    return report.table(title, *COLUMNS, note=note, headline="fairness", baseline=own[0], targets=goals)


def uvloop_factory() -> Loop:
    """What makes a loop of uvloop's, where it is installed."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop


def contenders(peers: Sequence[Peer | AsyncPeer], drivers: Sequence[str]) -> list[Peer | AsyncPeer]:
    """Who waits where all are in use, and who is the ideal. Of SQLAlchemy's two for threads one is enough."""
    return [
        peer
        for peer in peers
        if peer.driver in drivers
        and installed(peer)
        and (peer.blocks or peer.name.startswith("bare"))
        and not (isinstance(peer, Peer) and "Core" in peer.name)
        and "looks" not in peer.name
    ]


def targets(row: str, most: float) -> list[Target]:
    """Nearly all that is possible, and the same for everybody."""
    return [
        Target(f"{row}: at least 97 % of ideal", row, "ideal", at_least=97),
        Target(f"{row}: p99 at most {most:g} times p50", row, "spread", at_most=most),
        Target(f"{row}: fairness at least 0.95", row, "fairness", at_least=0.95),
    ]
