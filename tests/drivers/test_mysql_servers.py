"""MySQL drivers against servers of a test's own: set up otherwise, with TLS, stopped, killed and paused."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rigs import MYSQL, RIGS

from poolkit.errors import PoolError
from poolkit.testing.mariadb import LocalMariadb, MariadbNotFound
from poolkit.threads import Pool

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("rig_name", MYSQL)]

ENCRYPTED: dict[str, dict[str, Any]] = {"pymysql": {}, "mysqlclient": {"ssl_mode": "REQUIRED"}}  # PyMySQL tries anyway


@pytest.fixture
def settings() -> dict[str, Any]:
    return {}


@pytest.fixture
def server(settings: dict[str, Any], unavailable: Any) -> Iterator[LocalMariadb]:
    try:
        started = LocalMariadb(**settings).start()
    except MariadbNotFound as error:
        unavailable("mysql", f"{error} (a server that runs already is no help: this test has its own way with it)")
    with started:
        yield started


class TestTls:
    """A server that speaks TLS."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> dict[str, Any]:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("openssl makes the certificate, and is not installed")
        subprocess.run(
            [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
        return {"ssl_cert": str(tmp_path / "cert.pem"), "ssl_key": str(tmp_path / "key.pem")}

    def test_everything(self, rig_name: str, server: LocalMariadb, settings: dict[str, Any]) -> None:
        """Encrypted and verified, a connection is looked at, pinged, reset, closed and seen to die as any other."""
        kind = RIGS[rig_name]
        ca = settings["ssl_cert"]
        verified = {
            "pymysql": {"ssl_ca": ca, "ssl_verify_cert": True, "ssl_verify_identity": True},
            "mysqlclient": {"ssl": {"ca": ca}, "ssl_mode": "VERIFY_IDENTITY"},
        }
        for options in (ENCRYPTED[rig_name], verified[rig_name]):
            rig = kind(kind.kind(server.dsn, options=options), None)
            conn, other = rig.open(), rig.open()
            assert rig.rows(conn, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0][1]
            assert rig.alive(conn)
            rig.begin(conn)
            rig.commit(conn)
            assert rig.clean(conn)
            assert rig.ping(conn)
            rig.reset(conn, full=True)
            assert rig.clean(conn)
            rig.do(other, f"KILL {rig.value(conn, 'SELECT connection_id()')}")
            end = time.monotonic() + 15
            while rig.alive(conn):
                assert time.monotonic() < end
            began = time.monotonic()
            rig.close_all()
            assert time.monotonic() - began < 10

    def test_close_of_a_silent_server(self, rig_name: str, server: LocalMariadb) -> None:
        """TLS has a goodbye of its own, which a server that hangs does not answer: nobody waits for it."""
        kind = RIGS[rig_name]
        rig = kind(kind.kind(server.dsn, options=ENCRYPTED[rig_name]), None)
        conn, other = rig.open(), rig.open()
        server.pause()
        began = time.monotonic()
        rig.driver.close(conn)
        assert not rig.ping(other, 0.1)
        rig.driver.close(other)
        assert time.monotonic() - began < 10
        server.resume()


def test_a_restart_and_a_crash(rig_name: str, server: LocalMariadb) -> None:
    """What the server's end leaves in the pool is never lent: borrowers get a live connection or a pool's error."""
    kind = RIGS[rig_name]
    rig = kind(kind.kind(server.dsn), None)
    with Pool(rig.driver, max_size=4, timeout=20, on_outage="wait") as pool:
        for down in (server.stop, server.kill):
            leases = [pool.acquire() for _ in range(4)]
            for lease in leases:
                lease.release()
            down()
            back = threading.Timer(0.5, server.start)
            back.start()
            for _ in range(8):
                with pool.acquire() as conn:
                    assert rig.value(conn, "SELECT 1") == 1
            back.join()
        server.stop()
        with pytest.raises(PoolError), pool.acquire(timeout=0.3):
            pass
    rig.close_all()


def test_many_threads(rig_name: str, server: LocalMariadb) -> None:
    """Eight threads on four connections move money about, with deadlocks and kills: not a cent is lost or made."""
    kind = RIGS[rig_name]
    rig = kind(kind.kind(server.dsn), None)
    admin = rig.open()
    rig.do(admin, "CREATE TABLE account (id integer PRIMARY KEY, cents integer NOT NULL)")
    rig.do(admin, "INSERT INTO account SELECT seq, 100 FROM seq_1_to_4")
    over, moved, failed = threading.Event(), [0] * 8, [0] * 8

    def work(number: int) -> None:
        step = 0
        while not over.is_set():
            step += 1
            here, there = 1 + (number + step) % 4, 1 + (number * step) % 4
            try:
                with pool.transaction() as conn:
                    rig.do(
                        conn,
                        f"UPDATE account SET cents = cents - 1 WHERE id = {here}",
                        f"UPDATE account SET cents = cents + 1 WHERE id = {there}",
                    )
                moved[number] += 1
            except (rig.errors, PoolError):
                failed[number] += 1

    with Pool(rig.driver, max_size=4, timeout=10, on_outage="wait") as pool:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        own = rig.value(admin, "SELECT connection_id()")
        for _ in range(15):
            time.sleep(0.1)
            sessions = "SELECT id FROM information_schema.processlist WHERE db = 'poolkit'"
            others = rig.rows(admin, f"{sessions} AND id <> {own}")
            for (victim,) in others[:1]:
                admin.kill(victim)
        over.set()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert all(moved)
        assert sum(failed)
        assert pool.stats().out == 0
    assert rig.value(admin, "SELECT sum(cents) FROM account") == 400
    rig.close_all()
