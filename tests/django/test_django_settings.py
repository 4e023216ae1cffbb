"""Settings that can't work are told once, clearly: by `manage.py check`, and when the server starts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import modify_settings, override_settings
from django_rig import MIDDLEWARE, MakeSite, run

import poolkit_django
from poolkit import UnitOfWorkError
from poolkit.testing import FakeDriver, FakeServer
from poolkit_django import checks, conf
from poolkit_django.backends import pools
from poolkit_django.checks import check_poolkit

SECURITY = "django.middleware.security.SecurityMiddleware"
SESSION = "django.contrib.sessions.middleware.SessionMiddleware"
TOOLBAR = "debug_toolbar.middleware.DebugToolbarMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"


def told() -> list[str]:
    """What the check says: ids and texts."""
    return [f"{message.id} {message.msg}" for message in check_poolkit()]


def test_good_settings_are_told_nothing() -> None:
    """The check is registered with Django, and finds nothing wrong in these tests' settings."""
    assert told() == []
    assert [message for message in run_checks() if str(message.id).startswith("poolkit")] == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_sise": 3}, "unknown setting 'max_sise': did you mean 'max_size'?"),
        ({"max_size": "many"}, "max_size must be a whole number, not 'many'"),
        ({"min_size": 5, "max_size": 2}, "min_size (5) is larger than max_size (2)"),
        ({"max_size": 2, "pool_size": 2}, "max_size is given twice"),
        ({"timeout": 1, "pool_timeout": 1}, "timeout is given twice"),
        ("postgresql://u:SECRET@h/x", "must be True, False or a mapping like {'max_size': 8}, not str"),
        (8, "must be True, False or a mapping like {'max_size': 8}, not int"),
    ],
)
def test_wrong_pool_options(options: Any, text: str) -> None:
    """OPTIONS["pool"] is checked: by the system check, at the start of a server, and when a connection is asked for."""
    wrong = connection.copy()
    wrong.settings_dict["OPTIONS"]["pool"] = options
    with pytest.raises(ImproperlyConfigured) as caught:
        run("SELECT 1", using=wrong)
    assert text in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert "DATABASES['default']['OPTIONS']['pool']" in str(caught.value)
    usual = connections["default"].settings_dict["OPTIONS"]
    before = usual["pool"]
    usual["pool"] = options
    try:
        assert any(line.startswith("poolkit.E003") and text in line for line in told())
        with pytest.raises(ImproperlyConfigured, match="OPTIONS"):
            WSGIHandler()
    finally:
        usual["pool"] = before


@pytest.mark.parametrize("name", ["max_size", "pool_max_size", "pool_size", "max_overflow", "leak_after"])
def test_a_setting_of_the_pool_beside_it(name: str, fresh_pools: None) -> None:
    """`?max_size=5` in a DATABASE_URL becomes an entry of OPTIONS: the check says where it belongs."""
    usual = connections["default"].settings_dict["OPTIONS"]
    usual[name] = "5"
    try:
        assert any(line.startswith("poolkit.E003") and f"{name} is a setting of the pool" in line for line in told())
    finally:
        del usual[name]


def test_true_means_the_defaults(fresh_pools: None) -> None:
    """OPTIONS["pool"] = True, or none at all, is a pool as poolkit makes it."""
    given: list[Any] = [True, {}]
    for options in given:
        assert pools.pool_config("default", {"pool": options}).max_size == 10
    assert pools.pool_config("default", {}).max_size == 10


def test_the_environment_sizes_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """POOLKIT_<ALIAS>_<SETTING> overrides OPTIONS["pool"]: a deployment sizes its pools, the code need not."""
    monkeypatch.setenv("POOLKIT_DEFAULT_MAX_SIZE", "17")
    assert pools.pool_config("default", {"pool": {"max_size": 3}}).max_size == 17
    assert pools.pool_config("other", {"pool": {"max_size": 3}}).max_size == 3


