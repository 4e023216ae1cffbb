"""A site on a primary and a real standby: what is written is read, and a replica may go and come."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from replica_rig import BOUND, Cluster, Crowd, Site, eventually, serving

from poolkit.testing import FaultProxy

pytestmark = pytest.mark.slow


def test_who_wrote_sees_it_at_once(any_site: Site, cluster: Cluster) -> None:
    """While the standby replays nothing, the writer reads the primary and all others the replica; then he goes back."""
    writer, other = any_site.client(), any_site.client()
    word = f"paused-{any_site.port}"
    with cluster.paused():
        writer.write(word)
        for _ in range(5):
            assert writer.read(word) == {"count": 1, "port": cluster.primary.port}
            assert other.read(word) == {"count": 0, "port": cluster.standby.port}
        time.sleep(0.3)  # several looks later nothing has changed
        assert writer.read(word)["port"] == cluster.primary.port
        assert writer.get(f"aread?word={word}").body == {"count": 1, "port": cluster.primary.port}
    eventually(lambda: writer.read(word) == {"count": 1, "port": cluster.standby.port})
    assert writer.get(f"aread?word={word}").body == {"count": 1, "port": cluster.standby.port}


def test_many_clients_write_and_read(site: Site, cluster: Cluster) -> None:
    """Every one of many clients finds each of its own writes at once, whoever serves; replicas serve many of them."""

    def work(number: int) -> list[int]:
        client, ports = site.client(), []
        for step in range(15):
            word = f"many-{number}-{step}"
            client.write(word)
            for _ in range(2):
                found = client.read(word)
                assert found["count"] == 1, (word, found)
                ports.append(found["port"])
            time.sleep(0.02 * (number % 4))
            ports.append(client.read(word)["port"])
        return ports

    with ThreadPoolExecutor(8) as pool:
        ports = [port for found in pool.map(work, range(8)) for port in found]
    assert set(ports) == {cluster.primary.port, cluster.standby.port}


def test_marks(site: Site) -> None:
    """Only what was committed leaves a mark: by the ORM, by raw SQL, in autocommit, or to be, after a stream."""
    for view in ("write", "write_raw", "write_by_itself", "write_and_stream", "read_write_read", "change"):
        word = "first" if view == "change" else "marked"
        assert site.client().write(word, view).marked, view
    for view in ("read", "write_and_doom", "in_atomic", "locks"):
        assert not site.client().get(f"{view}?word=first").marked, view


def test_mark_of_autocommit_is_kept(site: Site, cluster: Cluster) -> None:
    """Raw SQL, and writes of a view without a transaction, are found again at once, too."""
    with cluster.paused():
        for view in ("write_raw", "write_by_itself", "write_and_stream"):
            client = site.client()
            client.write(view, view)
            assert client.read(view) == {"count": 1, "port": cluster.primary.port}


def test_a_forged_mark_is_none(site: Site, cluster: Cluster) -> None:
    """A cookie that is not ours demands nothing, and fails nothing."""
    client = site.client()
    client._opener.addheaders = [("Cookie", "poolkit_replica=eyJkZWZhdWx0IjpbIkZGL0ZGRkYiLDBdfQ:1xVKW3:forged")]
    assert client.read("first")["port"] == cluster.standby.port


def test_within_one_request(site: Site, cluster: Cluster) -> None:
    """After the first write of a request, and inside an atomic() or a lock, the primary is read."""
    client = site.client()
    word = "within"
    body = client.write(word, "read_write_read").body
    assert body["before"] == {"count": 0, "port": cluster.standby.port}
    assert body["after"] == {"count": 1, "port": cluster.primary.port}
    other = site.client()
    assert other.get(f"in_atomic?word={word}").body["port"] == cluster.primary.port
    assert other.get(f"locks?word={word}").body == {"alias": "default"}
    changed = other.get("change?word=first").body
    assert changed["read_from"].startswith("replica")
    assert (changed["saved_to"], changed["child"]) == ("default", "default")


def test_atomic_requests(cluster: Cluster) -> None:
    """Django's own block around a view is none of the view's: it reads replicas; an atomic() inside does not."""
    with serving(cluster, ATOMIC_REQUESTS="1") as site:
        eventually(lambda: site.in_use() == {"replica1", "replica2"})
        client = site.client()
        assert client.read("first")["port"] == cluster.standby.port
        assert client.get("in_atomic?word=first").body["port"] == cluster.primary.port
        assert client.write("atomic", "read_write_read").body["after"]["port"] == cluster.primary.port


def test_standby_is_stopped(site: Site, cluster: Cluster) -> None:
    """A standby that stops, or is killed, under load costs no request; it is used again as soon as it is back."""
    for end in (lambda: cluster.standby.stop("fast"), cluster.standby.kill):
        with Crowd(site) as crowd:
            time.sleep(0.3)
            end()
            gone = time.monotonic()
            time.sleep(1.0)
            assert crowd.ports(gone + 0.5) == {cluster.primary.port}
            cluster.standby.start()
            eventually(lambda: site.in_use() == {"replica1", "replica2"})
            back = time.monotonic()
            time.sleep(0.3)
        assert crowd.failed == []
        assert crowd.slowest < BOUND
        assert crowd.ports(back) == {cluster.standby.port}


def test_writers_and_readers_without_a_standby(site: Site, cluster: Cluster) -> None:
    """While the standby is away requests that read and write are served by the primary alone, and none waits for it."""
    cluster.standby.stop("immediate")

    def work(number: int) -> int:
        return site.client().get(f"read_write_read?word=without-{number}").status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(40))) == {200}


def test_start_without_a_standby(cluster: Cluster) -> None:
    """A site that starts while its replica is away serves at once, and is ready."""
    cluster.standby.stop("immediate")
    with serving(cluster) as site:
        found = [site.client().get("read?word=first") for _ in range(5)]
        assert {answer.status for answer in found} == {200}
        assert max(answer.took for answer in found) < BOUND
        assert site.client().get("poolkit/ready").status == 200
        cluster.standby.start()
        eventually(lambda: site.in_use() == {"replica1", "replica2"})


def test_one_way_is_refused(site: Site, cluster: Cluster) -> None:
    """Where one of two replicas can't be reached, the other serves, and the primary is spared."""
    with Crowd(site) as crowd:
        time.sleep(0.3)
        cluster.ways[0].refuse()
        cluster.ways[0].cut()
        gone = time.monotonic()
        eventually(lambda: site.in_use() == {"replica2"})
        time.sleep(0.3)
        assert crowd.ports(gone + 0.3) == {cluster.standby.port}
        cluster.ways[0].heal()
        eventually(lambda: site.in_use() == {"replica1", "replica2"})
    assert crowd.failed == []
    assert crowd.slowest < BOUND


