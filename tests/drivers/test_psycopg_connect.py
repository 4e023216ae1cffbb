"""psycopg: the time for a connect is shared among addresses; what failed is told as what it is."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from poolkit.drivers._psycopg_connect import Addresses, Patience
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.errors import ConfigError

NAME = "two-faced.invalid"


@pytest.fixture
def silent(tables: str) -> Iterator[str]:
    """An address that accepts, on the server's port, and never says a word."""
    with socket.create_server(("127.0.0.9", urlsplit(tables).port or 5432), backlog=64):
        yield "127.0.0.9"


@pytest.fixture
def resolved(tables: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of a name, the silent one first; a test may change them."""
    addresses = [silent, urlsplit(tables).hostname or ""]
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **keywords: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            return real(host, port, *arguments, **keywords)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port or 0))) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return addresses


def opened(kind: str, url: str, timeout: float, times: int = 1) -> list[float]:
    """Connect some times with one driver; returns how many seconds each took."""
    if kind == "sync":
        driver = PsycopgDriver(url)
        took = []
        for _ in range(times):
            begun = time.monotonic()
            driver.close(driver.open(timeout))
            took.append(time.monotonic() - begun)
        return took

    async def main() -> list[float]:
        driver: AsyncPsycopgDriver[Any] = AsyncPsycopgDriver(url)
        took = []
        for _ in range(times):
            begun = time.monotonic()
            driver.terminate(await driver.open(timeout))
            took.append(time.monotonic() - begun)
        return took

    return asyncio.run(main())


def at(url: str, host: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@{host}").geturl()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("where", ["name", "hosts", "environment", "service"])
def test_a_silent_address(  # noqa: PLR0917
    kind: str, where: str, tables: str, resolved: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first address that swallows everything takes its share of the time only, and is tried last from then on."""
    silent, real = resolved
    port = urlsplit(tables).port
    url = at(tables, "")
    if where == "name":
        url = at(tables, f"{NAME}:{port}")
    elif where == "hosts":
        url = at(tables, f"{silent}:{port},{real}:{port}")
    elif where == "environment":
        monkeypatch.setenv("PGHOST", f"{silent},{real}")
        monkeypatch.setenv("PGPORT", str(port))
    else:
        (tmp_path / "service.conf").write_text(f"[mine]\nhost={silent},{real}\nport={port}\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "service.conf"))
        url += "?service=mine"
    first, *others = opened(kind, url, 1.0, times=3)
    assert 0.4 < first < 1
    assert max(others) < 0.4


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_nobody_there(kind: str, tables: str, resolved: list[str]) -> None:
    """Where every address is silent the connect ends in time, and no message tells of a negative time."""
    resolved[1] = resolved[0]
    begun = time.monotonic()
    with pytest.raises(psycopg.OperationalError) as caught:
        opened(kind, at(tables, f"{NAME}:{urlsplit(tables).port}"), 0.6)
    assert time.monotonic() - begun < 1.5
    assert "within -" not in str(caught.value)
    assert PsycopgDriver(tables).failure_kind(caught.value) == "away"


def test_order_and_time() -> None:
    """What failed of late comes last; time that is up is nothing, not less."""
    addresses = Addresses()
    attempts = [{"host": "a"}, {"host": "b"}, {"host": "c", "port": 1}]
    addresses.failed(("a", "", ""))
    addresses.failed(("c", "", "1"))
    assert [attempt["host"] for attempt in addresses.in_order(attempts)] == ["b", "a", "c"]
    addresses.worked(("a", "", ""))
    assert [attempt["host"] for attempt in addresses.in_order(attempts)] == ["a", "b", "c"]
    patience = Patience(-1, addresses)
    assert patience.spread({"host": "a,b,c"}, attempts) == {"host": "a,b,c", "port": ",,1"}
    assert [patience.share() for _ in range(5)] == [0.0] * 5


# -- what kind of failure ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"dbname": "no_such"}, "refused"),
        ({"user": "nobody"}, "refused"),
        ({"password": "wrong"}, "refused"),
        ({"options": "-c no_such_setting=1"}, "refused"),
        ({"options": "-c work_mem=much"}, "refused"),
        ({"sslmode": "sometimes"}, "refused"),
        ({"sslmode": "require", "sslrootcert": "/nowhere"}, "refused"),
        ({"port": "1"}, "away"),
        ({"host": "no-such-host.invalid"}, "away"),
    ],
    ids=str,
)
def test_failure_kind(tables: str, change: dict[str, str], kind: str) -> None:
    """What only a change of settings can help is refused; what may be there again in a moment is away."""
    driver = PsycopgDriver(tables, options=change)
    with pytest.raises(psycopg.Error) as caught:
        driver.open(5)
    assert driver.failure_kind(caught.value) == kind
    if kind == "refused":
        asynchronous: AsyncPsycopgDriver[Any] = AsyncPsycopgDriver(tables, options=change)
        with pytest.raises(psycopg.Error) as caught:
            asyncio.run(asynchronous.open(5))
        assert asynchronous.failure_kind(caught.value) == kind


def test_failure_kinds_of_other_errors() -> None:
    """Errors are told by their own kind and cause; too many connections pass."""
    kind = PsycopgDriver("postgresql://h/db").failure_kind
    assert kind(ConfigError("x", "y")) == "refused"
    assert kind(psycopg.errors.TooManyConnections("x")) == "away"
    assert kind(psycopg.errors.UndefinedTable("configure failed")) == "refused"
    assert kind(TimeoutError("x")) == "away"


def test_is_retryable() -> None:
    """Only psycopg's own errors of a deadlock or a serialization failure are worth another try."""
    is_retryable = PsycopgDriver("postgresql://h/db").is_retryable
    assert is_retryable(psycopg.errors.DeadlockDetected("x"))
    assert is_retryable(psycopg.errors.SerializationFailure("x"))
    assert not is_retryable(psycopg.errors.UniqueViolation("x"))
    assert not is_retryable(KeyError("40001"))


@pytest.mark.parametrize("how", ["role", "database"])
def test_read_only_by_default_is_no_demotion(tables: str, admin: psycopg.Connection[Any], how: str) -> None:
    """A refused write says nothing of the server where the role or the settings are read-only by default."""
    admin.execute("DROP ROLE IF EXISTS trust_reader")
    admin.execute("CREATE ROLE trust_reader LOGIN PASSWORD 'x'")
    try:
        admin.execute("GRANT ALL ON item TO trust_reader")
        url, options = tables, {}
        if how == "role":
            admin.execute("ALTER ROLE trust_reader SET default_transaction_read_only = on")
            options = {"user": "trust_reader", "password": "x"}
        else:
            options = {"session_settings": {"default_transaction_read_only": True}}
        driver = PsycopgDriver(url, options=options)
        conn = driver.open(10)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
            conn.execute("INSERT INTO item VALUES (1)")
        assert not driver.demoted(conn, caught.value)
        assert not driver.is_broken(conn, caught.value)
        driver.close(conn)
    finally:
        admin.execute(sql.SQL("DROP OWNED BY trust_reader"))
        admin.execute("DROP ROLE trust_reader")
