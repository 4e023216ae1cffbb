"""PoolState against a second opinion: every invariant of its theory block, after every step of any sequence."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from model import checks_of

import poolkit.state

QUICK = settings(
    max_examples=100, stateful_step_count=50, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def test_every_sequence_of_calls_keeps_the_invariants():
    """Whatever is called in whatever order, the books balance, nobody is overtaken and nobody waits for nothing."""
    run_state_machine_as_test(checks_of(poolkit.state), settings=QUICK)


@pytest.mark.slow
def test_many_sequences_of_calls_keep_the_invariants():
    """The same, longer and ten times as often."""
    run_state_machine_as_test(
        checks_of(poolkit.state), settings=settings(QUICK, max_examples=1000, stateful_step_count=100)
    )
