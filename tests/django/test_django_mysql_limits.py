"""MySQL and MariaDB under `manage.py poolkit` and the checks of sizes: what a real server says of itself."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.checks import Tags, run_checks
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connections
from django.test import override_settings
from django_rig import eventually, run

from poolkit.drivers import _common
from poolkit.testing.mariadb import LocalMariadb, MariadbNotFound
from poolkit_django import limits, sessions
from poolkit_django.backends import pools
from poolkit_django.backends.mysql import library
from poolkit_django.checks import check_limits
from poolkit_django.limits import Limit

SHOP, REPORTS = "shop", "reports"
Output = pytest.CaptureFixture[str]
Alias = Callable[..., Any]


@pytest.fixture
def alias(mysql_dsn: str) -> Iterator[Alias]:
    """Make an alias on the server of the run; what is given goes into its settings, and `pool` to OPTIONS."""
    parts = urlsplit(mysql_dsn)
    given = {"HOST": parts.hostname, "PORT": parts.port, "USER": parts.username, "PASSWORD": parts.password or ""}
    made: list[str] = []

    def make(name: str = SHOP, *, pool: Any = True, **settings: Any) -> Any:
        entry = {"ENGINE": "poolkit_django.backends.mysql", "NAME": parts.path[1:], **given, **settings}
        entry["OPTIONS"] = {"pool": pool}
        if name in connections.settings:
            connections[name].close()
            pools.retire(connections[name])
            del connections[name]
        connections.settings[name] = connections.configure_settings({"default": {}, name: entry})[name]
        made.append(name)
        return connections[name]

    yield make
    for name in dict.fromkeys(made):
        connections[name].close()
        pools.close_database(connections[name])
        del connections[name], connections.settings[name]


@pytest.fixture
def account(alias: Alias) -> Iterator[Callable[..., dict[str, str]]]:
    """Make an account that may use the database of the run and has no other privilege; `limit` is its own."""
    admin = alias("administrator")
    name = "poolkit_limited"

    def make(limit: int = 0) -> dict[str, str]:
        run(f"DROP USER IF EXISTS {name}@'%'", using=admin)
        run(f"CREATE USER {name}@'%' IDENTIFIED BY 'pass-word' WITH MAX_USER_CONNECTIONS {limit}", using=admin)
        run(f"GRANT ALL ON {admin.settings_dict['NAME']}.* TO {name}@'%'", using=admin)
        pools.retire(admin)
        admin.close()
        return {"USER": name, "PASSWORD": "pass-word"}

    yield make
    for used in (SHOP, REPORTS):
        if used in connections.settings:
            connections[used].close()
            pools.retire(connections[used])
    run(f"DROP USER IF EXISTS {name}@'%'", using=admin)


def told(*aliases: str) -> list[str]:
    """What the check says for these aliases."""
    return [f"{message.id} {message.msg}" for message in check_limits(databases=aliases)]


def most_of(wrapper: Any) -> int:
    """The server's max_connections."""
    return int(run("SELECT @@global.max_connections", using=wrapper)[0][0])


# -- checks ------------------------------------------------------------------------------------------------------------


def test_what_fits_is_told_nothing(alias: Alias) -> None:
    """`check --database` is content with a pool that fits, and gives its connection back."""
    wrapper = alias()
    assert told(SHOP) == []
    assert run_checks(tags=[Tags.database], databases=[SHOP]) == []
    assert limits.limits_of(SHOP)[0] == Limit("server", most_of(wrapper), f"max_connections is {most_of(wrapper)}")


def test_too_large_for_the_server(alias: Alias) -> None:
    """W010: every alias on the server counts, whichever is asked."""
    most = most_of(alias(pool={"max_size": 5}))
    alias(REPORTS, pool={"max_size": most, "reserved": 2})
    (line,) = told(SHOP)
    assert line.startswith("poolkit.W010 1 worker process with pools of up to")
    assert f"(shop 5, reports {most + 2}) may ask for {most + 7} connections, and {most} can be had" in line


