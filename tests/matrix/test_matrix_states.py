"""No kind of state that a request leaves in its session reaches the next: Flask and FastAPI, each driver and way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi_ways import FASTAPI, FASTAPI_DEF, FastapiWay
from flask_ways import FLASK, FlaskWay
from matrix_cells import KINDS, Way, few, unlike_new
from matrix_databases import FEW, database

THREADS = ["postgresql", "postgresql+psycopg2", "mysql+pymysql", "sqlite"]
LOOPS = ["postgresql", "postgresql+asyncpg"]
CELLS: list[tuple[type[Any], str, str]] = [
    *((FlaskWay, scheme, how) for scheme in THREADS for how in FLASK),
    *((FastapiWay, scheme, how) for scheme in LOOPS for how in FASTAPI),
    *((FastapiWay, scheme, how) for scheme in THREADS for how in FASTAPI_DEF),
]


@pytest.fixture(params=CELLS, ids=lambda cell: f"{cell[0].__name__.removesuffix('Way')}-{cell[1]}-{cell[2]}")
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    make: Callable[..., Way]
    make, scheme, how = request.param
    way = make(database(scheme, request), how)
    way.kinds = KINDS[scheme.partition("+")[0]]
    way.few = few(way.kinds, FEW[scheme.partition("+")[0]])
    yield way
    way.close()


def test_few_kinds(way: Way) -> None:
    """The next request finds a session as a new one is."""
    assert unlike_new(way, way.few, way.few) == []


@pytest.mark.slow
def test_all_kinds(way: Way) -> None:
    """The same for each kind, and whichever of them is looked for afterwards."""
    assert unlike_new(way, way.kinds, way.kinds) == []
