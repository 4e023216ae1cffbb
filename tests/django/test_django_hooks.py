"""What a project may have done to each connection, by each engine: the pool's callables, and the driver's options."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, OperationalError, connections, transaction
from django_rig import database, eventually, run
from test_django_engines import settings_of

from poolkit_django.backends import pools
from poolkit_django.checks import check_poolkit

HOOKED = "hooked"
MARK = {
    "postgresql": (
        "SET poolkit.mark = 'rest'",
        "SET poolkit.mark = 'changed'",
        "SELECT current_setting('poolkit.mark')",
    ),
    "mysql": ("SET @mark = 'rest'", "SET @mark = 'changed'", "SELECT @mark"),
    "sqlite3": ("PRAGMA cache_size = 4321", "PRAGMA cache_size = 99", "PRAGMA cache_size"),
}
CHANGE, LOOK = 1, 2
called: list[str] = []
MakeAlias = Callable[..., Any]


@pytest.fixture(params=list(MARK))
def engine(request: pytest.FixtureRequest) -> str:
    """Which engine."""
    name: str = request.param
    return name


@pytest.fixture
def alias(engine: str, request: pytest.FixtureRequest) -> Iterator[MakeAlias]:
    """Make the alias `hooked`: `pool` is added to a pool of one connection, and all else goes to OPTIONS."""
    called.clear()

    def make(*, pool: Any = None, **options: Any) -> Any:
        made: dict[str, Any]
        if engine == "postgresql":
            made = database(request.getfixturevalue("own_dsn"))
        else:
            made = {"ENGINE": f"poolkit_django.backends.{engine}", **settings_of(engine, request)}
        sized = pool if pool is False else {"max_size": 1, "timeout": 5, **(pool or {})}
        made["OPTIONS"] = {**made.get("OPTIONS", {}), **options, "pool": sized}
        connections.settings[HOOKED] = connections.configure_settings({"default": {}, HOOKED: made})[HOOKED]
        return connections[HOOKED]

    yield make
    if HOOKED in connections.settings:
        settings = connections[HOOKED].settings_dict
        settings["OPTIONS"] = {"pool": True}
        connections[HOOKED].close()
        del connections[HOOKED], connections.settings[HOOKED]
    pools.close_all(0)


def execute(connection: Any, statement: str) -> Any:
    """Run a statement on the library's own connection; return its row."""
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None
    finally:
        cursor.close()


def noted_setup(connection: Any) -> None:
    """Be found by a dotted path."""
    assert connection is not None
    called.append("setup")


@pytest.mark.parametrize("reset", ["auto", "full"])
def test_configure_is_called_once_and_is_the_state_of_rest(alias: MakeAlias, engine: str, reset: str) -> None:
    """`configure` gets each new connection, and what it did there is there again for every borrower."""
    mark = MARK[engine]

    def configure(connection: Any) -> None:
        called.append("configure")
        execute(connection, mark[0])

    wrapper = alias(pool={"configure": configure, "reset": reset})
    rested = None
    for _ in range(3):
        with transaction.atomic(using=HOOKED):
            found = run(mark[LOOK], using=wrapper)
            rested = rested or found
            assert found == rested
        run(mark[CHANGE], using=wrapper)
        assert run(mark[LOOK], using=wrapper) != rested
        wrapper.close()
    assert called == ["configure"]


def test_an_error_of_configure_fails_the_connect(alias: MakeAlias) -> None:
    """Nothing is lent that was not set up, and the error is the one that was raised."""

    def configure(_: Any) -> None:
        raise ValueError("no such tenant")

    wrapper = alias(pool={"configure": configure})
    with pytest.raises(OperationalError) as caught:
        run("SELECT 1", using=wrapper)
    causes = []
    error: BaseException | None = caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert any(isinstance(cause, ValueError) for cause in causes)
    eventually(lambda: pools.pool_for(wrapper).stats().size == 0)  # an attempt may be under way


