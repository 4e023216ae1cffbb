"""What asks nothing of a database opens nothing, on every engine: seen from where the connections would come to."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import poolkit_django.backends

CASES = Path(__file__).with_name("hello_cases.py")
ENGINES = sorted(found.parent.name for found in Path(poolkit_django.backends.__path__[0]).glob("*/base.py"))


class Door:
    """Where a database server would be: everybody is counted and nobody is let in."""

    def __init__(self) -> None:
        self.knocks = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            client, _ = self._listener.accept()
            client.close()
            if self.knocks < 0:
                return
            self.knocks += 1

    def close(self) -> None:
        self.knocks = -1
        socket.create_connection((self.host, self.port)).close()
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_hello_opens_nothing_with_atomic_requests(engine: str, door: Door, tmp_path: Path) -> None:
    """ATOMIC_REQUESTS, WSGI and ASGI, with the middleware and without: no connection, no file, before the first query.

    The second view takes a cursor, and nothing else: the counting works.
    """
    file = tmp_path / "shop.sqlite3"
    where = [str(file), "", ""] if engine == "sqlite3" else ["shop", door.host, str(door.port)]

    def opened() -> bool:
        return file.exists() if engine == "sqlite3" else door.knocks > 0

    command = [sys.executable, "-W", "error", str(CASES), engine, *where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asked:
        assert asked.stdin
        assert asked.stdout
        assert asked.stdout.readline() == "/hello [200]\n"
        assert not opened()
        asked.stdin.write("\n")
        asked.stdin.flush()
        assert asked.stdout.readline().startswith("/one ")
        assert opened()
        asked.stdin.close()
    assert asked.returncode == 0
