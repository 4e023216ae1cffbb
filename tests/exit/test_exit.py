"""A program with pools ends as one without: at once, with its own exit status, and without a word on stderr."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import endings
import psycopg
import pytest

from poolkit import AsyncUnitOfWork, Pool, Registry
from poolkit.housekeeper import Housekeeper
from poolkit.testing import FakeDriver

PROGRAMS = Path(endings.__file__)
# Not all flags that may matter at the end of a program, but those that make Python tell of what was not cleaned up.
STRICT = ("-X", "dev", "-W", "error")
AT_ONCE = 3  # programs under way; LONGER has room for what they take from each other
LONGER = 2.0  # seconds that a program with pools may take over one without

THREADS = ("idle", "leased", "waiting", "opening", "outage", "late_user", "closing", "dropped", "unit")
ASYNC = (
    "async_idle", "async_leased", "async_opening", "async_outage", "async_unit", "async_two_loops", "async_closing",
    "async_cancelled", "async_thread",
)  # fmt: skip
FORKED = ("forked", "async_forked")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


Outcome = tuple[float, subprocess.CompletedProcess[str]]


# Taken once: pytest names the current test in the environment, which must not change under a start in another thread.
ENVIRON = dict(os.environ)


def run(name: str, *arguments: str) -> Outcome:
    """Run a program to its end; return the moment at which it was gone, and what it said."""
    command = [sys.executable, *STRICT, str(PROGRAMS), name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRON)
    return time.monotonic(), done


def judge(outcome: Outcome, status: int = 0) -> float:
    """Check what a program said; return the seconds from its last deed to its end."""
    gone, done = outcome
    assert done.stderr == ""
    assert done.returncode == status
    began, longest = gone, 0.0
    for line in [*done.stdout.splitlines(), f"gone {gone}"]:
        what, moment = line.split()
        if what == "done":
            began = float(moment)
        else:
            longest = max(longest, float(moment) - began)
    return longest


@pytest.fixture(scope="module")
def bare() -> float:
    """Seconds in which a program without pools ends, on this machine and under its load of now."""
    return min(judge(run("nothing")) for _ in range(2))


@pytest.fixture(scope="module")
def ahead(bare: float, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """The programs that need nothing but their name, of the selected tests: under way, a few at once."""
    asked = [item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")]
    threads = ThreadPoolExecutor(AT_ONCE)
    yield {name: threads.submit(run, name) for name in [*THREADS, *ASYNC, *FORKED] if name in asked}
    threads.shutdown(cancel_futures=True)


def check(bare: float, name: str, *arguments: str, status: int = 0, first: Future[Outcome] | None = None) -> None:
    """Run a program; one that was slow has a second try, because what waits for something waits each time."""
    outcome = first.result() if first else run(name, *arguments)
    if judge(outcome, status) > bare + LONGER:
        assert judge(run(name, *arguments), status) <= bare + LONGER


@pytest.mark.parametrize("name", THREADS)
def test_threads(bare: float, ahead: dict[str, Future[Outcome]], name: str) -> None:
    """Idle, leased, waited for or on their way: no connection of a thread pool holds up the end."""
    check(bare, name, first=ahead[name])


@pytest.mark.parametrize("name", ASYNC)
def test_asyncio(bare: float, ahead: dict[str, Future[Outcome]], name: str) -> None:
    """A loop that ends with its pools open leaves nothing that holds up the end or complains."""
    check(bare, name, first=ahead[name])


def test_the_exit_status_is_the_programs_own(bare: float) -> None:
    """`sys.exit` inside blocks ends them, and its status stands."""
    check(bare, "leaves_inside", status=3)


@needs_fork
@pytest.mark.parametrize("name", FORKED)
def test_forked_children(bare: float, ahead: dict[str, Future[Outcome]], name: str) -> None:
    """A child with all that it inherited ends as quickly and quietly as its parent."""
    check(bare, name, first=ahead[name])


@pytest.fixture
def shop(pg_dsn: str) -> Iterator[str]:
    """The database; a statement whose program has ended would go on there, since the server does not notice."""
    yield pg_dsn
    with psycopg.connect(pg_dsn, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query = 'SELECT pg_sleep(60)'"
        )


@pytest.mark.parametrize("name", ["postgres", pytest.param("postgres_forked", marks=needs_fork)])
def test_psycopg(bare: float, shop: str, name: str) -> None:
    """Real connections in all states, and of a forked child: the driver has nothing to complain of either."""
    check(bare, name, shop)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_postgres_in_a_loop(bare: float, shop: str, driver: str) -> None:
    """The same for both drivers of asyncio, though their loop is closed before the end."""
    check(bare, "postgres_async", _of(driver, shop))


@pytest.mark.parametrize(
    ("name", "driver"), [("silent", "psycopg"), ("silent_async", "psycopg"), ("silent_async", "asyncpg")]
)
def test_a_server_that_does_not_answer(bare: float, name: str, driver: str) -> None:
    """A connect under way holds up nobody, however long it may take."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # the system accepts, and nobody answers
        port = server.getsockname()[1]
        check(bare, name, _of(driver, f"postgresql://user@127.0.0.1:{port}/nowhere"))


