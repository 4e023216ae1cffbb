"""Programs in the project of these tests: run to their end, or served; and what the database sees of them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psycopg
from django_rig import eventually

from poolkit.testing._machine import free_port

PROJECT = Path(__file__).parent / "project"
ROOT = Path(__file__).parents[2]


def environment(url: str) -> dict[str, str]:
    """The environment of a program: the database, and names of its own."""
    name = f"test_{secrets.token_hex(4)}"
    return {
        **os.environ,
        "DATABASE_URL": url,
        "TEST_NAME": name,
        "APPLICATION": f"project_{name}",
        "DJANGO_SETTINGS_MODULE": "project_settings",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{PROJECT}",
        "PYTHONWARNINGS": "default",
    }


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
def running(
    *arguments: str, environ: dict[str, str], port: int = 0, log: Path | None = None, cwd: Path = PROJECT
) -> Iterator[Server]:
    """Run a program, `python -m ...`, in the project; what it says goes to `log`. It is killed where it runs on."""
    with (log or Path(os.devnull)).open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(process, port)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.wait(10)


@contextmanager
def serving(*arguments: str, environ: dict[str, str]) -> Iterator[Server]:
    """Run a server on a free port; {port} in its arguments is that port."""
    port = free_port()
    with running(*(part.format(port=port) for part in arguments), environ=environ, port=port) as server:
        eventually(server.answers, 30)
        yield server
