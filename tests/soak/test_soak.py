"""The soak: random faults from a seed over all that a pool can meet, and at the end everything has to add up."""

from __future__ import annotations

from soak_bench import Bench
from soak_plan import draw
from soak_round import CALM, Round


def test_soak(soak_rounds, bench: Bench, capsys):
    """Whatever happens to server, network and borrowers: nothing is lost, doubled, leaked, forgotten or half saved."""
    for seed, seconds in soak_rounds:
        soak_round = Round(draw(seed, max(1.0, seconds - CALM - 2)), bench)
        soak_round.run()
        with capsys.disabled():
            print(f"\n{soak_round.summary}", end="", flush=True)  # noqa: T201  hours without a word look like a hang
        assert not soak_round.wrong, soak_round.report
