"""Names whose settings have a driver: an object, a class or function that makes one, or the dotted path of either."""

from __future__ import annotations

import importlib
import os
from types import MappingProxyType, ModuleType
from typing import Any

import pytest

import poolkit
from poolkit import ConfigError, Registry, web
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer

made: list[Any] = []


class Ledger(FakeDriver):
    """A driver of the app's own."""

    def __init__(self, url: str = "", *, limit: int = 0) -> None:
        super().__init__()
        self.url = url
        self.limit = limit
        made.append(self)


class SharedLedger:
    """A client that is shared and not leased."""

    defaults = MappingProxyType[str, object]({})
    closed = abandoned = 0

    def get(self) -> str:
        return "the client"

    def close(self) -> None:
        self.closed += 1

    def abandon(self) -> None:
        self.abandoned += 1

    def stats(self) -> dict[str, Any]:
        return {"clients": 1}


an_object = Ledger()
no_driver = 5
HERE = __name__


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made.clear()
    return importlib.import_module(HERE)


@pytest.mark.parametrize(
    "settings",
    [
        {"driver": an_object},
        {"driver": Ledger},
        {"driver": lambda: Ledger("made")},
        {"driver": f"{HERE}.Ledger"},
        {"driver": f"{HERE}:an_object"},
        {"driver": Ledger, "url": "ledger://host", "options": {"limit": 5}},
    ],
)
def test_it_has_a_name_like_any_other(settings: dict[str, Any]) -> None:
    """Units of work, numbers and readiness know it; the settings of the pool stand beside it."""
    registry = Registry({"ledger": {**settings, "max_size": 3}})
    assert not registry.shares("ledger")
    assert (registry.is_for_threads("ledger"), registry.is_for_asyncio("ledger")) == (True, False)
    with poolkit.unit_of_work(registry) as uow:
        connection = uow.get("ledger")
        connection.execute("write")
    assert connection.server.log[-3:] == [f"{connection.number}:{word}" for word in ("begin", "write", "commit")]
    assert registry.pool("ledger").config.max_size == 3
    assert [stats.name for stats in registry.stats()] == ["ledger"]
    assert web.ready(registry).status == 200
    assert registry.warm()
    registry.close()


def test_a_class_is_given_the_url_and_the_options() -> None:
    """As its own arguments; it is called once, when it is first used."""
    registry = Registry({"ledger": {"driver": f"{HERE}.Ledger", "url": "ledger://host", "options": {"limit": 5}}})
    assert made == []
    for _ in range(2):
        driver = registry.source("ledger")
        assert (driver.url, driver.limit) == ("ledger://host", 5)
    assert len(made) == 1
    assert registry.url("ledger") == "ledger://host"


async def test_one_for_asyncio() -> None:
    """What it is for is seen from the driver; a thread pool of it is refused."""
    registry = Registry({"ledger": {"driver": FakeAsyncDriver()}})
    assert (registry.is_for_threads("ledger"), registry.is_for_asyncio("ledger")) == (False, True)
    async with poolkit.async_unit_of_work(registry) as uow:
        (await uow.get("ledger")).execute("write")
    assert (await web.aready(registry)).status == 200
    with pytest.raises(ConfigError, match="driver for asyncio"):
        registry.pool("ledger")
    await registry.aclose()


def test_one_that_is_shared() -> None:
    """An object that is used without leasing: a unit gives what its `get` returns, and it is closed with the rest."""
    client = SharedLedger()
    registry = Registry({"ledger": {"driver": client}, "none": {"driver": an_object}})
    assert registry.shares("ledger")
    with poolkit.unit_of_work(registry) as uow:
        assert uow.get("ledger") == "the client"
    assert web.stats(registry).body["clients"] == {"ledger": {"clients": 1}}
    with pytest.raises(ConfigError, match="no shared client"):
        registry.client("none")
    registry.close()
    assert client.closed == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"driver": 5}, "not int"),
        ({"driver": "ledger"}, "dotted path, not 'ledger'"),
        ({"driver": "shop.drivers."}, "dotted path"),
        ({"driver": an_object, "url": "ledger://host"}, "this is one already"),
        ({"driver": an_object, "options": {"limit": 5}}, "this is one already"),
        ({"driver": Ledger, "url": 5}, "url must be a string"),
        ({"driver": Ledger, "options": 5}, "options must be a mapping"),
        ({"driver": Ledger, "scheme": "postgresql"}, "scheme"),
        ({"driver": Ledger, "max_sise": 5}, "did you mean 'max_size'"),
    ],
)
def test_what_is_wrong_is_said_at_once(settings: dict[str, Any], words: str) -> None:
    """With the name, in the one error for all settings."""
    with pytest.raises(ConfigError, match=words) as caught:
        Registry({"ledger": settings})
    assert all(text.startswith("'ledger': ") for text in caught.value.problems)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"driver": f"{HERE}.Nothing"}, "can't be imported"),
        ({"driver": "no_such_module.Nothing"}, "can't be imported"),
        ({"driver": f"{HERE}.no_driver"}, "is int, and no driver"),
        ({"driver": lambda: 5}, "made int, and no driver"),
        ({"driver": Ledger, "options": {"unknown": 5}}, "can't be made: .*unknown"),
        ({"driver": f"{HERE}.an_object", "url": "ledger://host"}, "this is one already"),
    ],
)
def test_what_shows_at_first_use_names_the_place(settings: dict[str, Any], words: str) -> None:
    """A path is imported when it is first asked for; what is found there may be no driver."""
    registry = Registry({"ledger": settings}, where="settings")
    with pytest.raises(ConfigError, match=words) as caught:
        registry.pool("ledger")
    assert caught.value.where == "settings, 'ledger'"


def test_a_name_without_a_url_says_so() -> None:
    """Code that wants to connect by itself is told why it can't."""
    registry = Registry({"ledger": {"driver": an_object}})
    with pytest.raises(ConfigError, match="no url"):
        registry.url("ledger")
    assert registry.source("ledger") is an_object


def test_the_environment_sizes_its_pool() -> None:
    """A deployment sizes it as any other."""
    registry = web.registry_from(
        {"ledger": {"driver": FakeDriver(FakeServer())}}, where="", environ={"POOLKIT_LEDGER_MAX_SIZE": "7"}
    )
    assert registry.pool("ledger").config.max_size == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_lock_of_its_making_is_new_in_a_child() -> None:
    """A thread of the parent may be making the driver while another forks."""
    registry = Registry({"ledger": {"driver": Ledger}})
    with registry._drivers["ledger"]._lock:
        registry.after_fork_in_child()
        assert registry.source("ledger") is made[0]
