"""The network swallows everything: nobody waits past their timeout, nothing piles up, and it ends when the outage does.

Two kinds of outage. `held`: what was sent arrives in the end, as TCP's retransmissions do. `lost`: it never does, and
neither side hears of it (a NAT that forgot, a host that came back with another address table).
"""

from __future__ import annotations

import time

import pytest
from fault_rig import Crowd, until

pytestmark = pytest.mark.slow
TIMEOUT = 0.3
SLACK = 0.3  # for threads and loops on a busy machine
OUTAGE = 0.8
RECOVERY = 1.0  # after this much of a good network everything works again
MAX_SIZE = 4
WORKERS = 8


def _crowd(rig, pool):
    return Crowd(lambda: rig.attempt(pool, timeout=TIMEOUT), WORKERS, pause=0.02)


def _end(network, kind):
    """Heal, at the worst moment there is: a connect has just begun, and is lost as well."""
    if kind == "lost":
        begun = network.accepted
        until(lambda: network.accepted > begun, 1.5)
        network.half_open()
    network.heal()
    return time.monotonic()


@pytest.mark.parametrize(
    ("state", "kind"),
    [("empty", "lost"), ("growing", "lost"), ("idle", "held"), ("idle", "lost")],
)
def test_blackhole(rig, network, tell, kind, state):
    """In the outage everyone gets an error in time, and the pool is never above max_size; afterwards it heals itself.

    Whatever it was when the outage began: without a connection ever, about to grow, or full of idle connections (which
    it asks before it lends them, as `check_after` says).
    """
    pool = rig.make(network.through, max_size=MAX_SIZE, check_after=0.0)
    held = rig.do(pool.acquire) if state == "growing" else None
    if state == "idle":
        rig.fill(pool, MAX_SIZE)
    network.blackhole()  # before the crowd: a statement under way that is lost is its user's to give up
    with _crowd(rig, pool) as crowd:
        began = time.monotonic()
        time.sleep(OUTAGE)
        back = _end(network, kind)
        first = crowd.first_success(back)
        assert crowd.wait_for(lambda log: sum(one.error is None and one.began > first for one in log) > 5 * WORKERS)
    if held is not None:
        rig.do(held.discard)
    meanwhile = [one for one in crowd.log if began < one.began < back]
    longest = max(one.waited for one in crowd.log)
    tell(
        f"{rig.name}, {state}, {kind}: first success {(first - back) * 1000:.0f} ms after the network was back, "
        f"longest wait {longest:.2f} s, at most {network.most_links} connections, {network.accepted} in all"
    )
    assert len(meanwhile) > WORKERS
    assert all(one.error is not None for one in meanwhile if one.ended < back)
    assert longest < TIMEOUT + SLACK
    assert network.most_links <= MAX_SIZE
    assert first - back < RECOVERY + SLACK


@pytest.mark.parametrize("count", [1, 8])
def test_idle_connections_lost_for_good(rig, network, tell, count):
    """Connections whose path is gone, without a sign of it, don't keep anybody past the timeout, nor each in its turn.

    They are asked because they lay idle for longer than `check_after`.
    """
    pool = rig.make(network.through, max_size=count, check_after=0.0)
    rig.fill(pool, count)
    assert network.half_open() == count
    began = time.monotonic()
    log = []
    while not log or log[-1].error is not None:
        log.append(rig.attempt(pool, timeout=TIMEOUT))
        assert time.monotonic() - began < 20
    took = time.monotonic() - began
    tell(f"{rig.name}, {count} lost: first success after {took:.2f} s, {len(log) - 1} refused before")
    assert max(one.waited for one in log) < TIMEOUT + SLACK
    assert took < RECOVERY + SLACK
