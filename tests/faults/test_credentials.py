"""A URL that is asked for at each connect: fresh credentials, and none of before after a drain."""

from __future__ import annotations

import pytest
from fault_rig import aside, until

SECRETS = {"before": "first", "after": "second"}


@pytest.fixture
def login(network, admin):
    """Two accounts, and a callable that returns the URL of the one that is due."""
    for name, secret in SECRETS.items():
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{secret}'")

    def url():
        url.asked += 1
        return network.url(f"postgresql://{url.name}:{SECRETS[url.name]}@here/postgres")

    url.name, url.asked = "before", 0
    yield url
    for name in SECRETS:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE usename = %s", [name]
        ).fetchall()
        admin.execute(f"DROP ROLE {name}")


@pytest.mark.slow
def test_credentials_are_asked_for_at_each_connect(rig, network, admin, login):
    """After a rotation and a drain every connection has the new account, also where the old one can't log in."""
    pool = rig.make(login, max_size=3)
    rig.fill(pool, 3)
    assert rig.value(pool, "SELECT current_user::text") == "before"
    login.name = "after"
    admin.execute("ALTER ROLE before NOLOGIN")
    rig.drain(pool)
    rig.fill(pool, 3)
    assert {rig.value(pool, "SELECT current_user::text") for _ in range(3)} == {"after"}
    assert login.asked == network.accepted == 6


def test_a_connect_of_before_a_drain_never_enters(rig, network, login):
    """A connect that is under way while the pool is drained is closed when it succeeds; its waiter gets a new one."""
    pool = rig.make(login, max_size=2)
    network.blackhole()
    with aside(lambda: rig.attempt(pool, "SELECT current_user::text", timeout=10)) as waiting:
        assert until(lambda: network.accepted == 1)
        login.name = "after"
        rig.drain(pool)
        network.heal()
        assert waiting.result(10).value == "after"
    assert until(lambda: rig.stats(pool).closed_by_reason == {"drained": 1})
    assert until(lambda: network.links == 1)
    assert (rig.stats(pool).opened, login.asked, network.accepted) == (2, 2, 2)
