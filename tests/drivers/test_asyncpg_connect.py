"""asyncpg: what a URL says is understood or refused at construction, and every address of it is tried in time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import ssl
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from poolkit.drivers._asyncpg_connect import Place, Target
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.errors import ConfigError

HOST = "postgresql+asyncpg://ann:s3cret@db.example:6543/shop"


def target(query: str, **options: Any) -> Target:
    return Target(f"{HOST}?{query}", options, "")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"user": "ann", "password": "s3cret", "database": "shop", "host": ["db.example"], "port": [6543]}),
        ("sslmode=require", {"dsn": "postgresql://?sslmode=require"}),
        ("ssl=require", {"dsn": "postgresql://?sslmode=require"}),  # SQLAlchemy
        ("ssl=true", {"dsn": "postgresql://?sslmode=require"}),  # Heroku, JDBC
        ("sslmode=require&options=endpoint%3Dep-cool-1", {"server_settings": {"options": "endpoint=ep-cool-1"}}),
        ("options=-csearch_path%3Dapp+x", {"server_settings": {"options": "-csearch_path=app+x"}}),
        ("sslmode=prefer&channel_binding=prefer&gssencmode=disable", {"dsn": "postgresql://?sslmode=prefer"}),
        ("pgbouncer=true&connect_timeout=15", {"statement_cache_size": 0}),  # Prisma, Supabase
        ("prepared_statement_cache_size=0&async_fallback=true", {"statement_cache_size": 0}),  # SQLAlchemy
        ("supa=base-pooler.x&workaround=supabase-pooler.vercel", {}),
        ("application_name=web", {"server_settings": {"application_name": "web"}}),
        ("target_session_attrs=primary", {"target_session_attrs": "primary"}),
        ("client_encoding=utf8&fallback_application_name=psql", {"server_settings": {"application_name": "psql"}}),
        ("sslrootcert=system&sslmode=verify-full", {"ssl": True}),
        ("passfile=/nowhere", {"passfile": "/nowhere"}),
    ],
)
def test_a_url_of_a_platform_works(query: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a platform or another library puts into a URL is understood as it is meant, white space around it or not."""
    monkeypatch.delenv("PGAPPNAME", raising=False)
    for url in (f"{HOST}?{query}", f" {HOST.replace('+asyncpg', '')}?{query}\n"):
        found = Target(url, {}, "").arguments
        for name, value in expected.items():
            assert (found[name] if not isinstance(value, dict) else {**found[name], **value}) == (
                value if not isinstance(value, dict) else found[name]
            )
        assert not {"sslmode", "pgbouncer", "connect_timeout"} & (found.keys() | found["server_settings"].keys())


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmode=require&channel_binding=require", "channel_binding can only be prefer or disable with asyncpg"),
        ("gssencmode=require", "gssencmode can only be prefer or disable with asyncpg"),
        ("client_encoding=latin1", "client_encoding can only be utf8 or utf-8 or auto with asyncpg"),
        ("hostaddr=10.0.0.1", "'hostaddr' can't be set: write the address in the place of the host"),
        ("replication=database", "'replication' can't be set: asyncpg has nothing like it"),
        ("requirepeer=x", "'requirepeer' can't be set: asyncpg has nothing like it"),
        ("connection_limit=5", "connection_limit is another pool's setting: here it is pool_max_size"),
        ("schema=app&pgbouncer=true", "schema is set at the start of a session"),
        ("search_path=app", "search_path is a setting of the server: write options=-csearch_path%3DVALUE"),
        ("command_timeout=5", "command_timeout is asyncpg's"),
        ("connect_timeout=soon", "connect_timeout must be a whole number"),
        ("target_session_attrs=writer", "asyncpg can't connect like this: target_session_attrs is expected to be"),
        ("sslmode=verify-ca&sslrootcert=/nowhere.pem", "asyncpg can't connect like this"),
        ("sslnegotiation=direct", "asyncpg can't connect like this: direct TLS requires sslmode=require"),
        ("sslrootcert=system&sslmode=require", "sslrootcert=system goes with sslmode=verify-full"),
        ("sslmod=require", "unknown option 'sslmod': did you mean 'sslmode'?"),
    ],
)
def test_what_can_not_be_is_refused_at_construction(query: str, said: str) -> None:
    """A parameter that asyncpg has no use for is refused in one sentence, before anybody waits for a server."""
    with pytest.raises(ConfigError) as caught:
        AsyncpgDriver(f"{HOST}?{query}")
    (problem,) = caught.value.problems
    assert said in problem
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://app:?S3CRET@127.0.0.1:1/shop", "postgresql+asyncpg://app:42?S3CRET@127.0.0.1:1/shop",
        "postgresql+asyncpg://app:12/S3CRET@127.0.0.1:1/shop", "postgresql+asyncpg://app:1#S3CRET@127.0.0.1:1/shop",
        "postgresql+asyncpg://app:a@S3CRET@127.0.0.1:1/shop", "postgresql+asyncpg://app:[S3CRET@127.0.0.1:1/shop",
        "postgresql+asyncpg://app:%S3CRET@127.0.0.1:1/shop",
    ],
)  # fmt: skip
def test_no_part_of_a_password_is_told(url: str) -> None:
    """A password that was not percent-encoded is refused, and no part of it is in the error."""
    with pytest.raises(ConfigError) as caught:
        AsyncpgDriver(url)
    assert "S3CRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "environment", "places"),
    [
        ("postgresql://u@a:1,b:2/d", {}, [("a", 1), ("b", 2)]),
        ("postgresql://u@a,b:2/d", {"PGPORT": "7"}, [("a", 7), ("b", 2)]),
        ("postgresql://u@/d?host=a,b&port=1,2", {}, [("a", 1), ("b", 2)]),
        ("postgresql://u@/d?host=a,b&port=3", {}, [("a", 3), ("b", 3)]),
        ("postgresql://u@/d", {"PGHOST": "a,b", "PGPORT": "1,2"}, [("a", 1), ("b", 2)]),
        ("postgresql://u@/d?service=mine", {}, [("a", 1), ("b", 2)]),
        ("postgresql://u@/d", {"PGSERVICE": "mine"}, [("a", 1), ("b", 2)]),
        ("postgresql://u@[::1]:5/d", {}, [("::1", 5)]),
        ("postgresql://u@%2Frun%2Fpg/d", {}, [("/run/pg/.s.PGSQL.5432", None)]),
        ("postgresql://u@/d?host=/run/pg&port=7", {}, [("/run/pg/.s.PGSQL.7", None)]),
    ],
)
def test_every_way_to_name_several_hosts(
    url: str, environment: dict[str, str], places: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Hosts are found wherever libpq finds them: in the URL, in its parameters, in the environment, in a service."""
    (tmp_path / "services").write_text("[mine]\nhost=a,b\nport=1,2\n", "utf-8")
    for name in ("PGHOST", "PGPORT", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Target(url, {}, "").places == [Place(*place) for place in places]


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent(tables: str) -> Iterator[str]:
    """A host that accepts, and never says a word."""
    with contextlib.closing(socket.create_server(("127.0.0.9", urlsplit(tables).port or 5432), backlog=64)):
        yield "127.0.0.9"


def at(url: str, hosts: str) -> str:
    """Name other hosts in a URL."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{hosts}").geturl()


