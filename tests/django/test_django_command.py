"""manage.py poolkit: what it prints is true, and its exit status says whether all is well."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings
from django_rig import MIDDLEWARE, out, run

from poolkit_django import probing, sessions
from poolkit_django.backends import pools

NOWHERE = "postgresql://nobody:hidden@127.0.0.1:9/nowhere"
SESSION = "django.contrib.sessions.middleware.SessionMiddleware"
Output = pytest.CaptureFixture[str]


@pytest.fixture
def far() -> Iterator[None]:
    """The alias "other" on a server that is not there."""
    usual = connections["other"].settings_dict
    before = dict(usual)
    connections.close_all()
    usual.update(HOST="127.0.0.1", PORT="9", PASSWORD="hidden", OPTIONS={"pool": {"timeout": 1, "open_timeout": 1}})
    try:
        yield
    finally:
        connections.close_all()
        pools.retire(connections["other"])
        usual.update(before)


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_shows_the_servers_and_their_clients(capsys: Output, fresh_pools: None, dsn: str) -> None:
    """Limits, how many workers fit, and every session on the database, grouped by its program; nothing stays lent."""
    with psycopg.connect(dsn, application_name="somebody else") as one, one.transaction():
        one.execute("SELECT 1")
        call_command("poolkit", "status")
        shown = capsys.readouterr().out
    assert "default: postgresql, each worker process a pool of 0 to 3" in shown
    assert "max_connections is" in shown
    assert "worker processes fit" in shown
    assert "somebody else" in shown
    assert "1 idle in a transaction, oldest transaction" in shown
    assert "second: ready" in shown
    connections.close_all()
    assert out() == 0


def test_status_as_json(capsys: Output, fresh_pools: None) -> None:
    """The same as data; --database chooses."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    call_command("poolkit", "status", "--json", "--database", "default")
    shown = json.loads(capsys.readouterr().out)
    (alias,) = shown["databases"]
    found = shown["databases"][alias]
    assert (found["vendor"], found["max_size"], found["error"]) == ("postgresql", 3, "")
    assert found["limits"][0]["kind"] == "server"
    assert found["limits"][0]["pools"] == {"default": 3, "other": 3}
    assert all(each["total"] >= each["active"] + each["idle"] for each in found["sessions"])
    assert shown["ready"] == {"second": True}


def test_status_finds_the_sessions_of_other_workers(dsn: str, fresh_pools: None) -> None:
    """Poolkit's own name for a session says which process it is of."""
    run("SELECT 1")
    mine = run("SHOW application_name")[0][0]

    def of_this_process() -> int:
        return sum(each.total for each in sessions.sessions_of("default") if each.application == mine)

    before = of_this_process()
    with psycopg.connect(dsn, application_name=mine):
        assert of_this_process() == before + 1
    assert str(os.getpid()) in mine


def test_what_a_role_may_not_see_is_told_as_such() -> None:
    """Sessions of other roles are counted, and nothing is made up about them."""
    hidden = sessions.Sessions("app", "other", "", 3, 0, 0, 0, None)
    assert "3 of which this role may see nothing" in str(hidden)
    assert "hidden" not in str(sessions.Sessions("app", "me", "10.0.0.1", 2, 1, 1, None, None))


@pytest.mark.usefixtures("far")
def test_status_tells_of_a_server_that_is_away(capsys: Output) -> None:
    """All the others are still shown, the exit status is an error, and no password is printed."""
    with pytest.raises(CommandError, match="not ready: other") as caught:
        call_command("poolkit", "status")
    shown = capsys.readouterr().out
    assert "default: postgresql" in shown
    assert "hidden" not in f"{shown}{caught.value}"


def test_status_tells_of_a_pool_of_poolkits_that_is_away(capsys: Output) -> None:
    """Names of POOLKIT are looked at as well."""
    far = {"far": {"url": NOWHERE, "timeout": 0.5}}
    with override_settings(POOLKIT=far), pytest.raises(CommandError, match="not ready: far"):
        call_command("poolkit", "status")
    assert "far: can't be reached" in capsys.readouterr().out


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_is_content(capsys: Output) -> None:
    """It says so, and how many workers the servers have room for."""
    call_command("poolkit", "check")
    shown = capsys.readouterr().out
    assert "the settings can work" in shown
    assert "workers are not told: set POOLKIT_WORKERS" in shown