def _of(driver: str, url: str) -> str:
    return f"postgresql+{driver}://{url.partition('://')[2]}"


def test_sqlite(bare: float, tmp_path: Path) -> None:
    """An open transaction, and a connection whose thread has ended."""
    check(bare, "sqlite", f"sqlite:///{tmp_path}/fruit.db")


class _Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/silent":
            time.sleep(0.01)
            self.rfile.read(1)  # until the client is gone
            return
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  the base class calls it that
        pass


@pytest.fixture
def api() -> Iterator[str]:
    """An HTTP server with connections that stay open, and a page that never answers."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Api) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_http(bare: float, api: str) -> None:
    """Sessions are open, and one of them waits for an answer."""
    check(bare, "http", api)


def test_every_program_is_run() -> None:
    """A program added to the file is not forgotten here."""
    named = {*THREADS, *ASYNC, *FORKED, "nothing", "leaves_inside", "postgres", "postgres_forked", "postgres_async",
             "silent", "silent_async", "sqlite", "http"}  # fmt: skip
    helpers = {
        "say",
        "never",
        "never_async",
        "make",
        "make_async",
        "in_daemon",
        "Complaining",
        "fork",
        "fake_registry",
        "run",
    }
    there = {name for name, value in vars(endings).items() if getattr(value, "__module__", "") == endings.__name__}
    assert there == named | helpers


def test_closed_pools_leave_no_thread() -> None:
    """When the last pool is closed, the housekeeper and whoever opened connections are gone with it."""
    before = set(threading.enumerate())
    runtime = Housekeeper()
    pools = [Pool(FakeDriver(), min_size=2, runtime=runtime) for _ in range(3)]
    for pool in pools:
        assert pool.warm()
    assert {thread.name for thread in set(threading.enumerate()) - before} >= {"poolkit-housekeeper"}
    for pool in pools:
        assert pool.close()
    assert _gone(before)


def test_a_dropped_pool_leaves_no_thread() -> None:
    """A pool that nobody has any more takes the housekeeper with it at its next visit."""
    before = set(threading.enumerate())
    runtime = Housekeeper()
    Pool(FakeDriver(), runtime=runtime).warm()
    gc.collect()
    assert _gone(before)


def test_a_closed_registry_leaves_no_thread(tmp_path: Path) -> None:
    """Threads for sync connections of a loop end with their registry."""
    before = set(threading.enumerate())
    registry = Registry({"default": {"url": f"sqlite:///{tmp_path}/fruit.db"}})

    async def main() -> None:
        async with AsyncUnitOfWork(registry) as unit:
            await unit.get_sync()
        await registry.aclose()

    asyncio.run(main())
    assert list(registry.live_pools()) == []
    assert _gone(before, but="poolkit-housekeeper")  # other tests' pools may still have it


def _gone(before: set[threading.Thread], *, but: str = "") -> bool:
    """Whether all threads but those of before are gone within a moment; they end by themselves."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not [thread for thread in set(threading.enumerate()) - before if thread.name != but]:
            return True
        time.sleep(0.01)
    return False
