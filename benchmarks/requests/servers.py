"""The servers under load: one process each for gunicorn's or uvicorn's worker, on a processor of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from poolkit.testing._machine import free_port

__all__ = ["Server", "command", "halves", "on_processors", "serve", "serve_shop"]

ROOT = Path(__file__).parents[2]
THREADS = 8  # of gunicorn's worker
START_WITHIN = 30.0  # seconds
STOP_WITHIN = 5.0
QUIET = ("--log-level", "critical")


class Server(NamedTuple):
    """What serves one app."""

    name: str
    url: str
    process: psutil.Process

    def cpu(self) -> float:
        """The seconds of processor time that it has used so far, with all its workers."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(times.user + times.system for times in (one.cpu_times() for one in family))


def halves() -> tuple[set[int], set[int]] | None:
    """Return the processor of the servers and the one of everything else; None where they can't be told apart."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    mine = sorted(os.sched_getaffinity(0))
    return None if len(mine) < 2 else ({mine[0]}, {mine[1]})


@contextmanager
def on_processors(processors: set[int] | None) -> Iterator[None]:
    """Let what is started here run on these processors only."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def command(app: str, port: int) -> list[str]:
    """What a user would type: gunicorn with one worker of eight threads, or uvicorn with one worker."""
    where = f"benchmarks.requests.apps.{app}:app"
    if app.startswith("fastapi"):
        return [sys.executable, "-m", "uvicorn", where, "--port", str(port), "--no-access-log", *QUIET]
    own = ["--worker-class", "gthread", "--workers", "1", "--threads", str(THREADS), "--no-control-socket"]
    return [sys.executable, "-m", "gunicorn", *own, "--bind", f"127.0.0.1:{port}", *QUIET, where]


@contextmanager
def serve(
    app: str, dsn: str, size: int, processors: set[int] | None, *, tree: Path = ROOT, **more: str
) -> Iterator[Server]:
    """Serve an app of the suite, from a checkout; `more` are variables of its environment."""
    variables = {"BENCH_DSN": dsn, "BENCH_POOL_SIZE": str(size), "PYTHONPATH": str(tree), **more}
    port = free_port()
    with _running(app, command(app, port), port, variables, processors) as server:
        yield server


@contextmanager
def serve_shop(framework: str, dsn: str, processors: set[int] | None) -> Iterator[Server]:
    """Serve one of the example shops, as `run.py serve` does, with one worker."""
    port = free_port()
    line = [sys.executable, "-m", "example_projects.serve", framework, "--workers", "1", "--port", str(port)]
    with _running(f"{framework}_shop", line, port, {"DATABASE_URL": dsn}, processors) as server:
        yield server


@contextmanager
def _running(
    name: str, line: Sequence[str], port: int, variables: dict[str, str], processors: set[int] | None
) -> Iterator[Server]:
    tree = variables.get("PYTHONPATH", ROOT)
    with on_processors(processors):
        process = subprocess.Popen(line, env={**os.environ, **variables}, cwd=tree, stdout=subprocess.DEVNULL)
    try:
        server = Server(name, f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        _wait_for(server, process, port)
        yield server
    finally:
        _end(process)


def _wait_for(server: Server, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_WITHIN
    while not _answers(port):
        if process.poll() is not None:
            raise RuntimeError(f"{server.name} does not start: its server ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{server.name} does not answer within {START_WITHIN:g} s")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/hello")
        return connection.getresponse().status == 200
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers; by force what does not go, for some peers' pools take their time."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WITHIN)
    for left in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.kill()
    process.wait()
