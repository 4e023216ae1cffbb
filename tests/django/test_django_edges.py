"""At the edges of a process: descriptors beyond 1024, and what a client writes into a log."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import unquote

import pytest
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django_rig import MakeSite, write

from poolkit import AcquireTimeout
from poolkit_django import looking
from poolkit_django.backends import pools


@pytest.fixture
def _beyond_1024(fresh_pools: None) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip(f"this process may open {hard} files only")
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while True:
            descriptor = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            if descriptor > 1024:
                break
        yield


@pytest.mark.psycopg3
@pytest.mark.usefixtures("_beyond_1024")
def test_a_server_is_looked_at_with_many_files_open() -> None:
    """A look at a server, over its pool and beside a full one, takes descriptors that `select()` refuses."""
    wrapper = connections["default"]
    assert looking.look(wrapper, 5).standby is False
    pool = pools.pool_for(wrapper)
    leases = [pool.acquire() for _ in range(pool.config.max_size)]
    try:
        assert looking.look(wrapper, 5).standby is False
    finally:
        for lease in leases:
            lease.release()


@pytest.mark.parametrize("piece", ["%0a", "%0d%0a", "%1b%5b31m", "%e2%80%a8"])
def test_a_path_begins_no_line_in_the_log(piece: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a client puts into a path or a method is escaped in what the middleware logs."""
    from poolkit_django.middleware import PoolkitMiddleware  # noqa: PLC0415  it reads the settings

    def view(_: HttpRequest) -> HttpResponse:
        raise AssertionError

    request = HttpRequest()
    request.method, request.path = unquote(f"G{piece}ET"), unquote(f"/a{piece}ERROR forged")
    middleware = PoolkitMiddleware(view)
    with caplog.at_level(logging.WARNING, "poolkit"):
        reply = middleware.process_exception(request, AcquireTimeout("default", "none came free"))
    assert reply.status_code == 503
    text = caplog.messages[-1]
    assert "ERROR forged" in text
    assert text.isprintable()


def test_a_method_is_escaped_where_holders_are_listed(site: MakeSite, kind: str) -> None:
    """The label of a unit of work is made of the method and the route, neither with a control character in it."""
    seen = []

    def view(_: HttpRequest) -> HttpResponse:
        write("label")
        seen.extend(holder.label for pool in pools.live() for holder in pool.holders())
        return HttpResponse()

    served = site(view)
    served.method = "GET\nERROR"
    assert served.get("/view").status == 200
    assert seen == ["GET\\nERROR /view"]
