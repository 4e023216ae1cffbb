"""docs/multi-tenant.md: every block of it runs, and shows each tenant its own rows and nobody else's."""

from __future__ import annotations

import re
import secrets
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask

import poolkit_fastapi
import poolkit_flask
from poolkit import ConfigError, Pool

PAGE = (Path(__file__).parents[2] / "docs" / "multi-tenant.md").read_text("utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
TENANTS = {"acme": 2, "globex": 1, "it's; DROP": 0}


@pytest.fixture(scope="module")
def dsn(pg_dsn: str) -> Iterator[str]:
    """The URL of a role that no policy lets pass, with the table of the page and rows of two tenants."""
    role = f"tenant_{secrets.token_hex(3)}"
    with psycopg.connect(pg_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT CREATE ON SCHEMA public TO {role}")
        conn.execute(f"GRANT CREATE ON DATABASE {conn.info.dbname} TO {role}")
    url = re.sub(r"//[^@/]*@?", f"//{role}:secret@", pg_dsn, count=1)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(BLOCKS["rls.sql"])
        for tenant, count in TENANTS.items():
            conn.execute("SELECT set_config('app.tenant', %s, false)", (tenant,))
            for _ in range(count):
                conn.execute("INSERT INTO invoices (amount) VALUES (1)")
    yield url
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("DROP TABLE invoices")


def run(name: str, **names: Any) -> dict[str, Any]:
    exec(compile(textwrap.dedent(BLOCKS[name]), name, "exec"), names)
    return names


def test_every_block_has_its_test() -> None:
    """A block that is added to the page is named here, or this fails."""
    assert PAGE.count("\n```") == 2 * len(BLOCKS)
    assert set(BLOCKS) == {
        "rls.sql", "anywhere.py", "flask_tenant.py", "fastapi_tenant.py", "django_tenant.py", "schema.py",
    }  # fmt: skip


def test_anywhere(dsn: str) -> None:
    """Each transaction sees and adds its own tenant's rows, on one connection."""
    add_invoice = run("anywhere.py")["add_invoice"]
    with psycopg.connect(dsn) as conn:
        before = conn.execute("SELECT count(*) FROM invoices").fetchone()
    assert before == (0,), "without a tenant nothing is seen"
    pool = Pool(dsn, max_size=1)
    assert [add_invoice(pool, tenant, 5) for tenant in ("new", "other", "new")] == [1, 1, 2]
    with pool.acquire() as conn:
        assert conn.execute("SELECT count(*) FROM invoices").fetchone() == (0,)
    pool.close(5)


@pytest.mark.parametrize("settings", [None, {"app.tenant": ""}])
def test_without_a_tenant_nothing_is_seen_or_written(dsn: str, settings: dict[str, str] | None) -> None:
    """Also on a session that has served a tenant: there the setting is an empty text, and no error."""
    pool = Pool(dsn, max_size=1)
    try:
        with pool.transaction(settings={"app.tenant": "acme"}) as conn:
            assert conn.execute("SELECT count(*) FROM invoices").fetchone() == (TENANTS["acme"],)
        with pytest.raises(psycopg.errors.InsufficientPrivilege), pool.transaction(settings=settings) as conn:
            conn.execute("INSERT INTO invoices (amount) VALUES (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), pool.transaction(settings=settings) as conn:
            conn.execute("INSERT INTO invoices (tenant, amount) VALUES ('', 1)")
        with pool.transaction(settings=settings) as conn:
            assert conn.execute("SELECT count(*) FROM invoices").fetchone() == (0,)
    finally:
        pool.close(5)


def test_flask(dsn: str) -> None:
    """The tenant of the request's header holds for all of the request, and for no other."""
    app = Flask("tenants")
    app.config["POOLKIT"] = {"default": {"url": dsn, "max_size": 1}}
    db = poolkit_flask.Poolkit(app)
    run("flask_tenant.py", app=app, db=db)
    client = app.test_client()
    for tenant, count in [*TENANTS.items(), *TENANTS.items()]:
        assert client.get("/invoices", headers={"X-Tenant": tenant}).json == {"count": count}
        assert client.get("/invoices").json == {"count": 0}
    acquired = db.pool().stats().acquired
    assert client.get("/nowhere").status_code == 404
    assert db.pool().stats().acquired == acquired
    db.close(app, 5)


def test_fastapi(dsn: str) -> None:
    """The dependency gives each request the connection of its tenant."""
    db, app = poolkit_fastapi.Poolkit({"default": {"url": dsn, "max_size": 1}}), FastAPI()
    db.init_app(app)
    run("fastapi_tenant.py", app=app, db=db)
    with TestClient(app) as client:
        for tenant, count in [*TENANTS.items(), *TENANTS.items()]:
            assert client.get("/invoices", headers={"X-Tenant": tenant}).json() == {"count": count}
        assert client.get("/invoices").status_code == 422


def test_a_schema_for_each_tenant(dsn: str) -> None:
    """The search path is that of the transaction; a name with quotes in it is a name."""
    in_schema = run("schema.py")["in_schema"]
    schemas = {"one": 1, 'tw"o': 2}
    pool = Pool(dsn, max_size=1)
    try:
        for schema, count in schemas.items():
            with pool.transaction() as conn:
                name = psycopg.sql.Identifier(schema)
                conn.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(name))
                conn.execute(psycopg.sql.SQL("CREATE TABLE {}.notes (word text)").format(name))
                for _ in range(count):
                    conn.execute(psycopg.sql.SQL("INSERT INTO {}.notes VALUES ('x')").format(name))
        assert [in_schema(pool, schema) for schema in [*schemas, *schemas]] == [1, 2, 1, 2]
    finally:
        with pool.transaction() as conn:
            for schema in schemas:
                conn.execute(psycopg.sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(psycopg.sql.Identifier(schema)))
        pool.close(5)


def test_drivers_that_take_no_settings_say_so() -> None:
    """The page names them: each refuses in one sentence, before it connects."""
    for url in ("sqlite:///tenants.db", "mysql+pymysql://x@127.0.0.1:1/x"):
        pool: Pool[Any] = Pool(url)
        with pytest.raises(ConfigError, match=r"options|for one transaction"):
            pool.transaction(settings={"app.tenant": "acme"})
