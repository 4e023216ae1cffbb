"""The engine: who holds a connection and when it comes back, lazy atomic(), and what never reaches the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core import signals
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from django.test import override_settings
from django_rig import ABORTED, acquired, eventually, out, run, write

import poolkit
from poolkit_django import release, unit_of_work
from poolkit_django.backends import pools


def backend() -> int:
    """The server's process that serves this thread."""
    return int(run("SELECT pg_backend_pid()")[0][0])


def kill(monitor: psycopg.Connection[Any], pid: int) -> None:
    """End a session from outside, and wait until it is gone."""
    monitor.execute("SELECT pg_terminate_backend(%s)", (pid,))
    asked = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
    eventually(lambda: monitor.execute(asked, (pid,)).fetchone() is None)
    time.sleep(0.005)  # what came back less than a millisecond ago is lent without a look


# -- lazy --------------------------------------------------------------------------------------------------------------


def test_a_block_without_a_query_takes_nothing() -> None:
    """atomic(), nested or not, takes no connection before its first query, and none at all without one."""
    before = acquired()
    with transaction.atomic(), transaction.atomic(), transaction.atomic(savepoint=False):
        assert connection.in_atomic_block
        assert not connection.get_autocommit()
    assert connection.get_autocommit()
    assert acquired() == before


def test_the_first_query_catches_up_on_the_blocks_around_it(rows: Callable[[str], int]) -> None:
    """Savepoints of blocks entered before the first query exist when it runs: each can be rolled back for itself."""
    with transaction.atomic():
        with contextlib.suppress(DatabaseError), transaction.atomic():
            write("inner")
            run(ABORTED)
        write("outer")
    assert (rows("inner"), rows("outer")) == (0, 1)


def test_a_block_that_was_left_before_the_first_query_leaves_no_savepoint() -> None:
    """What was entered and left without a query is forgotten: only the savepoints around a query are made."""
    with transaction.atomic():
        with transaction.atomic():
            pass
        with contextlib.suppress(KeyError), transaction.atomic():
            raise KeyError
        with connection.execute_wrapper(_recording([])) as _, transaction.atomic():
            seen: list[str] = []
            with connection.execute_wrapper(_recording(seen)):
                run("SELECT 1")
    assert [statement.partition(" ")[0] for statement in seen] == ["SAVEPOINT", "SELECT"]


def _recording(seen: list[str]) -> Callable[..., Any]:
    def record(execute: Any, sql: str, *rest: Any) -> Any:
        seen.append(sql)
        return execute(sql, *rest)

    return record


def test_hooks_of_a_block_without_a_query_run() -> None:
    """transaction.on_commit is kept also where nothing was ever sent."""
    seen: list[int] = []
    with transaction.atomic():
        transaction.on_commit(lambda: seen.append(1))
        assert seen == []
    assert seen == [1]
    with contextlib.suppress(KeyError), transaction.atomic():
        transaction.on_commit(lambda: seen.append(2))
        raise KeyError
    assert seen == [1]


