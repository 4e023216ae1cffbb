"""The pools of a process by name: settings, the environment, and the life of what is made from them."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from poolkit import AsyncPool, AsyncUnitOfWork, ConfigError, OpenFailed, Pool, PoolClosed, Registry, configure, web
from poolkit import registry as registry_module
from poolkit.drivers import SCHEMES, _is_installed, check_url, hide_password
from poolkit.registry import settings_from_environ, with_environ
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer

PASSWORD = "s3cret-w0rd"
PG = f"postgresql://ann:{PASSWORD}@db.example/shop"


def problems(settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Registry(settings, where="settings")
    assert caught.value.where == "settings"
    return caught.value.problems


def faked(*names: str, server: FakeServer | None = None) -> Registry:
    """A registry of thread pools on a server in memory."""
    registry = Registry({name: {"url": "sqlite:///never"} for name in names})
    for name in names:
        registry._pools[name] = Pool(FakeDriver(server), name=name, close_timeout=0)
    return registry


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_registry_opens_nothing() -> None:
    """Made at import, in a master process, in a test: there is no pool before somebody asks for one."""
    registry = Registry({"default": {"url": PG}, "log": {"url": "sqlite:///log.db"}})
    assert registry.names == ("default", "log")
    assert "log" in registry
    assert "other" not in registry
    assert list(registry.live_pools()) == []
    assert registry.stats() == []


def test_a_pool_gets_its_settings() -> None:
    """What stands beside the URL is the pool's, and a pool is made once."""
    registry = Registry({"default": {"url": "sqlite:///never", "max_size": 3, "pool_timeout": 7}})
    pool = registry.pool()
    assert (pool.name, pool.config.max_size, pool.config.timeout) == ("default", 3, 7)
    assert registry.pool() is pool


def test_settings_are_copied() -> None:
    """What is changed in the app's dict later changes no pool."""
    settings: dict[str, dict[str, Any]] = {"default": {"url": "sqlite:///never", "max_size": 3}}
    registry = Registry(settings)
    settings["default"]["max_size"] = 99
    settings["other"] = {"url": "sqlite:///other"}
    assert registry.pool().config.max_size == 3
    assert "other" not in registry


