"""How many connections a pool should have, computed from what was measured and what is wanted; all of it is shown.

Little's law: connections busy on average = requests a second x seconds that each keeps one. How many more it takes so
that few find all of them busy is Erlang's C formula, which takes requests as they come, independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Advice", "Limits", "Situation", "advise", "carried", "needed", "waiting"]

SHARE = 0.05  # of the requests may find all connections in use
SHOWN = (1, 2, 4, 8, 16, 32)


class Limits(NamedTuple):
    """What the server allows, and what is in use now, our own left out."""

    max_connections: int
    reserved: int
    used: int

    @property
    def free(self) -> int:
        """How many more connections an ordinary user can open."""
        return max(0, self.max_connections - self.reserved - self.used)


class Situation(NamedTuple):
    """What is known; times in seconds.

    `transaction` is the measured time of BEGIN, SELECT 1 and COMMIT, `round_trip` that of a SELECT 1. `hold` is for how
    long a request keeps its connection, where the user knows. `cpus` are those of this machine, `rate` the requests a
    second for all workers together.
    """

    transaction: float
    round_trip: float
    cpus: int
    limits: Limits | None = None
    workers: int = 1
    rate: float | None = None
    hold: float | None = None


class Advice(NamedTuple):
    """The size for each worker's pool, where it can be told, and how it came about, line by line."""

    size: int | None
    lines: list[str]


def waiting(size: int, busy: float) -> float:
    """The share of requests that find all connections in use, with so many busy on average (Erlang C)."""
    if busy <= 0:
        return 0.0
    if busy >= size:
        return 1.0
    inverse = 1.0
    for number in range(1, size + 1):
        inverse = 1 + inverse * number / busy
    blocked = 1 / inverse
    return blocked / (1 - busy / size * (1 - blocked))


def needed(busy: float, share: float = SHARE) -> int:
    """The least size of a pool of which at most such a share of requests finds all in use."""
    size = max(1, int(busy))
    while waiting(size, busy) > share:
        size += 1
    return size


def carried(size: int, hold: float, share: float = SHARE) -> float:
    """The requests a second that a pool of this size serves so that at most such a share has to wait."""
    low, high = 0.0, float(size)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if waiting(size, middle) <= share else (low, middle)
    return low / hold


def advise(situation: Situation) -> Advice:
    """Say which size, and show the arithmetic."""
    hold = situation.hold or situation.transaction
    lines = [*_times(situation, hold)]
    most = None
    if situation.limits is not None:
        most = situation.limits.free // situation.workers
        lines.append(_cap(situation.limits, situation.workers, most))
    if most == 0:
        lines.append(
            "No pool fits: there are fewer free connections than workers. Raise max_connections, or use fewer."
        )
        return Advice(None, lines)
    if situation.rate is None:
        return Advice(None, [*lines, *_without_rate(hold, most)])
    size, more = _with_rate(situation, hold, situation.rate, most)
    return Advice(size, [*lines, *more])


def _times(situation: Situation, hold: float) -> Iterator[str]:
    yield (
        f"Measured: {_ms(situation.round_trip)} for SELECT 1, {_ms(situation.transaction)} for a transaction with one."
    )
    if situation.hold is None:
        yield f"So a request keeps a connection for {_ms(hold)} at least; yours do more: give theirs with --hold MS."
        return
    yield f"A request keeps a connection for {_ms(hold)}, as --hold says."
    work = hold - situation.transaction
    if work > 0:
        yield (
            f"Of that, {_ms(hold)} - {_ms(situation.transaction)} = {_ms(work)} is work. If it is the processor's, and "
            f"the server has the {situation.cpus} CPUs of this machine, it serves {situation.cpus} / {_ms(work)} = "
            f"{situation.cpus / work:.0f} requests/s at most, with pools of any size."
        )


def _cap(limits: Limits, workers: int, most: int) -> str:
    return (
        f"Free on the server: {limits.max_connections} (max_connections) - {limits.reserved} (reserved) - "
        f"{limits.used} (in use now) = {limits.free}; {limits.free} / {workers} workers = {most} for each pool at most."
    )


def _without_rate(hold: float, most: int | None) -> Iterator[str]:
    yield f"What a pool carries if at most {SHARE:.0%} of the requests are to wait, each keeping {_ms(hold)}:"
    for size in SHOWN:
        if most is None or size <= most:
            rate = carried(size, hold)
            yield f"  max_size {size}: {rate:.0f} requests/s ({rate:.0f}/s x {_ms(hold)} = {rate * hold:.2f} busy)"
    yield "Give --rate (requests a second, all workers together) and --workers to be told which you need."


def _with_rate(situation: Situation, hold: float, rate: float, most: int | None) -> tuple[int, list[str]]:
    each = rate / situation.workers
    busy = each * hold
    size = needed(busy)
    fewer = f"; with {size - 1}, {waiting(size - 1, busy):.1%}" if size > 1 else ""
    law = f"{each:g}/s x {_ms(hold)} = {busy:.2f} connections busy on average (Little's law)."
    lines = [
        f"{rate:g} requests/s / {situation.workers} workers = {each:g}/s each; {law}",
        f"With {size}, {waiting(size, busy):.1%} of the requests find all in use{fewer} (Erlang C).",
    ]
    if most is not None and size > most:
        total = carried(most, hold) * situation.workers
        lines.append(
            f"NOT enough on this server: {size} are needed and {most} are free for each worker. With max_size = {most} "
            f"it carries {total:.0f} requests/s in all. Fewer workers share better; or raise max_connections."
        )
        size = most
    lines.append(f"max_size = {size}")
    return size, lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
