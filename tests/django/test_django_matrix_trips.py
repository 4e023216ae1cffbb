"""Django: a changed session costs the next request no round trip, or one where no other connection is idle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django_ways import DjangoWay
from matrix_databases import database
from matrix_trips import MakeWay, at_saturation, beside_an_idle_one, by_default

from poolkit.testing import FaultProxy

CELLS = [
    *((scheme, how, "") for scheme in ("postgresql", "mysql") for how in ("autocommit", "unit", "atomic")),
    *(("postgresql", how, driver) for driver in ("psycopg", "asyncpg") for how in ("native", "native transaction")),
]
Cell = tuple[MakeWay, FaultProxy, str]


@pytest.fixture(params=by_default(CELLS))
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    scheme, how, driver = request.param
    url = database(scheme, request)
    with FaultProxy(url) as proxy:

        def make(**pool: Any) -> DjangoWay:
            return DjangoWay(proxy.url(url), how, driver, **pool)

        yield make, proxy, scheme


def test_while_another_is_idle(cell: Cell) -> None:
    """The reset is sent and not waited for, so that the request has the trips of a pool that nobody has changed."""
    beside_an_idle_one(*cell)


def test_at_saturation(cell: Cell) -> None:
    """The answer to the reset is the one round trip that can't be hidden."""
    at_saturation(*cell)
