"""What the integrations answer: the 503, health, readiness, the numbers, and who may see those."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from poolkit import (
    AcquireTimeout,
    CommitFailed,
    ConfigError,
    LeaseError,
    NestedAcquire,
    OpenFailed,
    Overloaded,
    Pool,
    PoolClosed,
    Registry,
    UnitOfWorkError,
    WrongProcess,
    web,
)
from poolkit.testing import FakeDriver, FakeServer, ManualRuntime


@pytest.mark.parametrize(
    ("retry_after", "header"),
    [(None, "1"), (0.0, "1"), (0.2, "1"), (1.0, "1"), (1.001, "2"), (4.5, "5"), (60.0, "60"), (-3.0, "1")],
)
def test_when_to_come_back(retry_after: float | None, header: str) -> None:
    """Whole seconds, rounded up: who comes back too early is refused again. At least one."""
    reply = web.unavailable(Overloaded("main", "busy", retry_after=retry_after))
    assert reply == (503, {"error": "service unavailable"}, {"Retry-After": header, "Cache-Control": "no-store"})


def test_the_503_tells_nothing_of_the_inside() -> None:
    """Neither the pool's name nor who holds what is for the client."""
    reply = web.unavailable(AcquireTimeout("billing", "secret detail", retry_after=3.0))
    assert "billing" not in str(reply)
    assert "secret" not in str(reply)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AcquireTimeout("m", "x"), True), (Overloaded("m", "x"), True), (OpenFailed("m", "x"), True),
        (NestedAcquire("m", "x"), True), (PoolClosed("m"), True), (CommitFailed("x", lost=True), True),
        (CommitFailed("x"), False), (WrongProcess("m"), False), (LeaseError("x"), False), (UnitOfWorkError("x"), False),
        (ConfigError("x"), False), (TimeoutError(), False), (KeyboardInterrupt(), False),
    ],
)  # fmt: skip
def test_what_is_a_503(error: BaseException, *, expected: bool) -> None:
    """What passes by itself: no connection to be had, or a server gone in the COMMIT. The rest is a fault."""
    assert web.is_unavailable(error) is expected
    if expected:
        assert isinstance(error, web.UNAVAILABLE)
        assert web.unavailable(error).headers["Retry-After"] == "1"


def registry(server: FakeServer) -> Registry:
    made = Registry({"default": {"url": "sqlite:///never"}})
    made._pools["default"] = Pool(FakeDriver(server), runtime=ManualRuntime())
    return made


def test_health_needs_no_connection() -> None:
    """The process lives; whether it can serve is another question."""
    assert web.health() == (200, {"status": "ok"}, {"Cache-Control": "no-store"})


async def test_readiness() -> None:
    """Ready where every pool can serve; else a 503 that says when to ask again."""
    server = FakeServer()
    up = registry(server)
    assert web.ready(up).status == (await web.aready(up)).status == 200
    server.down = True
    server.kill()
    down = Registry({"default": {"url": "sqlite:////no/such/folder/x.db", "open_timeout": 0.1}})
    for reply in (web.ready(down), await web.aready(down)):
        body = {"status": "not ready", "reason": "rejected"}  # the folder will not come by waiting
        assert reply == (503, body, {"Cache-Control": "no-store", "Retry-After": "1"})
    down.close()
    up.close()


def test_the_numbers_are_plain_data() -> None:
    """The page is JSON: this worker's pools with their holders, and the clients."""
    made = registry(FakeServer())
    lease = made.pool().acquire()
    lease.label("GET /orders")
    body = json.loads(json.dumps(web.stats(made).body))
    assert body["pid"] == os.getpid()
    (pool,) = body["pools"]
    assert (pool["name"], pool["out"], pool["holders"]) == ("default", 1, ["GET /orders for 0.00 s, idle"])
    assert body["clients"] == {}
    assert web.forbidden().status == 403