def test_what_must_be_opened_and_can_not_is_an_error(alias: Alias) -> None:
    """E006: min_size is not opened on demand."""
    half = most_of(alias()) // 2
    alias(pool={"min_size": half, "max_size": half})
    with override_settings(POOLKIT_WORKERS=3):
        (line,) = told(SHOP)
    assert line.startswith(f"poolkit.E006 3 worker processes with pools of up to {half} (shop {half}) must open")


def test_too_large_for_the_account(alias: Alias, account: Callable[..., dict[str, str]]) -> None:
    """W011: the account's own limit binds all aliases that use it; a database has none of its own here."""
    alias(pool={"max_size": 4}, **account(7))
    with override_settings(POOLKIT_WORKERS=2):
        (line,) = told(SHOP)
    assert line.startswith("poolkit.W011 2 worker processes with pools of up to 4 (shop 4) may ask for 8")
    assert line.endswith("and 7 can be had: max_user_connections is 7. Under load, connects will fail.")


def test_a_server_that_is_away_is_told_without_a_password(alias: Alias) -> None:
    """E005: one error of the check, not a traceback."""
    alias(pool={"timeout": 1}, HOST="127.0.0.1", PORT=9, PASSWORD="very secret")
    (line,) = told(SHOP)
    assert line.startswith("poolkit.E005 The server's limits can't be asked for")
    assert "very secret" not in line


@pytest.mark.slow
def test_the_servers_limit_of_each_account(unavailable: Any, alias: Alias) -> None:
    """It is told to those whom it binds, and to no administrator of MariaDB's: he can open more."""
    try:
        server = LocalMariadb(max_user_connections=3, performance_schema=True).start()
    except MariadbNotFound as error:
        unavailable("mysql", str(error))
    parts = urlsplit(server.dsn)
    place = {"HOST": parts.hostname, "PORT": parts.port, "NAME": parts.path[1:]}
    account = {"USER": parts.username, "PASSWORD": parts.password}
    with server:
        admin = alias("root", **place, **account)
        run("CREATE USER low@'127.0.0.1' IDENTIFIED BY 'low'", using=admin)
        run(f"GRANT ALL ON {parts.path[1:]}.* TO low@'127.0.0.1'", using=admin)
        alias(**place, USER="low", PASSWORD="low")
        assert [limit.kind for limit in limits.limits_of("root")] == ["server"]
        assert room(admin) == 5
        assert Limit("role", 3, "max_user_connections is 3") in limits.limits_of(SHOP)
        connections[SHOP].close()
        assert room(connections[SHOP]) == 3
        run("SELECT 1", using=admin)
        second = alias("second", **place, **account).alias
        # The server lists a session that was just closed, without a name, until its thread is done.
        (named,) = eventually(lambda: rows if len(rows := sessions.sessions_of(second)) == 1 else None)
        assert named.application == (_common.application_name() if library.is_pymysql() else "(no name)")
        connections[SHOP].close()


def room(wrapper: Any) -> int:
    """How many connections can be opened, of five; where one can't, it is for no other reason."""
    wrapper.close()
    pools.retire(wrapper)
    opened, refused = 0, wrapper.Database.OperationalError
    with ExitStack() as stack:
        with suppress(refused):
            for _ in range(5):
                stack.enter_context(pools.spare(wrapper, 5))
                opened += 1
        if opened < 5:
            with pytest.raises(refused, match="max_user_connections"):
                stack.enter_context(pools.spare(wrapper, 5))
    return opened


# -- status and ping ---------------------------------------------------------------------------------------------------


@contextmanager
def busy(alias: Alias) -> Iterator[Any]:
    """Another connection to the database, idle in a transaction that has seen something."""
    other = alias(REPORTS)
    run("CREATE TABLE IF NOT EXISTS seen (word int) ENGINE = InnoDB", using=other)
    other.set_autocommit(False)
    run("SELECT * FROM seen", using=other)
    listed = "SELECT 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()"
    # InnoDB makes its list of transactions anew only where nobody has read it for 0.1 s; other tests may read it, too.
    eventually(lambda: time.sleep(0.15) or run(listed, using=other))
    try:
        yield other
    finally:
        other.rollback()
        other.set_autocommit(True)
        run("DROP TABLE seen", using=other)