def test_setup_is_called_for_each_borrower(alias: MakeAlias) -> None:
    """`setup`, here by its dotted path, gets the connection before each borrower."""
    wrapper = alias(pool={"setup": f"{__name__}.noted_setup"})
    for _ in range(3):
        run("SELECT 1", using=wrapper)
        wrapper.close()
    assert called == ["setup"] * 3


@pytest.mark.parametrize("answer", [True, False])
def test_ping_takes_the_place_of_the_drivers(alias: MakeAlias, answer: bool) -> None:  # noqa: FBT001
    """`ping` is asked before an idle connection is lent; where it says no, another is opened."""

    def ping(_: Any) -> bool:
        called.append("ping")
        return answer

    wrapper = alias(pool={"ping": ping, "check_after": 0})
    for _ in range(2):
        assert run("SELECT 1", using=wrapper) == [(1,)]
        wrapper.close()
    assert called == ["ping"]
    assert pools.pool_for(wrapper).stats().opened == (1 if answer else 2)


def test_on_close_is_called_before_the_end(alias: MakeAlias) -> None:
    """`on_close` gets the connection while it can still be used."""

    def on_close(connection: Any) -> None:
        called.append(str(execute(connection, "SELECT 7")))

    wrapper = alias(pool={"on_close": on_close})
    run("SELECT 1", using=wrapper)
    wrapper.close()
    assert called == []
    pools.retire(wrapper)
    assert called == ["(7,)"]


SETTINGS = {
    "postgresql": ({"search_path": "pg_catalog", "poolkit.mark": "a b\\c"}, "SET search_path = public",
                   "SELECT current_setting('search_path'), current_setting('poolkit.mark')", ("pg_catalog", "a b\\c")),
    "mysql": ({"lock_wait_timeout": 77}, "SET SESSION lock_wait_timeout = 5", "SELECT @@lock_wait_timeout", (77,)),
}  # fmt: skip
SLEEP = {"postgresql": "SELECT pg_sleep(5)", "mysql": "SELECT SLEEP(5) FROM (SELECT 1 UNION SELECT 2) t"}
ON_SERVERS = pytest.mark.parametrize("engine", ["postgresql", "mysql"], indirect=True)


@ON_SERVERS
def test_session_settings_are_the_state_of_rest(alias: MakeAlias, engine: str) -> None:
    """OPTIONS["session_settings"] holds for each borrower, beside the alias's own `options`."""
    given, change, look, found = SETTINGS[engine]
    more = {"options": "-c work_mem=5MB"} if engine == "postgresql" else {}
    wrapper = alias(session_settings=given, **more)
    for _ in range(2):
        assert run(look, using=wrapper) == [found]
        run(change, using=wrapper)
        wrapper.close()
    if engine == "postgresql":
        assert run("SHOW work_mem", using=wrapper) == [("5MB",)]
    assert pools.pool_for(wrapper).stats().opened == 1


@ON_SERVERS
def test_statement_timeout_ends_a_statement(alias: MakeAlias, engine: str) -> None:
    """OPTIONS["statement_timeout"] is in seconds; a borrower's own does not last."""
    wrapper = alias(statement_timeout=0.2)
    for _ in range(2):
        began = time.monotonic()
        if engine == "postgresql":
            with pytest.raises(DatabaseError, match="statement timeout"):
                run(SLEEP[engine], using=wrapper)
        else:  # MariaDB's SLEEP answers 1 where it was cut short, or the statement fails
            try:
                assert run(SLEEP[engine], using=wrapper)[0] == (1,)
            except DatabaseError as error:
                assert "max_statement_time" in str(error)  # noqa: PT017
        assert time.monotonic() - began < 4
        off = "SET statement_timeout = 0" if engine == "postgresql" else "SET SESSION max_statement_time = 0"
        run(off, using=wrapper)
        wrapper.close()


