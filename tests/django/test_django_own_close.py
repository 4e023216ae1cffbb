"""An engine's own close() is called whenever its connection goes: what it remembers of one is not of the next."""

from __future__ import annotations

import contextvars
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django_rig import MakeSite, database, out, run

import poolkit_django
from poolkit_django import unit_of_work
from poolkit_django.backends import pools
from poolkit_django.backends.postgresql import base as engine

TENANT = "tenant"


class _Remembers:
    """What engines for tenants do: one SET for each connection, remembered on the wrapper."""

    schema = "public"
    said: str | None = None

    def close(self) -> None:
        self.said = None
        super().close()  # type: ignore[misc]

    def _cursor(self, name: str | None = None) -> Any:
        cursor = super()._cursor(name)  # type: ignore[misc]
        if self.said != self.schema and not name:
            cursor.execute(f"SET search_path = {self.schema}")
            self.said = self.schema
        return cursor


class _Before(_Remembers, engine.DatabaseWrapper):
    """An engine that overrides close()."""


class _Behind(engine.Pooled, _Remembers, engine.base.DatabaseWrapper):  # type: ignore[name-defined,misc]
    """One whose close() comes after poolkit's in the order of its classes."""

    creation_class = engine.DatabaseCreation


@pytest.fixture(params=["before", "behind", "patched", "on the wrapper"])
def tenant(request: pytest.FixtureRequest, own_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An alias on a pool of one, whose engine counts on its close(); `beta` is what another tenant left."""
    module = types.ModuleType("engine_of_tenants.base")
    kind = {"before": _Before, "behind": _Behind}.get(request.param, type("_Plain", (engine.DatabaseWrapper,), {}))
    module.DatabaseWrapper = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "engine_of_tenants", types.ModuleType("engine_of_tenants"))
    monkeypatch.setitem(sys.modules, "engine_of_tenants.base", module)
    made = {**database(own_dsn, pool={"max_size": 1, "timeout": 5}), "ENGINE": "engine_of_tenants"}
    connections.settings[TENANT] = connections.configure_settings({"default": {}, TENANT: made})[TENANT]
    wrapper = connections[TENANT]
    wrapper.closes = 0
    if request.param == "patched":
        close = BaseDatabaseWrapper.close

        def counted(self: Any) -> None:
            self.closes = getattr(self, "closes", 0) + 1
            close(self)

        monkeypatch.setattr(BaseDatabaseWrapper, "close", counted)
    elif request.param == "on the wrapper":
        own = wrapper.close

        def noted() -> None:
            wrapper.closes += 1
            own()

        wrapper.close = noted
    yield wrapper
    wrapper.__dict__.pop("close", None)
    wrapper.close()
    pools.close_database(wrapper)
    del connections[TENANT], connections.settings[TENANT]


def _commits() -> None:
    with unit_of_work() as unit:
        run("SELECT 1", using=connections[TENANT])
        unit.commit()
        run("SELECT 1", using=connections[TENANT])


def _ends() -> None:
    with unit_of_work():
        run("SELECT 1", using=connections[TENANT])


def _splits() -> None:
    with unit_of_work() as unit:
        run("SELECT 1", using=connections[TENANT])
        unit.split()


def _releases() -> None:
    run("SELECT 1", using=connections[TENANT])
    poolkit_django.release()


def _request_ends() -> None:
    run("SELECT 1", using=connections[TENANT])
    connections[TENANT].close_if_unusable_or_obsolete()


def _changes_hands() -> None:
    run("SELECT 1", using=connections[TENANT])
    contextvars.copy_context().run(_scoped)


def _scoped() -> None:
    unit = poolkit_django.units.Unit(poolkit_django.conf.registry())
    unit.enter()
    run("SELECT 1", using=connections[TENANT])
    unit.close()
    connections[TENANT].close()


@pytest.mark.parametrize("goes", [_commits, _ends, _splits, _releases, _request_ends, _changes_hands])
def test_close_hears_of_each_end(tenant: Any, goes: Callable[[], None]) -> None:
    """A commit, an end, a split, release(), the end of a request, other work in the thread: each is a close()."""
    tenant.said = "beta"
    goes()
    assert tenant.said != "beta" or tenant.closes > 0
    assert out() == 0


def test_close_hears_of_an_end_in_another_thread(tenant: Any) -> None:
    """The end of a unit that takes a connection away from another thread calls the close() of that thread's wrapper."""
    seen: list[Any] = []

    def strays() -> None:
        wrapper = connections[TENANT]
        if "close" in tenant.__dict__:
            wrapper.close = types.MethodType(lambda self: seen.append("closed") or type(self).close(self), wrapper)
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1")
        wrapper.said = "beta"
        wrapper.closes = 0
        seen.append(wrapper)
        seen.append(cursor)

    with ThreadPoolExecutor(1) as thread, unit_of_work():
        thread.submit(contextvars.copy_context().run, strays).result(10)
        kept = seen[0]
        assert kept.lease is not None
        tenant_unit_end = poolkit_django.current_unit()
        assert tenant_unit_end is not None
        tenant_unit_end.finish()
        assert kept.lease is None
        assert kept.said != "beta" or kept.closes > 0 or "closed" in seen


@pytest.mark.parametrize("tenant", ["before"], indirect=True)
def test_a_streamed_body_reads_its_own_tenant(tenant: Any, site: MakeSite) -> None:
    """What a body asks for after the COMMIT runs in its own tenant's schema, whoever had the connection since."""
    for name in ("alpha", "beta"):
        run(f"CREATE SCHEMA {name}; CREATE TABLE {name}.note AS SELECT '{name}' AS text", using=tenant)
    tenant.close()

    def export(_: HttpRequest) -> Any:
        connections[TENANT].schema = "alpha"
        run("SELECT text FROM note", using=connections[TENANT])

        def body() -> Iterator[str]:
            lease = pools.pool_for(connections[TENANT]).acquire()
            lease.resource.execute("SET search_path = beta")
            lease.release()
            with transaction.atomic(using=TENANT):
                yield from (text for (text,) in run("SELECT text FROM note", using=connections[TENANT]))

        return StreamingHttpResponse(body())

    def plain(_: HttpRequest) -> HttpResponse:
        return HttpResponse()

    served = site(export, plain)
    if served.kind == "wsgi":
        assert served.get("/export").body == b"alpha"