def test_silent_standby(site: Site, cluster: Cluster) -> None:
    """A standby that swallows everything costs a request a bounded time once, and no request fails."""
    with Crowd(site) as crowd:
        time.sleep(0.3)
        for way in cluster.ways:
            way.blackhole()
            way.refuse("silent")
        gone = time.monotonic()
        time.sleep(3.0)
        for way in cluster.ways:
            way.heal()
        eventually(lambda: site.in_use() == {"replica1", "replica2"})
    assert crowd.failed == []
    assert crowd.slowest < BOUND
    slow = [answer for answer in crowd.log if answer.took > 0.4 and answer.began > gone]
    assert len(slow) <= 2 * crowd.count, [round(answer.began - gone, 2) for answer in slow]


def test_late_standby(cluster: Cluster) -> None:
    """A standby that falls behind is left out, for everybody, until it has caught up; in quiet times none is late."""
    with serving(cluster, MAX_LAG="0.5") as site:
        eventually(lambda: site.in_use() == {"replica1", "replica2"})
        cluster.on_primary("SELECT pg_switch_wal()")  # the log goes on with the next segment, where nothing is yet
        time.sleep(1.2)
        assert site.in_use() == {"replica1", "replica2"}

        def used_in_quiet() -> set[str] | None:
            with cluster.paused():
                before = cluster.on_primary("SELECT pg_current_wal_insert_lsn()::text")
                time.sleep(1.0)
                used: set[str] = site.in_use()
                # now and then the server logs which transactions run
                return used if cluster.on_primary("SELECT pg_current_wal_insert_lsn()::text") == before else None

        # nothing was written: nothing is missing
        assert eventually(used_in_quiet) == {"replica1", "replica2"}
        with cluster.paused():
            site.client().write("late")
            eventually(lambda: site.in_use() == set())
            assert site.client().read("late") == {"count": 1, "port": cluster.primary.port}
            late = site.replicas()["replica1"]
            assert late["lag_seconds"] > 0.5
            assert late["lag_bytes"] > 0
        eventually(lambda: site.in_use() == {"replica1", "replica2"})