LOCAL = {"Host": "localhost:8000"}


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::ffff:7f00:1", True),
        ("::1%lo", True), ("0:0:0:0:0:0:0:1", True), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("::", False),
        ("0.0.0.0", False), ("", False), (None, False), ("localhost", False), ("unix:", False), ("testclient", False),
        ("127.0.0.1:80", False), ("[::1]", False), ("2130706433", False), ("::127.0.0.1", False),
    ],
)  # fmt: skip
def test_loopback_may_see_the_numbers_where_the_settings_say_so(remote: str | None, *, expected: bool) -> None:
    """Whoever is on this machine may, by whichever form of its address; a unix socket and a name prove nothing."""
    assert web.may_see_stats(remote, LOCAL, None, "loopback") is expected
    assert not web.may_see_stats(remote, LOCAL, None)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("LOCALHOST:8000", True), ("127.0.0.1:80", True), ("127.9.9.9", True), ("[::1]", True),
        ("[::1]:8000", True), ("evil.example", False), ("evil.example:80", False), ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False), ("10.0.0.1", False), ("[::2]:80", False), ("", False), (None, False),
        ("localhost, evil.example", False),
    ],
)  # fmt: skip
def test_the_request_must_be_addressed_to_this_machine(host: str | None, *, expected: bool) -> None:
    """A name that an attacker's DNS leads to 127.0.0.1 is no name of this machine; a request without one is refused."""
    headers = {} if host is None else {"HOST": host}
    assert web.may_see_stats("127.0.0.1", headers, None, "loopback") is expected


@pytest.mark.parametrize("stats", ["open", "", 1, True, ["loopback"], "LOOPBACK"])
def test_a_setting_that_opens_nothing_is_refused(stats: object) -> None:
    """There is one way to open the numbers, and it is spelled in one way."""
    assert web.stats_fault(stats) == f"must be 'loopback', or None, not {type(stats).__name__}"
    assert web.stats_fault(None) is web.stats_fault("loopback") is None


@pytest.mark.parametrize(
    "header",
    ["Forwarded", "X-Forwarded-For", "x-forwarded-host", "X-FORWARDED-PROTO", "X-Real-IP", "Via", "CF-Connecting-IP",
     "True-Client-IP", "X-Client-IP", "X-Forwarded", "X-Forwarded-Port", "X-Forwarded-Server"],
)  # fmt: skip
def test_a_forwarded_request_is_not_from_loopback(header: str) -> None:
    """Behind a proxy on the same machine everybody comes from loopback: a header of a proxy takes the right away."""
    assert not web.may_see_stats("127.0.0.1", {**LOCAL, header: ""}, None, "loopback")
    assert web.may_see_stats("127.0.0.1", {**LOCAL, "Accept": "x", "X-Request-Id": "1"}, None, "loopback")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Bearer tökén", True), ("bearer tökén", True), ("BEARER  tökén ", True), ("Bearer", False), ("Bearer ", False),
        ("Basic tökén", False), ("tökén", False), ("Bearer tökén x", False), ("Bearer TÖKÉN", False), ("", False),
        (None, False), ("Bearer \udcff", False),
    ],
)  # fmt: skip
def test_a_token_is_the_only_key(given: str | None, *, expected: bool) -> None:
    """With a token set, loopback is not enough and forwarding no hindrance: the token decides, whole and exact."""
    headers: dict[str, Any] = LOCAL if given is None else {**LOCAL, "AUTHORIZATION": given}
    assert web.may_see_stats("127.0.0.1", headers, "tökén") is expected
    assert web.may_see_stats("8.8.8.8", {**headers, "Via": "x"}, "tökén") is expected


def test_a_token_as_a_server_hands_it_on() -> None:
    """Servers read headers as latin-1: a token outside of ASCII arrives in that form, and is the same."""
    arrived = "Bearer tökén".encode().decode("latin-1")
    assert web.may_see_stats(None, {"Authorization": arrived}, "tökén")
