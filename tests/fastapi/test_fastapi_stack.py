"""FastAPI's own stack of what ends with the endpoint: used where it was seen to work, else a `yield` dependency."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit, Rows, out
from starlette.applications import Starlette
from test_fastapi_contract import CASES, make_app

from poolkit_fastapi import Poolkit, stack


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Let the question be asked again, in this test and after it."""
    stack.is_sound.cache_clear()
    yield
    stack.is_sound.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_this_fastapi_has_it() -> None:
    """Where this fails, FastAPI has changed: all works as before, and each request costs 40 us more."""
    assert stack.is_sound()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("key", ["fastapi_inner_astack", "fastapi_middleware_astack", "gone"])
def test_a_stack_that_ends_at_another_time_is_not_used(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stacks beside it end when the response is out, or outside the exception handlers: too late for a COMMIT."""
    monkeypatch.setattr(stack, "_KEY", key)
    assert not stack.is_sound()


@pytest.fixture
def kit(make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch) -> Poolkit:
    """A Poolkit that found no stack."""
    monkeypatch.setattr(stack, "is_sound", lambda: False)
    return make_kit({"max_size": 1}, prefix=None)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_without_it_the_contract_is_the_same(kind: str, kit: Poolkit, rows: Rows) -> None:
    """All cases of the contract, for endpoints whose unit ends in a `yield` dependency."""
    app = make_app(kit)
    more = {"swallowed": (500, 0), "commit_fails": (500, 0), "doomed": (200, 0)}
    expected = {name: (status, saved) for name, (_end, status, saved) in CASES.items()} | more
    seen, before = {}, 0
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        for name in expected:
            status = client.get(f"/{kind}/{name}").status_code
            seen[name] = (status, rows(kind) - before)
            before = rows(kind)
            assert out(kit) == 0
    assert seen == expected


@pytest.mark.usefixtures("asked_anew")
def test_to_ask_is_no_request_of_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """What traces or counts requests stands in front of an app: it sees none of these."""

    def seen(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("__call__", "__init__", "build_middleware_stack"):
        monkeypatch.setattr(Starlette, name, seen)
        monkeypatch.setattr(FastAPI, name, seen)
    assert stack.is_sound()