def test_connection_is_lost_between_two_reads(site: Site, cluster: Cluster) -> None:
    """A read whose connection was ended under its request goes on elsewhere."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.client().get, "slow?word=first&seconds=0.6")
        time.sleep(0.3)
        for way in cluster.ways:
            way.cut("fin")
        answer = waiting.result()
    assert answer.status == 200
    assert answer.body["first"]["port"] == cluster.standby.port
    assert answer.body["second"]["count"] == answer.body["first"]["count"]


def test_replay_goes_before_a_read(site: Site, cluster: Cluster) -> None:
    """A statement that the standby cancels, because the replay had to go on, runs again on the primary."""
    cluster.on_standby("ALTER SYSTEM SET max_standby_streaming_delay = '50ms'")
    cluster.on_standby("SELECT pg_reload_conf()")
    cluster.on_primary("INSERT INTO notes_note (word) SELECT 'gone' FROM generate_series(1, 1000)")
    cluster.catch_up()
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(site.client().get, "long")
            time.sleep(0.5)
            cluster.on_primary("DELETE FROM notes_note WHERE word = 'gone'")
            cluster.on_primary("VACUUM notes_note")
            answer = waiting.result()
    finally:
        cluster.on_standby("ALTER SYSTEM RESET max_standby_streaming_delay")
        cluster.on_standby("SELECT pg_reload_conf()")
    assert (answer.status, answer.body) == (200, {"port": cluster.primary.port})
    assert answer.took > 1.6  # it was cancelled, and ran again


def test_what_a_request_costs(cluster: Cluster) -> None:
    """A request that reads a replica says nothing to the primary; one that wrote asks it once more than without one."""
    with FaultProxy(cluster.primary.dsn) as wire:

        def cost(site: Site, view: str) -> int:
            site.client().write("cost", view)  # from here on the pool has what it needs
            before = wire.round_trips
            site.client().write("cost", view)
            return wire.round_trips - before

        environ = {"PRIMARY_URL": wire.url(cluster.primary.dsn), "PAUSE": "60"}
        with serving(cluster, **environ) as site:
            eventually(lambda: site.in_use() == {"replica1", "replica2"})
            read, write = cost(site, "read"), cost(site, "write")
        with serving(cluster, **environ, REPLICAS="") as alone:
            without = cost(alone, "write")
    assert (read, write - without) == (0, 1)


def test_promoted_standby(cluster: Cluster) -> None:
    """A replica that has become a primary of its own is left out: it goes its own way, and says so."""
    with cluster.primary.standby() as promoted:
        alone = Cluster(cluster.primary, promoted, cluster.ways[:1])
        environ = {"REPLICAS": f"replica1={promoted.dsn}"}
        with serving(alone, **environ) as site:
            eventually(lambda: site.in_use() == {"replica1"})
            promoted.promote()
            eventually(lambda: site.in_use() == set())
            assert "standby" in site.replicas()["replica1"]["out"]
            assert site.client().read("first")["port"] == cluster.primary.port
