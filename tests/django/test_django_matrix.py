"""No kind of state that a request leaves in its session reaches the next one, on any engine, in any way of Django's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django_ways import DJANGO, NATIVE, DjangoWay
from matrix_cells import KINDS, Way, few, unlike_new
from matrix_databases import FEW, database

CELLS = [
    *((scheme, how, "") for scheme in ("postgresql", "mysql", "sqlite") for how in DJANGO),
    *(("postgresql", how, driver) for driver in ("psycopg", "asyncpg") for how in NATIVE),
]


@pytest.fixture(params=CELLS, ids="-".join)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    scheme, how, driver = request.param
    way = DjangoWay(database(scheme, request), how, driver)
    way.kinds = KINDS[scheme]
    way.few = few(way.kinds, FEW[scheme])
    yield way
    way.close()


def test_few_kinds(way: Way) -> None:
    """The next request finds a session as a new one is."""
    assert unlike_new(way, way.few, way.few) == []


@pytest.mark.slow
def test_all_kinds(way: Way) -> None:
    """The same for each kind, and whichever of them is looked for afterwards."""
    assert unlike_new(way, way.kinds, way.kinds) == []
