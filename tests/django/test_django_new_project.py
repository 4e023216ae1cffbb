"""What a team meets on its first day: the settings of a new project, typing errors, and its own tests on SQLite."""

from __future__ import annotations

import traceback
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.db import OperationalError, connection, connections, transaction
from django.test import SimpleTestCase, override_settings
from django.utils.timezone import now
from django_rig import run

from poolkit import ConfigError
from poolkit_django import unit_of_work
from poolkit_django.backends import pools
from poolkit_django.checks import check_poolkit
from poolkit_django.replica_settings import replicas
from poolkit_django.unread import check_unread

SQLITE = "poolkit_django.backends.sqlite3"


def told() -> list[str]:
    """What the check says: ids, texts and hints."""
    return [f"{message.id} {message.msg} {message.hint or ''}".strip() for message in check_poolkit()]


def test_the_path_of_a_new_project_under_a_servers_engine() -> None:
    """`startproject` names a file; who changes ENGINE only is told so in a sentence, not by a TypeError."""
    wrong = connection.copy()
    wrong.settings_dict["NAME"] = Path("/srv/db.sqlite3")
    with pytest.raises(ImproperlyConfigured) as caught:
        run("SELECT 1", using=wrong)
    assert str(caught.value) == (
        "DATABASES['default']['NAME']: is a path (/srv/db.sqlite3), and PostgreSQL needs the name of a database; for a "
        "file, ENGINE is 'poolkit_django.backends.sqlite3'"
    )


def test_which_alias_django_finds_fault_with() -> None:
    """Django says that DATABASES is wrong, but not where; with several aliases that matters."""
    wrong = connection.copy()
    wrong.settings_dict["NAME"] = ""
    with pytest.raises(ImproperlyConfigured, match=r"^DATABASES\['default'\]: .* supply the NAME"):
        run("SELECT 1", using=wrong)


@pytest.mark.parametrize(("name", "meant"), [("POOLKIT_ROLLBACKON", "POOLKIT_ROLLBACK_ON"), ("POOLKIT_ZEBRA", None)])
def test_a_setting_that_nobody_reads(name: str, meant: str | None) -> None:
    """A misspelt setting is told, by its name alone, with the one that was meant; what it holds may be a secret."""
    with override_settings(**{name: "SECRET"}):
        (line,) = told()
    assert line.startswith(f"poolkit.W007 The setting {name} is none of poolkit's")
    assert ("Did you mean" in line) == bool(meant)
    assert meant is None or line.endswith(f"Did you mean {meant}?")
    assert "SECRET" not in line


def test_a_misspelt_variable_of_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that sizes a pool in vain is refused, as one that sizes it with a word is."""
    monkeypatch.setenv("POOLKIT_DEFAULT_MAXSIZE", "20")
    with pytest.raises(ConfigError, match="POOLKIT_DEFAULT_MAXSIZE is not known: did you mean"):
        pools.pool_config("default", {})


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("POOLKIT_DEFUALT_MAX_SIZE", "Did you mean POOLKIT_DEFAULT_MAX_SIZE?"),
        ("POOLKIT_ASYNC_DEFUALT_TIMEOUT", "Did you mean POOLKIT_ASYNC_DEFAULT_TIMEOUT?"),
        ("POOLKIT_ZZZ_OPEN_TIMEOUT", None),
    ],
)
def test_a_variable_of_no_pool(variable: str, hint: str | None) -> None:
    """A warning, for other programs may share the environment."""
    (message,) = check_unread({variable: "20"})
    assert message.id == "poolkit.W007"
    assert message.msg.startswith(f"{variable} in the environment is not read")
    assert hint is None or message.hint == hint
    assert "20" not in message.msg


def test_what_is_read_is_not_told() -> None:
    """Aliases, POOLKIT's names, the pools of coroutines; and what only looks alike, as an orchestrator sets it."""
    read = ["POOLKIT_DEFAULT_MAX_SIZE", "POOLKIT_OTHER_OPEN_TIMEOUT", "POOLKIT_API_TIMEOUT", "POOLKIT_SECOND_RESET"]
    alike = ["POOLKIT_TEST_TIMEOUT", "POOLKIT_DEFAULT_SERVICE_HOST", "POOLKIT_PG_BIN", "MAX_SIZE", "POOLKIT_MAX_SIZE"]
    assert list(check_unread(dict.fromkeys([*read, "POOLKIT_ASYNC_DEFAULT_MAX_SIZE", *alike], "1"))) == []