@ON_SERVERS
@pytest.mark.parametrize("harmless", [True, False])
def test_harmless_functions_cost_no_reset(alias: MakeAlias, engine: str, harmless: bool) -> None:  # noqa: FBT001
    """A call of a function that OPTIONS["harmless_functions"] names is no change of the session; another's is."""
    wrapper = alias(harmless_functions=["poolkit_price"] if harmless else [])
    if engine == "postgresql":
        run("CREATE FUNCTION poolkit_price() RETURNS int LANGUAGE sql AS 'SELECT 7'", using=wrapper)
    else:
        run("DROP FUNCTION IF EXISTS poolkit_price", using=wrapper)
        run("CREATE FUNCTION poolkit_price() RETURNS INT DETERMINISTIC RETURN 7", using=wrapper)
    wrapper.close()
    pool, driver = pools.pool_for(wrapper), pools.known(wrapper).driver
    eventually(lambda: pool.stats().idle == 1)
    assert run("SELECT poolkit_price()", using=wrapper) == [(7,)]
    assert driver.clean(wrapper.connection) is harmless
    if engine == "mysql":
        run("DROP FUNCTION poolkit_price", using=wrapper)
    wrapper.close()


OURS = {"session_settings": {"a.b": "c"}, "statement_timeout": 5, "harmless_functions": ["f"]}
WRONG = {"session_settings": "search_path=app", "statement_timeout": "soon", "harmless_functions": 3}


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_behind_a_pooler_they_hold_in_a_transaction(alias: MakeAlias) -> None:
    """A pooler in transaction mode has no session that is the alias's own: settings go with each BEGIN."""
    ours = {"session_settings": {"search_path": "sales, public"}, "statement_timeout": 5}
    wrapper = alias(pool={"pooler": "transaction"}, **ours)
    look = "SELECT concat_ws(' ', current_setting('search_path'), current_setting('statement_timeout'))"
    assert run(look, using=wrapper) == [('"$user", public 0',)]
    for _ in range(2):
        with transaction.atomic(using=wrapper.alias):
            assert run(look, using=wrapper) == [("sales, public 5s",)]


@ON_SERVERS
@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_told(alias: MakeAlias, engine: str, name: str) -> None:
    """A value that can't work is an error that names it, in the system check too."""
    wrapper = alias(**{name: WRONG[name]})
    with pytest.raises(ImproperlyConfigured, match=name):
        run("SELECT 1", using=wrapper)
    assert any(HOOKED in told.msg and name in told.msg for told in check_poolkit(None) if told.id == "poolkit.E003")


@pytest.mark.parametrize("name", OURS)
def test_options_without_a_pool_are_refused(alias: MakeAlias, name: str) -> None:
    """Where no pool would take it, an option is an error, and not ignored."""
    wrapper = alias(pool=False, **{name: OURS[name]})
    with pytest.raises(ImproperlyConfigured, match=f"'{name}' can't be set, for this alias has no pool"):
        run("SELECT 1", using=wrapper)
    assert any(name in told.msg for told in check_poolkit(None) if told.id == "poolkit.E003")


@pytest.mark.parametrize("engine", ["sqlite3"], indirect=True)
@pytest.mark.parametrize("name", OURS)
def test_a_file_has_no_server(alias: MakeAlias, name: str) -> None:
    """What is for servers is refused with SQLite."""
    with pytest.raises(ImproperlyConfigured, match=f"'{name}' is for servers"):
        run("SELECT 1", using=alias(**{name: OURS[name]}))


@ON_SERVERS
def test_a_connection_without_a_database_takes_the_other_options(alias: MakeAlias, engine: str) -> None:
    """What makes and drops test databases connects without a pool, by the same OPTIONS."""
    more = {"fold_begin": False} if engine == "postgresql" else {}
    wrapper = alias(statement_timeout=5, **more)
    with wrapper._nodb_cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
