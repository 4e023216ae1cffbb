"""No part of a password in anything that poolkit shows, whatever stands around it and wherever the URL was put.

The secrets are two words. A password is made of them with every character between that can cut a URL in the wrong
place, and each such URL is given to every way in: pools, registries, integrations, commands, pages. All that comes out,
errors with their causes, reprs, logs down to DEBUG, pages and printed lines, is searched for either word.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask

import poolkit_fastapi
import poolkit_flask
from poolkit import AsyncPool, Pool, PoolConfig, Registry, web
from poolkit.drivers import hide_password
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.drivers.http import HttpClient
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.drivers.psycopg2 import Psycopg2Driver
from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.drivers.sqlite import SqliteDriver
from poolkit.registry import settings_from_environ

WORDS = ("zq7hunter", "wx9tiger")  # in small letters: a URL's parser makes them so where it takes them for a host
SPECIAL = "?/#@:%&=;+,\\[]{}|^`<>\"' \t\n\x00~!$*()é"
SCHEMES = ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+asyncpg", "mysql+pymysql", "mariadb+pymysql"]
SHELLS: dict[str, Any] = {"postgresql+asyncpg": AsyncPool}
DRIVERS: dict[str, tuple[Any, ...]] = {
    "postgresql": (PsycopgDriver, AsyncPsycopgDriver),
    "postgresql+psycopg2": (Psycopg2Driver,),
    "postgresql+asyncpg": (AsyncpgDriver,),
    "mysql+pymysql": (PymysqlDriver,),
    "https": (HttpClient,),
    "sqlite": (SqliteDriver,),
}
one, two = WORDS


def passwords() -> Iterator[str]:
    """Every special character, alone and in pairs, with what looks like a port before it and without."""
    for sign in SPECIAL:
        yield from (f"{one}{sign}{two}", f"42{sign}{one}", f"{sign}{two}", f"{one}{sign}", f"42{sign}{one}=x")
    for first, second in itertools.permutations("?/#@:%&=\\[", 2):
        yield from (f"42{first}{one}{second}{two}", f"{one}{first}{second}{two}")


PASSWORDS = list(passwords())
# Where else a secret may stand in a URL, rightly or by mistake.
ELSEWHERE = [
    "{scheme}://ann@127.0.0.1:1/db?password={one}&zzz=1", "{scheme}://ann@127.0.0.1:1/db?pasword={one}",
    "{scheme}://ann@127.0.0.1:1/db?pool_timeout={one}", "{scheme}://ann@127.0.0.1:1/db?sslmode={one}",
    "{scheme}://ann:{one}@127.0.0.1:{two}/db", "{scheme}://ann:{one}@127.0.0.1:99999/db", "{scheme}:/ann:{one}@h/db",
    "{scheme}//ann:{one}@h/db", "ann:{one}@h/db", "{one}", "{scheme}://ann:{one}@[::1/db", "{scheme}x://ann:{one}@h/db",
    "{scheme}://:{one}?{two}@127.0.0.1:1/db", "{scheme}://ann:42?{one}",
    "{scheme}://ann:{one}@127.0.0.1:1/db?autocommit=1&dsn=x&max_siez={two}", "{scheme}://{one}:{two}@:1",
    "{scheme}://ann:{one}@127.0.0.1:1/db?pool_max_size=few&pool_{two}=1", "{scheme}://ann:{one}%zz@127.0.0.1:1/db",
]  # fmt: skip


class Watched:
    """Collects all that is shown while something is tried."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.log = caplog
        self.shown: list[str] = []

    def show(self, *things: object) -> None:
        self.shown += [text for thing in things for text in (repr(thing), str(thing))]

    def attempt(self, call: Callable[[], Any]) -> Any:
        """Do it, and show what it returns, or its error with all causes, as a log and as an error tracker has it."""
        try:
            result = call()
        except Exception as error:  # noqa: BLE001  whatever is raised must be fit to be shown
            self.show_error(error)
            return None
        self.show(result)
        return result

    def show_error(self, error: BaseException | None) -> None:
        while error is not None:
            self.show(error, getattr(error, "problems", ""))
            self.shown += traceback.format_exception_only(error)
            error = error.__cause__ or error.__context__

    def found(self) -> list[str]:
        """List what has a word of the secret in it; logs included."""
        texts = [*self.shown, *(record.getMessage() for record in self.log.records)]
        self.log.clear()
        self.shown.clear()
        return [text for text in texts if any(word in text.lower() for word in WORDS)]


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.DEBUG)
    return Watched(caplog)


def use(url: Any, watched: Watched, shell: Any, *, connect: bool) -> None:
    """Make a pool and, if asked, connect in vain: the port is closed."""
    settings = {"timeout": 0.02, "open_timeout": 0.3}
    pool = watched.attempt(lambda: shell(url, **settings))
    if pool is None or not connect:
        return
    watched.show(pool._driver, pool.config)

    async def borrow() -> None:
        try:
            async with pool.acquire():
                pass
        finally:
            await pool.close(0)

    def borrow_here() -> None:
        with pool, pool.acquire():
            pass

    watched.attempt(borrow_here if shell is Pool else lambda: asyncio.run(borrow()))
    watched.show(pool, pool.stats())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_pool_shows_any_part_of_a_password(scheme: str, watched: Watched) -> None:
    """A pool that is made, refused, or can't connect: not its error, its repr, its stats or its logs."""
    for number, password in enumerate(PASSWORDS):
        single = number < 5 * len(SPECIAL) and number % 5 == 0
        use(f"{scheme}://ann:{password}@127.0.0.1:1/db", watched, SHELLS.get(scheme, Pool), connect=single)
        assert watched.found() == [], password
    for form in ELSEWHERE:
        url = form.format(scheme=scheme, one=one, two=two)
        use(url, watched, SHELLS.get(scheme, Pool), connect="127.0.0.1:1/" in url)
        assert watched.found() == [], form


