"""The Django shop under every other server, and on MariaDB, held to the very rules of `test_requests` and `test_load`.

One server after the other: while one is asked, the next one starts. To try one of them:

    python3 run.py test -m slow tests/contract/test_servers.py -k granian-asgi
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
import test_load
import test_requests
from shop_database import own_database
from shop_server import OTHERS, POOL, TIMEOUT, Shop

from example_projects.pricing import PricingServer

pytestmark = pytest.mark.slow

# The same functions, collected once more: here they get the `kind` and the `shop` of this file.
for module in (test_requests, test_load):
    globals().update({name: rule for name, rule in vars(module).items() if name.startswith("test_")})
many_orders = test_load.many_orders


@pytest.fixture(scope="module", params=OTHERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the other shops."""
    return request.param


@pytest.fixture(scope="module")
def start(request: pytest.FixtureRequest, pricing: PricingServer) -> Iterator[Callable[[str], Shop]]:
    """Start a shop of some kind, or return the one that was; in either case the next one's start begins, too."""
    asked = list(
        dict.fromkeys(item.callspec.params["kind"] for item in request.session.items if item.path == request.path)
    )
    follows = dict(pairwise(asked))
    shops: dict[str, Shop] = {}
    with ExitStack() as stack:

        def begin(kind: str) -> None:
            server = request.getfixturevalue("mysql_dsn" if kind.startswith("mariadb") else "pg_dsn")
            environ = {
                "DATABASE_URL": stack.enter_context(own_database(server)),
                "PRICING_URL": pricing.url,
                "POOLKIT_DEFAULT_MAX_SIZE": str(POOL),
                "POOLKIT_DEFAULT_TIMEOUT": str(TIMEOUT),
            }
            shops[kind] = stack.enter_context(Shop(*OTHERS[kind], environ=environ))

        def start(kind: str) -> Shop:
            if kind not in shops:
                begin(kind)
            shops[kind].wait_ready()
            if follows.get(kind, kind) not in shops:
                begin(follows[kind])
            return shops[kind]

        yield start


@pytest.fixture(scope="module")
def shop(kind: str, start: Callable[[str], Shop]) -> Iterator[Shop]:
    """One running shop, of which nothing may be left afterwards."""
    shop = start(kind)
    yield shop
    shop.holds_nothing()
    shop.stop()
    assert "gevent" not in shop.complained  # poolkit would say so, had it been imported before the patch
