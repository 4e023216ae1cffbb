"""Every state that a small pool can get into: the rules hold in each, and everybody is served or told in the end."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, Mutant, load, original
from search import SETUPS, Fault, Search, Setup, table

QUICK = [setup for setup in SETUPS if setup.name in {"nested, calm", "target_delay"}]


def searched(setups: list[Setup]) -> str:
    found = [Search(original(), setup).run() for setup in setups]
    assert all(f.whole for f in found)
    assert all(f.waiting > 500 for f in found), "hardly anybody ever waited: the search has not seen much"
    return table(found)


def test_every_state_of_a_small_pool_is_right(capsys):
    """Two slots, three borrowers, every event: no rule is broken, and nobody waits for ever."""
    lines = searched(QUICK)
    with capsys.disabled():
        print(f"\n{lines}")  # noqa: T201  how much was seen is part of the result


@pytest.mark.slow
@pytest.mark.timeout(600)  # it computes all the time, which others on the machine make longer
def test_every_state_of_every_configuration_is_right(capsys):
    """The same with ages, uses, leaks, limits, outages waited through, nesting, a reserve, and three slots."""
    lines = searched(SETUPS)
    with capsys.disabled():
        print(f"\n{lines}")  # noqa: T201  how much was seen is part of the result


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=mutant.name, marks=[pytest.mark.slow] if number % 16 else [])
        for number, mutant in enumerate(mutant for mutant in MUTANTS if mutant.seen_in)
    ],
)
def test_the_search_sees_the_mutant(mutant: Mutant):
    """In the configuration that its line names; a mutant without one is the model's to see (test_mutants)."""
    setup = next(setup for setup in SETUPS if setup.name == mutant.seen_in)
    with pytest.raises(Fault):
        Search(load(mutant), setup).run()


def test_a_part_of_the_state_that_the_search_does_not_know_stops_it():
    """Or two states that differ in it would be taken for one, and half of what can happen would be passed over."""
    module = original()
    begin = module.PoolState.__init__

    def init(self, *arguments):
        begin(self, *arguments)
        self.mood = "new"

    module.PoolState.__init__ = init
    with pytest.raises(AssertionError, match="mood"):
        Search(module, SETUPS[0])


def test_a_wait_without_end_is_seen():
    """Who waits for such as wait themselves waits for ever: no single step shows that, only where all of them lead."""
    module = original()
    module.PoolState._refuse_the_nested = lambda _self, _now: None
    nested = next(setup for setup in SETUPS if setup.name == "nested, calm")
    with pytest.raises(Fault, match="lost wake-up"):
        Search(module, nested).run()