@pytest.mark.parametrize(("scheme", "kinds"), DRIVERS.items())
def test_no_driver_shows_any_part_of_a_password(scheme: str, kinds: tuple[Any, ...], watched: Watched) -> None:
    """A driver made by hand parses for itself."""
    for kind, password in itertools.product(kinds, PASSWORDS):
        for url in (f"{scheme}://ann:{password}@127.0.0.1:1/db", f"{scheme}:///x?{password}@127.0.0.1:1/db"):
            watched.attempt(lambda kind=kind, url=url: kind(url))
            assert [text for text in watched.found() if "shop" not in text] == [], (kind, url)


def test_no_page_or_command_shows_any_part_of_a_password(watched: Watched) -> None:
    """`hide_password`, the numbers, and `flask poolkit status` and `check`, with a URL that passed or did not."""
    singles = PASSWORDS[: 5 * len(SPECIAL)]
    urls = [f"{scheme}://ann:{password}@127.0.0.1:1/db" for scheme in (*SCHEMES, "https") for password in singles]
    for url in urls:
        watched.show(hide_password(url))
        assert watched.found() == [], url
    for url in urls[::7]:
        app = Flask("app")
        app.config["POOLKIT"] = {"default": {"url": url, "timeout": 0.02}}
        db = watched.attempt(lambda app=app: poolkit_flask.Poolkit(app))
        if db is not None:
            for command in ("status", "check"):
                result = app.test_cli_runner().invoke(args=["poolkit", command, "--timeout", "0.02"])
                watched.show(result.output, result.exception)
            watched.show(web.stats(db.registry), db.registry)
            db.registry.close(0)
        assert watched.found() == [], url


def wrongly_placed(url: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The places where a URL was put by mistake."""
    good = "postgresql://ann@127.0.0.1:1/db"
    settings: dict[str, Any] = {
        "the settings": url, "a name": {url: {"url": good}}, "a name's settings": {"default": url},
        "a size": {"default": {"url": good, "max_size": url}}, "a time": {"default": {"url": good, "timeout": [url]}},
        "a choice": {"default": {"url": good, "reset": url}}, "the options": {"default": {"url": good, "options": url}},
        "a setting's name": {"default": {"url": good, url: 1}},
        "a scheme": {"default": {"url": lambda: good, "scheme": url}},
        "sizes": {"default": {"url": good, "pool_size": url, "max_overflow": url}},
        "a hook": {"default": {"url": good, "configure": url}}, "a list": {"default": {"url": [url]}},
    }  # fmt: skip
    for place, given in settings.items():
        yield place, lambda given=given: Registry(given)
        yield f"{place} (FastAPI)", lambda given=given: poolkit_fastapi.Poolkit(given).init_app(FastAPI())
    for option in (url, "sslmode", "row_factory", "isolation_level", "prepare_threshold", "fold_begin"):
        yield f"option {option[:9]}", lambda option=option: Pool(good, options={option: url})
    yield "config", lambda: Pool(good, url)  # type: ignore[call-overload]
    yield "a timeout", lambda: Pool("sqlite:///:memory:").close(url)  # type: ignore[arg-type]
    yield "an unknown name", lambda: Registry({"default": {"url": good}}).pool(url)
    yield "MAX_SIZE", lambda: Registry.from_environ({"DATABASE_URL": good, "POOLKIT_DEFAULT_MAX_SIZE": url})
    yield "a name in the environment", lambda: settings_from_environ({"POOLKIT_URL": url})
    yield "PoolConfig", lambda: PoolConfig(order=url)  # type: ignore[arg-type]
    for name in ("POOLKIT_URL_PREFIX", "POOLKIT_STATS", "POOLKIT_ROLLBACK_ON", "POOLKIT_UNITS", "POOLKIT_X"):
        yield name, lambda name=name: _flask(good, name, url)
    for keyword in ("prefix", "stats", "rollback_on", "units"):
        yield keyword, lambda keyword=keyword: poolkit_fastapi.Poolkit({"default": {"url": good}}, **{keyword: url})


def _flask(good: str, name: str, url: str) -> None:
    app = Flask("app")
    app.config.from_mapping({"POOLKIT": {"default": {"url": good}}, name: url})
    poolkit_flask.Poolkit(app)


def test_a_url_in_the_wrong_place_is_not_quoted(watched: Watched) -> None:
    """Settings with a URL where a name, a number or a choice belongs: the error does not quote it."""
    for place, call in wrongly_placed(f"postgresql://ann:{one}@db.example/{two}"):
        watched.attempt(call)
        assert watched.found() == [], place
