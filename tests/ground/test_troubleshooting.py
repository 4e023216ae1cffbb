"""The page of messages says what poolkit says: each of its rows is raised or logged here, and compared."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolkit import (
    AsyncPool,
    ConfigError,
    LeaseError,
    Pool,
    PoolkitError,
    Registry,
    errors,
    unit_of_work,
    web,
)
from poolkit.drivers import SCHEMES
from poolkit.drivers.http import HttpClient
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer, ManualRuntime
from poolkit.unit_settings import UnitSettings

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| `(.+?)` \| (.+) \| (.+) \|$", re.MULTILINE)
GAP = "…"  # anything, on the page
CASES: dict[str, Callable[[], object]] = {}


def rows() -> dict[str, re.Pattern[str]]:
    """Every message of the page, as an expression."""
    texts = [text for text, _, _ in ROW.findall(PAGE.read_text())]
    assert len(texts) == len(set(texts))
    return {text: re.compile(re.escape(text).replace(GAP, ".*"), re.DOTALL) for text in texts}


def message(text: str) -> str:
    """Leave out where it happened, as the page does."""
    return re.sub(r"^(?:pool '[^']*'(?:: | (?=is not warm))|poolkit settings: |'[^']*': )+", "", text)


def case(call: Callable[[], object]) -> Callable[[], object]:
    """Note a way to one message: it is raised, logged or returned."""
    CASES[call.__name__] = call
    return call


def pool(**settings: Any) -> Pool[Any]:
    return Pool(settings.pop("driver", None) or FakeDriver(), runtime=ManualRuntime(), **settings)


def aside(call: Callable[[], object]) -> None:
    """Do it in another thread, and raise its error here."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for error in raised:
        raise error


@case
def all_are_out() -> None:
    full = pool(max_size=1)
    with full.acquire():
        aside(lambda: full.acquire(timeout=0.01))


@case
def away_in_a_wait() -> None:
    server = FakeServer(down=True)
    pool(driver=FakeDriver(server), on_outage="wait").acquire(timeout=0.01)


@case
def away() -> None:
    Pool(FakeDriver(FakeServer(down=True)), timeout=9).acquire()


@case
def wrong_for_good() -> None:
    Pool(lambda: 7, timeout=5).acquire()  # type: ignore[arg-type,return-value]


@case
def one_waits_for_itself() -> None:
    full = pool(max_size=1)
    with full.acquire():
        full.acquire()


@case
def too_many_wait() -> None:
    full = pool(max_size=1, max_waiting=0)
    with full.acquire():
        aside(full.acquire)


@case
def closed() -> None:
    gone = pool()
    gone.close()
    gone.acquire()


@case
def at_the_end_of_the_process() -> None:
    gone = pool()
    gone.at_exit()
    gone.acquire()


@case
def in_a_child() -> None:
    forked = pool()
    lease = forked.acquire()
    forked.after_fork_in_child()
    _ = lease.resource


@case
def ended() -> None:
    lease = pool().acquire()
    lease.release()
    lease.release()


@case
def given_back() -> None:
    raise errors.Returned("default", "GET /orders").error()


@case
def closed_by_another_thread() -> None:
    with Pool("sqlite:///:memory:").acquire() as conn:
        aside(conn.close)


@case
def closed_with_work_open() -> None:
    with Pool("sqlite:///:memory:").transaction() as conn:
        conn.execute("CREATE TABLE notes (id integer)")
        conn.close()


@case
def no_loop() -> None:
    AsyncPool(FakeAsyncDriver()).acquire().__aenter__().send(None)


@case
def no_number() -> None:
    full = pool(max_size=1)
    with full.acquire():
        full.acquire(timeout=float("nan"))


@case
def ignored_error() -> None:
    with pool().transaction() as conn:
        try:
            conn.execute("bad")
        except Exception:  # noqa: BLE001
            return


@case
def ignored_in_a_unit() -> None:
    with unit_of_work(registry()) as uow:
        try:
            uow.get().execute("bad")
        except Exception:  # noqa: BLE001
            return


@case
def committed_in_a_nested_block() -> None:
    own = Registry({"default": {"url": "sqlite:///:memory:"}}, units=UnitSettings(explicit_commit="allow"))
    with unit_of_work(own) as uow:
        uow.get()
        with unit_of_work(own, nested=True):
            uow.get().commit()


@case
def after_the_end() -> None:
    with unit_of_work(registry()) as uow:
        pass
    uow.commit()


@case
def unencoded() -> None:
    Pool("postgresql://ann:pass?word@db/shop")


@case
def no_such_setting() -> None:
    Registry({"default": {"url": "sqlite:///x", "max_siez": 3}})


@case
def no_such_option() -> None:
    Pool("postgresql://db/shop", options={"conect_timeout": 3})


@case
def given_twice() -> None:
    Pool("sqlite:///x?pool_max_size=3", max_size=4)


@case
def no_such_name() -> None:
    registry().pool("report")


