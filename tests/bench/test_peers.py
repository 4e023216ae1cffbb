"""What the suites do with peers: each in turn, who can't be measured left out by name; and contention's figures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from poolkit.bench import async_peers, floors, round_trips, sync_peers
from poolkit.bench.contention import Outcome, contend, contend_async, contenders, hold_settings
from poolkit.bench.peers import AsyncPeer, Bench, Peer, Settings, getting, lending, lending_async, with_scheme
from poolkit.bench.query import beyond_bare
from poolkit.bench.report import Column, Table
from poolkit.bench.sampling import Samples, against, borrowed, fill, sampled, used
from poolkit.testing import FaultProxy

SETTINGS = Settings("")


def peer(name: str, *, error: Exception | None = None, driver: str = "d") -> Peer:
    @contextmanager
    def opened(_: Settings) -> Iterator[Bench]:
        if error is not None:
            raise error
        yield getting(object, lambda _: None, lambda _: None)

    return Peer(name, driver, opened)


def test_each_has_its_turns() -> None:
    """One sample for each in each round, there and back."""
    order: list[str] = []

    def take(peer: Any) -> float:
        order.append(peer.name)
        return float(len(order))

    samples = sampled([peer("a"), peer("b")], 2, take)
    assert order == ["a", "b", "b", "a"]
    assert samples.taken == {"a": [1.0, 4.0], "b": [2.0, 3.0]}


def test_a_library_that_fails_is_left_out() -> None:
    """By name and kind of error; its text, which may hold a URL with its password, stays out."""
    bad = peer("other", error=OSError("no route to postgresql://u:hunter2@host/db"))
    samples = sampled([peer("poolkit"), bad], 3, borrowed(SETTINGS, 1e-5))
    assert samples.taken.keys() == {"poolkit"}
    assert samples.note() == "left out: other (OSError)"


@pytest.mark.parametrize("name", ["poolkit", "bare psycopg", "floor: deque"])
def test_what_is_ours_must_not_fail(name: str) -> None:
    """A failure of poolkit, or of a bare connection, is no missing row: it ends the suite."""
    with pytest.raises(OSError, match="broken"):
        sampled([peer(name, error=OSError("broken"))], 1, borrowed(SETTINGS, 1e-5))


def test_samples_go_into_the_table() -> None:
    """Row by row; who was left out is in the note, once."""
    table = Table("t", [Column("us", "us"), Column("times", "times")], note="a note")
    samples = Samples({"poolkit": [1.0, 2.0], "other": [4.0, 4.0]}, {"third": "OSError"})
    fill(table, "us", samples)
    fill(table, "times", Samples({}, {"third": "OSError"}))
    assert table.rows["other"]["us"] == [4.0, 4.0]
    assert table.note == "a note; left out: third (OSError)"
    assert dict(against(samples, "poolkit")) == {"poolkit": [1.0, 1.0], "other": [4.0, 2.0]}
    assert dict(against(samples, "nobody")) == {"poolkit": [], "other": []}


def test_overhead_is_over_the_own_driver() -> None:
    """A pool over psycopg2 is not compared with a bare psycopg."""
    peers = [peer("bare a", driver="a"), peer("x", driver="a"), peer("bare b", driver="b"), peer("y", driver="b")]
    samples = Samples({"bare a": [10.0, 20.0], "x": [13.0, 24.0], "bare b": [1.0, 1.0], "y": [2.0, 3.0]}, {})
    assert dict(beyond_bare(peers, samples)) == {
        "bare a": [0.0, 0.0], "x": [3.0, 4.0], "bare b": [0.0, 0.0], "y": [1.0, 2.0],
    }  # fmt: skip


class Door:
    """Counts who is in, and who has been."""

    def __init__(self) -> None:
        self.inside = self.entered = self.used = 0

    @contextmanager
    def borrow(self) -> Iterator[Door]:
        self.inside += 1
        self.entered += 1
        try:
            yield self
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def borrow_async(self) -> AsyncIterator[Door]:
        with self.borrow():
            yield self

    def use(self, _: object) -> None:
        assert self.inside == 1
        self.used += 1

    async def use_async(self, _: object) -> None:
        self.use(self)


def test_a_bench_borrows_uses_and_returns() -> None:
    """The loop borrows only; the others use what they borrowed, while they have it; the timed one tells the wait."""
    door = Door()
    bench = lending(door.borrow, door.use)
    bench.loop(3)
    assert (door.entered, door.used) == (3, 0)
    bench.work()
    assert 0 <= bench.timed() < 1
    assert (door.entered, door.used, door.inside) == (5, 2, 0)


async def test_a_bench_of_asyncio_does_the_same() -> None:
    """Awaited."""
    door = Door()
    bench = lending_async(door.borrow_async, door.use_async)
    await bench.loop(3)
    await bench.work()
    assert 0 <= await bench.timed() < 1
    assert (door.entered, door.used, door.inside) == (5, 2, 0)


def test_what_is_taken_is_put_back_after_an_error() -> None:
    """Otherwise one failing statement would leave the next worker waiting for ever."""
    put: list[object] = []

    def fail(_: object) -> None:
        raise LookupError

    bench = getting(lambda: 7, put.append, fail)
    for use in (bench.work, bench.timed):
        with pytest.raises(LookupError):
            use()
    assert put == [7, 7]


@pytest.mark.parametrize("one", [*floors.SYNC, *floors.ASYNC], ids=lambda one: one.name)
def test_floors_lend_the_same_again_and_again(one: Peer | AsyncPeer) -> None:
    """A floor works: whatever is borrowed comes back, however often."""
    assert borrowed(Settings("", size=1), 1e-5)(one) > 0
    assert used(Settings("", size=1), 1e-5)(one) > 0


# contention


def test_all_threads_take_part() -> None:
    """Everybody is served once at least, however short it is, and every wait is kept."""
    lock = threading.Lock()
    done: list[int] = []

    def work(number: int) -> float:
        with lock:
            done.append(number)
        return 0.25

    outcome = contend([lambda n=n: work(n) for n in range(4)], 0.002)
    assert sum(outcome.counts) == len(outcome.waits) == len(done)
    assert outcome.seconds >= 0.002


def test_a_failing_worker_is_not_a_slow_one() -> None:
    """Its error is raised by who asked, after all threads have ended."""

    def fail() -> float:
        raise LookupError("broken")

    before = threading.active_count()
    with pytest.raises(LookupError, match="broken"):
        contend([fail, lambda: 0.0], 0.001)
    assert threading.active_count() <= before


async def test_all_tasks_take_part() -> None:
    """The same with tasks."""

    async def work() -> float:
        await asyncio.sleep(0)
        return 0.0

    outcome = await contend_async([work] * 5, 0.002)
    assert min(outcome.counts) > 0
    assert sum(outcome.counts) == len(outcome.waits)


def test_an_outcome_in_figures() -> None:
    """Rates by the second, waits in milliseconds, the processor's microseconds of an operation, % of the ideal."""
    outcome = Outcome([10, 20, 20], [0.002] * 49 + [0.006], 2.0, 0.001)
    cells = outcome.cells(50.0)
    assert cells == pytest.approx(
        {"rate": 25, "p50": 2, "p99": 6, "max": 6, "fairness": 0.5, "cpu": 20, "spread": 3, "ideal": 50}
    )


