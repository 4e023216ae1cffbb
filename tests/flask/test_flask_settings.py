"""What stands in app.config: checked at init_app, as a whole, with one error that helps. Nothing is connected."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from flask import Flask

from poolkit import ConfigError
from poolkit_flask import Poolkit

URL = "sqlite:///:memory:"


def init(**config: Any) -> tuple[Flask, Poolkit]:
    """Make an app with these settings."""
    app = Flask("settings")
    app.config.update(config)
    return app, Poolkit(app)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["no connections", "POOLKIT in app.config", "DATABASE_URL"]),
        ({"POOLKIT": {}}, ["no connections"]),
        ({"POOLKIT": [1]}, ["POOLKIT: must map names to settings", "list"]),
        ({"POOLKIT": {"default": URL}}, ["'default'", "must be a mapping with a url"]),
        ({"POOLKIT": {"default": {}}}, ["'default'", "has no url"]),
        ({"POOLKIT": {"default": {"url": "localhost/shop"}}}, ["malformed URL", "scheme://"]),
        ({"POOLKIT": {"default": {"url": "postgre://h/d"}}}, ["unknown URL scheme 'postgre'", "'postgres"]),
        ({"POOLKIT": {"default": {"url": URL, "max_sise": 3}}}, ["'max_sise'", "did you mean 'max_size'"]),
        ({"POOLKIT": {"default": {"url": URL, "max_size": "3"}}}, ["max_size must be a whole number", "str"]),
        ({"POOLKIT": {"default": {"url": URL, "max_size": 2, "min_size": 3}}}, ["min_size (3)", "max_size (2)"]),
        ({"POOLKIT": {"default": {"url": "postgresql+asyncpg://h/d"}}}, ["'default' is for asyncio", "threads"]),
        ({"POOLKIT": {"default": {"url": URL}}, "POOLKIT_URL_PREFX": "/x"}, ["'POOLKIT_URL_PREFX'", "_URL_PREFIX'"]),
        ({"POOLKIT": {"default": {"url": URL}}, "POOLKIT_URL_PREFIX": "x"}, ["POOLKIT_URL_PREFIX must begin with /"]),
        ({"POOLKIT": {"default": {"url": URL}}, "POOLKIT_URL_PREFIX": "/x/"}, ["not end with it"]),
        ({"POOLKIT": {"default": {"url": URL}}, "POOLKIT_STATS_TOKEN": ""}, ["POOLKIT_STATS_TOKEN", "not empty"]),
        ({"POOLKIT": {"default": {"url": URL}}, "POOLKIT_STATS": "all"}, ["POOLKIT_STATS must be 'loopback'"]),
        ({"POOLKIT": {"default": {"url": URL}}, "POOLKIT_ROLLBACK_ON": 500}, ["POOLKIT_ROLLBACK_ON", "callable"]),
        ({"POOLKIT": {"default": {"url": URL}}, "POOLKIT_UNITS": 5}, ["POOLKIT_UNITS: must map", "int"]),
        (
            {"POOLKIT": {"default": {"url": URL}}, "POOLKIT_UNITS": {"swallowed": 1}},
            ["POOLKIT_UNITS", "'swallowed_error'"],
        ),
    ],
)
def test_each_fault_is_named(config: dict[str, Any], words: list[str]) -> None:
    """What is wrong, where, and what to do."""
    with pytest.raises(ConfigError) as caught:
        init(**config)
    for word in words:
        assert word in str(caught.value)


def test_all_faults_come_in_one_error() -> None:
    """Nobody has to start the app three times to hear of three faults."""
    with pytest.raises(ConfigError) as caught:
        init(POOLKIT={"a": {"url": ""}, "b": {"url": URL, "timeout": "x"}}, POOLKIT_URL_PREFIX=7, POOLKIT_TOKEN="x")
    assert len(caught.value.problems) == 4


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "psycopg" else find(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"pip install 'poolkit\[psycopg\]'"):
        init(POOLKIT={"default": {"url": "postgresql://h/d"}})


def test_no_password_in_an_error() -> None:
    """Not even where the URL itself is what is wrong."""
    for url in ("postgre://me:sesame@h/d", "postgresql+asyncpg://me:sesame@h/d", "me:sesame@h"):
        with pytest.raises(ConfigError) as caught:
            init(POOLKIT={"default": {"url": url}})
        assert "sesame" not in str(caught.value) + repr(caught.value)


def test_a_faulty_init_leaves_the_app_as_it_was() -> None:
    """After a mistake was mended the same app can be used."""
    app = Flask("mended")
    app.config["POOLKIT"] = {"default": {"url": URL, "max_size": -1}}
    db = Poolkit()
    with pytest.raises(ConfigError):
        db.init_app(app)
    app.config["POOLKIT"] = {"default": {"url": URL}}
    db.init_app(app)
    with app.app_context():
        assert db.registry.names == ("default",)


def test_a_second_poolkit_for_an_app_is_refused() -> None:
    """One holds any number of connections: the error shows how."""
    app, db = init(POOLKIT={"default": {"url": URL}})
    for again in (db, Poolkit()):
        with pytest.raises(ConfigError, match=r"has a Poolkit already.*\"replica\""):
            again.init_app(app)


def test_an_app_that_serves_already_is_refused() -> None:
    """Flask says so itself; nothing is half done."""
    app = Flask("late")
    app.config["POOLKIT"] = {"default": {"url": URL}}
    app.test_client().get("/")
    with pytest.raises(AssertionError, match="can no longer be called"):
        Poolkit(app)
    assert "poolkit" not in app.extensions
    assert "full_dispatch_request" not in vars(app)


def test_the_environment_where_there_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL is "default", POOLKIT_<NAME>_URL another, POOLKIT_<NAME>_<SETTING> one of its settings."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("POOLKIT_REPLICA_URL", "postgresql://r/d")
    monkeypatch.setenv("POOLKIT_REPLICA_MAX_SIZE", "3")
    _, db = init()
    assert db.registry.names == ("default", "replica")
    assert db.pool("replica").config.max_size == 3


def test_the_environment_sizes_what_the_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment can size the pools of the code; DATABASE_URL does not replace settings."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("POOLKIT_DEFAULT_MAX_SIZE", "7")
    _, db = init(POOLKIT={"default": {"url": URL, "max_size": 2}})
    assert db.pool().config.max_size == 7
    assert db.registry.url() == URL


def test_a_config_that_mirrors_the_environment_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`app.config.from_mapping(os.environ)` is no list of unknown settings."""
    monkeypatch.setenv("POOLKIT_DEFAULT_MAX_SIZE", "7")
    _, db = init(POOLKIT={"default": {"url": URL}}, POOLKIT_DEFAULT_MAX_SIZE="7")
    assert db.pool().config.max_size == 7


def test_a_fault_of_the_environment_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where to look: not in app.config."""
    monkeypatch.setenv("POOLKIT_DEFAULT_MAX_SIZE", "many")
    with pytest.raises(ConfigError, match=r"environment: POOLKIT_DEFAULT_MAX_SIZE must be a whole number"):
        init(POOLKIT={"default": {"url": URL}})


def test_unknown_names_are_refused_with_the_nearest() -> None:
    """A connection that is not in the settings."""
    app, db = init(POOLKIT={"default": {"url": URL}, "replica": {"url": URL}})
    with app.test_request_context("/"), pytest.raises(ConfigError, match="did you mean 'replica'"):
        db.get("replika")


@pytest.mark.parametrize("attempts", [0, -1, 1.5, "3", True])
def test_attempts_must_make_sense(attempts: Any) -> None:
    """A retryable view that is never run, or for ever, is a mistake."""
    with pytest.raises(ConfigError, match="attempts"):
        Poolkit().retryable(attempts)
