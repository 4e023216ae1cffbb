"""The Django shop under every server, on PostgreSQL and MariaDB, held to the rules of `test_requests` and `test_load`.

One server after the other: while one is asked, the next one starts. To try one of them:

    python3 run.py test -m slow tests/contract/test_servers.py -k granian-asgi

What is asked of which is a choice, for the sake of time: gunicorn and uvicorn on PostgreSQL are of the default tests,
and on MariaDB all rules are tried with gunicorn's threads, and with the others those where a server and a driver meet.
Every rule under every server on either database is

    POOLKIT_TEST_SERVERS=all python3 run.py test -m slow tests/contract/test_servers.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise

import pytest
import test_load
import test_requests
from shop_database import own_database
from shop_server import EVERY, POOL, TIMEOUT, Shop

from example_projects.pricing import PricingServer

pytestmark = pytest.mark.slow

# The same functions, collected once more: here they get the `kind` and the `shop` of this file.
for module in (test_requests, test_load):
    globals().update({name: rule for name, rule in vars(module).items() if name.startswith("test_")})
many_orders = test_load.many_orders


IN_THE_DEFAULT_TESTS = {"postgresql-gthread", "postgresql-uvicorn"}
WHOLE = "mariadb-gthread"
# From which thread, greenlet or task the database is asked, and a connection comes back: where server and driver meet.
WHERE_BOTH_MEET = {
    test_requests.test_hello_touches_no_pool,
    test_requests.test_an_order_is_saved_whole,
    test_requests.test_an_order_past_the_stock_leaves_nothing,
    test_requests.test_a_fault_after_the_writes_leaves_nothing,
    test_requests.test_orders_csv_has_every_order,
    test_requests.test_notify_is_done_in_the_background,
    test_requests.test_where_tells_the_worker_and_its_backend,
    test_requests.test_a_worker_uses_its_connections_again,
    test_load.test_an_abandoned_stream_holds_nothing,
    test_load.test_a_burst_past_the_pool_is_shed,
    test_load.test_requests_wait_for_the_database_side_by_side,
    test_load.test_orders_at_once_are_all_counted,
    test_load.test_a_client_gone_in_mid_request_leaves_nothing,
}


def asked_of(rule: object, chosen: str | None) -> Sequence[str]:
    """Which shops are held to a rule; `chosen` is POOLKIT_TEST_SERVERS."""
    if chosen == "all":
        return list(EVERY)
    if chosen:
        raise pytest.UsageError(f"POOLKIT_TEST_SERVERS must be all, or not be set; it is {chosen!r}")
    others = [kind for kind in EVERY if kind not in IN_THE_DEFAULT_TESTS]
    return [kind for kind in others if kind == WHOLE or "mariadb" not in kind or rule in WHERE_BOTH_MEET]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each rule the shops that are held to it."""
    if "kind" in metafunc.fixturenames:
        kinds = asked_of(metafunc.function, os.environ.get("POOLKIT_TEST_SERVERS"))
        metafunc.parametrize("kind", kinds, scope="module")


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
            shops[kind] = stack.enter_context(Shop(*EVERY[kind], environ=environ))

        def start(kind: str) -> Shop:
            if kind not in shops:
                begin(kind)
            shops[kind].wait_ready().wait_warm()
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
