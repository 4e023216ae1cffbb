"""URLs as users of other libraries and of hosting platforms have them: each works, or is refused in one sentence."""

from __future__ import annotations

import re
import socket
from typing import Any, NoReturn

import pytest

from poolkit import ConfigError, Pool, PoolConfig, Registry
from poolkit.drivers import SCHEMES, hide_password, split_settings
from poolkit.drivers.psycopg import PsycopgDriver
from poolkit.drivers.psycopg2 import Psycopg2Driver

HOST = "postgresql://ann:s3cret@db.example:5432/shop"


def psycopg(url: str) -> dict[str, Any]:
    return PsycopgDriver(url)._conninfo(5)


def psycopg2(url: str) -> dict[str, Any]:
    return Psycopg2Driver(url)._arguments(5)


BOTH = pytest.mark.parametrize("parameters", [psycopg, psycopg2])


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no name found: the hosts here are not there, and a name server may take seconds to say so."""

    def getaddrinfo(host: str, *_: Any, **__: Any) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, f"no {host} in a test")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@BOTH
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sslmode=require&channel_binding=require", {"sslmode": "require", "channel_binding": "require"}),  # Neon
        ("sslmode=require&options=endpoint%3Dep-cool-1", {"sslmode": "require", "options": "endpoint=ep-cool-1"}),
        ("sslmode=require&pgbouncer=true&connect_timeout=15", {"sslmode": "require", "connect_timeout": "15"}),
        ("sslmode=require&supa=base-pooler.x", {"sslmode": "require"}),  # Supabase on Vercel
        ("pgbouncer=true&workaround=supabase-pooler.vercel", {}),
        ("sslmode=verify-full&sslrootcert=/etc/rds.pem", {"sslmode": "verify-full", "sslrootcert": "/etc/rds.pem"}),
        ("sslmode=require&uselibpqcompat=true", {"sslmode": "require"}),  # node-postgres
        ("ssl=true", {"sslmode": "require"}),  # Heroku's and JDBC's spelling
        ("ssl=require", {"sslmode": "require"}),  # SQLAlchemy with asyncpg
        ("ssl=false", {"sslmode": "disable"}),
        ("SSL=verify-ca", {"sslmode": "verify-ca"}),
        ("client_encoding=utf8&application_name=web", {"client_encoding": "utf8", "application_name": "web"}),
        ("host=/var/run/postgresql", {"host": "/var/run/postgresql"}),  # SQLAlchemy and dj-database-url
        ("prepared_statement_cache_size=0&async_fallback=true", {}),
        ("schema=public", {"options": '-csearch_path="public"'}),  # Prisma
        ("schema=public&pgbouncer=true", {}),
        ("options=-cwork_mem%3D1MB&schema=a%20b", {"options": '-cwork_mem=1MB -csearch_path="a\\ b"'}),
        ("options=-csearch_path%3Dapp+x", {"options": "-csearch_path=app+x"}),  # a + is a +, as libpq has it
    ],
)
def test_a_url_of_a_platform_works(parameters: Any, query: str, expected: dict[str, str]) -> None:
    """What a platform or another library puts into the URL is understood as it is meant."""
    for scheme in ("postgresql", "postgres", "postgresql+psycopg2", "POSTGRES"):
        found = parameters(f" {HOST.replace('postgresql', scheme)}?{query}\n")
        assert {**found, **expected} == found
        assert (found["host"] if "host" not in expected else "db.example", found["dbname"]) == ("db.example", "shop")
        assert not {"pgbouncer", "supa", "ssl", "workaround"} & found.keys()


@BOTH
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("schema=app&pgbouncer=true", "schema is set at the start of a session, which a pooler in transaction mode"),
        ("connection_limit=5", "connection_limit is another pool's setting: here it is pool_max_size"),
        ("sslaccept=strict", "sslaccept is Prisma's: here it is sslmode"),
        ("currentSchema=app", "currentSchema is JDBC's: write options=-csearch_path%3DNAME"),
        ("statement_timeout=5000", "statement_timeout is a setting of the server: write options=-cstatement_timeout"),
        ("conn_max_age=600", "conn_max_age is another pool's setting: here it is pool_max_lifetime"),
        ("max_overflow=10", "max_overflow is another pool's setting"),
        ("sslmode=no-verify", "sslmode=no-verify is node-postgres's: here it is sslmode=require"),
        ("sslmode=on", "sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("ssl=yes-please", "ssl must be one of disable"),
        ("pgbouncer=maybe", "pgbouncer can only be"),
        ("prepareThreshold=3", "prepareThreshold "),
        ("host=one:5432&host=two:5432", "host is given twice: several hosts stand side by side"),
        ("sslmode=require&ssl=true", None),
        ("conect_timeout=5", "unknown option 'conect_timeout': did you mean 'connect_timeout'?"),
        ("zzz=5", "unknown option 'zzz': known are "),
        ("dsn=x", "option 'dsn' can't be set"),
    ],
)
def test_what_has_no_meaning_here_is_refused_in_one_sentence(parameters: Any, query: str, said: str | None) -> None:
    """A parameter that belongs to another library is named, with what to write instead; its value is not shown."""
    if said is None:
        assert parameters(f"{HOST}?{query}")["sslmode"] == "require"
        return
    with pytest.raises(ConfigError) as caught:
        parameters(f"{HOST}?{query}")
    (problem,) = caught.value.problems
    assert said in problem or (said.startswith("option 'dsn'") and "dsn" in problem)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "option", "threshold"),
    [("", {}, 5), ("pgbouncer=true", {}, None), ("pgbouncer=false", {}, 5), ("prepared_statements=false", {}, None),
     ("prepareThreshold=0", {}, None), ("statement_cache_size=0", {}, None),
     ("pgbouncer=true", {"prepare_threshold": 3}, 3)],
)  # fmt: skip
def test_a_pooler_gets_no_prepared_statements(query: str, option: dict[str, Any], threshold: int | None) -> None:
    """What asks for no prepared statements, in whatever spelling, has psycopg prepare none; an option wins."""
    driver = PsycopgDriver(f"{HOST}?{query}", options=option)
    assert driver._conninfo(5)["prepare_threshold"] == threshold


CODE = {"configure", "setup", "ping", "on_close"}


@pytest.mark.parametrize("name", sorted(CODE))
def test_a_url_brings_no_code(name: str) -> None:
    """What is imported and called stands in the settings, not in a URL."""
    with pytest.raises(ConfigError, match=f"pool_{name} names code, which a URL can't bring"):
        split_settings(f"{HOST}?pool_{name}=os.system", {})


@pytest.mark.parametrize("name", [name for name in PoolConfig.names() if name not in CODE])
def test_every_setting_of_a_pool_can_stand_in_the_url(name: str) -> None:
    """`pool_` and the name of a setting; what is left of the URL is the library's."""
    rule = PoolConfig.__dataclass_fields__[name].metadata["rule"]
    value: Any = rule.choices[-1] if rule.choices else 0.5 if name == "lifetime_jitter" else 3
    url, settings = split_settings(f"{HOST}?sslmode=require&pool_{name}={value}&connect_timeout=2", {})
    assert (url, settings) == (f"{HOST}?sslmode=require&connect_timeout=2", {name: value})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("pool_size=4&pool_timeout=2.5", {"max_size": 4, "timeout": 2.5}),
        ("pool_recycle=-1", {"max_lifetime": None}),
        ("pool_pre_ping=true", {"check_after": 0.0}),
        ("pool_use_lifo=false", {"order": "fifo"}),
        ("pool_reset_on_return=rollback", {"reset": "auto"}),
        ("pool_max_lifetime=none", {"max_lifetime": None}),
    ],
)
def test_the_names_of_other_pools_can_stand_there_too(query: str, expected: dict[str, Any]) -> None:
    """SQLAlchemy's names mean in a URL what they mean beside it."""
    assert split_settings(f"{HOST}?{query}", {}) == (HOST, expected)