def test_an_invalid_isolation_level_is_told() -> None:
    """What Django itself would refuse is refused in one sentence."""
    wrong = connection.copy()
    wrong.settings_dict["OPTIONS"]["isolation_level"] = 42
    with pytest.raises(ImproperlyConfigured, match=r"isolation.level .*one of"):
        run("SELECT 1", using=wrong)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"a": {"url": "postgresql:///a", "max_sise": 3}}, "did you mean 'max_size'?"),
        ({"a": {}}, "'a': has no url"),
        ({"a": {"url": "postgres//nowhere"}}, "malformed URL"),
        ({"a": {"url": "oracle://x"}}, "unknown URL scheme 'oracle'"),
        ({"a": "postgresql:///a"}, "must be a mapping with a url"),
        (["a"], "must map names to settings"),
        ({"default": {"url": "postgresql:///a"}}, "'default' is an alias of DATABASES as well"),
    ],
)
def test_wrong_poolkit(given: Any, text: str) -> None:
    """POOLKIT is checked as a whole, in one error, by the check and at the start of a server."""
    with override_settings(POOLKIT=given):
        assert [line for line in told() if line.startswith("poolkit.E001") and text in line]
        with pytest.raises(ImproperlyConfigured, match=r"settings\.POOLKIT"):
            WSGIHandler()


def test_all_faults_are_told_at_once() -> None:
    """Two wrong entries are one error with both."""
    with override_settings(POOLKIT={"a": {"url": "postgresql:///a", "max_size": 0}, "b": {}}):
        (line,) = told()
    assert "max_size must be at least 1" in line
    assert "'b': has no url" in line


def test_a_driver_of_the_projects_own() -> None:
    """POOLKIT names it by the object or its path; it is committed and rolled back with the unit around it."""
    server = FakeServer()
    with override_settings(POOLKIT={"ledger": {"driver": FakeDriver(server), "max_size": 1}}):
        assert not [line for line in told() if line.startswith("poolkit.E001")]
        with poolkit_django.unit_of_work():
            poolkit_django.get("ledger").execute("written")
        with poolkit_django.unit_of_work() as unit:
            poolkit_django.get("ledger").execute("doomed")
            unit.doom()
        assert [stats.name for stats in conf.registry().stats() if stats.name == "ledger"] == ["ledger"]
    assert server.log == ["1:begin", "1:written", "1:commit", "1:begin", "1:doomed", "1:rollback"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("POOLKIT_EXCEPTION_HANDLER", "nowhere.at_all", "POOLKIT_EXCEPTION_HANDLER: No module named 'nowhere'"),
        ("POOLKIT_EXCEPTION_HANDLER", 3, "must be a callable or the dotted path of one, not 3"),
        ("POOLKIT_ROLLBACK_ON", "django.db.nothing", "POOLKIT_ROLLBACK_ON"),
        ("POOLKIT_STATS", "all", "POOLKIT_STATS must be 'loopback', or None, not str"),
        ("POOLKIT_STATS_TOKEN", 12345, "POOLKIT_STATS_TOKEN must be a string, not int"),
        ("POOLKIT_WORKERS", "four", "POOLKIT_WORKERS must be a whole number of at least 1, not 'four'"),
        ("POOLKIT_WORKERS", 0, "POOLKIT_WORKERS must be a whole number of at least 1, not 0"),
        ("POOLKIT_WORKERS", True, "POOLKIT_WORKERS must be a whole number of at least 1, not True"),
    ],
)
def test_other_wrong_settings(name: str, value: Any, text: str) -> None:
    """Each is told by the check, and keeps a server from starting where it has a use for it."""
    with override_settings(**{name: value}):
        (line,) = told()
        assert line.startswith("poolkit.E002")
        assert text in line
        if name != "POOLKIT_WORKERS":  # a server has no use for it
            with pytest.raises(ImproperlyConfigured, match=name):
                WSGIHandler()
    assert "12345" not in line


@pytest.mark.parametrize(
    ("middleware", "ids"),
    [
        ([SECURITY, GZIP, MIDDLEWARE, SESSION], []),
        ([SESSION, MIDDLEWARE], ["poolkit.W003"]),
        ([MIDDLEWARE, SECURITY, GZIP], ["poolkit.W004"]),
        ([SESSION, MIDDLEWARE, GZIP], ["poolkit.W003", "poolkit.W004"]),
        ([], ["poolkit.W002"]),
        ([MIDDLEWARE, MIDDLEWARE], ["poolkit.E004"]),
    ],
)
def test_where_the_middleware_belongs(middleware: list[str], ids: list[str]) -> None:
    """Outside of what writes, inside of what only looks at the response; once, and not forgotten."""
    with override_settings(MIDDLEWARE=middleware):
        assert [line.partition(" ")[0] for line in told()] == ids