def test_a_connect_that_fails_leaves_the_block_as_it_was(rows: Callable[[str], int], hold: Any) -> None:
    """Without a connection the query fails, and the block can go on once there is one."""
    with transaction.atomic():
        with hold(3), _impatient(), pytest.raises(OperationalError):
            run("SELECT 1")
        assert connection.in_atomic_block
        with contextlib.suppress(KeyError), transaction.atomic():
            write("undone")
            raise KeyError
        write("kept")
    assert (rows("kept"), rows("undone")) == (1, 0)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Let the default pool give up at once."""
    pool = pools.pool_for(connections["default"])
    patient = pool.config
    object.__setattr__(pool, "config", poolkit.PoolConfig(max_size=3, timeout=0.05))
    try:
        yield
    finally:
        object.__setattr__(pool, "config", patient)


def test_autocommit_off_without_a_connection_is_kept(rows: Callable[[str], int]) -> None:
    """set_autocommit(False) before the first query is as good as after it, and ends with the connection."""
    transaction.set_autocommit(False)
    assert not transaction.get_autocommit()
    write("by hand")
    transaction.rollback()
    write("by hand")
    transaction.commit()
    connection.close()
    assert transaction.get_autocommit()
    assert rows("by hand") == 1


def test_autocommit_left_off_does_not_outlive_its_request(rows: Callable[[str], int]) -> None:
    """set_autocommit(False) and no query: the next request of this thread is a unit as any other, and commits."""
    transaction.set_autocommit(False)
    with unit_of_work():
        write("unit")
    assert rows("unit") == 1
    transaction.set_autocommit(False)
    close_old_connections()
    assert transaction.get_autocommit()


def test_transactions_by_hand_stay_so(rows: Callable[[str], int]) -> None:
    """AUTOCOMMIT False in the settings: no unit on that alias, and what nobody committed is rolled back."""
    settings = connections["other"].settings_dict
    settings["AUTOCOMMIT"] = False
    try:
        with unit_of_work():
            write("by hand", using=connections["other"])
            connections["other"].commit()
            write("forgotten", using=connections["other"])
    finally:
        connections["other"].close()
        settings["AUTOCOMMIT"] = True
    assert (rows("by hand"), rows("forgotten")) == (1, 0)


# -- taking and giving back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [0, None, 600])
def test_a_request_gives_back_whatever_conn_max_age_says(age: int | None) -> None:
    """CONN_MAX_AGE keeps no lease: at the end of a request the connection is in the pool, open."""
    connection.settings_dict["CONN_MAX_AGE"] = age
    try:
        first = backend()
        assert out() == 1
        close_old_connections()
        assert out() == 0
        assert backend() == first
    finally:
        connection.settings_dict["CONN_MAX_AGE"] = 0


@pytest.mark.psycopg3
def test_health_checks_cost_no_round_trip() -> None:
    """CONN_HEALTH_CHECKS asks the server nothing: the pool looks at the socket when it lends."""
    connection.settings_dict["CONN_HEALTH_CHECKS"] = True
    try:
        run("SELECT 1")
        seen: list[str] = []
        with _statements(seen):
            close_old_connections()
            signals.request_started.send(sender=None)
            run("SELECT 2")
        assert [text.strip() for text in seen] == ['"SELECT 2"']
    finally:
        connection.settings_dict["CONN_HEALTH_CHECKS"] = False


@contextlib.contextmanager
def _statements(seen: list[str]) -> Iterator[None]:
    """Collect what libpq sends to the server meanwhile, on this thread's connection."""
    session = connection.connection.pgconn
    with tempfile.TemporaryFile() as file:
        session.trace(file.fileno())
        yield
        session.untrace()
        file.seek(0)
        seen += [line.split(b"\t")[-1].decode() for line in file if b"\tF\t" in line]


@pytest.mark.psycopg3
def test_a_connection_is_configured_once_for_its_life(fresh_pools: None) -> None:
    """Time zone, role and isolation level are set when it is opened, and asked for no more when it is lent."""
    options = connections["default"].settings_dict["OPTIONS"]
    options["assume_role"] = run("SELECT current_user")[0][0]
    try:
        release()
        assert run("SHOW TimeZone") == [("UTC",)]
        seen: list[str] = []
        with _statements(seen):
            release()
            run("SELECT 1")
        assert [text.strip() for text in seen] == ['"SELECT 1"']
        assert pools.pool_for(connections["default"]).stats().opened == 1
    finally:
        release()
        pools.retire(connections["default"])  # type: ignore[arg-type]
        del options["assume_role"]


def test_options_reach_the_connection(dsn: str, fresh_pools: None) -> None:
    """All OPTIONS but "pool" are Django's: application_name, isolation level, role, server-side binding."""
    other = connections["other"]
    assert run("SHOW application_name", using=other) == [("other",)]
    strict = other.copy()
    strict.settings_dict["OPTIONS"].update(
        isolation_level=IsolationLevel.SERIALIZABLE, assume_role=run("SELECT current_user")[0][0]
    )
    with contextlib.closing(strict), transaction.atomic():
        assert run("SHOW application_name", using=strict) == [("other",)]
        strict.set_autocommit(False)
        assert run("SHOW transaction_isolation", using=strict) == [("serializable",)]
        strict.rollback()
        strict.set_autocommit(True)
    assert run("SHOW transaction_isolation", using=other) == [("read committed",)]


