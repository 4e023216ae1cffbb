"""The server is restarted under load."""

from __future__ import annotations

import time

import pytest
from fault_rig import Crowd

from poolkit import OpenFailed

pytestmark = pytest.mark.slow
WORKERS = 8
BREAKER = 0.6  # seconds of outage that the waiters wait through, by default


def test_restart_under_load(rig, private_pg, tell):
    """Only what was under way fails, at most one operation a worker; service is back when the server is.

    Nobody is refused in an outage that is shorter than the breaker's patience. The connections of before are gone, and
    as many come in their place as are needed.
    """
    pool = rig.make(private_pg.dsn, max_size=WORKERS, timeout=30)
    rig.fill(pool, WORKERS)
    with Crowd(lambda: rig.attempt(pool, "SELECT pg_sleep(0.002)"), WORKERS) as crowd:
        assert crowd.wait_for(lambda log: len(log) > 2 * WORKERS)
        private_pg.stop("fast")
        down = time.monotonic()
        private_pg.start()
        up = time.monotonic()
        assert crowd.wait_for(lambda log: sum(one.error is None and one.began > up for one in log) > 5 * WORKERS)
    _report(crowd, up - down, up, tell, rig.name)
    refused = [one for one in crowd.failed if isinstance(one.error, OpenFailed)]
    assert len(crowd.failed) - len(refused) <= WORKERS
    assert not refused or up - down > BREAKER
    assert [one for one in crowd.failed if one.began > up + 1] == []
    assert min(one.ended for one in crowd.log if one.error is None and one.ended > up) < up + 0.5 + (up - down) / 2
    assert rig.stats(pool).size <= WORKERS


def _report(crowd, outage, up, tell, name):
    served = [one for one in crowd.log if one.error is None]
    back = min(one.ended for one in served if one.ended > up) - up
    slowest = max(one.ended - one.began for one in served)
    tell(
        f"{name}: {outage:.2f} s without the server, {len(crowd.failed)} of {len(crowd.log)} operations failed, "
        f"first success {back * 1000:.0f} ms after it was back, slowest {slowest:.2f} s"
    )
