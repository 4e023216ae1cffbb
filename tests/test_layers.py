"""Who may import whom. Read from the source, so that an import inside a function or for types only counts as well."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# A module may import from the rows above its own, never from its own or from below.
ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "uncopied"),
    ("config", "events", "stats", "overload", "driver"),
    ("drivers._url_parameters",),
    ("state", "ending", "drivers", "unit_settings"),
    ("closing",),
    ("shell", "fork", "surroundings", "tally", "owning", "own_driver", "clock"),
    ("hooks",),
    ("housekeeper", "workers"),
    ("threads", "aio"),
    ("bridge", "registry"),
    ("enlisted",),
    ("unit",),
    ("scope",),
    ("nesting",),
    ("blocks",),
    ("retrying",),
    ("web", "strawberry"),
)
# Beside them: drivers are found by name at run time, and what serves tests knows only the errors of what it is to test.
DRIVERS: tuple[tuple[str, ...], ...] = (
    (
        *("drivers._common", "drivers._functions", "drivers._mysql_functions", "drivers._mysql_answers"),
        *("drivers._refusals", "drivers._service"),
    ),
    ("drivers._statements", "drivers._sqlite_statements", "drivers._mysql_statements"),
    (
        *(
            "drivers._libpq",
            "drivers._dbapi",
            "drivers._mysql",
            "drivers._startup",
            "drivers._lending",
            "drivers._pooler",
        ),
        "drivers._configured",
    ),
    ("drivers._psycopg2_connect", "drivers._psycopg2_session", "drivers._sqlite_session", "drivers._psycopg_session"),
    ("drivers._psycopg_connect",),
    ("drivers._mysql_guard", "drivers._pymysql_connect", "drivers._pymysql_results"),
    ("drivers._psycopg2_state",),
    ("drivers.mysql", "drivers._fold", "drivers._relay", "drivers._pymysql_connection", "drivers._psycopg_reset"),
    ("drivers._asyncpg_session", "drivers._asyncpg_connect", "drivers._asyncpg_socket"),
    ("drivers._asyncpg_connection", "drivers._psycopg_connection"),
    ("drivers.psycopg", "drivers.psycopg2", "drivers.asyncpg", "drivers.sqlite", "drivers.http"),
    ("drivers.pymysql", "drivers.mysqlclient"),
)
TESTING: tuple[tuple[str, ...], ...] = (
    ("testing._links", "testing._machine", "testing.fakes"),
    ("testing.faults", "testing.loops", "testing.postgres", "testing.mariadb"),
    ("testing._driven",),
    ("testing.interrupts", "testing.schedules"),
    ("testing",),
)
# What measures is built on everything, and nothing is built on it.
BENCH: tuple[tuple[str, ...], ...] = (
    ("bench", "bench.figures", "bench.measuring"),
    ("bench.report", "bench.peers"),
    ("bench.floors", "bench.sync_peers", "bench.async_peers", "bench.sampling"),
    ("bench.micro", "bench.query", "bench.round_trips", "bench.contention", "bench.advice"),
    ("bench.database",),
    ("bench.command",),
    ("cli",),
    ("__main__",),
)
LIBRARIES = {
    "bench.report": {"rich"},
    "bench.sync_peers": {"pymysql", "psycopg", "psycopg2", "psycopg_pool", "sqlalchemy", "dbutils"},
    "bench.async_peers": {"psycopg", "asyncpg", "psycopg_pool", "sqlalchemy"},
    "bench.contention": {"uvloop"},
    "bench.command": {"click"},
    "drivers._libpq": {"psycopg"},
    "drivers._fold": {"psycopg"},
    "drivers._psycopg_session": {"psycopg"},
    "drivers._psycopg_reset": {"psycopg"},
    "drivers._psycopg_connect": {"psycopg"},
    "drivers._psycopg_connection": {"psycopg"},
    "drivers._relay": {"asyncpg"},
    "drivers._asyncpg_session": {"asyncpg"},
    "drivers._asyncpg_connect": {"asyncpg"},
    "drivers._asyncpg_connection": {"asyncpg"},
    "drivers.psycopg": {"psycopg"},
    "drivers._psycopg2_connect": {"psycopg2"},
    "drivers._psycopg2_session": {"psycopg2"},
    "drivers._psycopg2_state": {"psycopg2"},
    "drivers.psycopg2": {"psycopg2"},
    "drivers._pymysql_connect": {"pymysql"},
    "drivers._pymysql_connection": {"pymysql"},
    "drivers._pymysql_results": {"pymysql"},
    "drivers.pymysql": {"pymysql"},
    "drivers.mysqlclient": {"MySQLdb"},
    "drivers.asyncpg": {"asyncpg"},
    "drivers.http": {"requests", "urllib3"},
    "strawberry": {"strawberry"},
}
PURE = {
    "uncopied",
    "errors",
    "config",
    "events",
    "stats",
    "overload",
    "driver",
    "state",
    "ending",
    "drivers._mysql_answers",
    "drivers._mysql_functions",
    "drivers._mysql_statements",
    "drivers._url_parameters",
    "unit_settings",
}
IMPURE = {"time", "threading", "_thread", "asyncio", "logging", "os", "socket", "select", "random", "concurrent"}
NEVER = {
    "threads": {"asyncio"},
    "housekeeper": {"asyncio"},
    "fork": {"asyncio", "threading"},
    "shell": {"asyncio", "threading", "time", "os"},
    "aio": {"threading", "_thread", "concurrent"},
}
# What the integrations build on. The rest of poolkit is free to change under them.
OPEN_TO_INTEGRATIONS = {
    "", "web", "events", "scope", "unit", "unit_settings", "blocks", "retrying", "registry", "errors", "drivers",
    "config", "threads", "testing",
    "drivers.psycopg", "drivers.psycopg2", "drivers.asyncpg", "drivers.mysql", "drivers.pymysql",
    "drivers.mysqlclient", "drivers.sqlite", "drivers.http",
    "drivers._common", "drivers._dbapi", "fork",  # for an integration that has drivers of its own
}  # fmt: skip
INTEGRATIONS = ("poolkit_django", "poolkit_flask", "poolkit_fastapi")


class Import(NamedTuple):
    """One imported name: of which module, which name of it, and where."""

    module: str
    name: str
    line: int

    @property
    def top(self) -> str:
        """The package that brings it."""
        return self.module.partition(".")[0]

    @property
    def part(self) -> str:
        """The module within poolkit; empty for poolkit itself."""
        return self.module.partition(".")[2]


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name, the package itself included."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


EVERY = {name: path for package in ("poolkit", *INTEGRATIONS) for name, path in modules(package).items()}
CORE = {name.partition(".")[2]: path.read_text("utf-8") for name, path in modules("poolkit").items()}


def imports(source: str) -> Iterator[Import]:
    """Yield what a source imports, wherever in it; `from package import module` is an import of that module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                yield Import("a relative import", "", node.lineno)
                continue
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(*((whole, "") if whole in EVERY else (node.module, alias.name)), node.lineno)


