"""Samples of many peers by turns: each is opened for its turn and closed after it, so one connection is open at a time.

That the others are closed also keeps their threads and tasks out of what is measured. What a peer fails with is kept
for the table's note: a library that can't use this database leaves its row out, and the rest is measured all the same.
poolkit's own failures, and those of the bare connections, are raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from poolkit.bench.measuring import calibrated, calibrated_async, interleaved, per_call, per_call_async, quiet
from poolkit.bench.peers import AsyncBench, AsyncPeer, Bench, Peer, Settings
from poolkit.bench.report import Table

__all__ = ["Plan", "Samples", "against", "borrowed", "fill", "sampled", "used"]

S = TypeVar("S")
# Loops for one sample. The quickest counts: whatever else the machine does can only add, and seldom hits all of them.
LOOPS = 5


class Plan(NamedTuple):
    """How much is measured: rounds, seconds for one sample of a loop, seconds of one contention."""

    rounds: int = 9
    seconds: float = 0.02
    contention: float = 2.5
    contentions: int = 3

    @classmethod
    def quick(cls) -> Plan:
        """Once through, there and back."""
        return cls(rounds=2, seconds=0.002, contention=0.3, contentions=1)


class Samples(NamedTuple, Generic[S]):
    """What was measured, by the peer's name, and who failed with which kind of error."""

    taken: dict[str, list[S]]
    failed: dict[str, str]

    def note(self) -> str:
        """Say who was left out."""
        return "; ".join(f"left out: {name} ({error})" for name, error in self.failed.items())


def sampled(peers: Sequence[Peer | AsyncPeer], rounds: int, take: Callable[[Any], S]) -> Samples[S]:
    """Take one sample of each peer in each round; one that fails once is left out."""
    samples: Samples[S] = Samples({peer.name: [] for peer in peers}, {})
    for _, peer in interleaved(peers, rounds):
        if peer.name in samples.failed:
            continue
        try:
            samples.taken[peer.name].append(take(peer))
        except Exception as error:
            if not _may_fail(peer):
                raise
            samples.failed[peer.name] = type(error).__name__  # its text may hold the URL, and so a password
            del samples.taken[peer.name]
    return samples


def _may_fail(peer: Peer | AsyncPeer) -> bool:
    return not peer.name.startswith(("bare", "floor", "poolkit"))


def borrowed(settings: Settings, seconds: float) -> Callable[[Peer | AsyncPeer], float]:
    """Make what measures the microseconds of borrowing and returning, without a statement in between."""
    return _measuring(settings, seconds, lambda bench: bench.loop, lambda bench: bench.loop)


def used(settings: Settings, seconds: float) -> Callable[[Peer | AsyncPeer], float]:
    """Make what measures the microseconds of one operation."""
    return _measuring(settings, seconds, _repeated, _repeated_async)


def _measuring(
    settings: Settings,
    seconds: float,
    loop: Callable[[Bench], Callable[[int], object]],
    loop_async: Callable[[AsyncBench], Callable[[int], Coroutine[Any, Any, object]]],
) -> Callable[[Peer | AsyncPeer], float]:
    async def awaited(peer: AsyncPeer) -> float:
        async with peer.opened(settings) as bench:
            turn = loop_async(bench)
            times = await calibrated_async(turn, seconds)
            return min([await per_call_async(turn, times) for _ in range(LOOPS)])

    def take(peer: Peer | AsyncPeer) -> float:
        if isinstance(peer, AsyncPeer):
            with quiet():
                return asyncio.run(awaited(peer))
        with quiet(), peer.opened(settings) as bench:
            turn = loop(bench)
            times = calibrated(turn, seconds)
            return min(per_call(turn, times) for _ in range(LOOPS))

    return take


def _repeated(bench: Bench) -> Callable[[int], object]:
    work = bench.work

    def loop(times: int) -> None:
        for _ in range(times):
            work()

    return loop


def _repeated_async(bench: AsyncBench) -> Callable[[int], Coroutine[Any, Any, object]]:
    work = bench.work

    async def loop(times: int) -> None:
        for _ in range(times):
            await work()

    return loop


def fill(table: Table, column: str, samples: Samples[float]) -> None:
    """Write samples into a column, row by row in the order of the peers."""
    for name, values in samples.taken.items():
        for value in values:
            table.add(name, **{column: value})
    said = samples.note()
    if said and said not in table.note:
        table.note = "; ".join(part for part in (table.note, said) if part)


def against(samples: Samples[float], baseline: str) -> Iterator[tuple[str, list[float]]]:
    """Each row's samples in relation to those of another row, round by round."""
    base = samples.taken.get(baseline, [])
    for name, values in samples.taken.items():
        yield name, [own / other for own, other in zip(values, base, strict=False)]
