"""The engines for MySQL and SQLite: what the one for PostgreSQL promises, kept by other libraries."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, OperationalError, connections, transaction
from django_rig import Rows, eventually, run, write

from poolkit import CommitFailed, LeaseError
from poolkit_django import unit_of_work
from poolkit_django.backends import pools
from poolkit_django.backends.mysql import library

HERE = "here"
Options = dict[str, Any]
UseEngine = Callable[..., Any]


def settings_of(engine: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """An entry of DATABASES for an empty database."""
    if engine == "sqlite3":
        folder: Path = request.getfixturevalue("tmp_path")
        return {"NAME": str(folder / "engine.db")}
    parts = urlsplit(request.getfixturevalue("mysql_dsn"))
    given = {"USER": parts.username, "PASSWORD": parts.password, "HOST": parts.hostname, "PORT": parts.port}
    return {"NAME": parts.path[1:], **{name: value or "" for name, value in given.items()}}


@pytest.fixture(params=["sqlite3", "mysql"])
def engine(request: pytest.FixtureRequest) -> str:
    """Which engine."""
    name: str = request.param
    return name


@pytest.fixture
def use(engine: str, request: pytest.FixtureRequest) -> Iterator[UseEngine]:
    """Make `here` an alias on an empty database; `pool` and all else go to OPTIONS."""
    given = settings_of(engine, request)

    def use(**options: Any) -> Any:
        forget()
        made = {"ENGINE": f"poolkit_django.backends.{engine}", **given, "OPTIONS": {"pool": {"max_size": 3}, **options}}
        connections.settings[HERE] = connections.configure_settings({"default": {}, HERE: made})[HERE]
        return connections[HERE]

    def forget() -> None:
        if HERE in connections.settings:
            connections[HERE].close()
            pools.close_database(connections[HERE])
            del connections[HERE], connections.settings[HERE]

    yield use
    if engine == "mysql":
        with use().cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS django_notes")
    forget()


@pytest.fixture
def here(use: UseEngine) -> Any:
    """The alias, with the table that the tests write to."""
    wrapper = use()
    make_table(wrapper)
    return wrapper


def make_table(wrapper: Any) -> None:
    run("CREATE TABLE django_notes (word varchar(20) UNIQUE)", using=wrapper)
    wrapper.close()


def words(wrapper: Any) -> list[str]:
    """What is committed."""
    found = [word for (word,) in run("SELECT word FROM django_notes ORDER BY word", using=wrapper)]
    wrapper.close()
    return found


def pool_of(wrapper: Any) -> Any:
    return pools.pool_for(wrapper)


def test_a_query_leases_and_the_end_gives_back(here: Any) -> None:
    """One physical connection serves one request after the other."""
    for _ in range(3):
        assert run("SELECT 1", using=here) == [(1,)]
        assert pool_of(here).stats().out == 1
        here.close_if_unusable_or_obsolete()
        assert pool_of(here).stats().out == 0
    assert pool_of(here).stats().opened == 1


def test_atomic_takes_nothing_before_its_first_query(here: Any) -> None:
    """Savepoints, hooks and rollbacks are those of Django, and an empty block costs nothing."""
    before, seen = pool_of(here).stats().acquired, []
    with transaction.atomic(using=HERE):
        with transaction.atomic(using=HERE):
            transaction.on_commit(lambda: seen.append("hook"), using=HERE)
        assert here.connection is None
    assert (seen, pool_of(here).stats().acquired) == (["hook"], before)
    with transaction.atomic(using=HERE):
        write("kept", using=here)
        with pytest.raises(ZeroDivisionError):
            write_and_fail("undone", here)
        transaction.on_commit(lambda: seen.append("second"), using=HERE)
    assert seen == ["hook", "second"]
    with pytest.raises(ZeroDivisionError):
        write_and_fail("lost", here)
    assert here.get_autocommit()
    assert words(here) == ["kept"]


def write_and_fail(word: str, here: Any) -> None:
    with transaction.atomic(using=HERE):
        write(word, using=here)
        raise ZeroDivisionError


def test_what_asks_for_a_moment_inside_a_block_keeps_the_connection(here: Any) -> None:
    """Django asks some servers for their version in the middle of a statement: that is no end of the block."""
    with transaction.atomic(using=HERE):
        with here.temporary_connection() as cursor:
            cursor.execute("SELECT 1")
        write("kept", using=here)
    assert words(here) == ["kept"]


def test_a_unit_of_several_databases(here: Any, rows: Rows) -> None:
    """All is committed when the block ends, and all is rolled back when it raises; each on its own server."""
    with unit_of_work():
        write("both")
        write("both", using=here)
    assert (rows("both"), words(here)) == (1, ["both"])
    with pytest.raises(ZeroDivisionError):
        write_both_and_fail(here)
    assert (rows("none"), words(here)) == (0, ["both"])
    with unit_of_work() as unit:
        write("doomed", using=here)
        unit.doom("a dry run")
    assert words(here) == ["both"]


def write_both_and_fail(here: Any) -> None:
    with unit_of_work():
        write("none")
        write("none", using=here)
        raise ZeroDivisionError


def test_threads_take_turns(here: Any) -> None:
    """More threads than connections; each gives its own back as it ends."""

    def work(number: int) -> None:
        with unit_of_work():
            write(f"thread {number}", using=connections[HERE])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(words(here)) == 8
    assert pool_of(here).stats().size <= 3


def test_a_thread_that_forgets_gives_back_as_it_ends(here: Any) -> None:
    """Nobody closes its wrapper; its connection is lent to others all the same."""
    thread = threading.Thread(target=lambda: run("SELECT 1", using=connections[HERE]))
    thread.start()
    thread.join()
    eventually(lambda: pool_of(here).stats().out == 0)
    assert pool_of(here).stats().opened == 1


def test_a_transaction_left_open_is_rolled_back(here: Any) -> None:
    """Autocommit turned off by hand, and forgotten: the next borrower finds a connection as new."""
    here.set_autocommit(autocommit=False)
    write("forgotten", using=here)
    here.close()
    assert words(here) == []
    assert here.get_autocommit()


def test_pool_false_is_djangos_own(use: UseEngine) -> None:
    """OPTIONS["pool"] = False turns pooling off, and Django's backend gets what it knows."""
    wrapper = use(pool=False)
    assert run("SELECT 1", using=wrapper) == [(1,)]
    assert wrapper.lease is None
    wrapper.close()
    assert wrapper.connection is None


