"""A callable in the place of a URL: asked for each connect and not before, in a thread of its own or awaited."""

from __future__ import annotations

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import pytest

from poolkit import AsyncPool, ConfigError, OpenFailed, Pool, Registry

ASYNC = pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg"])


def refuse() -> str:
    raise AssertionError("asked before there is anything to connect")


@pytest.mark.parametrize("scheme", [None, "postgresql", "postgresql+psycopg2", "mysql+pymysql", "sqlite"])
def test_making_a_pool_asks_for_no_secret(scheme: str | None) -> None:
    """A pool, a registry and its pools are made without a call; the scheme says which driver they have."""
    settings = {} if scheme is None else {"scheme": scheme}
    assert Pool(refuse, **settings).stats().size == 0
    registry = Registry({"default": {"url": refuse, **settings}})
    assert registry.pool().stats().size == 0
    assert registry.is_for_threads("default")
    assert registry.is_for_asyncio("default") == (scheme in (None, "postgresql"))


def test_a_client_by_a_callable() -> None:
    """A shared client is known by its scheme, and asked for by the first who uses it."""
    registry = Registry({"api": {"url": lambda: "https://api.example/v1", "scheme": "https"}})
    assert registry.shares("api")
    assert registry.client("api").get()._base == "https://api.example/v1"


@ASYNC
async def test_the_loop_goes_on_while_a_secret_is_fetched(pg_dsn: str, scheme: str) -> None:
    """A callable that takes its time runs in a thread, and the event loop is free meanwhile."""
    asked, go_on = threading.Event(), threading.Event()
    loop_thread, threads = threading.get_ident(), set()

    def fetch() -> str:
        threads.add(threading.get_ident())
        asked.set()
        assert go_on.wait(10)
        return pg_dsn.replace("postgresql", scheme, 1)

    async with AsyncPool(fetch, scheme=scheme, max_size=2) as pool:
        borrowing = asyncio.ensure_future(pool.acquire()._lease())
        while not asked.is_set():  # noqa: ASYNC110  it runs while the callable waits: the loop is not blocked
            await asyncio.sleep(0.001)
        go_on.set()
        await (await borrowing).release()
    assert loop_thread not in threads


class Fetch:
    """An object with a coroutine method as its call."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __call__(self) -> str:
        await asyncio.sleep(0)
        return self.url


@ASYNC
@pytest.mark.parametrize("kind", ["function", "partial", "object", "lambda"])
async def test_a_coroutine_function_is_awaited(pg_dsn: str, scheme: str, kind: str) -> None:
    """Whatever gives a URL when it is called and awaited can be the URL of an AsyncPool."""
    fetch = Fetch(pg_dsn.replace("postgresql", scheme, 1))
    source: Any = {
        "function": fetch.__call__, "partial": functools.partial(fetch.__call__), "object": fetch,
        "lambda": lambda: fetch(),  # noqa: PLW0108  a plain function that returns an awaitable
    }[kind]  # fmt: skip
    async with AsyncPool(source, scheme=scheme) as pool, pool.acquire() as conn:
        assert conn is not None


def test_threads_need_a_plain_function() -> None:
    """A pool of threads can await nothing: said when the pool is made."""
    with pytest.raises(ConfigError, match="a coroutine function as the URL is for an AsyncPool"):
        Pool(Fetch("postgresql://h/db"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("mysql://h/db", "returned a mysql:// URL, and the pool was made for postgresql://: say scheme='mysql'"),
        ("postgresql+psycopg2://h/db", "say scheme='postgresql+psycopg2'"),
        ("postgresql://ann:S3CRET?@h/db", "percent-encoded"),
        ("postgresql://h/db?pool_max_size=3", "can't be in a URL that a callable returns"),
        (7, "must return a string, not int"),
        ("", "malformed URL"),
    ],
)
def test_what_a_callable_returns_is_looked_at(answer: Any, said: str) -> None:
    """A URL that can't be this pool's fails its connect at once, is no outage, and shows no secret."""
    with Pool(lambda: answer, timeout=5) as pool, pytest.raises(OpenFailed) as caught:
        pool.acquire()
    assert isinstance(caught.value.__cause__, ConfigError)
    assert said in str(caught.value.__cause__)
    assert "S3CRET" not in str(caught.value) + str(caught.value.__cause__)


async def test_an_error_of_the_callable_is_the_cause() -> None:
    """What the callable raises in its thread is what the connect failed with, a StopIteration too."""
    for error in (LookupError("the vault is sealed"), StopIteration()):

        def fetch(error: Exception = error) -> str:
            raise error

        async with AsyncPool(fetch, timeout=0.5) as pool:
            with pytest.raises((OpenFailed, TimeoutError)) as caught:
                await pool.acquire()
            assert type(error).__name__ in repr(caught.value.__cause__)


class Rotated:
    """A callable whose first URL is refused: it names a database that is not there."""

    def __init__(self, good: str) -> None:
        self.urls = [good, f"{good.rpartition('/')[0]}/not/there"]
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return self.urls.pop() if len(self.urls) > 1 else self.urls[0]


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "mysql+pymysql", "sqlite"])
def test_a_secret_that_has_just_changed(scheme: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A connect that is refused asks for the URL once more and tries again, before its borrower hears of it."""
    if scheme == "sqlite":
        url = f"sqlite:///{tmp_path}/x.db"
    else:
        url = request.getfixturevalue("mysql_dsn" if scheme.startswith("mysql") else "pg_dsn")
        url = f"{scheme}://{url.partition('://')[2]}"
    source = Rotated(url)
    with Pool(source, scheme=scheme) as pool, pool.acquire():
        assert source.asked == 2
        assert pool.stats().open_failures == 0


@ASYNC
async def test_a_secret_that_has_just_changed_in_asyncio(pg_dsn: str, scheme: str) -> None:
    """The same for the drivers of asyncio."""
    source = Rotated(pg_dsn.replace("postgresql", scheme, 1))
    async with AsyncPool(source, scheme=scheme) as pool, pool.acquire():
        assert source.asked == 2
        assert pool.stats().open_failures == 0


def test_white_space_around_an_answer_is_no_part_of_it(pg_dsn: str) -> None:
    """A secret file ends with a newline."""
    with Pool(lambda: f" {pg_dsn}\n") as pool, pool.acquire() as conn:
        assert conn.info.dbname in pg_dsn


@pytest.mark.parametrize(
    "settings",
    [{"url": "sqlite:///x", "scheme": "sqlite"}, {"url": refuse, "scheme": "postgrsql"}, {"url": refuse, "scheme": 5}],
)
def test_a_scheme_that_can_not_be_is_refused(settings: dict[str, Any]) -> None:
    """It is a known scheme, and for a callable only."""
    with pytest.raises(ConfigError, match="scheme"):
        Registry({"default": settings})
