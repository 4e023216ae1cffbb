"""The primary is gone, or is one no longer: writes go on with the new one, and never to the old."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import psycopg
import pytest
from fault_rig import Crowd

from poolkit.testing import FaultProxy

pytestmark = pytest.mark.slow
RECOVERY = 1.0
SLACK = 0.3
WORKERS = 4
WRITE = "INSERT INTO written DEFAULT VALUES RETURNING current_setting('port')::integer"


class Cluster:
    """A primary and its standby."""

    def __init__(self, primary, standby):
        self.primary, self.standby = primary, standby
        with psycopg.connect(primary.dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE written (id serial)")

    @property
    def url(self):
        """Both hosts, the first primary first; only one that takes writes will do."""
        parts = urlsplit(self.primary.dsn)
        user = parts.netloc.rpartition("@")[0]
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://{user}@{hosts}/postgres?target_session_attrs=read-write"

    def demote(self):
        """Let the primary refuse writes from now on, as a managed service's does: nobody is disconnected."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            conn.execute("SELECT pg_reload_conf()")


@pytest.fixture
def cluster(private_pg):
    """A primary that is as it was for the next test, and a standby of this test's own: a promotion is for ever."""
    with private_pg.standby() as standby:
        yield Cluster(private_pg, standby)
    private_pg.settings.pop("default_transaction_read_only", None)
    private_pg.stop("fast")
    private_pg.start()
    with psycopg.connect(private_pg.dsn, autocommit=True, options="-c default_transaction_read_only=off") as conn:
        conn.execute("ALTER SYSTEM RESET ALL")
        conn.execute("SELECT pg_reload_conf()")
        conn.execute("DROP TABLE written")


def _writers(rig, pool):
    return Crowd(lambda: rig.attempt(pool, WRITE, timeout=5, in_transaction=True), WORKERS, pause=0.02)


def _ports(log, since=0.0):
    return {one.value for one in log if one.error is None and one.began > since}


def test_failover(rig, cluster, tell):
    """The primary is killed and the standby promoted: writes go on within a second, with the same URL.

    When the old one comes back, read-only as it should be, it is first in the list and gets nothing all the same.
    """
    pool = rig.make(cluster.url, max_size=WORKERS, open_timeout=3)
    with _writers(rig, pool) as crowd:
        assert crowd.wait_for(lambda log: len(log) > 3 * WORKERS)
        assert _ports(crowd.log) == {cluster.primary.port}
        cluster.primary.kill()
        time.sleep(0.5)
        killed = time.monotonic()
        cluster.standby.promote()
        promoted = time.monotonic()
        first = crowd.first_success(killed)
        cluster.primary.settings["default_transaction_read_only"] = True
        cluster.primary.start()
        rig.drain(pool)
        anew = crowd.first_success(time.monotonic())
        assert crowd.wait_for(lambda log: sum(one.began > anew for one in log) > 3 * WORKERS)
    tell(f"{rig.name}: first write {(first - promoted) * 1000:.0f} ms after the promotion, {len(crowd.failed)} failed")
    assert first - promoted < RECOVERY + SLACK
    assert _ports(crowd.log, killed) == {cluster.standby.port}
    assert [one for one in crowd.failed if one.began > first] == []


def test_silent_primary(rig, cluster, tell):
    """The host of the primary vanishes without a word, and its standby takes over: new connections find it in time."""
    with FaultProxy(cluster.primary.dsn) as network:
        hosts = cluster.url.replace(f":{cluster.primary.port},", f":{network.port},") + "&sslmode=disable"
        pool = rig.make(hosts, max_size=2, open_timeout=3)
        assert rig.value(pool, WRITE, in_transaction=True) == cluster.primary.port
        network.blackhole()
        cluster.standby.promote()
        promoted = time.monotonic()
        rig.drain(pool)
        with _writers(rig, pool) as crowd:
            first = crowd.first_success(promoted)
        tell(f"{rig.name}: first write {(first - promoted) * 1000:.0f} ms after the promotion")
        assert first - promoted < 3 * RECOVERY  # asyncpg gives a silent host all the time of the first attempt
        assert _ports(crowd.log) == {cluster.standby.port}


def test_demoted_primary(rig, cluster):
    """One write that a demoted server refuses (25006) is enough: every connection of then is replaced.

    The URL is a callable, and asked anew.
    """
    current = [cluster.primary]
    pool = rig.make(lambda: current[0].dsn, max_size=WORKERS)
    rig.fill(pool, WORKERS)
    assert rig.value(pool, WRITE, in_transaction=True) == cluster.primary.port
    cluster.demote()
    cluster.standby.promote()
    current[0] = cluster.standby
    with pytest.raises(rig.read_only):
        _write_until_refused(rig, pool)
    assert rig.stats(pool).idle == 0
    log = [rig.attempt(pool, WRITE, in_transaction=True) for _ in range(20)]
    assert [one.error for one in log if one.error is not None] == []
    assert _ports(log) == {cluster.standby.port}
    assert rig.stats(pool).closed_by_reason == {"demoted": 1, "drained": WORKERS - 1}


def _write_until_refused(rig, pool):
    """A reload reaches the sessions in their own time."""
    for _ in range(200):
        rig.value(pool, WRITE, in_transaction=True)
        time.sleep(0.005)


def test_address_moves_and_comes_back(rig, cluster, tell):
    """An address that leads to a standby for a while and then to the primary again leaves nobody stuck on either.

    While it is away reads go on, and a refused write costs one connect.
    """
    with FaultProxy(cluster.primary.dsn) as address:
        pool = rig.make(address.url(cluster.primary.dsn), max_size=WORKERS)
        with _writers(rig, pool) as crowd:
            assert crowd.wait_for(lambda log: len(log) > 3 * WORKERS)
            address.redirect(cluster.standby.dsn)
            address.cut()
            moved = time.monotonic()
            connects = address.accepted
            assert crowd.wait_for(lambda log: any(isinstance(one.error, rig.read_only) for one in log))
            assert rig.value(pool, "SELECT current_setting('port')::integer") == cluster.standby.port
            time.sleep(0.7)
            connects = address.accepted - connects
            refused = sum(isinstance(one.error, rig.read_only) for one in crowd.log)
            address.redirect(cluster.primary.dsn)
            back = time.monotonic()
            first = crowd.first_success(back)
            assert crowd.wait_for(lambda log: sum(one.began > first + 1.1 for one in log) > 3 * WORKERS)
        tell(
            f"{rig.name}: first write {(first - back) * 1000:.0f} ms after the address was back; {refused} refused "
            f"and {connects} connects while it was away"
        )
        assert connects <= refused + 2 * WORKERS
        assert first - back < RECOVERY + SLACK
        assert _ports(crowd.log) == {cluster.primary.port}
        assert [one for one in crowd.failed if one.began > back + RECOVERY + SLACK] == []
        assert [one for one in crowd.log if one.error is None and moved < one.began and one.ended < back] == []
