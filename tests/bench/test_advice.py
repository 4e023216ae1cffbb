"""Advice on a pool's size: each number follows from what was measured and given, and is shown with its arithmetic."""

from __future__ import annotations

import pytest

from poolkit.bench.advice import Limits, Situation, advise, carried, needed, waiting

SITUATION = Situation(0.001, 0.0003, 2, Limits(100, 3, 17), workers=4, rate=500.0, hold=0.02)


@pytest.mark.parametrize(
    ("size", "busy", "share"),
    # Of one connection it is the load itself; the others by hand: B = (a^c / c!) / sum(a^k / k!), then
    # C = B / (1 - a/c (1 - B)).
    [(1, 0.5, 0.5), (1, 0.05, 0.05), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (2, 0.0, 0.0), (2, 2.0, 1.0), (2, 5.0, 1.0)],
)
def test_erlang(size: int, busy: float, share: float) -> None:
    """The share of requests that find all in use; all of them, where there is more to do than can be done."""
    assert waiting(size, busy) == pytest.approx(share)


@pytest.mark.parametrize("busy", [0.01, 0.5, 1.0, 2.5, 7.9, 40.0])
def test_the_size_needed_is_the_least(busy: float) -> None:
    """It is enough, and one less is not."""
    size = needed(busy)
    assert waiting(size, busy) <= 0.05
    assert size == 1 or waiting(size - 1, busy) > 0.05


@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_what_a_size_carries_is_the_inverse(size: int) -> None:
    """At the rate it is said to carry, that very size is needed; at a little more, the next."""
    rate = carried(size, 0.02)
    assert needed(rate * 0.02 * 0.999) == size
    assert needed(rate * 0.02 * 1.001) == size + 1


def test_free_connections() -> None:
    """What is reserved and what is in use is not free, and there are never fewer than none."""
    assert Limits(100, 3, 17).free == 80
    assert Limits(100, 3, 99).free == 0


def test_the_arithmetic_is_shown() -> None:
    """Little's law, Erlang's share and the cap, in figures that follow from one another."""
    advice = advise(SITUATION)
    assert advice.size == 6
    text = "\n".join(advice.lines)
    assert "500 requests/s / 4 workers = 125/s each; 125/s x 20 ms = 2.50 connections busy" in text
    assert "With 6, 4.7% of the requests find all in use; with 5, 13.0%" in text
    assert "100 (max_connections) - 3 (reserved) - 17 (in use now) = 80; 80 / 4 workers = 20" in text
    assert "20 ms - 1 ms = 19 ms is work" in text
    assert "2 / 19 ms = 105 requests/s" in text
    assert advice.lines[-1] == "max_size = 6"


def test_a_server_too_small() -> None:
    """Where more is needed than is free, the pool gets what there is, and the rate that this carries is said."""
    advice = advise(SITUATION._replace(limits=Limits(20, 3, 1)))
    assert advice.size == 4
    assert any(line.startswith("NOT enough") and "6 are needed and 4 are free" in line for line in advice.lines)
    assert f"carries {carried(4, 0.02) * 4:.0f} requests/s" in "\n".join(advice.lines)


def test_no_connection_for_each_worker() -> None:
    """With fewer free connections than workers there is no size at all."""
    advice = advise(SITUATION._replace(limits=Limits(10, 3, 4)))
    assert advice.size is None
    assert advice.lines[-1].startswith("No pool fits")


def test_without_a_rate_a_table_is_given() -> None:
    """No number is made up: what each size carries is listed, as far as the server lets it grow."""
    advice = advise(SITUATION._replace(rate=None, limits=Limits(40, 3, 1)))
    assert advice.size is None
    text = "\n".join(advice.lines)
    assert "max_size 8:" in text
    assert "max_size 16:" not in text
    assert "--rate" in advice.lines[-1]


def test_without_a_hold_the_least_is_taken() -> None:
    """The measured transaction is the least that a request can do, and said to be no more than that."""
    advice = advise(SITUATION._replace(hold=None, limits=None))
    assert advice.size == needed(500 / 4 * 0.001)
    assert "at least" in advice.lines[1]
    assert not any("max_connections" in line for line in advice.lines)