@case
def no_scheme() -> None:
    Pool("db/shop")


@case
def unknown_scheme() -> None:
    Pool("postgrsql://db/shop")


@case
def wrong_kind() -> None:
    AsyncPool("sqlite:///x")


@case
def prismas() -> None:
    Pool("postgresql://db/shop?socket_timeout=3")


@case
def not_installed() -> None:
    raise ConfigError(__import__("poolkit.drivers", fromlist=["_missing"])._missing(SCHEMES["postgresql+asyncpg"]))


@case
def two_schemes() -> None:
    try:
        Pool(lambda: "mysql://db/shop", timeout=5).acquire()
    except errors.OpenFailed as error:
        raise error.__cause__ or error from None


@case
def another_host() -> None:
    HttpClient("https://api.example/v1").get().get("https://other.example/")


# -- logged ----------------------------------------------------------------------------------------------------------


def registry(driver: Any = None, **settings: Any) -> Registry:
    return Registry({"default": {"driver": driver or FakeDriver(), **settings}})


@case
def held_long() -> None:
    slow = pool(leak_after=5)
    with slow.acquire():
        slow._runtime.advance(6)  # type: ignore[attr-defined]
        slow.sweep()


@case
def dropped() -> None:
    careless = pool()
    careless.acquire()
    careless.sweep()


@case
def demoted() -> None:
    server = FakeServer()
    with pool(driver=FakeDriver(server)).acquire() as conn:
        server.read_only = True
        conn.execute("write")


@case
def stood_still() -> None:
    pool().after_leap(3600)


@case
def not_warm() -> None:
    Pool(FakeDriver(FakeServer(down=True)), timeout=0.01).warm()


@case
def not_as_new() -> None:
    server = FakeServer(fail_reset=True)
    with pool(driver=FakeDriver(server), reset="full").acquire():
        pass


@case
def still_in_use() -> None:
    named = registry(close_timeout=0.01)
    lease = named.pool().acquire()
    aside(named.close)
    lease.release()


@case
def unread() -> None:
    web.registry_from({"default": {"url": "sqlite:///x"}}, where="app", environ={"POOLKIT_REPORTS_URL": "sqlite:///y"})


@case
def not_ready() -> None:
    away = registry(FakeDriver(FakeServer(down=True)), timeout=0.05)
    web.ready(away)


@case
def ended_by_hand() -> None:
    with unit_of_work(registry()) as uow:
        uow.get().commit()


@case
def stands_alone() -> None:
    named = registry()
    with unit_of_work(named):
        copied = contextvars.copy_context()

        def inside() -> None:
            with unit_of_work():
                pass

        aside(lambda: copied.run(inside))


@case
def swallowed() -> None:
    with unit_of_work(registry()) as uow:
        try:
            uow.get().execute("bad")
        except Exception:  # noqa: BLE001
            uow.finish(status=409)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[Callable[[], object]], list[str]]:
    """Do something, and return what it raised and logged."""

    def listen(call: Callable[[], object]) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "poolkit"):
            texts = []
            try:
                call()
            except (PoolkitError, LeaseError, ValueError) as error:
                texts.append(str(error))
            except Exception as error:  # noqa: BLE001  the fake server's own
                texts.append(f"(not poolkit's) {error!r}")
        return [message(text) for text in (*texts, *(record.getMessage() for record in caplog.records))]

    return listen


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_has_a_row(name: str, said: Callable[[Any], list[str]]) -> None:
    """What a user meets is found on the page: exactly one of its rows fits."""
    texts = said(CASES[name])
    fitting = [row for row, expression in rows().items() if any(expression.match(text) for text in texts)]
    assert len(fitting) == 1, (texts, fitting)


def test_every_row_is_said(said: Callable[[Any], list[str]]) -> None:
    """A row for what nobody says any more would be looked for in vain."""
    texts = [text for call in CASES.values() for text in said(call)]
    unsaid = [row for row, expression in rows().items() if not any(expression.match(text) for text in texts)]
    assert unsaid == []


def test_every_kind_of_error_has_a_row() -> None:
    """No class of poolkit's errors is missing from the page."""
    page = PAGE.read_text()
    kinds = [
        kind.__name__ for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PoolkitError)
    ]
    missing = [kind for kind in kinds if not kind.startswith("_") and f"`{kind}`" not in page]
    assert missing == []


def test_a_row_says_what_to_do() -> None:
    """Three columns, none of them empty, and every message on one line."""
    found = ROW.findall(PAGE.read_text())
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(found) == len(lines) > 30
    assert all(cause.strip() and advice.strip() for _, cause, advice in found)


def test_asyncio_says_the_same() -> None:
    """The messages are one text for both kinds of pool."""

    async def wait() -> None:
        async with AsyncPool(FakeAsyncDriver(), max_size=1) as full, full.acquire():
            await full.acquire(timeout=0.01)

    with pytest.raises(errors.NestedAcquire, match="waiting could never end"):
        asyncio.run(wait())