def test_wrong_settings_are_told(use: UseEngine, engine: str) -> None:
    """One clear error, before anything is opened."""
    with pytest.raises(ImproperlyConfigured, match=r"max_sise.*max_size"):
        pool_of(use(pool={"max_sise": 3}))
    refused = {"sqlite3": {"factory": object}, "mysql": {"autocommit": True}}[engine]
    with pytest.raises(ImproperlyConfigured, match=next(iter(refused))):
        pool_of(use(**refused))


def test_test_databases_are_not_held(here: Any) -> None:
    """`close_pool` and the end of a test database leave no connection, also of those that are out."""
    run("SELECT 1", using=here)
    pool = pool_of(here)
    pools.close_database(here)
    here.close()
    eventually(lambda: pool.stats().size == 0)
    assert run("SELECT 1", using=here) == [(1,)], "and a new pool serves the next"


# -- MySQL ------------------------------------------------------------------------------------------------------------


only_mysql = pytest.mark.parametrize("engine", ["mysql"], indirect=True)
only_sqlite = pytest.mark.parametrize("engine", ["sqlite3"], indirect=True)


@only_mysql
def test_mysql_is_configured_once(use: UseEngine) -> None:
    """Isolation level, SQL mode and init_command hold for the life of a connection; a lease says nothing."""
    wrapper = use(isolation_level="serializable", sql_mode="ANSI", init_command="SET @said = 7")
    asked = []
    for _ in range(3):
        ((level, mode, null, said),) = run(
            "SELECT @@session.tx_isolation, @@session.sql_mode, @@session.sql_auto_is_null, @said", using=wrapper
        )
        assert (level, null, said) == ("SERIALIZABLE", 0, 7)
        assert "ANSI_QUOTES" in mode
        asked.append(int(run("SHOW SESSION STATUS LIKE 'Questions'", using=wrapper)[0][1]))
        wrapper.close()
    assert [after - before for before, after in itertools.pairwise(asked)] == [2, 2]


@only_mysql
def test_mysql_a_lease_leaves_nothing_in_the_session(here: Any) -> None:
    """What a lease has set is gone in the next one, on the same connection; a transaction by itself changes nothing."""
    with transaction.atomic(using=here.alias):
        write("a", using=here)
    assert not here.connection._changed
    run("SET @tenant = 5, SESSION wait_timeout = 91", using=here)
    with here.constraint_checks_disabled():
        kept = here.connection
    here.close()
    assert run("SELECT @tenant, @@wait_timeout = 91, @@foreign_key_checks", using=here) == [(None, 0, 1)]
    assert pool_of(here).stats().opened == 1
    if library.is_pymysql():
        with pytest.raises(LeaseError, match="was given back"):
            kept.cursor()


@only_mysql
def test_mysql_a_swallowed_deadlock_saves_nothing(here: Any) -> None:
    """The server has rolled all back: what comes after is refused, and so is the COMMIT."""
    write("a", using=here)
    write("b", using=here)
    here.close()
    with pytest.raises(CommitFailed, match="here"):
        go_on_after_a_deadlock(here)
    assert "before" not in words(here)
    assert "after" not in words(here)
    with unit_of_work():
        write("next", using=here)
    assert "next" in words(here)


def go_on_after_a_deadlock(here: Any) -> None:
    with unit_of_work():
        write("before", using=here)
        meet_in_the_middle(here)
        with pytest.raises(OperationalError, match="1213"):
            write("after", using=here)


