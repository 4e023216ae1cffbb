"""POOLKIT_ASYNC and the settings of an alias: how native async connections are set up, and what is refused."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest
from async_rig import DRIVERS, another_alias, ask, do, lent
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpResponse
from django.test import override_settings
from django_rig import database

from poolkit_django import aconnection, atransaction, native
from poolkit_django.checks import check_poolkit
from poolkit_django.middleware import PoolkitMiddleware

MakeAlias = Callable[..., AbstractContextManager[str]]


@pytest.fixture(autouse=True)
async def _no_native_left() -> AsyncIterator[None]:
    """After every test nothing is lent, and this loop's pools are closed."""
    yield
    assert lent() == 0
    await native.aclose()


@pytest.fixture
def alias(dsn: str) -> MakeAlias:
    """Make a block in which DATABASES has one more alias, "extra", with such entries and options."""
    return functools.partial(another_alias, dsn)


SETUP = (
    "SELECT concat_ws(' ', current_setting('TimeZone'), current_user, current_setting('search_path'),"
    " current_setting('application_name'))"
)


def orm_says(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(SETUP)
        return cursor.fetchone()[0]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("reset", ["auto", "full"])
async def test_it_is_set_up_as_the_orms_connections_are(
    driver: str, reset: str, alias: MakeAlias, monitor: psycopg.Connection[Any]
) -> None:
    """Time zone, role, search path, name and isolation level are the alias's, at first and after a reset."""
    monitor.execute(
        "DROP ROLE IF EXISTS django_native_role; CREATE ROLE django_native_role;"
        "ALTER ROLE CURRENT_USER SET TimeZone = 'Asia/Tokyo'"
    )
    options = {
        "assume_role": "django_native_role",
        "options": "-c search_path=pg_catalog,public",
        "application_name": "native test",
        "isolation_level": psycopg.IsolationLevel.REPEATABLE_READ,
        "pool": {"max_size": 1, "reset": reset},
    }
    try:
        with alias({"TIME_ZONE": "Europe/Paris"}, **options) as name:
            orms = await asyncio.to_thread(orm_says, name)
            assert orms == "Europe/Paris django_native_role pg_catalog,public native test"
            with override_settings(POOLKIT_ASYNC={name: {"driver": driver}}):
                for _ in range(2):
                    async with aconnection(name) as conn:
                        assert await ask(conn, SETUP) == orms
                        if driver == "asyncpg" or reset == "full":
                            await do(conn, "SET TimeZone = 'America/Lima'")  # undone on return
                async with atransaction(name) as conn:
                    assert await ask(conn, "SHOW transaction_isolation") == "repeatable read"
                await native.aclose()
    finally:
        monitor.execute("ALTER ROLE CURRENT_USER RESET TimeZone; DROP ROLE django_native_role")


async def test_settings_of_its_own(alias: MakeAlias) -> None:
    """POOLKIT_ASYNC goes over OPTIONS["pool"], and the environment over both; min_size is not inherited."""
    pool = {"max_size": 5, "min_size": 2, "timeout": 4}
    with alias(pool=pool) as name:
        inherited = native.pool_for(name).config
        assert (inherited.max_size, inherited.min_size, inherited.timeout) == (5, 0, 4)
        with override_settings(POOLKIT_ASYNC={name: {"pool_size": 2, "options": {"prepare_threshold": 3}}}):
            own = native.pool_for(name).config
            assert (own.max_size, own.timeout) == (2, 4)
            async with aconnection(name) as conn:
                assert conn.prepare_threshold == 3
            await native.aclose()


async def test_the_environment_sizes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """POOLKIT_ASYNC_DEFAULT_MAX_SIZE: a deployment sizes its pools, the code need not."""
    monkeypatch.setenv("POOLKIT_ASYNC_DEFAULT_MAX_SIZE", "7")
    assert native.pool_for().config.max_size == 7


@pytest.mark.psycopg3
async def test_behind_a_pooler_nothing_is_prepared(alias: MakeAlias) -> None:
    """DISABLE_SERVER_SIDE_CURSORS says that there is one: asyncpg keeps no statements; psycopg does not by default."""
    with alias({"DISABLE_SERVER_SIDE_CURSORS": True}) as name:
        with override_settings(POOLKIT_ASYNC={name: {"driver": "asyncpg"}}):
            async with aconnection(name) as conn:
                assert conn._config.statement_cache_size == 0
            await native.aclose()
        async with aconnection(name) as conn:
            assert conn.prepare_threshold is None


@pytest.mark.parametrize("driver", DRIVERS)
async def test_options_of_the_drivers_are_the_aliass(driver: str, alias: MakeAlias) -> None:
    """What OPTIONS says to poolkit's driver holds for native connections too; POOLKIT_ASYNC goes over it."""
    ours = {"session_settings": {"poolkit.mark": "rest"}, "statement_timeout": 3, "harmless_functions": ["f"]}
    look = "SELECT concat_ws(' ', current_setting('poolkit.mark'), current_setting('statement_timeout'))"
    with alias(options="-c work_mem=5MB", **ours) as name:
        for own, found in (({}, "rest 3s"), ({"statement_timeout": 7}, "rest 7s")):
            with override_settings(POOLKIT_ASYNC={name: {"driver": driver, "options": own}}):
                async with aconnection(name) as conn:
                    assert await ask(conn, look) == found
                    assert await ask(conn, "SHOW work_mem") == "5MB"
                await native.aclose()


@pytest.mark.parametrize("hook", ["configure", "setup", "ping", "on_close"])
async def test_callables_for_the_orms_connections_get_no_native_ones(hook: str, alias: MakeAlias) -> None:
    """A function for one kind of connection can't work on the other: POOLKIT_ASYNC says what is to be done."""
    seen = []

    async def own(conn: Any) -> bool:
        seen.append(await ask(conn, "SELECT 1"))
        return True

    with alias(pool={"max_size": 1, "check_after": 0, hook: seen.append}) as name:
        with pytest.raises(ImproperlyConfigured, match=rf"POOLKIT_ASYNC\['{name}'\].*'{hook}'.*is for the ORM's"):
            await aconnection(name).__aenter__()
        for given in (own, None):
            with override_settings(POOLKIT_ASYNC={name: {hook: given}}):
                for _ in range(2):
                    async with aconnection(name) as conn:
                        assert await ask(conn, "SELECT 2") == 2
                await native.aclose()
            assert bool(seen) is (given is own)
            seen.clear()


WRONG = [
    ({"default": {"driver": "aiopg"}}, "driver must be one of 'psycopg', 'asyncpg', not 'aiopg'"),
    ({"default": {"options": 3}}, "options must be a mapping"),
    ({"default": {"max_sise": 3}}, "did you mean 'max_size'"),
    ({"default": {"options": {"dbnam": "x"}}}, "did you mean 'dbname'"),
    ({"defautl": {}}, "no alias of DATABASES; did you mean 'default'"),
    ({"default": 4}, "must be a mapping, not int"),
    ([], "must map aliases to settings, not list"),
]


@pytest.mark.parametrize(("given", "told"), WRONG, ids=[told for _, told in WRONG])
async def test_wrong_settings_are_refused_at_start(given: Any, told: str) -> None:
    """Each fault of POOLKIT_ASYNC is told with its place, when the server starts and when a connection is asked for."""
    with override_settings(POOLKIT_ASYNC=given):
        with pytest.raises(ImproperlyConfigured, match=told):
            PoolkitMiddleware(HttpResponse)
        assert [message.id for message in check_poolkit() if re.search(told, message.msg)] == ["poolkit.E002"]
        with pytest.raises(ImproperlyConfigured, match=told):
            await aconnection().__aenter__()


async def test_aliases_that_have_none(alias: MakeAlias) -> None:
    """Another engine, or a pool that is turned off: told at once, with what to do."""
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "OPTIONS": {}}
    with alias(sqlite) as name, pytest.raises(ImproperlyConfigured, match="needs one of poolkit's PostgreSQL engines"):
        await aconnection(name).__aenter__()
    with alias(pool=False) as name, pytest.raises(ImproperlyConfigured, match="turns it off"):
        await aconnection(name).__aenter__()


