"""Whole programs: test runners, servers that fork, servers that are told to stop."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django_rig import eventually
from programs_rig import Server, environment, program, serving, sessions


@pytest.fixture
def environ(dsn: str, monitor: psycopg.Connection[Any]) -> Iterator[dict[str, str]]:
    """The environment of a program; afterwards nothing of it is left on the server."""
    made = environment(dsn)
    yield made
    assert sessions(monitor, made["APPLICATION"]) == []
    asked = "SELECT datname FROM pg_database WHERE datname LIKE %s"
    assert monitor.execute(asked, (f"{made['TEST_NAME']}%",)).fetchall() == []


@pytest.mark.parametrize("parallel", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_manage_test(parallel: str, environ: dict[str, str]) -> None:
    """Every kind of Django's test cases passes, also in parallel; the test databases are dropped."""
    said = program("manage.py", "test", "--noinput", "--parallel", parallel, environ=environ)
    assert re.search(r"^OK$", said, re.MULTILINE), said
    assert "being accessed by other users" not in said


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["1", "2"])
@pytest.mark.parametrize("url", ["mysql_dsn", "sqlite_url"])
def test_manage_test_elsewhere(url: str, parallel: str, request: pytest.FixtureRequest) -> None:
    """The same on MySQL or MariaDB, and on SQLite; only what is PostgreSQL's alone is skipped."""
    environ = environment(request.getfixturevalue(url))
    said = program("manage.py", "test", "--noinput", "--parallel", parallel, environ=environ)
    assert re.search(r"^OK \(skipped=8\)$", said, re.MULTILINE), said


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A database in a file."""
    return f"sqlite://{tmp_path}/db.sqlite3"


@pytest.mark.slow
def test_keepdb(environ: dict[str, str], monitor: psycopg.Connection[Any]) -> None:
    """A test database is kept, used again, and has no session left; without --keepdb it goes."""
    name = environ["TEST_NAME"]
    kept = []
    for _ in range(2):
        program("manage.py", "test", "--noinput", "--keepdb", "notes.tests.InATransaction", environ=environ)
        kept += monitor.execute("SELECT oid FROM pg_database WHERE datname = %s", (name,)).fetchall()
        assert sessions(monitor, environ["APPLICATION"]) == []
    assert len(kept) == 2
    assert kept[0] == kept[1]
    program("manage.py", "test", "--noinput", "notes.tests.InATransaction", environ=environ)


@pytest.mark.slow
def test_serialized_rollback(environ: dict[str, str]) -> None:
    """What migrations have saved is there for each test that asks for it."""
    said = program("manage.py", "test", "--noinput", "notes.serialized", environ=environ)
    assert "Ran 2 tests" in said


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_pytest_django(processes: tuple[str, ...], environ: dict[str, str]) -> None:
    """pytest-django's marks and fixtures work, also spread by pytest-xdist; its databases are dropped in silence."""
    said = program("-m", "pytest", "-c", "pytest.ini", *processes, environ=environ)
    assert "6 passed" in said
    assert "being accessed by other users" not in said


@pytest.mark.slow
@pytest.mark.parametrize("url", ["mysql_dsn", "sqlite_url"])
def test_pytest_django_elsewhere(url: str, request: pytest.FixtureRequest) -> None:
    """The same on MySQL or MariaDB, and on SQLite."""
    environ = environment(request.getfixturevalue(url))
    assert "6 passed" in program("-m", "pytest", "-c", "pytest.ini", environ=environ)


GUNICORN = ("gunicorn", "wsgi", "-b", "127.0.0.1:{port}", "-k", "gthread", "--threads", "4", "--workers", "2")
UVICORN = ("uvicorn", "asgi:application", "--port", "{port}", "--log-level", "error")


def load(server: Server, count: int, ask: Callable[[int], Any] | None = None) -> list[Any]:
    """Ask `count` times, eight at once."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask or (lambda _: server.get("/where")), range(count)))


@pytest.mark.slow
def test_gunicorn_with_preload(environ: dict[str, str], monitor: psycopg.Connection[Any]) -> None:
    """A query before the fork: no worker uses the master's connection, every answer is its own, SIGTERM leaves none."""
    environ["QUERY_AT_IMPORT"] = "1"
    application = environ["APPLICATION"]
    with serving(*GUNICORN, "--preload", environ=environ) as server:
        found = load(server, 80)
        assert all(answer["echo"] == answer["pid"] for answer in found)
        backends = {pid: {a["backend"] for a in found if a["pid"] == pid} for pid in {a["pid"] for a in found}}
        mine = [backend for group in backends.values() for backend in group]
        assert len(mine) == len(set(mine))
        assert all(len(group) <= 4 for group in backends.values())
        server.stop()
    eventually(lambda: sessions(monitor, application) == [])


def test_uvicorn(environ: dict[str, str], monitor: psycopg.Connection[Any]) -> None:
    """Under ASGI many requests share a few connections, and SIGTERM leaves none."""
    application = environ["APPLICATION"]
    with serving(*UVICORN, environ=environ) as server:
        found = load(server, 80)
        assert {answer["pid"] for answer in found} == {server.process.pid}
        assert len({answer["backend"] for answer in found}) <= 4
        assert len(sessions(monitor, application)) <= 4
        assert all(state == "idle" for _, state in sessions(monitor, application))
        server.stop()
    eventually(lambda: sessions(monitor, application) == [])


@pytest.mark.slow
def test_a_client_that_hangs_up_leaves_nothing(environ: dict[str, str], monitor: psycopg.Connection[Any]) -> None:
    """Requests dropped by their clients in the middle: all connections come back, none in a transaction."""
    with serving(*UVICORN, environ=environ) as server:
        for _ in range(12):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(b"GET /where HTTP/1.1\r\nHost: x\r\n\r\n")
                time.sleep(0.004)
        stats = eventually(lambda: _idle(server))
        assert stats["size"] <= 4
        assert all(state == "idle" for _, state in sessions(monitor, environ["APPLICATION"]))
        server.stop()
    eventually(lambda: sessions(monitor, environ["APPLICATION"]) == [])


def _idle(server: Server) -> Any:
    (pool,) = server.get("/poolkit/stats.json")["pools"]
    return pool if not pool["out"] else None