def test_a_connection_names_its_process() -> None:
    """Where no application_name is given, the server is told who connects."""
    assert run("SHOW application_name")[0][0].endswith(f":{os.getpid()}")


def test_pools_belong_to_a_database(dsn: str, fresh_pools: None) -> None:
    """Another NAME is another pool, also under the same alias: a test never runs on the real database."""
    run("SELECT 1")
    elsewhere = connection.copy()
    elsewhere.settings_dict["NAME"] = "postgres"
    assert pools.pool_for(elsewhere) is not pools.pool_for(connections["default"])
    with contextlib.closing(elsewhere):
        assert run("SELECT current_database()", using=elsewhere) == [("postgres",)]
    again = connection.copy()
    assert pools.pool_for(again) is pools.pool_for(connections["default"])


def test_a_broken_connection_is_not_lent_again(monitor: psycopg.Connection[Any]) -> None:
    """The server ended the session in the middle of a transaction: the next query of the next block has a new one."""
    with contextlib.suppress(DatabaseError), transaction.atomic():
        first = backend()
        kill(monitor, first)
        run("SELECT 1")
    assert backend() != first


def test_an_idle_connection_that_died_is_found_without_a_query(monitor: psycopg.Connection[Any]) -> None:
    """Killed while it lay in the pool: the next borrower sees nothing of it."""
    first = backend()
    release()
    kill(monitor, first)
    assert backend() != first


def test_an_unusable_connection_is_discarded(fresh_pools: None) -> None:
    """What Django finds unusable is closed, not lent again."""
    run("SELECT 1")

    def refuse() -> None:
        raise connection.Database.OperationalError

    connection.connection.cursor = refuse
    assert not connection.is_usable()
    connection.close()
    assert pools.pool_for(connections["default"]).stats().size == 0


def test_a_connection_comes_back_clean(rows: Callable[[str], int]) -> None:
    """Left with autocommit off, in a transaction, with another row factory: the next borrower sees nothing of it."""
    connection.set_autocommit(False)
    write("left over")
    session = run("SELECT pg_backend_pid()")
    connection.connection.row_factory = psycopg.rows.dict_row
    connection.close()
    assert run("SELECT pg_backend_pid()") == session
    assert rows("left over") == 0


def test_no_connection_is_djangos_own_error(hold: Any) -> None:
    """Exhaustion is django.db.OperationalError, as users catch it, with poolkit's error as the cause."""
    with hold(3), _impatient(), pytest.raises(OperationalError, match=r"max_size|are out") as caught:
        run("SELECT 1")
    assert isinstance(caught.value.__cause__, poolkit.AcquireTimeout)


def test_a_wrong_database_is_djangos_own_error(fresh_pools: None) -> None:
    """So is a server that refuses; the driver's error is below."""
    wrong = connection.copy()
    wrong.settings_dict["NAME"] = "no_such_database"
    with pytest.raises(OperationalError) as caught:
        run("SELECT 1", using=wrong)
    assert isinstance(caught.value.__cause__, poolkit.OpenFailed)
    assert "no_such_database" in str(caught.value.__cause__.__cause__)


# -- threads -----------------------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> Any:
    """Run `work` in a thread that ends with it."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_that_forgot_to_close_gives_back_when_it_ends() -> None:
    """No close() and no garbage collection is needed: the end of the thread is enough."""
    gc.disable()
    try:
        for _ in range(7):  # more often than there are connections
            in_thread(backend)
        assert out() == 0
    finally:
        gc.enable()


def test_a_wrapper_that_outlives_its_thread_has_no_connection() -> None:
    """What was given back at the end of the thread can't be used through its wrapper any more."""

    def use() -> tuple[Any, int]:
        return connections["default"], backend()

    wrapper, first = in_thread(use)
    assert wrapper.connection is None
    with transaction.atomic():
        assert backend() == first
        assert wrapper.lease is None


