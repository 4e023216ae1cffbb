"""django-tenants on poolkit's engine: each request finds its own tenant's schema on a shared connection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from django_rig import database

ROOT = Path(__file__).parents[2]
TENANTS = ("ann", "bob", "cid")
SHOPS = """
from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Shop(TenantMixin):
    auto_create_schema = False

    class Meta:
        app_label = "shops"


class Domain(DomainMixin):
    class Meta:
        app_label = "shops"
"""
PROGRAM = """
import asyncio, contextvars, json, sys
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings

kind, limit, where, options = json.loads(sys.argv[1])
settings.configure(
    SECRET_KEY="of the test", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField", TENANT_APPS=["shops"], SHARED_APPS=["shops"],
    INSTALLED_APPS=["django_tenants", "django.contrib.contenttypes", "shops"],
    TENANT_MODEL="shops.Shop", TENANT_DOMAIN_MODEL="shops.Domain", TENANT_LIMIT_SET_CALLS=limit,
    DATABASES={"default": {**options, "ENGINE": "django_tenants.postgresql_backend"}},
    ORIGINAL_BACKEND="poolkit_django.backends.postgresql", DATABASE_ROUTERS=["django_tenants.routers.TenantSyncRouter"],
    MIDDLEWARE=where,
)

import django

django.setup()

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncRequestFactory, RequestFactory
from django.urls import path
from poolkit_django import current_unit
from shops.models import Domain, Shop

TENANTS = ("ann", "bob", "cid")


def seen():
    with connection.cursor() as cursor:
        cursor.execute("SELECT word FROM notes")
        return cursor.fetchone()[0]


def whole(request):
    return HttpResponse(seen())


def pieces(first):
    yield first
    yield seen()
    yield seen()


def late(request):  # the pieces are made when the request's connection is back: with whichever is free
    return StreamingHttpResponse(pieces(seen()))


def committed(request):
    first = seen()
    current_unit().commit()
    return HttpResponse(first + seen())


def moved(request):  # the session's own search path is changed by hand, and not put back
    with connection.cursor() as cursor:
        cursor.execute("SET search_path = cid")
    return HttpResponse(request.tenant.schema_name)


urlpatterns = [path(view.__name__, view) for view in (whole, late, committed, moved)]

with connection.schema_editor() as editor:
    editor.create_model(Shop)
    editor.create_model(Domain)
with connection.cursor() as cursor:
    for name in TENANTS:
        cursor.execute(f"CREATE SCHEMA {name}; CREATE TABLE {name}.notes AS SELECT '{name}' AS word")
for name in TENANTS:
    shop = Shop.objects.create(schema_name=name)
    Domain.objects.create(tenant=shop, domain=name + ".test", is_primary=True)
connection.close()

asked = [(view, TENANTS[number % 3]) for number in range(60) for view in ("whole", "late", "committed", "moved")]


def served(view, tenant):
    environ = RequestFactory()._base_environ(PATH_INFO="/" + view, HTTP_HOST=tenant + ".test")
    response = handler(environ, lambda *_: None)
    body = b"".join(response)
    response.close()
    return body.decode()


async def aserved(gate, view, tenant):
    sent = []
    scope = AsyncRequestFactory()._base_scope(path="/" + view, headers=[(b"host", tenant.encode() + b".test")])

    left = [{"type": "http.request", "body": b""}]

    async def receive():
        return left.pop() if left else await asyncio.Event().wait()

    async def send(message):
        sent.append(message.get("body", b""))

    async with gate:
        await handler(scope, receive, send)
    return b"".join(sent).decode()


async def all_served():
    gate = asyncio.Semaphore(8)
    return await asyncio.gather(*(aserved(gate, *one) for one in asked))


if kind == "wsgi":
    handler = WSGIHandler()
    with ThreadPoolExecutor(8) as threads:
        bodies = [done.result() for done in [threads.submit(contextvars.Context().run, served, *one) for one in asked]]
else:
    handler = ASGIHandler()
    bodies = asyncio.run(all_served())
wrong = [(view, tenant, body) for (view, tenant), body in zip(asked, bodies) if set(body.split(tenant)) != {""}]
print(json.dumps({"asked": len(asked), "wrong": wrong}))
"""
OURS = "poolkit_django.middleware.PoolkitMiddleware"
THEIRS = "django_tenants.middleware.main.TenantMainMiddleware"


@pytest.mark.parametrize("first", ["tenants first", pytest.param("poolkit first", marks=pytest.mark.slow)])
@pytest.mark.parametrize("limit", [pytest.param(False, marks=pytest.mark.slow), True], ids=["always", "limited"])
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_request_finds_its_own_schema(kind: str, limit: object, first: str, own_dsn: str, tmp_path: Path) -> None:
    """Three tenants, eight requests at a time, two connections: views, streams, a commit midway, a SET by hand."""
    (tmp_path / "shops").mkdir()
    (tmp_path / "shops" / "__init__.py").touch()
    (tmp_path / "shops" / "models.py").write_text(SHOPS)
    where = [THEIRS, OURS] if first == "tenants first" else [OURS, THEIRS]
    options = database(own_dsn, pool={"max_size": 2, "timeout": 30})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([kind, limit, where, options])],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["asked"] == 240
    with psycopg.connect(own_dsn) as conn:
        assert conn.execute("SELECT count(*) FROM shops_shop").fetchone() == (len(TENANTS),)
