"""Three times more requests than can be served: what a plain queue, a bounded one and `target_delay` make of it."""

from __future__ import annotations

import pytest
from overload_world import CAPACITY, POLICIES, SERVICE, SLOTS, TARGET, Crowd, table

# (virtual seconds, seeds, how much the p99 of the served may be above target and service): the queue is found to stand
# after a quarter of a second, and what was served until then is a larger share of the short run
RUNS = [
    pytest.param(4.0, (1,), 3.0, id="4 s"),
    pytest.param(20.0, (1, 2), 1.4, id="20 s", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("seconds", "seeds", "ratio"), RUNS)
def test_overload_is_shed_and_goodput_kept(seconds, seeds, ratio, capsys):
    """At 3x the stale are shed, and goodput stays near capacity where a plain queue works for those who have gone."""
    for seed in seeds:
        outcomes = [Crowd(policy, seconds=seconds, load=3.0, seed=seed).run() for policy in POLICIES]
        with capsys.disabled():
            print(  # noqa: T201  the table is a result of its own
                f"\n{SLOTS} slots, {SERVICE * 1000:.0f} ms each, 3x for {seconds:.0f} s, seed {seed}\n{table(outcomes)}"
            )
        plain, bounded, shed = outcomes
        due = TARGET + SERVICE
        assert shed.p50 <= 1.1 * due
        assert shed.p99 <= ratio * due
        assert bounded.p99 <= 1.5 * due
        assert min(shed.goodput, bounded.goodput) >= 0.95
        assert plain.goodput <= 4.0 / seconds, "after some seconds everybody has gone before they are served"
        assert plain.p99 >= 5 * shed.p99
        assert shed.late == bounded.late == 0
        assert shed.p99_refused <= 2.5 * TARGET * ratio / 1.4, "who is refused is told soon"
        assert shed.served + shed.refused >= 0.98 * shed.asked


@pytest.mark.parametrize(("load", "shed"), [(0.5, 0.0), (0.8, 0.005)])
def test_nobody_is_shed_where_there_is_no_overload(load, shed):
    """Below capacity queues come and go, and `target_delay` changes nothing."""
    outcome = Crowd("target_delay", seconds=10.0, load=load, seed=1).run()
    assert outcome.refused <= shed * outcome.asked
    assert outcome.goodput >= 0.95 * load


def test_a_burst_is_served_whole():
    """What is worked off within four targets is no overload: everybody is served, though some wait for three."""
    count = int(3 * TARGET * CAPACITY)
    crowd = Crowd("target_delay", seconds=count / 1e6, load=1e6 / CAPACITY, seed=1)
    crowd.luck.expovariate = lambda _rate: 1e-6
    crowd.linger = 1.0
    outcome = crowd.run()
    assert outcome.asked >= count - 1
    assert outcome.served == outcome.asked
    assert outcome.refused == 0


@pytest.mark.parametrize("policy", ["max_waiting", "target_delay"])
def test_a_refusal_says_when_the_queue_of_now_is_worked_off(policy):
    """Retry-After is the length of the line at the pace of late; that of a slow morning does not count at noon."""
    crowd = Crowd(policy, seconds=5.0, load=3.0, seed=1)
    crowd.pool._state.used, crowd.pool._state.acquired = 1e6, 1000  # a thousand loans of a quarter of an hour
    hints = sorted(crowd.run().hints)
    line = TARGET * CAPACITY * (1 if policy == "max_waiting" else 3)
    assert hints[len(hints) // 2] == pytest.approx(line / CAPACITY, rel=0.35)


def test_stats_tell_what_was_shed():
    """`overloaded` counts every refusal for the queue's sake, `shed` those of them who had waited."""
    crowd = Crowd("target_delay", seconds=2.0, load=3.0, seed=1)
    outcome = crowd.run()
    stats = crowd.pool.stats()
    assert stats.shed == stats.overloaded == outcome.refused > 100
    assert stats.as_dict()["shed"] == stats.shed
    crowd = Crowd("max_waiting", seconds=2.0, load=3.0, seed=1)
    outcome = crowd.run()
    assert (crowd.pool.stats().shed, crowd.pool.stats().overloaded) == (0, outcome.refused)
