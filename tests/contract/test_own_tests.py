"""The shops' own tests, run as their READMEs say; and their tables, which are the same."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg
import pytest
from psycopg.rows import TupleRow
from shop_database import own_database
from shop_server import ROOT

from example_projects.database import prepare
from example_projects.serve import Tables

COMMANDS = {
    "flask": ["pytest", "-q", "example_projects/flask_shop"],
    "fastapi": ["pytest", "-q", "example_projects/fastapi_shop"],
    "django": ["example_projects.django_shop.manage", "test", "example_projects.django_shop"],
}


@pytest.mark.slow
@pytest.mark.parametrize("framework", COMMANDS)
def test_the_own_tests_of_a_shop_pass(framework: str, pg_dsn: str) -> None:
    """They are documentation, so they have to be true."""
    own_tests_pass(framework, pg_dsn)


@pytest.mark.slow
def test_djangos_pass_on_mariadb(mysql_dsn: str) -> None:
    """There, too."""
    own_tests_pass("django", mysql_dsn)


def own_tests_pass(framework: str, server: str) -> None:
    with own_database(server) as dsn:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", *COMMANDS[framework]],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": dsn, "PRICING_URL": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stdout + done.stderr


def columns(dsn: str) -> list[TupleRow]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(
            "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity "
            "FROM information_schema.columns WHERE table_name IN ('products', 'users', 'orders') ORDER BY 1, 2"
        ).fetchall()


@pytest.mark.slow
def test_the_tables_are_the_same(pg_dsn: str) -> None:
    """Plain SQL and Django's migration make the same columns, and either finds the other's work done."""
    with own_database(pg_dsn) as plain, own_database(pg_dsn) as migrated:
        prepare(plain)
        before = columns(plain)
        environ = {**os.environ, "PRICING_URL": "http://127.0.0.1:9"}
        for dsn in (migrated, plain):
            prepare(dsn, Tables("django", {**environ, "DATABASE_URL": dsn}).make)
        prepare(migrated)
        assert columns(migrated) == columns(plain) == before
        assert len(before) == 12
