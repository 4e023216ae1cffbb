"""A unit of work hears of the `commit()` and `rollback()` that its work calls itself; drivers for threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolkit import Registry, UnitOfWork, UnitOfWorkError
from poolkit.unit_settings import UnitSettings


def registry_of(driver: str, dsn: str, path: Path, **units: Any) -> Registry:
    url = f"sqlite:///{path}/ends.db" if driver == "sqlite" else dsn.replace("postgresql://", f"postgresql+{driver}://")
    return Registry({"default": {"url": url, "max_size": 1}}, units=UnitSettings(**units))


DRIVERS = pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "sqlite"])


def execute(conn: Any, statement: str) -> None:
    cursor = conn.cursor()
    cursor.execute(statement)
    cursor.close()


@DRIVERS
def test_each_is_counted_and_the_units_own_end_is_not(driver: str, pg_dsn: str, tmp_path: Path) -> None:
    """Commit, rollback and the end of `with conn:`; the next borrower's unit has a count of its own to begin with."""
    registry = registry_of(driver, pg_dsn, tmp_path)
    for error in (None, ValueError()):
        unit = UnitOfWork(registry, "POST /")
        conn = unit.get()
        execute(conn, "SELECT 1")
        unit.finish(error)
    assert registry.tally.explicit_ends == {}
    unit = UnitOfWork(registry, "POST /")
    conn = unit.get()
    execute(conn, "SELECT 1")
    conn.commit()
    execute(conn, "SELECT 1")
    conn.rollback()
    with conn:
        execute(conn, "SELECT 1")
    unit.finish()
    counts = registry.tally.explicit_ends
    assert counts["rollback"] == 1
    assert counts["commit"] == 2
    with registry.pool().transaction() as conn:
        conn.commit()
    assert registry.tally.explicit_ends == counts
    registry.close(5)


@DRIVERS
def test_they_can_be_refused(driver: str, pg_dsn: str, tmp_path: Path) -> None:
    """Nothing is done then: what was written goes with the unit."""
    registry = registry_of(driver, pg_dsn, tmp_path, explicit_commit="refuse")
    unit = UnitOfWork(registry, "POST /")
    execute(unit.get(), "CREATE TABLE IF NOT EXISTS explicit_ends (word text)")
    unit.finish()
    unit = UnitOfWork(registry, "POST /")
    conn = unit.get()
    execute(conn, "DELETE FROM explicit_ends")
    execute(conn, "INSERT INTO explicit_ends VALUES ('x')")
    with pytest.raises(UnitOfWorkError, match=r"commit\(\) on a connection of 'POST /'"):
        conn.commit()
    unit.finish(ValueError())
    unit = UnitOfWork(registry)
    cursor = unit.get().cursor()
    cursor.execute("SELECT count(*) FROM explicit_ends")
    assert cursor.fetchone() == (0,)
    cursor.close()
    unit.finish()
    registry.close(5)
