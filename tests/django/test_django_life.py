"""Whole programs: test runners, servers that fork, servers that are told to stop."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psycopg
import pytest
from django_rig import eventually

PROJECT = Path(__file__).parent / "project"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def environ(dsn: str, monitor: psycopg.Connection[Any]) -> Iterator[dict[str, str]]:
    """The environment of a program: the database, and names of its own."""
    name = f"test_{secrets.token_hex(4)}"
    application = f"project_{name}"
    yield {
        **os.environ,
        "DATABASE_URL": dsn,
        "TEST_NAME": name,
        "APPLICATION": application,
        "DJANGO_SETTINGS_MODULE": "project_settings",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{PROJECT}",
        "PYTHONWARNINGS": "default",
    }
    assert sessions(monitor, application) == []
    left = monitor.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", (f"{name}%",)).fetchall()
    assert left == []


def sessions(monitor: psycopg.Connection[Any], application: str) -> list[Any]:
    """The server's sessions of a program."""
    asked = "SELECT pid, state FROM pg_stat_activity WHERE application_name = %s"
    return monitor.execute(asked, (application,)).fetchall()


def program(*arguments: str, environ: dict[str, str]) -> str:
    """Run a program in the project; return what it said. It must end well."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@pytest.mark.parametrize("parallel", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_manage_test(parallel: str, environ: dict[str, str]) -> None:
    """TestCase, TransactionTestCase and LiveServerTestCase pass, also in parallel; the test databases are dropped."""
    said = program("manage.py", "test", "--noinput", "--parallel", parallel, environ=environ)
    assert "OK" in said
    assert "being accessed by other users" not in said


@pytest.mark.slow
def test_pytest_django(environ: dict[str, str]) -> None:
    """pytest-django's marks and fixtures work; its database is dropped without complaint."""
    said = program("-m", "pytest", "-c", "pytest.ini", environ=environ)
    assert "6 passed" in said


class Server:
    """A server process, and what it answers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def get(self, where: str) -> Any:
        """Ask; JSON."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{where}", timeout=20) as answer:
            return json.load(answer)

    def answers(self) -> bool:
        """Whether it serves by now."""
        assert self.process.poll() is None, "the server ended"
        try:
            return bool(self.get("/poolkit/health"))
        except (URLError, OSError):
            return False

    def stop(self) -> None:
        """Tell it to stop, and wait."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


@contextmanager
def serving(*arguments: str, environ: dict[str, str]) -> Iterator[Server]:
    """Run a server on a free port; {port} in its arguments is that port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *(argument.format(port=port) for argument in arguments)]
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = Server(process, port)
        eventually(server.answers, 30)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


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
