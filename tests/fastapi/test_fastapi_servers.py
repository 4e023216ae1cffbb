"""Real servers, for what a test client can't show: signals, workers, forks, sockets that are closed in the middle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from fastapi_rig import Rows, settles

APP_NAME = "fastapi servers"
Start = Callable[..., tuple[subprocess.Popen[bytes], str]]


@pytest.fixture
def start(dsn: str, monitor: psycopg.Connection, tmp_path: Path) -> Iterator[Start]:
    """Start a server program with the app; it is killed after the test, should it still run."""
    with ExitStack() as stack:

        def start(*command: str, **environ: str) -> tuple[subprocess.Popen[bytes], str]:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            log = stack.enter_context((tmp_path / "log").open("wb"))
            server = subprocess.Popen(
                [sys.executable, "-m", *[part.format(port=port) for part in command]],
                cwd=Path(__file__).parent,
                env={**os.environ, "DATABASE_URL": dsn, "APP_NAME": APP_NAME, **environ},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(_kill, server)
            url = f"http://127.0.0.1:{port}"
            assert settles(lambda: _answers(url), 20), (tmp_path / "log").read_text()
            return server, url

        yield start
    assert settles(lambda: sessions(monitor) == [])


def _kill(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/poolkit/health").status_code == 200
    except httpx2.TransportError:
        return False


def sessions(monitor: psycopg.Connection) -> list[tuple[Any, ...]]:
    return monitor.execute(
        "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s", (APP_NAME,)
    ).fetchall()


UVICORN = ("uvicorn", "server_app:app", "--port", "{port}", "--log-level", "warning")


def ask_many(url: str, count: int) -> tuple[int, set[int]]:
    """Ask for many numbers at once; returns how many answers were wrong, and the workers that answered."""
    with httpx2.Client(timeout=20, limits=httpx2.Limits(max_connections=20)) as client, ThreadPoolExecutor(20) as pool:
        paths = [("echo" if number % 2 else "sync", number) for number in range(count)]
        answers = list(pool.map(lambda path: (path[1], client.get(f"{url}/{path[0]}/{path[1]}").json()), paths))
    return sum(number != answer[0] for number, answer in answers), {answer[1] for _, answer in answers}


@pytest.mark.slow
def test_workers_of_uvicorn_and_a_stop(start: Start, monitor: psycopg.Connection, rows: Rows) -> None:
    """Each worker has its own pools; a client that closes its socket in mid stream rolls back a kept transaction.

    After SIGTERM the server knows of no session, though uvicorn runs no atexit.
    """
    server, url = start(*UVICORN, "--workers", "2")
    wrong, _workers = ask_many(url, 200)
    assert wrong == 0
    with httpx2.stream("GET", f"{url}/stream") as response:
        pieces = response.iter_bytes()
        assert next(pieces)
        assert in_transaction(monitor)
    assert settles(lambda: not in_transaction(monitor))
    assert rows("stream") == 0
    server.send_signal(signal.SIGTERM)
    server.wait(10)
    assert settles(lambda: sessions(monitor) == [], 2)


def in_transaction(monitor: psycopg.Connection) -> bool:
    return any(state == "idle in transaction" for _, state, _ in sessions(monitor))


@pytest.mark.slow
def test_requests_cancelled_by_the_stop(start: Start, monitor: psycopg.Connection, rows: Rows) -> None:
    """Uvicorn cancels what is in flight at its timeout: rolled back, and the stop does not take for ever."""
    server, url = start(*UVICORN, "--timeout-graceful-shutdown", "1")
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(_status, f"{url}/{path}") for path in ("slow", "slow_sync")]
        assert settles(lambda: sum("pg_sleep" in query for _, _, query in sessions(monitor)) == 2)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.wait(10)
        assert time.monotonic() - began < 8
        assert 200 not in [answer.result() for answer in answers]
    assert settles(lambda: sessions(monitor) == [], 5)
    assert rows("slow") == 0


def _status(url: str) -> int:
    try:
        return httpx2.get(url, timeout=20).status_code
    except httpx2.TransportError:
        return 0


@pytest.mark.slow
def test_forked_workers_start_afresh(start: Start, monitor: psycopg.Connection) -> None:
    """With --preload, and a query at import even, no worker ever reads an answer that is the master's or another's."""
    server, url = start(
        "gunicorn", "server_app:app", "-k", "asgi", "--preload", "-w", "2", "-b", "127.0.0.1:{port}",
        "--log-level", "warning", QUERY_AT_IMPORT="1",
    )  # fmt: skip
    wrong, workers = ask_many(url, 200)
    assert wrong == 0
    assert server.pid not in workers
    server.send_signal(signal.SIGTERM)
    server.wait(10)
    assert settles(lambda: sessions(monitor) == [], 2)