def test_a_shared_wrapper_keeps_its_connection_when_its_thread_ends() -> None:
    """inc_thread_sharing(), as the live server of Django's tests does it: who shares a connection closes it."""

    def use() -> Any:
        wrapper: Any = connections["default"]
        wrapper.inc_thread_sharing()
        run("SELECT 1")
        return wrapper

    wrapper = in_thread(use)
    assert out() == 1
    assert run("SELECT 1", using=wrapper) == [(1,)]
    wrapper.close()
    assert out() == 0


def test_threads_of_a_unit_give_back_after_each_use(rows: Callable[[str], int]) -> None:
    """In a thread that nobody visits at the end the lease ends with the query, or with the block."""

    async def work() -> list[Any]:
        def use() -> tuple[int, int]:
            write("thread")
            after_query = mine()
            with transaction.atomic():
                run("SELECT 1")
                write("thread")
                inside = mine()
            return after_query + mine(), inside

        def mine() -> int:
            return int(connection.connection is not None)

        unit = unit_of_work("threads")
        uow = await sync_to_async(unit.__enter__)()
        jobs = [sync_to_async(use, thread_sensitive=False)() for _ in range(4)]
        found = await asyncio.gather(*jobs, asyncio.to_thread(use))
        assert out() == 0
        await sync_to_async(uow.finish)()
        late = await asyncio.to_thread(use)
        await sync_to_async(unit.__exit__)(None, None, None)
        return [*found, late]

    assert asyncio.run(work()) == [(0, 1)] * 6
    assert out() == 0
    assert rows("thread") == 12


def test_a_forgotten_cursor_does_not_keep_the_connection() -> None:
    """A cursor that was never closed: once collected, the unit's end takes the connection back from its thread."""

    async def work() -> None:
        def forget() -> None:
            cursor = connection.cursor()
            cursor.execute("SELECT 1")

        unit = unit_of_work("forgetful")
        await sync_to_async(unit.__enter__)()
        await asyncio.to_thread(forget)
        assert out() == 1
        await sync_to_async(unit.__exit__)(None, None, None)
        assert out() == 0

    asyncio.run(work())


def test_an_old_cursor_can_not_speak_in_a_strangers_transaction(rows: Callable[[str], int]) -> None:
    """Given back is given back: a statement through a cursor of before is refused, what it fetched can be read."""
    with unit_of_work():
        cursor = connection.cursor()
        cursor.execute("SELECT generate_series(1, 3)")
    with transaction.atomic():
        run("SELECT 1")
        with pytest.raises(InterfaceError, match="went back to the pool"):
            cursor.execute("INSERT INTO django_notes VALUES ('stranger')")
        with pytest.raises(InterfaceError, match="went back to the pool"):
            cursor.executemany("INSERT INTO django_notes VALUES (%s)", [("stranger",)])
        with pytest.raises(InterfaceError, match="went back to the pool"):
            cursor.copy("COPY django_notes TO STDOUT")
        assert cursor.fetchall() == [(1,), (2,), (3,)]
        cursor.close()
        run("SELECT 1")
    assert rows("stranger") == 0


def test_an_old_server_side_cursor_asks_for_nothing() -> None:
    """A named cursor of a transaction that ended would FETCH in a stranger's: refused, closing it included."""
    with unit_of_work():
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT generate_series(1, 1000)")
        assert cursor.fetchone() == (1,)
    with transaction.atomic():
        run("SELECT 1")
        with pytest.raises(InterfaceError, match="went back to the pool"):
            cursor.fetchmany(10)
        with pytest.raises(InterfaceError, match="went back to the pool"):
            list(cursor)
        cursor.close()
        assert run("SELECT 1") == [(1,)]


def test_release_gives_back_in_the_middle_of_long_work() -> None:
    """release() frees this thread's connection, outside of a transaction only."""
    run("SELECT 1")
    release()
    assert out() == 0
    with transaction.atomic():
        run("SELECT 1")
        release()
        assert out() == 1


def test_a_connection_closed_in_a_block_is_not_replaced() -> None:
    """As in Django: after connection.close() inside atomic() nothing more can be asked there."""
    with transaction.atomic():
        run("SELECT 1")
        connection.close()
        with pytest.raises(ProgrammingError):
            run("SELECT 1")
    assert run("SELECT 1") == [(1,)]