def test_a_misspelt_driver_of_coroutines() -> None:
    """`driver` stands beside the pool's settings, and is guessed as they are."""
    with override_settings(POOLKIT_ASYNC={"default": {"drivr": "asyncpg", "max_size": 2}}):
        (line,) = told()
    assert line == "poolkit.E002 POOLKIT_ASYNC['default']: unknown setting 'drivr': did you mean 'driver'?"


def test_wrong_replicas_are_told_by_the_check() -> None:
    """The app starts, so that the check can tell it; a server does not."""
    replicas.cache_clear()
    with override_settings(POOLKIT_REPLICAS={"default": ["nobody"]}):
        apps.get_app_config("poolkit_django").ready()
        assert told() == ["poolkit.E020 POOLKIT_REPLICAS: 'nobody' is not an alias of DATABASES"]
        with pytest.raises(ImproperlyConfigured, match="'nobody' is not an alias"):
            WSGIHandler()


def test_where_a_connection_was_taken_names_the_view(fresh_pools: None) -> None:
    """Between a view and its connection lies the ORM, some 25 calls deep: a leak's report still shows the view."""
    options = connections["default"].settings_dict["OPTIONS"]
    before = options["pool"]
    options["pool"] = {**before, "leak_after": 60}
    try:
        with unit_of_work():
            apps.get_model("sessions", "Session").objects.create(session_key="taken", expire_date=now())
            (holder,) = pools.pool_for(connections["default"]).holders()
            transaction.set_rollback(True)
    finally:
        options["pool"] = before
    assert "in test_where_a_connection_was_taken_names_the_view" in holder.stack
    assert "in _take" not in holder.stack


def test_no_variable_of_a_failed_connect_has_the_password(fresh_pools: None) -> None:
    """A debug page and an error tracker show the variables along the traceback, and along those of its causes."""
    wrong = connection.copy()
    wrong.settings_dict.update(PASSWORD="SECRET", HOST="127.0.0.1", PORT="1")
    with pytest.raises(OperationalError) as caught:
        run("SELECT 1", using=wrong)
    error: BaseException | None = caught.value
    seen = []
    while error is not None:
        seen += [repr(frame.f_locals) for frame, _ in traceback.walk_tb(error.__traceback__)]
        error = error.__cause__ or error.__context__
    assert len(seen) > 10
    assert [variables for variables in seen if "SECRET" in variables] == []


@pytest.fixture
def memory() -> Iterator[Any]:
    """An alias whose test database is in memory, and so connected as long as it is there."""
    name = "file:forbidden?mode=memory&cache=shared"
    connections.settings["memory"] = {**connections.settings["other"], "ENGINE": SQLITE, "NAME": name, "OPTIONS": {}}
    connections["memory"].ensure_connection()
    yield connections["memory"]
    connections["memory"].connection.close()
    del connections["memory"], connections.settings["memory"]


def test_a_test_that_does_not_name_an_alias_in_memory(memory: Any) -> None:
    """A request begins no transaction there, as Django would refuse that; outside of such a test it does."""

    class OnlyDefault(SimpleTestCase):
        databases = {"default"}  # noqa: RUF012  Django's way

        def runTest(self) -> None:  # noqa: N802  unittest's name
            with unit_of_work():
                run("SELECT 1")

    result = unittest.TestResult()
    unittest.TestSuite([OnlyDefault()]).run(result)
    assert (result.errors, result.failures, result.testsRun) == ([], [], 1)
    assert not memory.in_atomic_block
    with unit_of_work():
        assert memory.in_atomic_block


@pytest.mark.parametrize(
    ("test_name", "found"),
    [
        (None, "file:memorydb_memory?mode=memory&cache=shared"),
        (":memory:", "file:memorydb_memory?mode=memory&cache=shared"),
        ("test_/srv/db.sqlite3_gw0", "file:memorydb_memory?mode=memory&cache=shared"),
        ("/srv/test.sqlite3", "/srv/test.sqlite3"),
        ("/srv/test.sqlite3_gw0", "/srv/test.sqlite3_gw0"),
    ],
)
def test_where_test_databases_of_sqlite_are(memory: Any, test_name: str | None, found: str) -> None:
    """In memory unless TEST names a file, as on Django's engine: pytest-django's name for a worker is none."""
    given = {**memory.settings_dict, "NAME": "/srv/db.sqlite3"}
    given["TEST"] = {**given["TEST"], "NAME": test_name}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "settings_dict", given)
        assert memory.creation._get_test_db_name() == found
