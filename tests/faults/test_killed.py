"""Idle connections that the server has closed: seen for nothing, all of them at once, however many."""

from __future__ import annotations

import pytest
from fault_rig import until

MINE = "application_name = 'victim'"


@pytest.mark.parametrize("count", [pytest.param(n, marks=[] if n == 4 else [pytest.mark.slow]) for n in (1, 4, 8, 32)])
def test_killed_while_idle(rig, network, admin, tell, count):
    """After N idle connections were ended, one client's next 50 operations succeed.

    They take what they take on a pool that is new, one connect included: nothing is asked of the dead.
    """
    undisturbed = rig.make(network.through)
    _fifty(rig, undisturbed)
    trips = network.round_trips
    pool = rig.make(f"{network.through}&application_name=victim", max_size=count)
    rig.fill(pool, count)
    _kill(admin, network, count)
    before = network.round_trips
    slowest = _fifty(rig, pool)
    assert network.round_trips - before == trips
    assert network.accepted == 1 + count + 1
    assert until(lambda: network.links == 2)
    stats = rig.stats(pool)
    assert (stats.opened, stats.open_failures, stats.closed_by_reason) == (count + 1, 0, {"dead": count})
    tell(f"{rig.name}, {count} killed: the slowest of 50 operations took {slowest * 1000:.1f} ms")


def _fifty(rig, pool):
    """Fifty operations that succeed; returns what the slowest took."""
    log = [rig.attempt(pool) for _ in range(50)]
    assert [one.error for one in log if one.error is not None] == []
    return max(one.ended - one.began for one in log)


def _kill(admin, network, count):
    killed = admin.execute(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {MINE}").fetchone()
    assert killed == (count,)
    # Also the end has to arrive: to a goodbye alone a client may still answer.
    assert until(lambda: network._call(lambda: sum(not link._down.delivered_all for link in network._links)) == 1)
