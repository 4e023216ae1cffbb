"""Flask and FastAPI: a reset that fails, hangs or is lost costs a connection, and is found out by no statement."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from fastapi_ways import FASTAPI, FastapiWay
from flask_ways import FlaskWay
from matrix_databases import database
from matrix_faults import FAULTS, Fault, nobody_in_a_crowd_ran_in_it, nobody_ran_in_it, server_of, the_book_is_kept
from matrix_trips import by_default

from poolkit.drivers.psycopg import PsycopgDriver
from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.testing import FaultProxy

CELLS: list[tuple[type[Any], str, str]] = [
    *(
        (FlaskWay, scheme, how)
        for scheme in ("postgresql", "postgresql+psycopg2", "mysql+pymysql")
        for how in ("acquire", "unit", "stream")
    ),
    *(
        (FastapiWay, scheme, how)
        for scheme in ("postgresql", "postgresql+asyncpg")
        for how in ("acquire", "unit", "stream")
    ),
    *(
        (FastapiWay, scheme, how)
        for scheme in ("postgresql", "postgresql+psycopg2", "mysql+pymysql")
        for how in ("def acquire", "def")
    ),
]


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("cell", by_default(CELLS))
def test_nobody_runs_in_it(
    cell: tuple[type[Any], str, str], name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next requests get a 200 in a session as new; the server has seen no statement in the old one."""
    make, scheme, how = cell
    url = database(scheme, request)
    asynchronous = make is FastapiWay and how in FASTAPI
    with FaultProxy(url) as proxy, server_of(url) as server:
        fault = Fault(name, server, proxy)
        fault.watch(monkeypatch)
        nobody_ran_in_it(functools.partial(make, proxy.url(url), how), fault, asynchronous=asynchronous)


@pytest.mark.parametrize("cell", by_default(CELLS))
def test_nobody_in_a_crowd_runs_in_it(
    cell: tuple[type[Any], str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request gets a 200 in a session as new, while many wait and sessions are lost as they are reset."""
    make, scheme, how = cell
    url = database(scheme, request)
    with FaultProxy(url) as proxy, server_of(url) as server:
        fault = Fault("meets its end", server, proxy)
        fault.watch(monkeypatch)
        nobody_in_a_crowd_ran_in_it(functools.partial(make, proxy.url(url), how), fault)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql"])
def test_the_server_would_tell(scheme: str, request: pytest.FixtureRequest) -> None:
    """A statement that runs in an unclean session is seen afterwards, also where it was rolled back."""
    url = database(scheme, request)
    kind = PsycopgDriver if scheme == "postgresql" else PymysqlDriver
    with server_of(url) as server:
        the_book_is_kept(kind(url), server)
