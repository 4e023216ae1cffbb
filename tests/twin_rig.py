"""Random programs of requests that share a small pool, and how many of them a test runs.

A request is a list of steps. A program opens some requests, moves them on and ends them in an order of its own. A batch
is several programs over a few requests, run one after the other on one pool, so that neither a pool nor what a request
is answered on a connection of its own has to be made for each program.

POOLKIT_TEST_TWINS is the number of programs for each driver or framework, in place of a test's own number.
POOLKIT_TEST_TWINS_SEED runs the same programs again: a failure prints it.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

__all__ = ["Batch", "Program", "batches", "differing", "hunt", "moves"]

PROGRAMS = 10  # of a batch
DISTINCT = 6  # requests of a batch
TOPICS = 8  # of a batch, at most
LARGEST = 3  # connections
Steps = tuple[Any, ...]


class Program(NamedTuple):
    """Which requests of its batch run, and whose turn it is, again and again."""

    requests: tuple[int, ...]
    turns: tuple[int, ...]


class Batch(NamedTuple):
    """The steps of some requests, programs of them, and how many connections they share."""

    size: int
    requests: tuple[Steps, ...]
    programs: tuple[Program, ...]


def batches(
    topics: Sequence[Steps], common: Sequence[Any] = (), *, alone: Sequence[Steps] = (), longest: int = 7
) -> st.SearchStrategy[Batch]:
    """Make batches, each about a few topics, so that one request's steps matter to another's.

    Args:
        topics: steps that go together: what changes something, and what shows it.
        common: steps that each batch has.
        alone: topics for a pool of one only, because other requests would have to wait.
        longest: the steps of a request.
    """
    return st.integers(1, LARGEST).flatmap(
        lambda size: (
            st.lists(st.sampled_from([*topics, *(alone if size == 1 else ())]), min_size=1, max_size=TOPICS)
            .map(lambda chosen: [*itertools.chain.from_iterable(chosen), *common])
            .flatmap(lambda steps: _batches(size, steps, longest))
        )
    )


def _batches(size: int, steps: list[Any], longest: int) -> st.SearchStrategy[Batch]:
    request = st.lists(st.sampled_from(steps), min_size=1, max_size=longest).map(tuple)
    program = st.builds(
        Program,
        st.lists(st.integers(0, DISTINCT - 1), min_size=2, max_size=5).map(tuple),
        st.lists(st.integers(0, LARGEST - 1), min_size=1, max_size=12).map(tuple),
    )
    return st.builds(
        Batch,
        st.just(size),
        st.lists(request, min_size=DISTINCT, max_size=DISTINCT).map(tuple),
        st.lists(program, min_size=PROGRAMS, max_size=PROGRAMS).map(tuple),
    )


def moves(program: Program, size: int, lengths: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Say what happens, in order: ("open" | "step" | "end", place of the request in the program).

    No more than `size` requests are open at a time. `lengths`: the number of steps of each request.
    """
    coming = list(range(len(lengths)))
    open_now: list[int] = []
    left = list(lengths)
    for turn in itertools.cycle(program.turns):
        if coming and len(open_now) < size and turn >= len(open_now):
            open_now.append(coming.pop(0))
            yield "open", open_now[-1]
        elif open_now:
            place = open_now[turn % len(open_now)]
            if left[place]:
                left[place] -= 1
                yield "step", place
            else:
                open_now.remove(place)
                yield "end", place
        elif coming:
            open_now.append(coming.pop(0))
            yield "open", open_now[-1]
        else:
            return


def differing(batch: Batch, program: Program, got: Sequence[object], alone: Callable[[Steps], object]) -> None:
    """Fail if a request of the program was answered otherwise than alone."""
    for place, number in enumerate(program.requests):
        steps = batch.requests[number]
        expected = alone(steps)
        assert got[place] == expected, (
            f"request {place} of {program} on {batch.size} connections: {steps} "
            f"was answered {got[place]}, and alone {expected}"
        )


def hunt(
    check: Callable[[Batch], None],
    strategy: st.SearchStrategy[Batch],
    programs: int,
    *,
    fixed: bool = False,
) -> None:
    """Run programs in batches; an error names the seed.

    Args:
        check: runs a batch, and fails.
        strategy: see `batches`.
        programs: how many.
        fixed: always as many, and the same ones.
    """
    given = os.environ.get("POOLKIT_TEST_TWINS")
    wanted = programs if fixed or not given else int(given)
    seed = int(os.environ.get("POOLKIT_TEST_TWINS_SEED") or (1 if fixed else secrets.randbits(32)))
    ran = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=-(-wanted // PROGRAMS),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=[Phase.generate],  # to shrink costs minutes
    )
    @hypothesis.given(batch=strategy)
    def run(batch: Batch) -> None:
        nonlocal ran
        check(batch)
        ran += len(batch.programs)

    try:
        run()
    except BaseException as error:
        error.add_note(f"the same programs again: POOLKIT_TEST_TWINS={wanted} POOLKIT_TEST_TWINS_SEED={seed}")
        raise
    assert ran >= wanted, f"only {ran} of {wanted} programs"
