"""A changed session costs the next request of a Flask or FastAPI app no round trip, or one where no other is idle."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi_ways import FastapiWay
from flask_ways import FlaskWay
from matrix_databases import database
from matrix_trips import MakeWay, at_saturation, beside_an_idle_one, by_default

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
Cell = tuple[MakeWay, FaultProxy, str]


@pytest.fixture(params=by_default(CELLS))
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    make, scheme, how = request.param
    url = database(scheme, request)
    with FaultProxy(url) as proxy:
        yield functools.partial(make, proxy.url(url), how), proxy, scheme.partition("+")[0]


def test_while_another_is_idle(cell: Cell) -> None:
    """The reset is sent and not waited for, so that the request has the trips of a pool that nobody has changed."""
    beside_an_idle_one(*cell)


def test_at_saturation(cell: Cell) -> None:
    """The answer to the reset is the one round trip that can't be hidden."""
    at_saturation(*cell)
