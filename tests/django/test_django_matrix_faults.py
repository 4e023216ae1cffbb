"""Django: a reset that fails, hangs or is lost costs a connection, and is found out by no statement."""

from __future__ import annotations

from typing import Any

import pytest
from django_ways import DjangoWay
from matrix_databases import database
from matrix_faults import FAULTS, Fault, nobody_in_a_crowd_ran_in_it, nobody_ran_in_it, server_of
from matrix_trips import by_default

from poolkit.testing import FaultProxy

CELLS = [
    *(
        (scheme, how, "")
        for scheme in ("postgresql", "mysql")
        for how in ("autocommit", "unit", "whole stream", "async unit")
    ),
    *(("postgresql", how, driver) for driver in ("psycopg", "asyncpg") for how in ("native", "native transaction")),
]


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("cell", by_default(CELLS))
def test_nobody_runs_in_it(
    cell: tuple[str, str, str], name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next requests get a 200 in a session as new; the server has seen no statement in the old one."""
    scheme, how, driver = cell
    url = database(scheme, request)
    with FaultProxy(url) as proxy, server_of(url) as server:
        fault = Fault(name, server, proxy)
        fault.watch(monkeypatch)

        def make(**pool: Any) -> DjangoWay:
            return DjangoWay(proxy.url(url), how, driver, **pool)

        nobody_ran_in_it(make, fault, asynchronous=bool(driver))


@pytest.mark.parametrize("cell", by_default(CELLS))
def test_nobody_in_a_crowd_runs_in_it(
    cell: tuple[str, str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request gets a 200 in a session as new, while many wait and sessions are lost as they are reset."""
    scheme, how, driver = cell
    url = database(scheme, request)
    with FaultProxy(url) as proxy, server_of(url) as server:
        fault = Fault("meets its end", server, proxy)
        fault.watch(monkeypatch)

        def make(**pool: Any) -> DjangoWay:
            return DjangoWay(proxy.url(url), how, driver, **pool)

        nobody_in_a_crowd_ran_in_it(make, fault)
