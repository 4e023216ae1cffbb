"""Each suite of `run.py bench` once through, on a small scale: its tables are filled, exactly where they are exact."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from poolkit.bench.sampling import Plan

pytestmark = pytest.mark.slow


def run(suite: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    file = tmp_path / "result.json"
    assert importlib.import_module(f"benchmarks.{suite}").main(["--quick", "--json", str(file), *options]) == 0
    tables: dict[str, Any] = {table["key"]: table for table in json.loads(file.read_text())["tables"]}
    return tables


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once through is enough to see that it works."""
    plan = Plan(rounds=1, seconds=0.0005, contention=0.1, contentions=1)
    monkeypatch.setattr(Plan, "quick", classmethod(lambda _: plan))


def test_micro(tmp_path: Path) -> None:
    """Both worlds, with and without a server: a floor, ours in two ways, and each sample set against poolkit's own."""
    tables = run("micro", tmp_path)
    assert tables.keys() == {"micro-threads-fakes", "micro-asyncio-fakes", "micro-threads", "micro-asyncio"}
    rows = tables["micro-threads"]["rows"]
    assert {"floor: Lock and deque", "poolkit, psycopg", "poolkit, psycopg, looks each time"} <= rows.keys()
    assert rows["poolkit, psycopg"]["times"]["all"] == [1.0]
    assert all(0 < row["us"]["median"] < 1e6 for table in tables.values() for row in table["rows"].values())


def test_query(tmp_path: Path) -> None:
    """A statement with and without a transaction, over each way; the bare connection exceeds itself by nothing."""
    tables = run("query", tmp_path, "--way", "unix")
    assert tables.keys() == {"query-threads-unix", "query-asyncio-unix", "query-orders"}
    bare = tables["query-threads-unix"]["rows"]["bare psycopg"]
    assert bare["transaction_over"]["all"] == [0.0]
    assert bare["transaction"]["median"] > bare["autocommit"]["median"]
    assert {"1", "4", "8"} == tables["query-orders"]["rows"]["poolkit, fifo"].keys()


def test_round_trips(tmp_path: Path) -> None:
    """Counted, so exact: the same figures on every machine, and what the project aims at."""
    tables = run("round_trips", tmp_path)
    for world in ("threads", "asyncio"):
        table = tables[f"round-trips-{world}"]
        assert {"poolkit, psycopg", "bare psycopg"} <= table["rows"].keys()
        bare = {column: cell["all"] for column, cell in table["rows"]["bare psycopg"].items()}
        assert bare == {"borrow": [0.0], "autocommit": [1.0], "transaction": [3.0]}
        assert [goal["text"] for goal in table["targets"] if goal["reached"] is not True] == []


def test_contention(tmp_path: Path) -> None:
    """With a server and without: nobody of poolkit's starves, and each row says so."""
    tables = run("contention", tmp_path)
    assert len(tables) >= 6
    for table in tables.values():
        ours = [cells for row, cells in table["rows"].items() if table["roles"][row] == "ours"]
        assert ours
        assert all(cells["rate"]["median"] > 0 and cells["max"]["median"] > 0 for cells in ours)
