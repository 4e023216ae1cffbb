"""Real server processes, gunicorn and `flask run`: forks, warm-up, shutdown, clients that go away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask_rig import Rows, eventually

APP = """
import os, time
from flask import Flask, Response
from poolkit_flask import Poolkit

def create_app():
    app = Flask(__name__)
    app.config["POOLKIT"] = {"default": {"url": os.environ["DSN"], "max_size": 4}}
    db.init_app(app)
    return app

db = Poolkit()
app = create_app()
QUERY_AT_IMPORT

@app.get("/where")
def where():
    pid = db.connection.execute("SELECT pg_backend_pid()").fetchone()[0]
    return {"pid": os.getpid(), "backend": pid, "imported_by": imported_by}

@app.get("/echo/<int:number>")
def echo(number):
    return {"number": db.connection.execute("SELECT %s::int", (number,)).fetchone()[0]}

@app.get("/write/<word>")
def write(word):
    db.connection.execute("INSERT INTO flask_notes VALUES (%s)", (word,))
    time.sleep(0.3)
    return word

@app.get("/stream/<word>")
def stream(word):
    db.unit_of_work.stream()
    db.connection.execute("INSERT INTO flask_notes VALUES (%s)", (word,))
    def body():
        while True:
            yield db.connection.execute("SELECT repeat('x', 100000)").fetchone()[0]
    return Response(body())
"""

QUERY = """
with db.begin() as unit:  # a query at import: in the master, where the app is loaded before the fork
    imported_by = unit.get().execute("SELECT pg_backend_pid()").fetchone()[0]
"""

CONFIG = """
def post_worker_init(worker):
    from app import db
    db.warm()
"""

Get = Callable[[str], Any]


@pytest.fixture
def environ(tmp_path: Path, dsn: str, tag: str) -> dict[str, str]:
    """A folder with the app, and the environment of its server."""
    (tmp_path / "app.py").write_text(APP.replace("QUERY_AT_IMPORT", QUERY))
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    joint = "&" if "?" in dsn else "?"
    root = str(Path(__file__).parents[2])
    return {**os.environ, "DSN": f"{dsn}{joint}application_name={tag}", "PYTHONPATH": root, "PYTHONWARNINGS": "error"}


def free_port() -> int:
    """Find a port nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def serve(arguments: list[str], folder: Path, environ: dict[str, str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own until the block ends; then nothing of it is left."""
    command = [sys.executable, "-m", *arguments]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            eventually(lambda: server.poll() is not None or answers(port), 20)
            assert server.poll() is None, (folder / "log").read_text()
            yield server
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait(10)


def answers(port: int) -> bool:
    """Whether the server answers."""
    try:
        get(port, "/poolkit/health")
    except OSError:
        return False
    return True


def get(port: int, path: str) -> Any:
    """Get a page as JSON, or as text."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
        body = response.read().decode()
    return json.loads(body) if body.startswith("{") else body


@pytest.mark.slow
def test_gunicorn_with_preload(
    tmp_path: Path, environ: dict[str, str], backends: Callable[[], list[str]], rows: Rows
) -> None:
    """No worker uses a connection that the master opened; workers are warm; answers are one's own; the end is clean."""
    port = free_port()
    arguments = ["gunicorn", "--preload", "-w", "2", "-k", "gthread", "--threads", "4", "-b", f"127.0.0.1:{port}"]
    with serve([*arguments, "-c", "gunicorn.conf.py", "app:app"], tmp_path, environ, port) as server:
        eventually(lambda: len(backends()) >= 3)  # the master's, and one in each worker before any request
        seen = {}

        def both() -> bool:
            answer = get(port, "/where")
            seen[answer["pid"]] = answer
            return len(seen) == 2

        eventually(both)
        assert len({answer["backend"] for answer in seen.values()}) == 2
        assert not {answer["backend"] for answer in seen.values()} & {one["imported_by"] for one in seen.values()}
        for number in range(20):
            assert get(port, f"/echo/{number}") == {"number": number}
        abandon_a_stream(port)
        eventually(lambda: "idle in transaction" not in backends() and "active" not in backends())
        assert rows("gone") == 0
        finish_a_request_during_shutdown(port, server)
        assert rows("last") == 1
        eventually(lambda: not backends())
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log


def abandon_a_stream(port: int) -> None:
    """Begin to read an endless body, and go away."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /stream/gone HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in client.recv(1000)


def finish_a_request_during_shutdown(port: int, server: subprocess.Popen[bytes]) -> None:
    """Ask the server to stop while it works: it answers first."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /write/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        server.send_signal(signal.SIGTERM)
        client.settimeout(10)
        assert b"200 OK" in client.recv(1000)
    assert server.wait(15) == 0


def test_flask_run_with_the_reloader(
    tmp_path: Path, environ: dict[str, str], backends: Callable[[], list[str]]
) -> None:
    """`flask run --debug` imports the app twice; only what is used is open, and all of it is closed at the end."""
    (tmp_path / "app.py").write_text(APP.replace("QUERY_AT_IMPORT", "imported_by = 0"))
    port = free_port()
    with serve(["flask", "--app", "app", "run", "--debug", "--port", str(port)], tmp_path, environ, port):
        assert backends() == []
        assert get(port, "/where")["backend"]
        assert backends() == ["idle"]
    eventually(lambda: not backends())
