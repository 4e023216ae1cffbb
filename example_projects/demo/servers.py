"""Start and stop what the demonstration needs: the shops, and the same endpoints without a pool."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Self

from example_projects.demo.traffic import one

ROOT = Path(__file__).parents[2]
WORKERS = 2
START_WITHIN = 30.0


class ServerFailed(RuntimeError):
    """A server did not come up; the text ends with what it said."""


class Server:
    """One server process with its workers; its output is kept for the case that it fails."""

    def __init__(self, command: list[str], url: str, probe: str, environ: dict[str, str]) -> None:
        self.url = url
        self._probe = probe
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        self._process = subprocess.Popen(  # noqa: S603  our own command
            command,
            cwd=ROOT,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demonstration, which then ends its servers in order
        )

    def wait_until_ready(self) -> Self:
        """Return when the server answers; raise ServerFailed when it ends or takes too long."""
        end = time.monotonic() + START_WITHIN
        while time.monotonic() < end and self._process.poll() is None:
            if one(self.url, "GET", self._probe)[0]:
                return self
            time.sleep(0.05)
        self._output.seek(0)
        said = self._output.read().decode(errors="replace")[-2000:].strip()
        raise ServerFailed(f"{self._process.args!r} does not answer at {self.url}:\n{said}")

    def stop(self) -> float:
        """End it as an operator would (SIGTERM); returns the seconds that took."""
        began = time.monotonic()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._output.close()
        return time.monotonic() - began


def shop(framework: str, dsn: str, environ: dict[str, str]) -> Server:
    """Start one of the three shops."""
    port = _free_port()
    command = [sys.executable, "-m", "example_projects.serve", framework]
    command += ["--workers", str(WORKERS), "--port", str(port)]
    return Server(command, f"http://127.0.0.1:{port}", "/hello", {"DATABASE_URL": dsn, **environ})


def plain(framework: str, dsn: str) -> Server:
    """Start the same two endpoints without a pool, under the same server with as many workers."""
    port = _free_port()
    module = f"example_projects.demo.plain.{framework}_app:app"
    if framework == "fastapi":
        command = [sys.executable, "-m", "uvicorn", module, "--port", str(port), "--workers", str(WORKERS)]
        command += ["--no-access-log"]
    else:
        command = [sys.executable, "-m", "gunicorn", module, "--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS)]
        command += ["--worker-class", "gthread", "--threads", "8"]
    return Server(command, f"http://127.0.0.1:{port}", "/products/1", {"DATABASE_URL": dsn})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