def test_wrong_settings_in_a_url_are_one_error() -> None:
    """Each fault is told, in one error, by a pool and by a registry alike; no value is quoted."""
    url = "sqlite:///x.db?pool_max_size=few&pool_timeout=-1&pool_max_siez=2&pool_reset=never&pool_min_size=1&pool_min_size=2"
    with pytest.raises(ConfigError) as caught:
        Pool(url)
    assert caught.value.problems == [
        "pool_max_size must be a whole number, in the URL",
        "pool_timeout must be more than 0, in the URL",
        "'pool_max_siez' is no setting: did you mean 'pool_max_size'?",
        "pool_reset must be one of 'auto', 'full', 'off', in the URL",
        "pool_min_size is given twice in the URL",
    ]
    with pytest.raises(ConfigError) as told:
        Registry({"default": {"url": url}})
    assert told.value.problems == [f"'default': {text}" for text in caught.value.problems]


def test_a_setting_has_one_place() -> None:
    """A setting both in the URL and beside it is refused: neither silently takes the other's place."""
    with pytest.raises(ConfigError, match="max_size is given twice: as pool_max_size in the URL and as pool_size"):
        Pool("sqlite:///x.db?pool_max_size=3", pool_size=4)
    with pytest.raises(ConfigError, match="either as config or in the URL"):
        Pool("sqlite:///x.db?pool_max_size=3", PoolConfig())