def above(part: str) -> set[str]:
    """What a module of poolkit may import of poolkit."""
    everything = {"", *(part for row in (*ROWS, *DRIVERS, *TESTING) for part in row)}
    for rows, base in (
        (ROWS, set()),
        (DRIVERS, {*ROWS[0], *ROWS[1], *ROWS[2]}),
        (TESTING, {*ROWS[0]}),
        (BENCH, everything),
    ):
        allowed = set(base)
        for row in rows:
            if part in row:
                return allowed
            allowed.update(row)
    raise LookupError(f"poolkit.{part} has no place in the layers: give it one in {Path(__file__).name}")


def faults(part: str, source: str) -> list[str]:
    """Say which imports of a module of poolkit break the layers."""
    allowed, libraries = above(part), LIBRARIES.get(part, set())
    forbidden = (IMPURE if part in PURE else set()) | NEVER.get(part, set())
    found = []
    for item in imports(source):
        if item.top == "poolkit":
            good = item.part in allowed
        elif item.top in forbidden:
            good = False
        else:
            good = item.top in sys.stdlib_module_names or item.top in libraries
        if not good:
            found.append(f"poolkit.{part}, line {item.line}: {item.module}")
    return found


@pytest.mark.parametrize("part", sorted(CORE.keys() - {""}))
def test_a_module_of_the_core_imports_only_what_stands_above_it(part: str) -> None:
    """Decisions know nothing of shells, shells nothing of what is built on them, and the core needs no library."""
    assert faults(part, CORE[part]) == []