def test_status_shows_the_server_and_its_clients(alias: Alias, capsys: Output) -> None:
    """Limits, how many workers fit, and who is connected to this database, idle transactions too."""
    alias(pool={"max_size": 6})
    with busy(alias):
        call_command("poolkit", "status", "--database", SHOP)
    shown = capsys.readouterr().out
    assert "shop: mysql, each worker process a pool of 0 to 6" in shown
    assert re.search(r"max_connections is \d+: \d+ worker processes fit", shown)
    assert re.search(r"\d+ active, \d+ idle, 1 idle in a transaction, oldest transaction \d+\.\d s", shown)


def test_status_as_json(alias: Alias, capsys: Output) -> None:
    """Numbers are numbers; MySQL's own are decimals."""
    alias(pool={"max_size": 6})
    with busy(alias):
        call_command("poolkit", "status", "--json", "--database", SHOP)
    found = json.loads(capsys.readouterr().out)["databases"][SHOP]
    assert (found["vendor"], found["max_size"], found["error"]) == ("mysql", 6, "")
    assert found["limits"][0]["kind"] == "server"
    assert sum(each["in_transaction"] for each in found["sessions"]) == 1
    assert all(each["total"] == each["active"] + each["idle"] + each["in_transaction"] for each in found["sessions"])
    (age,) = [each["longest"] for each in found["sessions"] if each["in_transaction"]]
    assert 0 <= age < 60


def test_an_account_sees_what_it_may(alias: Alias, account: Callable[..., dict[str, str]]) -> None:
    """Without PROCESS its own sessions are told, and of transactions it says nothing rather than none."""
    alias(**account())
    with busy(alias):
        assert sessions.sessions_of(SHOP) == []
        alias("again", **connections[SHOP].settings_dict, pool={"max_size": 1})
        run("SELECT 1", using=connections["again"])
        (found,) = sessions.sessions_of(SHOP)
    assert (found.user, found.total, found.active, found.idle) == ("poolkit_limited", 1, 0, 1)
    assert (found.in_transaction, found.longest) == (None, None)


def test_status_of_a_server_that_is_away(alias: Alias, capsys: Output) -> None:
    """It is told in a line, the exit status is an error, and no password is printed."""
    alias(pool={"timeout": 1}, HOST="127.0.0.1", PORT=9, PASSWORD="very secret")
    with pytest.raises(CommandError, match="not ready: shop") as caught:
        call_command("poolkit", "status", "--database", SHOP)
    assert "very secret" not in f"{capsys.readouterr().out}{caught.value}"


def test_check_tells_the_room(alias: Alias, capsys: Output) -> None:
    """How many workers fit into the server."""
    wrapper = alias(pool={"max_size": 6})
    call_command("poolkit", "check", "--database", SHOP)
    most = most_of(wrapper)
    assert f"shop: max_connections is {most}: {most // 6} worker processes fit" in capsys.readouterr().out


def test_ping(alias: Alias, capsys: Output) -> None:
    """A connect, and as many pings as were asked for; nothing stays open of it."""
    wrapper = alias()
    call_command("poolkit", "ping", SHOP, "--count", "4", "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["error"], len(found["pings"])) == ("", 4)
    eventually(lambda: pools.pool_for(wrapper).stats().size == 0)


def test_ping_of_a_server_that_is_away(alias: Alias) -> None:
    """The command fails, in time."""
    alias(HOST="127.0.0.1", PORT=9, PASSWORD="very secret")
    with pytest.raises(CommandError, match=r"no answer from shop$"):
        call_command("poolkit", "ping", SHOP, "--timeout", "1")


def test_another_error_than_a_missing_privilege_is_not_hidden(alias: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that can't be answered for another reason is told."""
    alias()
    monkeypatch.setattr(sessions, "_MYSQL_ALL", "SELECT * FROM nowhere.nothing")
    with pytest.raises(DatabaseError, match=r"1146|1142|1049"):
        sessions.sessions_of(SHOP)
