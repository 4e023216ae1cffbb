"""The four shops, each with a database of its own and two workers, started once for all the tests that ask them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shop_server import KINDS, POOL, TIMEOUT, WORKERS, Shop, own_database

from example_projects.pricing import PricingServer, pricing_server


@pytest.fixture(scope="session")
def pricing() -> Iterator[PricingServer]:
    """A pricing service that counts its connections."""
    with pricing_server() as server:
        yield server


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the shops."""
    return request.param


@pytest.fixture(scope="session")
def shop(kind: str, pg_dsn: str, pricing: PricingServer) -> Iterator[Shop]:
    """A running shop with small pools; afterwards nothing of it may be left."""
    with own_database(pg_dsn) as dsn:
        environ = {
            "DATABASE_URL": dsn,
            "PRICING_URL": pricing.url,
            "POOLKIT_DEFAULT_MAX_SIZE": str(POOL),
            "POOLKIT_DEFAULT_TIMEOUT": str(TIMEOUT),
        }
        with Shop(*KINDS[kind], "--workers", str(WORKERS), "--port", "0", environ=environ) as shop:
            yield shop.wait_ready()
            shop.holds_nothing()
            shop.stop()