def meet_in_the_middle(here: Any) -> None:
    """Be the victim of a deadlock, and ignore it."""
    run("UPDATE django_notes SET word = 'a' WHERE word = 'a'", using=here)
    has_b, end = threading.Event(), threading.Event()

    def other() -> None:
        wrapper = connections[HERE]
        with transaction.atomic(using=HERE):
            for number in range(50):  # the lighter one is the victim
                write(f"weight {number}", using=wrapper)
            run("UPDATE django_notes SET word = 'b' WHERE word = 'b'", using=wrapper)
            has_b.set()
            run("UPDATE django_notes SET word = 'a' WHERE word = 'a'", using=wrapper)
            transaction.set_rollback(True, using=HERE)
        end.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert has_b.wait(10)
    with pytest.raises(OperationalError, match="1213"):
        run("UPDATE django_notes SET word = 'b' WHERE word = 'b'", using=here)
    thread.join(10)
    assert end.is_set()


@only_mysql
def test_mysql_a_killed_connection_is_not_given_back(here: Any) -> None:
    """Found dead while it lies idle it is replaced unseen; found unusable while it is out it is discarded."""

    def number() -> int:
        found: int = run("SELECT CONNECTION_ID()", using=here)[0][0]
        return found

    first = number()
    here.close()
    kill(first)
    second = number()
    assert second != first
    kill(second)
    eventually(lambda: not here.is_usable())
    here.close()
    assert number() not in {first, second}


def kill(session: int) -> None:
    """End a session from another one, and wait until it is gone."""
    pool = pools.pool_for(connections[HERE])
    leases = [pool.acquire() for _ in range(2)]
    try:
        conn = next(lease.resource for lease in leases if lease.resource.thread_id() != session)
        conn.query(f"KILL {session}")
        cursor = conn.cursor()
        eventually(lambda: not cursor.execute("SELECT 1 FROM information_schema.processlist WHERE id = %s", (session,)))
        cursor.close()
    finally:
        for lease in leases:
            lease.release()
    time.sleep(0.01)  # what came back within a millisecond is lent without a look


# -- SQLite -----------------------------------------------------------------------------------------------------------


@only_sqlite
def test_sqlite_is_configured_once(use: UseEngine) -> None:
    """Django's functions, its PRAGMAs and the init_command are there in every connection, and said once."""
    wrapper = use(init_command="PRAGMA cache_size = 123; CREATE TEMP TABLE IF NOT EXISTS said (x)")
    for _ in range(2):
        assert run("SELECT 'Word' REGEXP '^W'", using=wrapper) == [(1,)]
        assert run("PRAGMA cache_size", using=wrapper) == [(123,)]
        assert run("PRAGMA foreign_keys", using=wrapper) == [(1,)]
        wrapper.close()
    assert pool_of(wrapper).stats().opened == 1


@only_sqlite
def test_sqlite_the_mode_of_transactions(use: UseEngine) -> None:
    """OPTIONS["transaction_mode"] is how a block begins, also on a connection that was leased."""
    wrapper = use(transaction_mode="IMMEDIATE", timeout=0.05)
    make_table(wrapper)

    def write_meanwhile() -> None:
        with pytest.raises(OperationalError, match="locked"):
            write("meanwhile", using=connections[HERE])

    with transaction.atomic(using=HERE):
        run("SELECT 1", using=wrapper)
        thread = threading.Thread(target=write_meanwhile)
        thread.start()
        thread.join()
    assert words(wrapper) == []


@only_sqlite
def test_sqlite_foreign_keys_are_minded_again(here: Any) -> None:
    """Whoever turned them off and forgot it does so for himself only."""
    run("PRAGMA foreign_keys = OFF", using=here)
    here.close()
    assert run("PRAGMA foreign_keys", using=here) == [(1,)]


@only_sqlite
def test_sqlite_a_transaction_that_sqlite_ended_is_no_commit(here: Any) -> None:
    """A conflict clause rolls all back and the error is ignored: the COMMIT says so."""
    with pytest.raises(CommitFailed, match="here"):
        write_twice(here)
    assert words(here) == []


def write_twice(here: Any) -> None:
    with unit_of_work():
        write("once", using=here)
        with pytest.raises(DatabaseError):
            run("INSERT OR ROLLBACK INTO django_notes VALUES ('once')", using=here)


@only_sqlite
def test_sqlite_in_memory_is_djangos_own(use: UseEngine) -> None:
    """A database in memory is its connection: nothing is pooled, and close() does not lose it."""
    wrapper = use()
    wrapper.settings_dict["NAME"] = ":memory:"
    make_table(wrapper)
    write("kept", using=wrapper)
    wrapper.close()
    assert wrapper.lease is None
    assert run("SELECT word FROM django_notes", using=wrapper) == [("kept",)]
    wrapper.connection.close()
    wrapper.connection = None
