"""What the Django tests share: a site made of a few views, served by Django's own WSGI and ASGI handlers."""

from __future__ import annotations

import asyncio
import contextvars
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections
from django.test import override_settings
from django.urls import path
from psycopg.conninfo import conninfo_to_dict

from poolkit_django.backends import pools

ABORTED = "SELECT 1 / 0"
MIDDLEWARE = "poolkit_django.middleware.PoolkitMiddleware"
POOL = {"max_size": 3, "timeout": 5}


def database(url: str, **options: Any) -> dict[str, Any]:
    """Make an entry of DATABASES for a URL; `pool` and all else go to OPTIONS."""
    parts = conninfo_to_dict(url)
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    given = {names[name]: str(parts.pop(name)) for name in list(parts) if name in names}
    return {"ENGINE": "poolkit_django.backends.postgresql", **given, "OPTIONS": {**parts, "pool": POOL, **options}}


def run(sql: str, *parameters: Any, using: Any = connection) -> list[Any]:
    """Run one statement through Django's connection; return its rows."""
    with using.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def write(word: str, using: Any = connection) -> None:
    """Insert the row that the tests count."""
    run("INSERT INTO django_notes VALUES (%s)", word, using=using)


awrite = sync_to_async(write)


@dataclass
class Reply:
    """What a server got of the app, and what stood in the database when it was told the status."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    at_start: Any = None


class Site:
    """Views behind a handler: `kind` is "wsgi" or "asgi"."""

    def __init__(self, kind: str, views: Mapping[str, Any], *, look: Callable[[], Any] = int, **settings: Any) -> None:
        self.kind, self.method = kind, "GET"
        self._look = look
        patterns = [path(route, view) if callable(view) else view for route, view in views.items()]
        self._settings = {"ROOT_URLCONF": tuple(patterns), **settings}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(override_settings(**self._settings))
        self.app: Any = WSGIHandler() if self.kind == "wsgi" else ASGIHandler()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get(self, where: str, *, headers: Mapping[str, str] | None = None, parts: int | None = None) -> Reply:
        """Send a GET and read the answer; `parts`: leave after so many parts of the body."""
        serve = self._wsgi if self.kind == "wsgi" else self._asgi
        return contextvars.Context().run(serve, where, dict(headers or {}), parts)

    def _wsgi(self, where: str, headers: dict[str, str], parts: int | None) -> Reply:
        reply = Reply()

        def start_response(status: str, given: list[tuple[str, str]], _: Any = None) -> None:
            reply.status, reply.headers = int(status[:3]), dict(given)
            reply.at_start = self._look()

        body = self.app(self._environ(where, headers), start_response)
        try:
            for number, part in enumerate(body, start=1):
                reply.body += part
                if number == parts:
                    break
        finally:
            body.close()
        return reply

    def _environ(self, where: str, headers: dict[str, str]) -> dict[str, Any]:
        route, _, query = where.partition("?")
        return {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": route,
            "QUERY_STRING": query,
            "SERVER_NAME": "testserver",
            "SERVER_PORT": "80",
            "REMOTE_ADDR": headers.pop("remote", "127.0.0.1"),
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()},
        }

    def _asgi(self, where: str, headers: dict[str, str], parts: int | None) -> Reply:
        return asyncio.run(self.aget(where, headers, parts))

    async def aget(
        self, where: str, headers: dict[str, str] | None = None, parts: int | None = None,
        leave: asyncio.Event | None = None,
    ) -> Reply:  # fmt: skip
        """The same in a running loop; setting `leave` is the client's disconnect."""
        reply, leave = Reply(), leave or asyncio.Event()
        sent: list[bytes] = []
        asked = iter([{"type": "http.request", "body": b""}])

        async def receive() -> Any:
            for message in asked:
                return message
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                reply.at_start = self._look()
            elif message.get("body"):
                sent.append(message["body"])
                if len(sent) == parts:
                    leave.set()
                    await asyncio.sleep(0.05)  # the app's turn to hear of it

        await self.app(self._scope(where, dict(headers or {})), receive, send)
        reply.body = b"".join(sent)
        return reply

    def _scope(self, where: str, headers: dict[str, str]) -> dict[str, Any]:
        route, _, query = where.partition("?")
        remote = headers.pop("remote", "127.0.0.1")
        return {
            "type": "http",
            "method": self.method,
            "path": route,
            "query_string": query.encode(),
            "client": [remote, 50000],
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }


def out() -> int:
    """Connections that are lent at this moment, of all pools."""
    return sum(pool.stats().out for pool in pools.live())


def acquired() -> int:
    """How often a connection was lent so far."""
    return sum(pool.stats().acquired for pool in pools.live())


MakeSite = Callable[..., Site]
Rows = Callable[[str], int]


def eventually(what: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Ask until the answer is true, and return it; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still {answer!r} after {seconds} s")
        time.sleep(0.01)
    return answer


def open_transactions(monitor: psycopg.Connection[Any]) -> list[Any]:
    """Every session of this database that is in a transaction, but for the asking one."""
    return monitor.execute(
        "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
    ).fetchall()


def holding(count: int) -> Iterator[None]:
    """Take so many connections of the default pool away for a while."""
    pool = pools.pool_for(connections["default"])
    leases = [pool.acquire() for _ in range(count)]
    try:
        yield
    finally:
        for lease in leases:
            lease.release()