def test_every_place_in_the_layers_is_taken() -> None:
    """The table speaks of modules that are there: one that was renamed does not leave its rules behind."""
    named = {part for rows in (ROWS, DRIVERS, TESTING, BENCH) for row in rows for part in row}
    assert named == CORE.keys() - {""}
    assert PURE | LIBRARIES.keys() | NEVER.keys() <= named


def test_the_package_itself_only_collects() -> None:
    """`import poolkit` imports no driver, no test helper and no library."""
    for item in imports(CORE[""]):
        assert item.top == "poolkit", item
        assert item.part in {part for row in ROWS for part in row} - {"web", "strawberry"}, item


@pytest.mark.parametrize("part", sorted(CORE))
def test_only_drivers_are_imported_by_name(part: str) -> None:
    """No import hides from this file: a name that is no import statement imports drivers and nothing else."""
    names = {node.id for node in ast.walk(ast.parse(CORE[part])) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(ast.parse(CORE[part])) if isinstance(node, ast.Attribute)}
    assert not names & {"__import__", "exec", "eval", "exec_module", "run_path", "run_module"}
    assert "import_module" not in names or part == "drivers"


@pytest.mark.parametrize("name", sorted(EVERY.keys() - {f"poolkit.{part}".rstrip(".") for part in CORE}))
def test_an_integration_builds_on_what_is_offered(name: str) -> None:
    """An integration imports the open modules of poolkit and the names they offer, and never another integration."""
    own = name.partition(".")[0]
    for item in imports(EVERY[name].read_text("utf-8")):
        where = f"{name}, line {item.line}: {item.module} {item.name}"
        assert item.top not in {*INTEGRATIONS} - {own}, where
        assert item.module != "a relative import", where
        if item.top == "poolkit":
            assert item.part in OPEN_TO_INTEGRATIONS, where
            assert not item.name or item.name in offered(item.part), where


def offered(part: str) -> set[str]:
    """What a module lists in `__all__`."""
    for node in ast.parse(CORE[part]).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    raise LookupError(f"poolkit.{part} does not say what it offers: it has no __all__")


@pytest.mark.parametrize("part", [part for part in sorted(CORE) if "._" not in part])
def test_a_list_of_what_is_offered_is_true(part: str) -> None:
    """A module that is not private says what it offers: names that are there, none of them private."""
    defined = set()
    for node in ast.parse(CORE[part]).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.Import | ast.ImportFrom):
            defined |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            defined |= {n.asname or n.name for n in ast.walk(node) if isinstance(n, ast.alias)}
    assert offered(part) <= defined
    assert not {name for name in offered(part) if name.startswith("_")}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("state", "import time"),
        ("state", "from time import monotonic"),
        ("ending", "def f():\n    import asyncio"),
        ("config", "if TYPE_CHECKING:\n    import logging"),
        ("state", "from poolkit.threads import Pool"),
        ("state", "from poolkit import threads"),
        ("state", "from poolkit import Pool"),
        ("stats", "from poolkit.config import PoolConfig"),
        ("threads", "import asyncio.locks"),
        ("aio", "from threading import Lock"),
        ("registry", "from poolkit.scope import current"),
        ("drivers", "from poolkit.drivers.psycopg import PsycopgDriver"),
        ("drivers.psycopg", "from poolkit.drivers import asyncpg"),
        ("drivers.psycopg", "from poolkit.state import PoolState"),
        ("drivers.sqlite", "import psycopg"),
        ("web", "import flask"),
        ("scope", "from poolkit_flask import Poolkit"),
        ("scope", "from . import aio"),
        ("errors", "from poolkit import errors"),
    ],
)
def test_a_wrong_import_is_seen(part: str, source: str) -> None:
    """The rules above are alive: each kind of wrong import is reported."""
    assert faults(part, source)


def test_a_module_without_a_place_is_seen() -> None:
    """A new module has to be given its place; nothing is exempt by not being mentioned."""
    with pytest.raises(LookupError, match="no place"):
        faults("surprise", "")