def test_check_tells_what_is_wrong(capsys: Output) -> None:
    """An error of the settings is an error of the command's; nothing is connected to then."""
    wrong = {"x": {"url": "postgresql:///x", "max_sise": 3}}
    with override_settings(POOLKIT=wrong), pytest.raises(CommandError, match="1 of 1"):
        call_command("poolkit", "check")
    assert "max_sise" in capsys.readouterr().out
    with (
        override_settings(MIDDLEWARE=[MIDDLEWARE, MIDDLEWARE]),
        pytest.raises(CommandError, match="1 of 1 must be mended"),
    ):
        call_command("poolkit", "check")
    assert "poolkit.E004" in capsys.readouterr().out


def test_check_passes_with_a_warning(capsys: Output) -> None:
    """A warning is printed with its hint, and is no reason to fail; one that is silenced is not printed."""
    with override_settings(MIDDLEWARE=[SESSION, MIDDLEWARE]):
        call_command("poolkit", "check", "--offline")
        assert "poolkit.W003" in capsys.readouterr().out
        with override_settings(SILENCED_SYSTEM_CHECKS=["poolkit.W003"]):
            call_command("poolkit", "check", "--offline")
    assert "poolkit.W003" not in capsys.readouterr().out


@pytest.mark.usefixtures("far")
def test_check_asks_the_databases(capsys: Output) -> None:
    """Unless it is told to stay offline, or to look at one only."""
    with pytest.raises(CommandError, match="1 of 1"):
        call_command("poolkit", "check")
    assert "poolkit.E005" in capsys.readouterr().out
    call_command("poolkit", "check", "--database", "default")
    call_command("poolkit", "check", "--offline")


# -- ping --------------------------------------------------------------------------------------------------------------


def test_ping_measures_every_name(capsys: Output) -> None:
    """The ORM's aliases and POOLKIT's pools; a shared client has nothing to ping."""
    call_command("poolkit", "ping")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["default", "other", "second"]
    assert all("connect " in line and "worst" in line and "of 3" in line for line in lines)
    assert out() == 0


def test_ping_as_json(capsys: Output) -> None:
    """Seconds, and as many pings as were asked for."""
    call_command("poolkit", "ping", "default", "--count", "5", "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["error"] == ""
    assert 0 < found["connect"] < 5
    assert len(found["pings"]) == 5


@pytest.mark.usefixtures("far")
def test_ping_fails_where_one_does_not_answer(capsys: Output) -> None:
    """All are asked all the same; the command fails, in time, and prints no password."""
    with pytest.raises(CommandError, match=r"no answer from other$"):
        call_command("poolkit", "ping", "--timeout", "1")
    shown = capsys.readouterr().out
    assert "default: connect" in shown
    assert "second: connect" in shown
    assert "hidden" not in shown


def test_a_ping_that_is_not_answered_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that opens and then says nothing is told as such."""
    pool = pools.pool_for(connections["default"])
    monkeypatch.setattr(pool.transactional, "ping", lambda *_: False)
    found = probing.probe("default", timeout=0.5, count=3)
    assert str(found) == "default: no answer to a ping within 0.5 s"


def test_an_alias_of_another_engine_is_asked_through_django() -> None:
    """Django's own engine has no pool, and is reached all the same."""
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    connections.settings["plain"] = {**connections["default"].settings_dict, **entry, "OPTIONS": {}}
    try:
        found = probing.probe("plain", timeout=1, count=2)
    finally:
        del connections.settings["plain"]
    assert (found.error, len(found.pings)) == ("", 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["ping", "defalt"], "nothing is named 'defalt': did you mean 'default'?"),
        (["ping", "api"], "'api' is a shared client"),
        (["ping", "--count", "0"], "must be more than 0, not '0'"),
        (["ping", "--timeout", "soon"], "must be more than 0, not 'soon'"),
        (["status", "--database", "xyz"], "no pool behind the alias 'xyz': there are default, other"),
        (["check", "--database", "defalt"], "did you mean 'default'?"),
        (["chekc"], "invalid choice"),
        ([], "required"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], text: str) -> None:
    """In one sentence, with what was meant."""
    with pytest.raises(CommandError) as caught:
        call_command("poolkit", *arguments)
    assert text in str(caught.value)


def test_settings_that_can_not_work_are_an_error_of_every_action() -> None:
    """And no traceback."""
    wrong: dict[str, Any] = {"x": {}}
    for action in ("status", "check", "ping"):
        with override_settings(POOLKIT=wrong), pytest.raises(CommandError):
            call_command("poolkit", action)
