"""A site on a primary and a standby, each in programs of their own, and the clients of the site."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.error import HTTPError, URLError

import psycopg

from poolkit.testing import FaultProxy
from poolkit.testing.postgres import LocalPostgres

PROJECT = Path(__file__).parent / "project"
ROOT = Path(__file__).parents[2]
WSGI = ("gunicorn", "site_wsgi", "-b", "127.0.0.1:{port}", "-k", "gthread", "--threads", "8", "--log-level", "error")
ASGI = ("uvicorn", "site_asgi:application", "--port", "{port}", "--log-level", "error")
BOUND = 2.0  # seconds for the slowest request while a replica goes: its timeout is 0.5 s, and the machine is shared


@dataclass
class Cluster:
    """A primary, and a standby that is reached on two ways: two replicas to the site."""

    primary: LocalPostgres
    standby: LocalPostgres
    ways: list[FaultProxy]

    def environ(self, **more: str) -> dict[str, str]:
        """The environment of a program on this cluster."""
        pairs = [f"replica{number}={way.url(self.standby.dsn)}" for number, way in enumerate(self.ways, start=1)]
        return {
            **os.environ,
            "PRIMARY_URL": self.primary.dsn,
            "REPLICAS": " ".join(pairs),
            "DJANGO_SETTINGS_MODULE": "replica_settings",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{PROJECT}",
            **more,
        }

    def on_primary(self, statement: str, *parameters: Any) -> Any:
        """Run a statement beside the site; return the first column of its first row."""
        return _run(self.primary.dsn, statement, parameters)

    def on_standby(self, statement: str, *parameters: Any) -> Any:
        """The same on the standby."""
        return _run(self.standby.dsn, statement, parameters)

    def catch_up(self) -> None:
        """Wait until the standby has all that was committed."""
        target = self.on_primary("SELECT pg_current_wal_flush_lsn()::text")
        eventually(lambda: self.on_standby("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", target))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the standby from replaying."""
        self.on_standby("SELECT pg_wal_replay_pause()")
        eventually(lambda: self.on_standby("SELECT pg_get_wal_replay_pause_state()") == "paused")
        try:
            yield
        finally:
            self.on_standby("SELECT pg_wal_replay_resume()")


def _run(dsn: str, statement: str, parameters: tuple[Any, ...]) -> Any:
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(statement, parameters or None)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


class Answer(NamedTuple):
    """What a client got."""

    status: int
    body: Any
    began: float
    took: float
    marked: bool


class Client:
    """One browser: it keeps its cookies."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(self, where: str) -> Answer:
        """Send a GET."""
        began = time.monotonic()
        try:
            with self._opener.open(f"http://127.0.0.1:{self._port}/{where}", timeout=30) as response:
                status, text, marked = response.status, response.read(), "Set-Cookie" in response.headers
        except HTTPError as error:
            with error:
                status, text, marked = error.code, error.read(), False
        body = json.loads(text) if text.startswith(b"{") else text
        return Answer(status, body, began, time.monotonic() - began, marked)

    def read(self, word: str) -> Any:
        """Read a word; it must go well."""
        answer = self.get(f"read?word={word}")
        assert answer.status == 200, answer
        return answer.body

    def write(self, word: str, view: str = "write") -> Answer:
        """Write a word; it must go well."""
        answer = self.get(f"{view}?word={word}")
        assert answer.status == 200, answer
        return answer


@dataclass
class Site:
    """A server program."""

    port: int
    process: subprocess.Popen[bytes]

    def client(self) -> Client:
        """A browser of its own."""
        return Client(self.port)

    def replicas(self) -> dict[str, Any]:
        """How the site sees its replicas; a read before, for who is not read is not looked at."""
        client = self.client()
        client.read("first")
        return {one["alias"]: one for one in client.get("state").body["replicas"]}

    def in_use(self) -> set[str]:
        """The replicas that are read."""
        return {alias for alias, one in self.replicas().items() if one["in_use"]}

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            return self.client().get("poolkit/health").status == 200
        except (URLError, ConnectionError):
            return False


@contextmanager
def serving(cluster: Cluster, command: tuple[str, ...] = WSGI, **more: str) -> Iterator[Site]:
    """Run a server on the cluster; stop it at the end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", *(part.format(port=port) for part in command)],
        cwd=PROJECT,
        env=cluster.environ(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        site = Site(port, process)
        eventually(site.answers, 30)
        yield site
    finally:
        process.terminate()
        process.wait(20)


@dataclass
class Crowd:
    """Clients that read again and again, until the block ends."""

    site: Site
    count: int = 6
    log: list[Answer] = field(default_factory=list)
    _over: bool = False

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._read) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        client = self.site.client()
        while not self._over:
            self.log.append(client.get("read?word=first"))
            time.sleep(0.01)

    @property
    def failed(self) -> list[Answer]:
        """The answers that are none."""
        return [answer for answer in self.log if answer.status != 200]

    @property
    def slowest(self) -> float:
        """Seconds of the slowest answer."""
        return max(answer.took for answer in self.log)

    def ports(self, since: float) -> set[int]:
        """Who was read by requests that began later."""
        return {answer.body["port"] for answer in self.log if answer.began > since}


def program(cluster: Cluster, *arguments: str, **more: str) -> str:
    """Run a program in the project; return what it said. It must end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env=cluster.environ(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def eventually(what: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Ask until the answer is true, and return it; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still {answer!r} after {seconds} s")
        time.sleep(0.02)
    return answer