@pytest.mark.parametrize("age", [None, 60])
def test_conn_max_age_means_nothing(age: int | None) -> None:
    """It is told so, with where to set the age of a connection instead."""
    connections["default"].settings_dict["CONN_MAX_AGE"] = age
    try:
        (line,) = told()
    finally:
        connections["default"].settings_dict["CONN_MAX_AGE"] = 0
    assert line.startswith("poolkit.W001")


def test_transactions_by_hand_are_told() -> None:
    """AUTOCOMMIT False leaves requests without a unit of work: a warning."""
    connections["default"].settings_dict["AUTOCOMMIT"] = False
    try:
        (line,) = told()
    finally:
        connections["default"].settings_dict["AUTOCOMMIT"] = True
    assert line.startswith("poolkit.W005")


def with_option(name: str, value: Any) -> list[str]:
    """What is told where the default alias has this setting."""
    usual = connections["default"].settings_dict
    before = usual[name]
    usual[name] = value
    try:
        return told()
    finally:
        usual[name] = before


def test_atomic_requests_beside_the_middleware_is_told() -> None:
    """It works, and is in the way: a warning."""
    (line,) = with_option("ATOMIC_REQUESTS", True)
    assert line.startswith("poolkit.W006")


def test_atomic_requests_beside_the_middleware_does_what_is_told(site: MakeSite) -> None:
    """What the warning says is true: a savepoint for a view that queries, no commit() in it, and no async views."""
    seen: list[str] = []

    def view(request: HttpRequest) -> HttpResponse:
        run("SELECT 1")
        seen.extend(connection.savepoint_ids)
        with pytest.raises(UnitOfWorkError, match="inside an atomic"):
            request.poolkit_unit.commit()
        return HttpResponse()

    async def later(_: HttpRequest) -> HttpResponse:
        return HttpResponse()

    usual = connections["default"].settings_dict
    usual["ATOMIC_REQUESTS"] = True
    try:
        served = site(view, later)
        assert served.get("/view").status == 200
        assert served.get("/later").status == 500
    finally:
        usual["ATOMIC_REQUESTS"] = False
    assert len(seen) == 1


def test_atomic_requests_without_the_middleware_is_another_warning() -> None:
    """Nobody is told that each query commits for itself where it does not."""
    with override_settings(MIDDLEWARE=[]):
        (line,) = with_option("ATOMIC_REQUESTS", True)
        (plain,) = told()
    assert line.startswith("poolkit.W002")
    assert "ATOMIC_REQUESTS" in line
    assert "each query commits for itself" in plain


def test_health_checks_are_needless() -> None:
    """Told as information: it does no harm, and `check --fail-level WARNING` does not fail for it."""
    (line,) = with_option("CONN_HEALTH_CHECKS", True)
    assert line.startswith("poolkit.I001")


def test_the_start_of_a_server_says_it_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server's settings contradict is logged, each thing once per process; what is silenced is not."""
    monkeypatch.setattr(checks, "_told", set())
    caplog.set_level(logging.INFO)
    with override_settings(MIDDLEWARE=[SESSION, MIDDLEWARE, GZIP], SILENCED_SYSTEM_CHECKS=["poolkit.W004"]):
        checks.say_at_start()
        checks.say_at_start()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "poolkit.W003: SessionMiddleware must come after" in record.getMessage()
    assert "SECRET" not in record.getMessage()


def test_what_the_check_told_is_not_logged_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runserver checks in the same process: one message on the console is enough."""
    monkeypatch.setattr(checks, "_told", set())
    with override_settings(MIDDLEWARE=[SESSION, MIDDLEWARE]):
        assert len(told()) == 1
        checks.say_at_start()
    assert caplog.records == []


def test_an_app_that_is_not_installed_is_told() -> None:
    """Without it in INSTALLED_APPS no check would run: the server's start tells it."""
    with modify_settings(INSTALLED_APPS={"remove": ["poolkit_django"]}):
        (line,) = told()
    assert line.startswith("poolkit.W008")


def test_nothing_is_opened_for_it() -> None:
    """Neither the check nor the start of a server opens a connection."""
    with override_settings(POOLKIT={"far": {"url": "postgresql://127.0.0.1:9/x"}}):
        before = [pool.stats().opened for pool in pools.live()]
        assert told() == []
        WSGIHandler()
        assert [pool.stats().opened for pool in pools.live()] == before
        assert list(conf.registry().live_pools()) == pools.live()
