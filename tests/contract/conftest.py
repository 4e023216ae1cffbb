"""The four shops, each with a database of its own and two workers, started once for all the tests that ask them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from shop_database import own_database
from shop_server import KINDS, POOL, TIMEOUT, Shop, of_each

from example_projects.pricing import PricingServer, pricing_server


@pytest.fixture(scope="session")
def pricing() -> Iterator[PricingServer]:
    """A pricing service that counts its connections."""
    with pricing_server() as server:
        yield server


@pytest.fixture(scope="session")
def shops(request: pytest.FixtureRequest, pg_dsn: str, pricing: PricingServer) -> Iterator[dict[str, Shop]]:
    """Every shop that the selected tests ask, with small pools; afterwards nothing of them may be left."""
    asked = [item.callspec.params.get("kind") for item in request.session.items if hasattr(item, "callspec")]
    with ExitStack() as stack:
        shops = {}
        for kind in [kind for kind in KINDS if kind in asked]:  # all are started before the first is waited for
            environ = {
                "DATABASE_URL": stack.enter_context(own_database(pg_dsn)),
                "PRICING_URL": pricing.url,
                "POOLKIT_DEFAULT_MAX_SIZE": str(POOL),
                "POOLKIT_DEFAULT_TIMEOUT": str(TIMEOUT),
            }
            shops[kind] = stack.enter_context(Shop(*KINDS[kind], environ=environ))
        for shop in shops.values():
            shop.wait_ready()
        yield shops
        of_each(shops, Shop.holds_nothing)
        of_each(shops, Shop.stop)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the shops."""
    return request.param


@pytest.fixture
def shop(kind: str, shops: dict[str, Shop]) -> Shop:
    """One running shop."""
    return shops[kind]
