"""A program on one of MySQL's two libraries, in a process of its own: it ends well where all of this holds."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from django.db import OperationalError, connection

WANTED, URL = sys.argv[1:]
PLACES = {"pymysql": "poolkit.drivers._pymysql_connection", "mysqlclient": "poolkit.drivers.mysqlclient"}


def take_library() -> None:
    """As on a machine that has this library alone; or has both, and PyMySQL installed under the other's name."""
    if WANTED == "neither":
        sys.modules["MySQLdb"] = sys.modules["pymysql"] = None  # type: ignore[assignment]
    elif WANTED == "pymysql":
        sys.modules["MySQLdb"] = None  # type: ignore[assignment]
    elif WANTED == "installed as":
        pymysql: Any = importlib.import_module("pymysql")
        pymysql.version_info = (2, 2, 8, "final", 0)
        pymysql.install_as_MySQLdb()


def configure() -> None:
    """Django, with one alias."""
    parts = urlsplit(URL)
    place = {"HOST": parts.hostname, "PORT": str(parts.port), "NAME": parts.path[1:]}
    account = {"USER": parts.username, "PASSWORD": unquote(parts.password or "")}
    entry = {"ENGINE": "poolkit_django.backends.mysql", **place, **account, "OPTIONS": {"pool": {"max_size": 3}}}
    settings.configure(SECRET_KEY="none", INSTALLED_APPS=["poolkit_django"], DATABASES={"default": entry})
    django.setup()


def run(query: str) -> list[tuple[Any, ...]]:
    """The rows of a statement."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def procedures(pool: Any) -> None:
    """Several results of one call, and many rows at once; the connection goes back as good as new."""
    with connection.cursor() as cursor:
        cursor.execute("DROP PROCEDURE IF EXISTS two_results")
        cursor.execute("CREATE PROCEDURE two_results(IN word INT) BEGIN SELECT word; SELECT word + 1; END")
    for _ in range(3):
        with connection.cursor() as cursor:
            cursor.callproc("two_results", [41])
            found = list(cursor.fetchall())
            while cursor.nextset():
                found += cursor.fetchall()
        assert found[:2] == [(41,), (42,)], found
        connection.close()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE many (word INT)")
        cursor.executemany("INSERT INTO many VALUES (%s)", [(number,) for number in range(1000)])
        cursor.execute("SELECT count(*) FROM many")
        assert cursor.fetchone() == (1000,)
        cursor.execute("DROP TABLE many")
    connection.close()
    run("DROP PROCEDURE two_results")
    connection.close()
    assert pool.stats().opened == 1, pool.stats()


def cutting(pool: Any) -> None:
    """Whoever is in a statement as his database is dropped is thrown out; nothing waits for him."""
    pools: Any = importlib.import_module("poolkit_django.backends.pools")
    ended: list[type[BaseException]] = []
    driver = pools.known(connection).driver

    def sleep() -> None:
        try:
            run("SELECT SLEEP(30)")
        except OperationalError as error:
            ended.append(type(error))
        connection.close()

    thread = threading.Thread(target=sleep)
    thread.start()
    wait_for(lambda: any(conn._busy for conn in driver._opened))
    began = time.monotonic()
    pools.close_database(connection)
    thread.join(20)
    assert not thread.is_alive()
    assert time.monotonic() - began < 10
    assert ended == [OperationalError], ended
    assert pool.stats().size == 0, pool.stats()
    assert run("SELECT 1") == [(1,)]


def forking() -> None:
    """A child never uses the parent's connection, and ends without a word on it."""
    number = run("SELECT CONNECTION_ID()")
    if not (child := os.fork()):
        own = run("SELECT CONNECTION_ID()")
        connection.close()
        os._exit(0 if own != number else 9)
    assert os.waitpid(child, 0)[1] == 0
    assert run("SELECT CONNECTION_ID()") == number
    connection.close()
    assert run("SELECT CONNECTION_ID()") == number


def wait_for(what: Callable[[], Any]) -> None:
    """Ask until it is so."""
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def main() -> None:
    """All of it, on the library that was asked for."""
    take_library()
    configure()
    assert run("SELECT 40 + 2") == [(42,)]
    assert type(connection.connection).__module__ == PLACES.get(WANTED, PLACES["pymysql"])
    connection.close()
    pools = importlib.import_module("poolkit_django.backends.pools")
    pool = pools.pool_for(connection)
    procedures(pool)
    cutting(pool)
    forking()
    pools.close_all()


if __name__ == "__main__":
    main()
