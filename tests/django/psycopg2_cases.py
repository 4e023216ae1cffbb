"""What the engine promises, seen on psycopg2. Run by `test_django_psycopg2`, with Django on psycopg2."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started
from django.db import InterfaceError, close_old_connections, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import IsolationLevel, is_psycopg3
from django_rig import Rows, eventually, out, run, write

from poolkit import CommitFailed
from poolkit.testing import FaultProxy
from poolkit_django import looking, unit_of_work
from poolkit_django.backends import pools


@pytest.fixture
def proxy(dsn: str, fresh_pools: None) -> Iterator[FaultProxy]:
    """Put a proxy before the server of the default alias."""
    settings = connection.settings_dict
    before = {name: settings[name] for name in ("HOST", "PORT")}
    with FaultProxy(dsn) as proxy:
        host, port = proxy.address
        settings.update(HOST=host, PORT=str(port))
        yield proxy
        connection.close()
        pools.retire(connections["default"])  # type: ignore[arg-type]
        settings.update(before)


@pytest.fixture
def options(fresh_pools: None) -> Iterator[dict[str, Any]]:
    """Change OPTIONS of the default alias for a while."""
    given = connection.settings_dict["OPTIONS"]
    before = dict(given)
    yield given
    connection.close()
    pools.retire(connections["default"])  # type: ignore[arg-type]
    given.clear()
    given.update(before)


def test_it_is_psycopg2() -> None:
    """These tests are about what they say."""
    assert not is_psycopg3
    assert run("SELECT 1") == [(1,)]
    assert type(connection.connection).__module__ == "poolkit.drivers.psycopg2"


@pytest.mark.parametrize("checked", [False, True])
def test_a_request_of_one_query_is_one_round_trip(checked: bool, proxy: FaultProxy) -> None:  # noqa: FBT001
    """Nothing is configured with a lease, and CONN_HEALTH_CHECKS asks the server nothing."""
    run("SELECT 1")
    connection.settings_dict["CONN_HEALTH_CHECKS"] = checked
    for _ in range(3):
        close_old_connections()
        request_started.send(sender=None)
        before = proxy.round_trips
        run("SELECT 2")
        assert proxy.round_trips - before == 1
    connection.settings_dict["CONN_HEALTH_CHECKS"] = False


def test_a_transaction_is_its_statements_and_two(proxy: FaultProxy) -> None:
    """BEGIN, the statements, COMMIT: coming back to rest costs nothing, and an empty block takes no connection."""
    run("SELECT 1")
    connection.close()
    for _ in range(2):
        before = proxy.round_trips
        with transaction.atomic():
            run("SELECT 1")
        connection.close()
        with transaction.atomic():
            pass
        assert proxy.round_trips - before == 3


def test_a_full_reset_sets_again_what_the_settings_say(options: dict[str, Any]) -> None:
    """Time zone and role survive DISCARD ALL, and the isolation level of transactions, as psycopg2 has it."""
    (role,) = run("SELECT current_user")[0]
    connection.close()
    options.update(pool={"max_size": 1, "reset": "full"}, isolation_level=IsolationLevel.SERIALIZABLE, assume_role=role)
    pids = set()
    for _ in range(3):
        asked = "SELECT pg_backend_pid(), current_setting('TimeZone'), current_setting('transaction_isolation')"
        with transaction.atomic():
            ((pid, *found),) = run(asked)
        assert found == ["UTC", "serializable"]
        pids.add(pid)
        run("SET TIME ZONE 'Asia/Tokyo'")
        connection.connection.set_client_encoding("LATIN1")  # not as it was: so there is a reset
        connection.close()
    assert len(pids) == 1


def test_an_ignored_error_is_no_commit(rows: Rows) -> None:
    """PostgreSQL would answer that COMMIT with a ROLLBACK; the unit tells."""
    with pytest.raises(CommitFailed, match="the error was ignored"), unit_of_work():  # noqa: PT012
        write("lost")
        with pytest.raises(Exception, match="division"):
            run("SELECT 1 / 0")
    assert rows("lost") == 0


def test_a_session_that_was_ended_is_not_lent_again(monitor: psycopg.Connection[Any]) -> None:
    """In the pool, or in the middle of a transaction."""
    ((first,),) = run("SELECT pg_backend_pid()")
    connection.close()
    monitor.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
    eventually(lambda: not monitor.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [first]).fetchall())
    ((second,),) = run("SELECT pg_backend_pid()")
    assert second != first
    with pytest.raises(Exception, match=r"closed|terminat|abort"), transaction.atomic():  # noqa: PT012
        run("SELECT 1")
        monitor.execute("SELECT pg_terminate_backend(%s, 5000)", [second])
        run("SELECT 1")
    connection.close()
    assert run("SELECT 1") == [(1,)]


def test_a_named_cursor_does_not_outlive_its_lease() -> None:
    """It refuses to go on, and on the server it is gone; so does a COPY."""
    found = connection.chunked_cursor()
    found.execute("SELECT generate_series(1, 5000)")
    assert found.fetchone() == (1,)
    plain = connection.cursor()
    session = connection.connection
    connection.close()
    for use in (found.fetchone, lambda: plain.copy_expert("COPY django_notes TO STDOUT", None)):
        with pytest.raises(InterfaceError, match="went back to the pool"):
            use()
    assert run("SELECT count(*) FROM pg_cursors") == [(0,)]
    assert connection.connection is session
    found.close()


def test_a_database_that_goes_cuts_off_who_uses_it() -> None:
    """A statement that runs in another thread ends, and its connection is not lent again."""
    failed: list[BaseException] = []

    def sleep() -> None:
        try:
            run("SELECT pg_sleep(20)")
        except Exception as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    eventually(lambda: out() == 1)
    eventually(lambda: run("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(20)%'") == [(1,)])
    connection.close()
    pools.close_database(connections["default"])  # type: ignore[arg-type]
    thread.join(10)
    assert not thread.is_alive()
    assert len(failed) == 1
    assert run("SELECT 1") == [(1,)]


def test_a_look_at_a_server_is_bounded(proxy: FaultProxy) -> None:
    """How far a standby has come is asked for as long as the router is willing to wait, and no longer."""
    wrapper = connections["default"]
    assert looking.look(wrapper, 5).standby is False
    proxy.blackhole()
    began = time.monotonic()
    with pytest.raises(looking.Silent, match="no answer within"):
        looking.look(wrapper, 0.2)
    assert time.monotonic() - began < 5
    proxy.heal()


@pytest.mark.parametrize("name", ["connection_factory", "fold_begin"])
def test_what_can_not_be_set_is_refused(name: str, options: dict[str, Any]) -> None:
    """With the name, the place, and the reason."""
    options[name] = True
    with pytest.raises(ImproperlyConfigured, match=rf"\['OPTIONS'\].*'{name}' can't be set"):
        run("SELECT 1")


def test_another_thread_closes_the_librarys_connection(rows: Rows) -> None:
    """It is not known which thread uses it: so that is done. The view goes on with another, and saves."""
    with unit_of_work():
        run("SELECT 1")
        closing = threading.Thread(target=connection.connection.close)
        closing.start()
        closing.join()
        write("closed")
    assert rows("closed") == 1
    connection.close()
    assert out() == 0