def test_a_spread_needs_somebody_who_waits() -> None:
    """Where the median wait is nothing, p99 / p50 would be noise, or a division by nothing."""
    assert "spread" not in Outcome([1], [0.0], 1.0, 0.0).cells(None)


def test_who_contends() -> None:
    """Pools that make their borrowers wait, and the bare connections, which are the ideal; floors don't wait."""
    peers = [peer("bare d")._replace(blocks=False), peer("poolkit"), peer("floor")._replace(blocks=False), peer("x")]
    other = peer("elsewhere", driver="e")
    missing = peer("missing")._replace(needs=("no_such_package",))
    chosen = contenders([*peers, other, missing, peer("poolkit, looks each time"), peer("a Core")], ["d"])
    assert [one.name for one in chosen] == ["bare d", "poolkit", "x"]


def test_who_can_hold() -> None:
    """PostgreSQL sleeps itself; a file can't, so the client does."""
    assert hold_settings("postgresql://h/d", 8) == Settings("postgresql://h/d", 8, statement="SELECT pg_sleep(0.002)")
    assert hold_settings("sqlite:///x", 8) == Settings("sqlite:///x", 8, hold=0.002)


# URLs


def test_a_url_for_another_library() -> None:
    """Only the scheme changes, whatever else is in it."""
    assert with_scheme("postgresql://u:a:b@[::1]:5432/d?x=1", "postgresql+asyncpg") == (
        "postgresql+asyncpg://u:a:b@[::1]:5432/d?x=1"
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://h/d", ""),
        ("postgresql://h/d?sslmode=require", ""),
        ("postgresql://h/d?sslmode=verify-full", "certificate"),
        ("sqlite:///x", "no network"),
    ],
)
def test_what_can_be_counted(url: str, why: str) -> None:
    """A proxy in between is seen where the certificate is checked, and there is none for a file."""
    said = round_trips.countable(url)
    assert why in said
    assert bool(said) is bool(why)


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://u@127.0.0.1:1/d", "disable"),
        ("postgresql://u@localhost:1/d", "disable"),
        ("postgresql://u@192.0.2.1:1/d", "prefer"),
        ("postgresql://u@192.0.2.1:1/d?sslmode=require", "require"),
        ("postgresql://u@192.0.2.1:1/d?application_name=x", "prefer"),
    ],
)
def test_counting_does_not_turn_encryption_off(url: str, mode: str) -> None:
    """A password goes in clear to this machine only; elsewhere it is as it would be without the proxy."""
    with FaultProxy(url) as proxy:
        through = round_trips.through_proxy(url, proxy)
    assert f"sslmode={mode}" in through
    assert f"127.0.0.1:{proxy.port}" in through


def test_names_are_unique_and_tell_whose_they_are() -> None:
    """Rows are found by name: no two alike in a world, and each of poolkit's has a bare connection of its driver."""
    worlds: list[list[Peer | AsyncPeer]] = [[*floors.SYNC, *sync_peers.SYNC], [*floors.ASYNC, *async_peers.ASYNC]]
    for rows in worlds:
        names = [row.name for row in rows]
        assert len(set(names)) == len(names)
        ours = {row.driver for row in rows if row.name.startswith("poolkit")}
        assert ours == {row.driver for row in rows if row.name.startswith("bare")}