async def test_what_asyncpg_has_not_is_refused(alias: MakeAlias) -> None:
    """An option of libpq that would be ignored is an error that names it."""
    told = "'require_auth' in OPTIONS of the alias is libpq's"
    with (
        alias(require_auth="scram-sha-256") as name,
        override_settings(POOLKIT_ASYNC={name: {"driver": "asyncpg"}}),
        pytest.raises(ImproperlyConfigured, match=told),
    ):
        await aconnection(name).__aenter__()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_an_odd_password_and_a_list_of_hosts(driver: str, alias: MakeAlias, dsn: str) -> None:
    """What stands in the settings arrives as it is: no character means anything, and hosts may be several."""
    given = database(dsn)
    hosts, ports = f"{given['HOST']},{given['HOST']}", f"1,{given['PORT']}"
    if given["HOST"].startswith("/"):
        pytest.skip("this server listens on a unix socket only")
    entries = {"PASSWORD": "p@ss:w/rd?#%20", "HOST": hosts, "PORT": ports}
    if given.get("PASSWORD"):
        del entries["PASSWORD"]
    with alias(entries) as name, override_settings(POOLKIT_ASYNC={name: {"driver": driver}}):
        async with aconnection(name) as conn:
            assert await ask(conn, "SELECT current_database()::text") == given["NAME"]
        await native.aclose()