async def seconds_to_connect(driver: AsyncpgDriver, timeout: float = 2.0) -> float:
    began = time.monotonic()
    conn: Any = await driver.open(timeout)
    taken = time.monotonic() - began
    assert await conn.fetchval("SELECT 1") == 1
    with pytest.raises(TimeoutError):  # a request to cancel finds the same server
        await conn.execute("SELECT pg_sleep(5)", timeout=0.05)
    await driver.reset(conn, full=False)
    driver.terminate(conn)
    return taken


NAME = "two-faced.invalid"


@pytest.mark.parametrize("how", ["name", "environment"])
def test_the_first_address_is_silent(tables: str, silent: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next address gets its share of the time, however the two were named, and is tried first from then on."""
    parts = urlsplit(tables)
    resolve = socket.getaddrinfo

    def two(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            return resolve(host, port, *rest, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, int(port))) for ip in (silent, parts.hostname)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    url = at(tables, f"{NAME}:{parts.port}" if how == "name" else "")
    if how == "environment":
        monkeypatch.setenv("PGHOST", f"{silent},{parts.hostname}")
        monkeypatch.setenv("PGPORT", f"{parts.port},{parts.port}")

    async def main() -> None:
        driver = AsyncpgDriver(url)
        assert 0.9 < await seconds_to_connect(driver) < 1.9
        assert await seconds_to_connect(driver) < 0.9

    asyncio.run(main())


def test_all_addresses_fail(tables: str, silent: str) -> None:
    """The error names the place and how long it was tried, and no other address is forgotten."""
    port = urlsplit(tables).port

    async def main() -> None:
        driver = AsyncpgDriver(at(tables, f"127.0.0.8:{port},{silent}:{port}"))
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"no connection to {silent}:{port} within") as caught:
            await driver.open(0.4)
        assert 0.3 < time.monotonic() - began < 1
        assert "before that, 127.0.0.8" in "".join(caught.value.__notes__)
        assert driver.failure_kind(caught.value) == "away"

    asyncio.run(main())


def test_a_refusal_is_told_before_an_outage(tables: str) -> None:
    """Where one server refuses and another is away, the refusal is the error: it will not pass by itself."""
    parts = urlsplit(tables)
    url = at(tables, f"{parts.hostname}:{parts.port},127.0.0.8:{parts.port}")

    async def main() -> None:
        driver = AsyncpgDriver(urlsplit(url)._replace(path="/no_such_database").geturl())
        with pytest.raises(asyncpg.InvalidCatalogNameError) as caught:
            await driver.open(2)
        assert driver.failure_kind(caught.value) == "refused"

    asyncio.run(main())


def test_a_silent_name_ends_in_time(tables: str, silent: str) -> None:
    """`connect_timeout` in the URL is the limit for each address, where it is the shorter one."""

    async def main() -> None:
        driver = AsyncpgDriver(at(tables, f"{silent}:{urlsplit(tables).port}") + "?connect_timeout=1")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await driver.open(10)
        assert 0.9 < time.monotonic() - began < 3

    asyncio.run(main())


def test_prefer_standby_takes_a_primary_where_there_is_no_other(tables: str) -> None:
    """Each address is asked for a standby first, then for anything."""
    port = urlsplit(tables).port

    async def main() -> None:
        url = at(tables, f"127.0.0.1:{port},127.0.0.1:{port}") + "?target_session_attrs="
        assert await seconds_to_connect(AsyncpgDriver(url + "prefer-standby")) < 2
        with pytest.raises(asyncpg.TargetServerAttributeNotMatched):
            await AsyncpgDriver(url + "standby").open(2)

    asyncio.run(main())


def test_the_certificate_is_checked_against_the_name() -> None:
    """A name is resolved here, and the server's certificate is still compared with the name."""
    asked: list[object] = []

    class Checked(ssl.SSLContext):
        def wrap_bio(self, *args: Any, server_hostname: Any = None, **options: Any) -> Any:
            asked.append(server_hostname)
            return super().wrap_bio(*args, server_hostname=server_hostname, **options)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"S")
        await reader.read(1)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        context = Checked(ssl.PROTOCOL_TLS_CLIENT)
        driver = AsyncpgDriver(f"postgresql://u@localhost:{port}/d", options={"ssl": context})
        with pytest.raises(OSError):
            await driver.open(1)
        server.close()

    asyncio.run(main())
    assert set(asked) == {"localhost"}


