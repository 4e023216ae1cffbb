"""A connection beside the pool is closed where it is done with, and not when it is collected."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from django.db import connections
from django_rig import database, eventually, run
from test_django_engines import settings_of

from poolkit_django.backends import pools
from poolkit_django.looking import look

SPARE = "spare"


@pytest.fixture(params=["postgresql", "mysql", "sqlite3"])
def crowded(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An alias whose pool is of one connection, which is lent."""
    if request.param == "postgresql":
        made = database(request.getfixturevalue("own_dsn"))
    else:
        made = {"ENGINE": f"poolkit_django.backends.{request.param}", **settings_of(request.param, request)}
    made["OPTIONS"] = {**made.get("OPTIONS", {}), "pool": {"max_size": 1, "timeout": 5}}
    connections.settings[SPARE] = connections.configure_settings({"default": {}, SPARE: made})[SPARE]
    wrapper = connections[SPARE]
    run("SELECT 1", using=wrapper)
    yield wrapper
    wrapper.close()
    pools.close_database(wrapper)
    del connections[SPARE], connections.settings[SPARE]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What is only forgotten stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_a_look_beside_a_pool_leaves_nothing_open(crowded: Any) -> None:
    """Looking at a server whose pool is all lent opens one more connection, and closes it at once."""
    look(crowded, 0.2)
    before = psutil.Process().num_fds()
    for _ in range(3):
        look(crowded, 0.2)
    assert eventually(lambda: psutil.Process().num_fds() <= before)
