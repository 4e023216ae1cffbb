"""Rigs, and a network before the server that fails when told to."""

from __future__ import annotations

import sys

import psycopg
import pytest
from fault_rig import RIGS

from poolkit.testing import FaultProxy


@pytest.fixture(params=list(RIGS))
def rig(request):
    """Each pool and driver in turn."""
    rig = RIGS[request.param]()
    yield rig
    rig.close()


class Network(FaultProxy):
    """The way to one server, which fails when told to."""

    def __init__(self, server):
        super().__init__(server.dsn)
        self.dsn = server.dsn

    @property
    def through(self):
        """The server's URL, this way."""
        return self.url(self.dsn)


@pytest.fixture
def network(private_pg):
    """A proxy before the private server."""
    with Network(private_pg) as network:
        yield network


@pytest.fixture
def admin(private_pg):
    """A connection beside, not through the proxy."""
    with psycopg.connect(private_pg.dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def tell(capsys):
    """Say a number that was measured, also where nothing failed."""

    def tell(text):
        with capsys.disabled():
            sys.stdout.write(f"\n  {text}")

    return tell
