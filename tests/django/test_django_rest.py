"""What an alias's settings make of each new connection is its state of rest: no borrower takes it from the next one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction
from django_rig import database, run

from poolkit_django import unit_of_work
from poolkit_django.backends import pools

REST = "rest"
LOOK = (
    "SELECT current_user, current_setting('TimeZone'), current_setting('search_path'), "
    "to_regclass('pg_temp.left_behind')"
)


@pytest.fixture(params=["auto", "full"])
def rest(own_dsn: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An alias with a role and a time zone of its own, on a pool of one connection."""
    made = database(own_dsn, pool={"max_size": 1, "timeout": 5, "reset": request.param}, assume_role="pg_monitor")
    made["TIME_ZONE"] = "Asia/Tokyo"
    connections.settings[REST] = connections.configure_settings({"default": {}, REST: made})[REST]
    wrapper = connections[REST]
    yield wrapper
    wrapper.close()
    pools.close_database(wrapper)
    del connections[REST], connections.settings[REST]


CHANGES = {
    "the time zone": "SET TIME ZONE 'America/Lima'",
    "the role": "RESET ROLE",
    "another role": "SET ROLE pg_read_all_data",
    "the search path": "SET search_path = pg_catalog",
    "all": "RESET ALL",
    "everything": "DISCARD ALL",
    "by a function": "SELECT set_config('TimeZone', 'America/Lima', false)",
    "a table": "CREATE TEMP TABLE left_behind (a int)",
}


def _in_autocommit(change: str, wrapper: Any) -> None:
    run("RESET ROLE", using=wrapper)
    run(change, using=wrapper)
    wrapper.close_if_unusable_or_obsolete()


def _in_a_unit(change: str, wrapper: Any) -> None:
    with unit_of_work():
        run("RESET ROLE", using=wrapper)
        run(change, using=wrapper)


def _in_a_block(change: str, wrapper: Any) -> None:
    with transaction.atomic(using=REST):
        run("RESET ROLE", using=wrapper)
        run(change, using=wrapper)
    wrapper.close()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", [_in_autocommit, _in_a_unit, _in_a_block])
def test_role_and_time_zone_are_those_of_the_settings(where: Any, change: str, rest: Any) -> None:
    """Whatever one did to its session, the next one finds what the first one found."""
    if change == "everything" and where is not _in_autocommit:
        pytest.skip("DISCARD ALL can't run in a transaction")
    first = run(LOOK, using=rest)
    assert first[0][:2] == ("pg_monitor", "Asia/Tokyo")
    rest.close()
    where(CHANGES[change], rest)
    assert run(LOOK, using=rest) == first
    rest.close()


@pytest.mark.psycopg3
def test_a_raw_connection_kept_beyond_the_return_is_refused(rest: Any) -> None:
    """`connection.connection` is the request's until its end; while the next one works on the session, too."""
    with unit_of_work():
        run("SELECT 1", using=rest)
        raw = rest.connection
        cursor = raw.cursor()
    run("SELECT 1", using=rest)
    for use in (lambda: raw.execute("SELECT 1"), lambda: cursor.execute("SELECT 1"), lambda: raw.cursor().close()):
        with pytest.raises(Exception, match="given back"):
            use()
    assert run("SELECT 2", using=rest) == [(2,)]
    rest.close()
    pools.close_database(rest)


@pytest.mark.psycopg3
def test_the_usual_return_makes_no_new_object(rest: Any) -> None:
    """A wrapper lets go of the connection before it gives it back, so that nothing has to be renewed."""
    seen = []
    for _ in range(3):
        with unit_of_work():
            run("SELECT 1", using=rest)
            seen.append(id(rest.connection))
    assert len(set(seen)) == 1


@pytest.mark.psycopg3
def test_a_renewed_connection_is_cut_with_its_database(rest: Any) -> None:
    """Whoever drops a database ends every session on it, also one whose first object somebody has kept."""
    with unit_of_work():
        run("SELECT 1", using=rest)
        raw = rest.connection
    run("SELECT 1", using=rest)
    kept = rest.connection
    assert kept is not raw
    pools.close_database(rest)
    with pytest.raises(Exception, match=r"clos|lost|terminat|EOF|SSL"):
        kept.execute("SELECT 1")
    rest.close()


def _listens(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("SET search_path = pg_catalog")
    cursor.execute("LISTEN news")
    cursor.close()


def test_what_configure_does_is_the_state_of_rest(own_dsn: str) -> None:
    """OPTIONS["pool"]["configure"] is called once for each connection, and a reset brings back what it did."""
    look = "SELECT current_setting('search_path'), array(SELECT pg_listening_channels())"
    made = database(own_dsn, pool={"max_size": 1, "timeout": 5, "configure": _listens})
    connections.settings[REST] = connections.configure_settings({"default": {}, REST: made})[REST]
    wrapper = connections[REST]
    try:
        for _ in range(2):
            assert run(look, using=wrapper) == [("pg_catalog", ["news"])]
            run("SET search_path = public", using=wrapper)
            run("UNLISTEN *", using=wrapper)
            wrapper.close()
    finally:
        wrapper.close()
        pools.close_database(wrapper)
        del connections[REST], connections.settings[REST]