# -- processes ---------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], bool]) -> int:
    """Fork, run `work` in the child, and return 0 if it was true there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_a_forked_child_has_connections_of_its_own(*, inside: bool) -> None:
    """A fork with a connection out, also in mid transaction: the child gets its own, and the parent's goes on."""

    def child() -> bool:
        return backend() != parent and connection.connection is not raw

    with transaction.atomic() if inside else contextlib.nullcontext():
        parent = backend()
        raw = connection.connection
        assert in_child(child) == 0
        assert backend() == parent


def test_a_script_that_ends_with_a_connection_ends_quietly(dsn: str, monitor: psycopg.Connection[Any]) -> None:
    """Left open at the end of a program: closed with a goodbye, nothing is printed."""
    script = """
import sys
from django.conf import settings
import django
from django_rig import database, run
settings.configure(DATABASES={"default": database(sys.argv[1], application_name="script")})
django.setup()
run("SELECT 1")
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, dsn],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    asked = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'script'"
    eventually(lambda: monitor.execute(asked).fetchone() is None)


# -- settings that change, databases that go ---------------------------------------------------------------------------


def test_another_time_zone_is_another_pool(fresh_pools: None) -> None:
    """Tests override TIME_ZONE: connections made before don't keep the old one."""

    def shown() -> list[Any]:
        return [run("SHOW TimeZone"), in_thread(lambda: run("SHOW TimeZone"))]

    assert shown() == [[("UTC",)]] * 2
    with override_settings(USE_TZ=False, TIME_ZONE="Europe/Paris"):
        assert shown() == [[("Europe/Paris",)]] * 2
        release()
        assert shown() == [[("Europe/Paris",)]] * 2
    assert shown() == [[("UTC",)]] * 2


def test_a_test_database_can_be_dropped_whoever_uses_it(monitor: psycopg.Connection[Any], fresh_pools: None) -> None:
    """A thread that still holds a connection is cut off, so that DROP DATABASE works."""
    name = f"doomed_{secrets.token_hex(4)}"
    monitor.execute(f"CREATE DATABASE {name}")
    doomed = connection.copy()
    doomed.settings_dict["NAME"] = name
    taken, cut = threading.Event(), threading.Event()
    seen: list[BaseException] = []

    def straggle() -> None:
        mine = doomed.copy()
        run("SELECT 1", using=mine)
        taken.set()
        cut.wait()
        try:
            run("SELECT 1", using=mine)
        except OperationalError as error:
            seen.append(error)

    thread = threading.Thread(target=straggle)
    thread.start()
    taken.wait()
    try:
        doomed.creation._destroy_test_db(name, verbosity=0)
    finally:
        cut.set()
        thread.join()
    assert len(seen) == 1
    assert monitor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None


@pytest.mark.psycopg3
def test_what_is_closed_while_all_are_cut_off_is_passed_over(
    fresh_pools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose thread closes it between two looks has no socket any more; the others are cut off all the same."""
    others = [connection.copy() for _ in range(3)]
    for other in others:
        run("SELECT 1", using=other)
    lines = {other.connection.pgconn.socket: other.connection for other in others}
    dup = os.dup

    def closed_just_now(fd: int) -> int:
        monkeypatch.setattr(os, "dup", dup)
        lines[fd].pgconn.finish()
        return dup(fd)

    monkeypatch.setattr(os, "dup", closed_just_now)
    pools.known(others[0]).driver.cut()
    assert os.dup is dup
    for other in others:
        with pytest.raises(OperationalError):
            run("SELECT 1", using=other)
        other.close()


def test_an_alias_can_do_without_a_pool() -> None:
    """OPTIONS["pool"] = False is Django's own way, lazy atomic() aside."""
    plain = connection.copy()
    plain.settings_dict["OPTIONS"]["pool"] = False
    before = acquired()
    with contextlib.closing(plain):
        assert run("SELECT 1", using=plain) == [(1,)]
    assert acquired() == before
    assert not pools.is_pooled(plain.settings_dict)
