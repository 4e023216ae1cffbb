"""What the FastAPI tests share besides fixtures: the types of those, and a client that can leave in the middle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
from fastapi.testclient import TestClient

from poolkit_fastapi import Poolkit

Rows = Callable[[str], int]
MakeKit = Callable[..., Poolkit]
Serve = Callable[..., TestClient]


def out(kit: Poolkit) -> int:
    """Count the connections in use."""
    return sum(stats.out for stats in kit.registry.stats())


def open_transactions(monitor: psycopg.Connection) -> list[tuple[Any, ...]]:
    """What the server knows of transactions in this database, but for the asker's own."""
    return monitor.execute(
        "SELECT pid, state, query FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
    ).fetchall()


def settles(condition: Callable[[], bool], seconds: float = 5) -> bool:
    """Wait for what happens in another thread or process, no longer than it takes."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def settled(condition: Callable[[], bool], seconds: float = 5) -> bool:
    """Wait for the same in a loop, which goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


class Exchange:
    """One request given to an app as a server gives it, so that the test can be the client that leaves.

    `leave_after`: the number of body pieces after which the client is gone, as a server tells it: `http.disconnect`.
    """

    def __init__(self, app: Any, path: str, leave_after: int | None = None, kind: str = "http") -> None:
        self.app = app
        self.scope = {
            "type": kind, "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [], "root_path": "",
            "scheme": "http", "client": ("127.0.0.1", 5), "server": ("test", 80),
        }  # fmt: skip
        self.leave_after = leave_after
        self.status = 0
        self.pieces: list[bytes] = []
        self.complete = False
        self.started = asyncio.Event()
        self._gone = asyncio.Event()
        self._asked = False

    async def run(self) -> Exchange:
        await self.app(self.scope, self._receive, self._send)
        return self

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.started.set()
            return
        if message.get("body"):
            self.pieces.append(message["body"])
        self.complete = not message.get("more_body", False)
        if self.leave_after is not None and len(self.pieces) >= self.leave_after:
            self._gone.set()
            await asyncio.sleep(0)