@pytest.mark.parametrize("url", ["sqlite:///x.db", HOST, "mysql+pymysql://ann@db/shop", "https://api.example/v1"])
def test_every_kind_of_url_takes_them(url: str) -> None:
    """Whatever the library, the pool's settings are taken off before it sees the URL."""
    registry = Registry({"it": {"url": f"{url}?pool_max_size=3", "timeout": 2}})
    assert registry.url("it") == url
    if registry.shares("it"):
        assert registry.client("it")._config.max_size == 3  # type: ignore[attr-defined]
    else:
        assert (registry.pool("it").config.max_size, registry.pool("it").config.timeout) == (3, 2)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (HOST, "postgresql://ann@db.example:5432/shop"),
        (f" {HOST}?password=x#y\n", "(malformed URL)"),
        (f"{HOST}?password=x", "postgresql://ann@db.example:5432/shop"),
        ("postgresql://ann:s3?cret@db/shop", "(malformed URL)"),
        ("https://t0ken@api.example/v1", "https://***@api.example/v1"),
        ("https://ann:s3cret@api.example/v1", "https://ann@api.example/v1"),
        ("s3cret", "(malformed URL)"),
    ],
)
def test_a_url_on_a_page(url: str, shown: str) -> None:
    """What a page or a command shows of a URL is nothing where it may be cut in the wrong place."""
    assert hide_password(url) == shown


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("postgres+psycopg2", "Psycopg2Driver"), ("postgres+psycopg", "PsycopgDriver"), ("postgres", "PsycopgDriver"),
        ("postgresql+psycopg_async", "PsycopgDriver"),
    ],
)  # fmt: skip
def test_schemes_as_other_libraries_spell_them(scheme: str, kind: str) -> None:
    """SQLAlchemy's names for a library, with the older name of the scheme as well."""
    assert type(Pool(HOST.replace("postgresql", scheme))._driver).__name__ == kind
    assert SCHEMES["mysql+mysqldb"] is SCHEMES["mysql+mysqlclient"]


@pytest.mark.parametrize("scheme", ["postgis", "pgsql", "mysql2", "postgresql+pg8000", "mysql+aiomysql"])
def test_a_scheme_of_another_library_is_answered_with_ours(scheme: str) -> None:
    """One that is nobody's here is refused with the nearest."""
    with pytest.raises(ConfigError, match=f"unknown URL scheme '{re.escape(scheme)}': did you mean '"):
        Pool(HOST.replace("postgresql", scheme))
