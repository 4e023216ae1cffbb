"""LocalMariadb: a real server that obeys, and that leaves nothing behind however its maker ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.testing import mariadb
from poolkit.testing.mariadb import LocalMariadb, MariadbFailed, MariadbNotFound, find_programs

pytestmark = pytest.mark.slow  # each start takes a second, and others wait for this one machine


@pytest.fixture(scope="module")
def server(unavailable: Any) -> Iterator[LocalMariadb]:
    try:
        started = LocalMariadb(max_connections=33).start()
    except MariadbNotFound as error:
        unavailable("mysql", str(error))
    with started:
        yield started


@pytest.fixture
def up(server: LocalMariadb) -> Iterator[LocalMariadb]:
    yield server
    server.resume()
    server.start()


def value(url: str, query: str) -> Any:
    driver = PymysqlDriver(url)
    conn = driver.open(10)
    try:
        with conn.cursor() as cursor:
            cursor.execute(query)
            row = cursor.fetchone()
            return row and row[0]
    finally:
        driver.close(conn)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it went just now, or there is no such folder: then the next look tells
        return False
    # Where nothing reaps orphans, a process that has ended stays listed.
    return status.rpartition(")")[2].split()[0] == "Z"


def until(condition: Any, seconds: float = 15) -> None:
    """Wait for what another process does; it tells nobody when it is done."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_it_answers(up: LocalMariadb) -> None:
    """A started server takes connections on both of its addresses, with the settings it was given."""
    assert value(up.dsn, "SELECT @@max_connections") == 33
    assert value(up.socket_dsn, "SELECT database()") == "poolkit"
    assert up.start() is up


def test_temporary_files_are_its_own(up: LocalMariadb) -> None:
    """A server that starts removes the temporary tables it finds: it must find none but its own."""
    assert str(value(up.dsn, "SELECT @@tmpdir")) == str(Path(str(value(up.dsn, "SELECT @@socket"))).parent)


def test_the_password(up: LocalMariadb) -> None:
    """Other accounts of the machine can't use the server, root's included, and no repr tells how."""
    secret = up.dsn.split(":")[2].split("@")[0]
    for wrong in (up.dsn.replace(secret, "wrong"), up.socket_dsn.replace(f"poolkit:{secret}", "root:")):
        with pytest.raises(pymysql.err.OperationalError, match="denied"):
            value(wrong, "SELECT 1")
    assert secret not in repr(up)
    assert str(up.port) in repr(up)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_it_comes_back(up: LocalMariadb, how: str) -> None:
    """After a stop or a power cut it is back on the same port, with what was committed."""
    value(up.dsn, "CREATE OR REPLACE TABLE kept (id integer)")
    value(up.dsn, "INSERT INTO kept VALUES (5)")
    port, pid = up.port, up.pid
    up.restart() if how == "restart" else up.kill()
    assert up.running is (how == "restart")
    up.start()
    assert (up.port, up.pid != pid) == (port, True)
    assert value(up.dsn, "SELECT id FROM kept") == 5


def test_a_pause(up: LocalMariadb) -> None:
    """A paused server is silent, can be stopped, and goes on after a resume."""
    up.pause()
    driver = PymysqlDriver(up.dsn)
    with pytest.raises(pymysql.err.OperationalError, match="within"):
        driver.open(0.2)
    assert up.running
    up.resume()
    assert value(up.dsn, "SELECT 1") == 1
    up.pause()
    up.stop()
    assert not up.running


def test_close_leaves_nothing() -> None:
    """After the `with` block there is no process, no folder, and no way to go on using it."""
    with LocalMariadb() as own:
        pid, folder, watchdog = own.pid, own._home(), own._watchdog
        assert pid
        assert watchdog
    assert gone(pid)
    assert gone(watchdog.pid)
    assert not folder.exists()
    own.close()
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = own.dsn


def test_a_wrong_setting() -> None:
    """A server that refuses a setting fails with its own words, and leaves nothing."""
    own = LocalMariadb(nonsense=1)
    with pytest.raises(MariadbFailed, match="unknown variable 'nonsense"), own:
        pass
    assert own._folder is None


def test_a_given_port_that_is_taken(up: LocalMariadb) -> None:
    """A port that somebody has is an error where it was asked for, and chosen anew where it was not."""
    with pytest.raises(MariadbFailed, match="in use"), LocalMariadb(port=up.port):
        pass
    own = LocalMariadb()
    own.port = up.port
    with own:
        assert own.port != up.port


@pytest.mark.parametrize("how", ["running", "paused"])
def test_a_killed_parent_leaves_nothing(tmp_path: Path, how: str) -> None:
    """However the maker ends, the server ends and its folder goes."""
    script = tmp_path / "program.py"
    script.write_text(
        "import time\nfrom poolkit.testing.mariadb import LocalMariadb\nown = LocalMariadb().start()\n"
        f"{'own.pause()' if how == 'paused' else ''}\nprint(own.pid, own._folder, flush=True)\ntime.sleep(60)\n"
    )
    program = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    pid, folder = program.stdout.readline().split()
    program.kill()
    program.communicate()
    until(lambda: gone(int(pid)) and not Path(folder).exists())


def test_a_set_folder_is_never_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POOLKIT_MARIADB_BIN is used or refused."""
    monkeypatch.setenv("POOLKIT_MARIADB_BIN", str(tmp_path))
    with pytest.raises(MariadbNotFound, match=str(tmp_path)):
        find_programs()
    (tmp_path / "mysqld").write_text("#!/bin/sh\necho mysqld  Ver 8.0.40\n")
    (tmp_path / "mysqld").chmod(0o755)
    assert find_programs() == (tmp_path / "mysqld", None)


def test_nothing_to_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server the error says where it was looked for, and what to do."""
    monkeypatch.delenv("POOLKIT_MARIADB_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mariadb, "_PLACES", ())
    with pytest.raises(MariadbNotFound, match=r"apt-get install mariadb-server.*POOLKIT_MARIADB_BIN"):
        LocalMariadb().start()
