"""Servers for the tests: by environment variable, else started privately, else skipped with the reason.

POOLKIT_TEST_PG_DSN names a running PostgreSQL, as a URL, POOLKIT_TEST_MYSQL_DSN a MariaDB or MySQL; a set variable is
used and never passed over, so a wrong one fails. POOLKIT_TEST_REQUIRE (`postgres`, `mysql`, a list with commas, or
`all`) turns a missing server from a skip into a failure; `all,-mysql` makes an exception.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn
from urllib.parse import urlsplit

import psycopg
import pymysql
import pytest
from psycopg import sql

from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.testing.mariadb import LocalMariadb, MariadbNotFound
from poolkit.testing.postgres import LocalPostgres, PostgresNotFound

Unavailable = Callable[[str, str], NoReturn]

for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    # A shell's background job ignores Ctrl-C, one under nohup the end of its terminal: so would every program started
    # here.
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(scope="session")
def unavailable() -> Unavailable:
    """Skip for want of a service, `unavailable("redis", "why, and what to set")`; fail if the run requires it."""
    required = {name.strip() for name in os.environ.get("POOLKIT_TEST_REQUIRE", "").split(",")}

    def unavailable(service: str, why: str) -> NoReturn:
        if required & {service, "all"} and f"-{service}" not in required:
            pytest.fail(f"{service} is required (POOLKIT_TEST_REQUIRE) but {why}", pytrace=False)
        pytest.skip(f"{service}: {why}")

    return unavailable


@pytest.fixture(scope="session")
def pg_dsn(unavailable: Unavailable) -> Iterator[str]:
    """The URL of an empty database of this run, on a server that is not to be stopped: see `private_pg` for that."""
    running = os.environ.get("POOLKIT_TEST_PG_DSN")
    if running:
        with _database(running) as url:
            yield url
        return
    try:
        # Without the interval a statement whose client was killed runs on, and one test finds what another has left.
        server = LocalPostgres(max_connections=200, client_connection_check_interval="200ms").start()
    except PostgresNotFound as error:
        unavailable("postgres", f"{error}, or set POOLKIT_TEST_PG_DSN to the URL of a running server")
    with server, _database(server.dsn) as url:
        yield url


@pytest.fixture(scope="session")
def _private_server(unavailable: Unavailable) -> Iterator[LocalPostgres]:
    try:
        server = LocalPostgres().start()
    except PostgresNotFound as error:
        unavailable("postgres", f"{error} (a server that runs already is no help: this test stops and kills it)")
    with server:
        yield server


@pytest.fixture
def private_pg(_private_server: LocalPostgres) -> Iterator[LocalPostgres]:
    """A server to stop, kill or pause at will; it is up again, with its data, for the next test."""
    yield _private_server
    _private_server.resume()
    _private_server.start()


@contextlib.contextmanager
def _database(url: str) -> Iterator[str]:
    """Make a database with a name of its own, and drop it whoever is still connected: a server may outlive the run."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        pytest.fail("POOLKIT_TEST_PG_DSN must be a URL: postgresql://user:password@host:port/database", pytrace=False)
    name = f"poolkit_{secrets.token_hex(4)}"
    query = f"?{parts.query}" if parts.query else ""
    _administer(url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield f"{parts.scheme}://{parts.netloc}/{name}{query}"
    finally:
        _administer(url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _administer(url: str, command: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(command)


@pytest.fixture(scope="session")
def mysql_dsn(unavailable: Unavailable) -> Iterator[str]:
    """The URL of an empty MariaDB or MySQL database of this run, on a server that is not to be stopped."""
    running = os.environ.get("POOLKIT_TEST_MYSQL_DSN")
    if running:
        with _mysql_database(running) as url:
            yield url
        return
    try:
        server = LocalMariadb().start()
    except MariadbNotFound as error:
        unavailable("mysql", f"{error}, or set POOLKIT_TEST_MYSQL_DSN to the URL of a running server")
    with server, _mysql_database(server.dsn) as url:
        yield url


@contextlib.contextmanager
def _mysql_database(url: str) -> Iterator[str]:
    """Make a database with a name of its own, and drop it: a server may outlive the run."""
    driver = PymysqlDriver(url)
    name = f"poolkit_{secrets.token_hex(4)}"
    _tell_mysql(driver, f"CREATE DATABASE {name}")
    parts = urlsplit(url)
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        _tell_mysql(driver, f"DROP DATABASE {name}")


def _tell_mysql(driver: PymysqlDriver, statement: str) -> None:
    admin: pymysql.connections.Connection = driver.open(10)
    try:
        admin.query(statement)
    finally:
        driver.close(admin)