def test_all_that_is_wrong_is_in_one_error() -> None:
    """Each fault of each name, and nothing was made."""
    found = problems({
        "default": {"url": "postgres//x", "max_siez": 3},
        "a": {},
        "b": "sqlite:///b",
        "c": {"url": 5, "options": "x=1"},
        "d": {"url": "postgressql://x", "timeout": -1},
        "": {"url": "sqlite:///e"},
        7: {"url": "sqlite:///f"},
    })  # fmt: skip
    assert [text.partition(": ")[0] for text in found] == [
        "'default'", "'default'", "'a'", "'b'", "'c'", "'c'", "'d'", "'d'", "''", "7",
    ]  # fmt: skip
    text = "\n".join(found)
    for part in (
        "malformed URL", "did you mean 'max_size'", "has no url", "must be a mapping with a url, not str",
        "url must be a string or a callable", "options must be a mapping", "did you mean 'postgresql'",
        "timeout must be more than 0", "a name is a text",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("settings", [None, [], "sqlite:///x", 5])
def test_settings_that_are_no_mapping(settings: Any) -> None:
    """The commonest mistake, a URL where names are expected, says what is expected."""
    assert problems(settings) == [f"must map names to settings, not {type(settings).__name__}"]


def test_an_unknown_name_says_what_there_is() -> None:
    """The nearest name, else all of them; where there is none at all, how to set one."""
    registry = Registry({"default": {"url": "sqlite:///x"}, "reports": {"url": "sqlite:///y"}}, where="app.toml")
    with pytest.raises(ConfigError, match=r"app\.toml: no connection named 'report': did you mean 'reports'"):
        registry.pool("report")
    with pytest.raises(ConfigError, match="known are 'default', 'reports'"):
        registry.client("zzz")
    with pytest.raises(ConfigError, match="Set POOLKIT in the app's settings, or DATABASE_URL"):
        Registry({}).pool()


@pytest.mark.parametrize("url", ["", "db", "postgresql", "postgresql:/x", ":", "://x", f"ann:{PASSWORD}@db/shop"])
def test_a_malformed_url_is_told_without_what_may_be_secret(url: str) -> None:
    """Even a URL that can't be read may hold a password: what is told of it is its scheme."""
    with pytest.raises(ConfigError) as caught:
        check_url(url)
    assert "expected scheme://" in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, before anything is imported or opened, the error says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = problems({"default": {"url": "postgresql+asyncpg://db/shop"}})
    assert problem.endswith("'asyncpg' is not installed: pip install 'poolkit[asyncpg]'")


def test_the_wrong_kind_of_pool() -> None:
    """A driver of asyncio has no threads and SQLite no loop here: the error says what the URL is for."""
    registry = Registry(
        {"a": {"url": "postgresql+asyncpg://db/shop"}, "s": {"url": "sqlite:///x"}, "h": {"url": "https://x"}}
    )
    with pytest.raises(ConfigError, match="is for asyncio and can't be used with threads"):
        registry.pool("a")
    with pytest.raises(ConfigError, match="is for shared clients and can't be used with threads"):
        registry.pool("h")
    with pytest.raises(ConfigError, match="is for threads and can't be used with asyncio"):
        AsyncPool("sqlite:///x")


@pytest.mark.parametrize("answer", [5, None, b"sqlite:///x"])
def test_a_url_callable_that_returns_no_text(answer: Any) -> None:
    """What a callable returns is looked at as a setting is, when the pool connects."""
    registry = Registry({"default": {"url": lambda: answer, "scheme": "sqlite", "timeout": 0.5}})
    with pytest.raises(OpenFailed) as caught:
        registry.pool().acquire()
    assert f"must return a string, not {type(answer).__name__}" in str(caught.value.__cause__)


def test_a_password_is_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Neither what is shown of a registry and its pools nor any error has it."""
    registry = Registry(
        {"default": {"url": PG, "open_timeout": 0.2}, "api": {"url": f"https://ann:{PASSWORD}@api.example"}}
    )
    pool = registry.pool()
    client = registry.client("api")
    things = [registry, pool, pool._driver, pool.config, pool.stats(), web.stats(registry), client, client.get()]
    shown = [repr(thing) for thing in things]
    wrong: list[dict[str, Any]] = [
        {"timeout": -1},
        {"url": PG.replace("postgresql", "postgrsql")},
        {"options": PASSWORD},
    ]
    shown += [str(problems({"default": {"url": PG} | fault})) for fault in wrong]
    with pytest.raises(ConfigError) as caught:
        Pool(PG, options=PASSWORD)
    shown += [str(caught.value), repr(caught.value), caplog.text]
    assert not [text for text in shown if PASSWORD in text]
    registry.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (PG, "postgresql://ann@db.example/shop"),
        (f"postgresql://db/shop?password={PASSWORD}", "postgresql://db/shop"),
        (f"postgresql://:{PASSWORD}@db/shop", "postgresql://@db/shop"),
        (f"postgresql://ann:p@{PASSWORD}@db/shop", "postgresql://ann@db/shop"),
        (f"postgresql://ann:{PASSWORD}@[::1/shop", "(malformed URL)"),
        ("sqlite:////var/shop.db", "sqlite:////var/shop.db"),
    ],
)
def test_a_url_fit_for_a_page(url: str, shown: str) -> None:
    """Scheme, user, host and path stay; the password and the query go."""
    assert hide_password(url) == shown


def test_every_scheme_has_its_driver() -> None:
    """Each scheme of the table leads to a module with the classes that it names."""
    for scheme, entry in SCHEMES.items():
        if entry.library == "MySQLdb" and not _is_installed("MySQLdb"):
            continue  # it has to be built, so it is in no lock
        module = __import__(entry.module, fromlist=["x"])
        classes = [name for name in (entry.sync, entry.asynchronous, entry.shared) if name]
        assert classes, scheme
        assert all(hasattr(module, name) for name in classes), scheme


# -- the environment ---------------------------------------------------------------------------------------------------


def test_names_from_the_environment() -> None:
    """DATABASE_URL is the default; POOLKIT_<NAME>_URL adds a name; POOLKIT_<NAME>_<SETTING> sets something of it."""
    environ = {
        "DATABASE_URL": "sqlite:///a", "POOLKIT_REPORTS_URL": "sqlite:///b", "POOLKIT_DEFAULT_MAX_SIZE": "4",
        "POOLKIT_REPORTS_MAX_LIFETIME": "none", "POOLKIT_EMPTY_URL": "", "POOLKIT_TEST_PG_URL": "x", "HOME": "/",
    }  # fmt: skip
    assert settings_from_environ(environ) == {
        "default": {"url": "sqlite:///a", "max_size": 4},
        "reports": {"url": "sqlite:///b", "max_lifetime": None},
    }
    assert Registry.from_environ(environ).pool().config.max_size == 4
    assert settings_from_environ({}) == {}


def test_a_variable_without_a_name_is_told_so() -> None:
    """POOLKIT_URL names nothing: it is an error with the two ways to say what was meant."""
    with pytest.raises(ConfigError, match=r"DATABASE_URL.*POOLKIT_<NAME>_URL"):
        settings_from_environ({"POOLKIT_URL": "sqlite:///x"})


def test_the_environment_sizes_what_the_code_names() -> None:
    """A deployment overrides single settings and leaves the others; the settings given are not changed."""
    settings = {"default": {"url": "sqlite:///x", "max_size": 3, "timeout": 9}}
    assert with_environ(settings, {"POOLKIT_DEFAULT_MAX_SIZE": "5", "POOLKIT_OTHER_MAX_SIZE": "7"}) == {
        "default": {"url": "sqlite:///x", "max_size": 5, "timeout": 9}
    }
    assert settings["default"]["max_size"] == 3
    with pytest.raises(ConfigError, match="POOLKIT_DEFAULT_MAX_SIZE must be a whole number, not 'many'"):
        web.registry_from(settings, where="settings", environ={"POOLKIT_DEFAULT_MAX_SIZE": "many"})


def test_a_url_of_the_environment_takes_the_place_of_the_codes(caplog: pytest.LogCaptureFixture) -> None:
    """A deployment says where the server is, whatever stands in the code; what it names in vain is told."""
    settings: dict[str, Any] = {
        "default": {"max_size": 3}, "other": {"url": "sqlite:///code"}, "own": {"driver": FakeDriver()},
        "Fetched": {"url": lambda: "mysql://h/db", "scheme": "mysql"},
    }  # fmt: skip
    environ = {
        "DATABASE_URL": "sqlite:///plain", "POOLKIT_OTHER_URL": "sqlite:///environ?pool_max_size=4",
        "POOLKIT_FETCHED_URL": "sqlite:///fixed", "POOLKIT_NOBODYS_URL": "sqlite:///x", "POOLKIT_TEST_PG_URL": "x",
    }  # fmt: skip
    registry = web.registry_from(settings, where="app", environ=environ)
    assert [registry.url(name) for name in ("default", "other", "Fetched")] == [
        "sqlite:///plain", "sqlite:///environ", "sqlite:///fixed",
    ]  # fmt: skip
    assert registry.pool("other").config.max_size == 4
    assert "POOLKIT_NOBODYS_URL in the environment is not read" in caplog.text
    assert "TEST" not in caplog.text
    assert settings["other"] == {"url": "sqlite:///code"}
    with pytest.raises(ConfigError, match="POOLKIT_OWN_URL is set, and 'own' has a driver in the settings"):
        web.registry_from(settings, where="app", environ={"POOLKIT_OWN_URL": "sqlite:///x"})
    assert (
        web.registry_from(
            {"default": {"url": "sqlite:///code"}}, where="app", environ={"DATABASE_URL": "sqlite:///plain"}
        ).url()
        == "sqlite:///code"
    )


def test_a_name_may_have_any_word_in_it() -> None:
    """Only the variables of poolkit's own tests are passed over, not every name with TEST in it."""
    environ = {
        "POOLKIT_LOAD_TEST_DB_URL": "sqlite:///a",
        "POOLKIT_MY_URL_URL": "sqlite:///b",
        "POOLKIT_TEST_PG_URL": "x",
    }
    assert set(settings_from_environ(environ)) == {"load_test_db", "my_url"}


def test_where_an_error_is_to_be_mended() -> None:
    """A fault of the settings names them, one of the environment names that, even where both are at work."""
    with pytest.raises(ConfigError) as caught:
        web.registry_from({"default": {"url": "x"}}, where="POOLKIT", environ={"POOLKIT_DEFAULT_MAX_SIZE": "5"})
    assert caught.value.where == "POOLKIT"
    with pytest.raises(ConfigError) as caught:
        web.registry_from(None, where="POOLKIT", environ={"DATABASE_URL": "x"})
    assert caught.value.where == "environment"


def test_a_wrong_name_is_told_before_the_environment_is_read() -> None:
    """A name that is no text has no variables: it is reported, and nothing else breaks on it."""
    settings: Any = {7: {"url": "sqlite:///x"}}
    with pytest.raises(ConfigError, match="a name is a text"):
        web.registry_from(settings, where="POOLKIT", environ={})


def test_configure_takes_settings_or_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way the registry is returned and is the default from then on."""
    monkeypatch.setattr(registry_module, "_default", None)
    first = configure({"default": {"url": "sqlite:///x"}})
    assert registry_module.default_registry() is first
    second = Registry({})
    assert configure(second) is second
    assert registry_module.default_registry() is second


# -- life --------------------------------------------------------------------------------------------------------------


def test_close_closes_and_pools_are_made_anew() -> None:
    """A closed registry is as new: what is asked for afterwards is made again."""
    server = FakeServer()
    registry = faked("default", server=server)
    pool = registry.pool()
    pool.acquire().release()
    registry.close()
    assert pool.closed
    assert server.open_now == 0
    assert registry.pool() is not pool
    with pytest.raises(PoolClosed):
        pool.acquire()
    registry.close()
    registry.close()


def test_close_says_what_is_still_in_use(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that does not come back is named with its holder, and closed when it does."""
    server = FakeServer()
    registry = faked("default", "other", server=server)
    lease = registry.pool().acquire()
    lease.label("GET /slow")
    other = registry.pool("other")
    other.acquire().release()
    with caplog.at_level(logging.WARNING, "poolkit"):
        registry.close(timeout=0)
    assert "'default': still in use at close: GET /slow for" in caplog.text
    assert other.closed
    lease.release()
    assert server.open_now == 0


def test_looking_at_pools_locks_nobody_out() -> None:
    """Somebody who stopped in the middle of the live pools does not keep others from making theirs."""
    registry = faked("default", "other")
    registry._pools.pop("other")
    registry._make = lambda name, kind: Pool(FakeDriver(), name=name)  # type: ignore[assignment,method-assign]
    pools = iter(registry.live_pools())
    next(pools)
    thread = threading.Thread(target=registry.pool, args=("other",), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_threads_that_ask_at_once_get_one_pool() -> None:
    """A pool is made once however many ask for it first."""
    registry = Registry({"default": {"url": "sqlite:///never"}})
    together = threading.Barrier(8)
    got: list[Pool[Any]] = []

    def ask() -> None:
        together.wait()
        got.append(registry.pool())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len({id(pool) for pool in got}) == 1


def test_warm_and_ready_of_all() -> None:
    """One pool that can't serve makes the whole not ready, and every pool is tried."""
    server = FakeServer()
    registry = faked("default", "other", server=server)
    assert registry.warm()
    assert registry.ready()
    server.down = True
    server.kill()
    assert not registry.ready(timeout=0.01)
    assert not registry.warm(timeout=0.01)


class Loops:
    """A registry whose async pools are on a server in memory."""

    def __init__(self) -> None:
        self.server = FakeServer()
        self.registry = Registry({"default": {"url": "postgresql://never"}})
        self.registry._make = self.make  # type: ignore[method-assign]

    def make(self, name: str, kind: Callable[..., Any]) -> Any:
        driver = FakeAsyncDriver(self.server) if kind is AsyncPool else FakeDriver(self.server)
        return kind(driver, name=name)


def test_each_loop_has_its_pool() -> None:
    """A connection of asyncio belongs to its loop; a closed loop's connections are let go when the next one asks."""
    loops = Loops()
    pools: list[AsyncPool[Any]] = []

    async def main() -> None:
        pool = loops.registry.async_pool()
        assert loops.registry.async_pool() is pool
        pools.append(pool)
        async with pool.acquire():
            assert loops.server.open_now == 1

    asyncio.run(main())
    asyncio.run(main())
    assert pools[0] is not pools[1]
    assert loops.server.opened == 2
    assert list(loops.registry.live_pools()) == [pools[1]]


def test_loops_in_threads_do_not_see_each_other() -> None:
    """Two loops that run at once have two pools, and each closes its own."""
    loops = Loops()
    together = threading.Barrier(2)
    pools: list[AsyncPool[Any]] = []

    async def main() -> None:
        pool = loops.registry.async_pool()
        pools.append(pool)
        await asyncio.to_thread(together.wait)
        await loops.registry.aclose()
        assert pool.closed

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pools[0] is not pools[1]


async def test_aclose_closes_both_kinds() -> None:
    """At the end of an async app the loop's pools and the thread pools are closed, and the threads for them end."""
    loops = Loops()
    registry = loops.registry
    async with AsyncUnitOfWork(registry) as unit:
        await unit.get()
        await unit.get_sync()
    assert loops.server.open_now == 2
    assert await registry.awarm()
    assert await registry.aready()
    await registry.aclose()
    assert loops.server.open_now == 0
    assert list(registry.live_pools()) == []
    assert registry._workers is None


def test_a_dropped_registry_is_collected() -> None:
    """Nothing of poolkit's keeps a registry alive that nobody has any more."""
    registry = faked("default")
    gone: list[bool] = []
    weakref.finalize(registry, gone.append, True)
    del registry
    gc.collect()
    assert gone == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_has_pools_of_its_own(tmp_path: Any) -> None:
    """After a fork the registry serves the child: fresh pools, its lock free, though a thread held it in the parent."""
    registry = Registry(
        {"default": {"url": f"sqlite:///{tmp_path}/x.db"}, "late": {"url": f"sqlite:///{tmp_path}/y.db"}}
    )
    lease = registry.pool().acquire()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with registry._lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with registry.pool("late").acquire() as connection:
                connection.execute("SELECT 1")
            code = 0 if lease.inherited and registry.pool().stats().size == 0 else 2
        finally:
            os._exit(code)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lease.resource.execute("SELECT 1")
    lease.release()
    registry.close()
