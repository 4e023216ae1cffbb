"""Settings: checked at once, in one error that says what, where and what to do, and opens nothing."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit

from poolkit import ConfigError
from poolkit_fastapi import Poolkit

URL = "postgresql://shop:s3cret@db.invalid/shop"

FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"url": URL, "max_sise": 3}, "did you mean 'max_size'"),
    ({"url": URL, "max_size": "many"}, "max_size must be a whole number, not 'many'"),
    ({"url": URL, "min_size": 5, "max_size": 2}, r"min_size \(5\) is larger than max_size \(2\)"),
    ({}, "has no url"),
    ({"url": "shop:s3cret@db"}, "malformed URL"),
    ({"url": "postgres+typo://shop:s3cret@db/shop"}, "unknown URL scheme 'postgres\\+typo'"),
]


@pytest.mark.parametrize(("options", "text"), FAULTS)
def test_a_fault_is_named_when_the_poolkit_is_made(options: dict[str, Any], text: str) -> None:
    """Not at the first request: where the settings stand; and a password is in no message."""
    with pytest.raises(ConfigError, match=text) as raised:
        Poolkit({"default": options})
    assert "'default'" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_all_faults_come_in_one_error() -> None:
    """Settings and arguments alike: one start shows everything there is to mend."""
    settings = {"default": {"url": URL, "max_sise": 3}, "other": {"timeout": -1}}
    with pytest.raises(ConfigError) as raised:
        Poolkit(settings, prefix="poolkit", stats_token="", stats="all", rollback_on=500)  # type: ignore[arg-type]
    text = str(raised.value)
    for part in (
        "max_size",
        "'other': has no url",
        "timeout must be",
        "prefix must",
        "stats_token",
        "stats must be",
        "rollback_on",
    ):
        assert part in text


def test_a_missing_driver_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the command to run."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "psycopg" else find(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"pip install 'poolkit\[psycopg\]'"):
        Poolkit({"default": {"url": URL}})


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings DATABASE_URL and POOLKIT_<NAME>_URL count, and variables override what is in the code."""
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("POOLKIT_PRICING_URL", "https://pricing.invalid")
    monkeypatch.setenv("POOLKIT_DEFAULT_MAX_SIZE", "3")
    kit = Poolkit()
    assert set(kit.registry.names) == {"default", "pricing"}
    assert kit.registry.pool().config.max_size == 3
    assert Poolkit({"default": {"url": URL, "max_size": 9}}).registry.pool().config.max_size == 3


def test_no_settings_at_all_is_told_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that gets its URL at run time can be imported without it, for its tests; the error says what to set."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    kit = Poolkit()
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        kit.get("default")


def test_a_poolkit_is_brought_to_an_app_once(make_kit: MakeKit) -> None:
    """Twice would be two units per request."""
    kit = make_kit()
    app = FastAPI()
    kit.init_app(app)
    with pytest.raises(ConfigError, match="knows this app already"):
        kit.init_app(app)
    with pytest.raises(ConfigError, match="something answers at /poolkit already"):
        make_kit().init_app(app)
    make_kit(prefix=None).init_app(app)


def test_after_the_start_is_too_late(make_kit: MakeKit) -> None:
    """Starlette has built its middlewares by then: an error, not a Poolkit that does nothing."""
    app = FastAPI()
    with TestClient(app), pytest.raises(ConfigError, match="came too late"):
        make_kit().init_app(app)


def test_nothing_is_opened_before_the_start(make_kit: MakeKit) -> None:
    """An import, in a master process or a tool, opens nothing and starts no thread."""
    kit = make_kit()
    kit.init_app(FastAPI())
    assert list(kit.registry.live_pools()) == []


def test_the_password_is_in_no_repr() -> None:
    """Not in that of the Poolkit, nor of its pools."""
    kit = Poolkit({"default": {"url": URL}})
    assert repr(kit) == "<Poolkit of default>"
    assert "s3cret" not in f"{kit!r} {kit.registry!r} {kit.registry.pool()!r} {vars(kit)}"
