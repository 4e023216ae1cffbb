"""A project of two views on one engine, ATOMIC_REQUESTS on: `python hello_cases.py ENGINE NAME HOST PORT`.

Asks for each view again and again, by WSGI and by ASGI, with poolkit's middleware and without; after each of the two it
says so on standard output and waits for a line: the time to look at what was opened.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import Error, connection
from django.http import HttpRequest, HttpResponse
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.urls import path

TIMES = 5
POOLKIT = "poolkit_django.middleware.PoolkitMiddleware"


def hello(_: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def one(_: HttpRequest) -> HttpResponse:
    try:
        connection.cursor().close()
    except Error as error:
        return HttpResponse(str(error), status=503)
    return HttpResponse("one")


urlpatterns = [path("hello", hello), path("one", one)]


def configure(engine: str, name: str, host: str, port: str) -> None:
    where = {"HOST": host, "PORT": port, "USER": "nobody", "PASSWORD": "none"} if port else {}
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={
            "default": {
                "ENGINE": f"poolkit_django.backends.{engine}",
                "NAME": name,
                "ATOMIC_REQUESTS": True,
                "OPTIONS": {"pool": {"max_size": 2, "timeout": 0.2}},
                **where,
            }
        },
        INSTALLED_APPS=["poolkit_django"],
        LOGGING_CONFIG=None,
        ROOT_URLCONF=__name__,
        SECRET_KEY="none",
        USE_TZ=True,
    )
    django.setup()


def by_wsgi(route: str) -> int:
    statuses: list[str] = []
    environ = {**RequestFactory().get(route).environ, "wsgi.input": io.BytesIO()}
    response = WSGIHandler()(environ, lambda status, _headers: statuses.append(status))
    response.close()
    return int(statuses[0].split()[0])


def by_asgi(route: str) -> int:
    said: list[dict[str, Any]] = []
    asked = iter([{"type": "http.request", "body": b""}])

    async def receive() -> dict[str, Any]:
        for message in asked:
            return message
        return await asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    asyncio.run(ASGIHandler()(AsyncRequestFactory().get(route).scope, receive, send))
    return said[0]["status"]


def statuses(route: str) -> Iterator[int]:
    for middleware, ask in product(([], [POOLKIT]), (by_wsgi, by_asgi)):
        with override_settings(MIDDLEWARE=middleware):
            for _ in range(TIMES):
                yield ask(route)


if __name__ == "__main__":
    configure(*sys.argv[1:])
    for route in ("/hello", "/one"):
        sys.stdout.write(f"{route} {sorted(set(statuses(route)))}\n")
        sys.stdout.flush()
        sys.stdin.readline()