# -- secrets -----------------------------------------------------------------------------------------------------------


def shown(error: BaseException | None) -> list[str]:
    """Look at the variables along the tracebacks, as error trackers do."""
    found, seen = [], set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            found += [
                f"{frame.f_code.co_name}.{name}" for name, value in frame.f_locals.items() if SECRET in repr(value)
            ]
        error = error.__cause__ or error.__context__
    return found


SECRET = "hunter2-TOPSECRET"


@pytest.mark.parametrize("how", ["url", "callable", "coroutine", "option"])
@pytest.mark.parametrize("fault", ["refused", "silent", "password"])
def test_no_frame_keeps_the_password(tables: str, silent: str, how: str, fault: str) -> None:
    """Along the traceback of a failed connect no variable holds the password."""
    parts = urlsplit(tables)
    host = {"refused": "127.0.0.8", "silent": silent, "password": parts.hostname}[fault]
    secret = "" if how == "option" else f":{SECRET}"
    url = f"postgresql://nobody{secret}@{host}:{parts.port}/db"

    async def coroutine() -> str:
        return url

    source: Any = {"callable": lambda: url, "coroutine": coroutine}.get(how, url)
    options = {"password": SECRET} if how == "option" else {}

    async def main() -> list[str]:
        driver = AsyncpgDriver(source, options=options)
        assert SECRET not in repr(driver) + repr(driver._fixed)
        try:
            await driver.open(0.3)
        except (asyncpg.PostgresError, OSError) as error:
            return [name for name in shown(error) if not name.startswith(("main.", "test_"))]
        return ["it connected"]

    assert asyncio.run(main()) == []


def test_a_name_is_no_hindrance(tables: str) -> None:
    """A connection to a name behaves in its loop as any other: copies, timeouts, listeners, the loop itself."""
    parts = urlsplit(tables)
    if parts.hostname not in ("127.0.0.1", "localhost"):
        pytest.skip("the server has no name")

    async def main() -> None:
        driver = AsyncpgDriver(at(tables, f"localhost:{parts.port}"))
        conn: Any = await driver.open(5)
        assert conn._loop is asyncio.get_running_loop()
        heard = asyncio.Event()
        await conn.add_listener("news", lambda *_: heard.set())
        await conn.execute("NOTIFY news")
        async with asyncio.timeout(5):
            await heard.wait()
        await conn.copy_from_query("SELECT 1", output=io.BytesIO(), timeout=5)
        await driver.reset(conn, full=False)
        await driver.close(conn)

    asyncio.run(main())
