"""The model and the search are worth what they catch: every hand-made fault of state.py has to be seen by one of them.

Which one sees which stands with each mutant. What the search sees it is asked in `test_search`. The model is asked for
all that only it sees and for a third of the others, which takes a minute; `python tests/state/test_mutants.py` asks it
for all.
"""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from model import checks_of
from mutants import MUTANTS, Mutant, load

# Deterministic, so that a kill is a fact and not a chance; no shrinking, because nobody reads the example.
BUDGET = settings(
    max_examples=4000,
    stateful_step_count=50,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    report_multiple_bugs=False,
)


def survives(mutant: Mutant) -> bool:
    """Drive the mutant through the model; False when the model objected."""
    machine = checks_of(load(mutant))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            run_state_machine_as_test(machine, settings=BUDGET)
        except Exception:  # noqa: BLE001  a wrong book and a crash are both a kill
            return False
    return True


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_fits_the_source(mutant: Mutant):
    """A mutant whose text is not in state.py (exactly once) tests nothing: it has to be written anew."""
    load(mutant)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=mutant.name, marks=[pytest.mark.slow] if mutant.hard or number % 48 else [])
        for number, mutant in enumerate(mutant for mutant in MUTANTS if mutant.model)
        if number % 3 == 0 or not mutant.seen_in
    ],
)
def test_the_model_kills_the_mutant(mutant: Mutant):
    """Each fault is found within a bounded number of runs; most of them are marked slow."""
    assert not survives(mutant), "the model does not see this fault"


def test_every_mutant_is_seen_by_one_of_the_two():
    """A few mutants prove little, and one that nobody has to see proves nothing."""
    assert len(MUTANTS) >= 120
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert all(mutant.model or mutant.seen_in for mutant in MUTANTS)


if __name__ == "__main__":
    for mutant in MUTANTS:
        print("not seen" if survives(mutant) else "seen    ", mutant.name, flush=True)  # noqa: T201
