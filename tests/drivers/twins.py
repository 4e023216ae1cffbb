"""Programs of random statements on a pool: each request gets the answers of a connection of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from rigs import Rig, _AsyncRig
from twin_rig import Batch, Program, batches, differing, hunt, moves

from poolkit import AsyncPool, Pool

__all__ = ["LOCK", "Step", "Steps", "Twins"]

Step = tuple[str, ...]  # statements, of which the last one is answered
LOCK = "4711"  # in the text of a statement: stands for a key that only the request has that runs it
KEYS = 200_000  # until one is used again, so that with LOCK behind it there is a number of four bytes


class Twins:
    """Runs batches twice: on a pool, and each request on a connection of its own."""

    def __init__(
        self, rig: Rig, *, configure: Callable[[Any], None] | None = None, unsteady: Callable[[str], bool] | None = None
    ) -> None:
        """Make what runs the batches.

        Args:
            rig: the driver.
            configure: of the pool, and of the connection for comparison.
            unsteady: whether the rows of a statement depend on how the library sends it; only its errors are compared.
        """
        self.rig = rig
        self._configure = configure
        self._unsteady = unsteady or (lambda _: False)
        self.reset = "auto"
        self._known: dict[tuple[Any, ...], list[object]] = {}
        self._keys = itertools.cycle(range(1, KEYS + 1))

    def check(self, batch: Batch) -> None:
        """Run the programs of a batch, and compare."""
        pool_type: Any = AsyncPool if isinstance(self.rig, _AsyncRig) else Pool
        pool = pool_type(
            self.rig.again(), max_size=batch.size, timeout=10.0, configure=self._configure, reset=self.reset
        )
        try:
            for program in batch.programs:
                differing(batch, program, self._interleaved(pool, batch, program), self._alone)
        finally:
            self.rig.run(pool.close())

    def _interleaved(self, pool: Any, batch: Batch, program: Program) -> list[list[object]]:
        requests = [batch.requests[number] for number in program.requests]
        answers: list[list[object]] = [[] for _ in requests]
        keys = [next(self._keys) for _ in requests]
        leases: dict[int, Any] = {}
        for move, place in moves(program, batch.size, [len(steps) for steps in requests]):
            if move == "open":
                leases[place] = self.rig.run(pool.acquire())
            elif move == "step":
                step = requests[place][len(answers[place])]
                answers[place].append(self.answer(leases[place].resource, step, keys[place]))
            else:
                self.rig.run(leases.pop(place).release())
        return answers

    def _alone(self, steps: tuple[Any, ...]) -> list[object]:
        if steps not in self._known:
            conn = self.rig.run(self.rig.driver.open(10))
            if self._configure is not None:
                self._configure(conn)
            key = next(self._keys)
            self._known[steps] = [self.answer(conn, step, key) for step in steps]
            self.rig.run(self.rig.driver.close(conn))
        return self._known[steps]

    def answer(self, conn: Any, step: Step, key: int) -> object:
        """Run a step, and return the rows of its last statement, or the name of its error."""
        answer: object = None
        for statement in step:
            try:
                rows = self.rig.rows(conn, statement.replace(LOCK, f"{key}{LOCK}"))
                answer = [] if self._unsteady(statement) else [tuple(row) for row in rows]
            except (self.rig.errors, *self.rig.refusals) as error:
                answer = type(error).__name__
        return answer


class Steps(NamedTuple):
    """What the requests of a database do: see `batches`."""

    topics: list[Any]
    common: list[Any]
    alone: tuple[Any, ...] = ()

    def run(self, twins: Twins, programs: int, *, fixed: bool = False) -> None:
        """Run so many programs: see `hunt`."""
        hunt(twins.check, batches(self.topics, self.common, alone=self.alone), programs, fixed=fixed)

    def fail_without_resets(self, twins: Twins) -> None:
        """See that the programs tell a pool apart that passes sessions on as they are."""
        twins.reset = "off"
        strategy = batches(self.topics, self.common, alone=self.alone)
        with pytest.raises(AssertionError, match="and alone"):
            hunt(twins.check, strategy, 200, fixed=True)
