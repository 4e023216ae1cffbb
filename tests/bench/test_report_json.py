"""A report's JSON: enough to be drawn by who knows nothing of the suite."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from poolkit.bench.report import Column, Report, Table, Target, judged, spread

US = Column("us", "us for each", 2, "us", "less")
RATE = Column("rate", "ops/s", 0, "ops/s", "more")


def filled() -> Table:
    table = Table("Borrow & return", [US, RATE], key="micro", baseline="poolkit")
    for us, theirs in ((1.0, 4.0), (3.0, 12.0), (1.2, 4.0)):
        table.add("poolkit", us=us, rate=1000)
        table.add("psycopg_pool", us=theirs)
    return table


def test_every_sample_is_there(tmp_path: Path) -> None:
    """In the order taken, with median, range and quartiles beside them; a cell without samples is left out."""
    report = Report("micro")
    report.tables.append(filled())
    file = tmp_path / "micro.json"
    report.finish(str(file), Console(file=io.StringIO(), width=120))
    read = json.loads(file.read_text())
    assert (read["format"], read["suite"]) == (1, "micro")
    assert {"python", "machine", "load before", "load after", "versions"} <= read["conditions"].keys()
    table = read["tables"][0]
    assert table["rows"]["poolkit"]["us"] == {
        "median": 1.2, "low": 1.0, "q1": 1.1, "q3": 2.1, "high": 3.0, "all": [1.0, 3.0, 1.2],
    }  # fmt: skip
    assert table["rows"]["psycopg_pool"].keys() == {"us"}


def test_a_table_says_how_to_read_it() -> None:
    """Units, which way is better, which column answers, which row is compared with, and whose each row is."""
    plain = filled().plain()
    assert plain["columns"][0] == {"key": "us", "heading": "us for each", "unit": "us", "better": "less", "digits": 2}
    assert (plain["key"], plain["headline"], plain["baseline"]) == ("micro", "us", "poolkit")
    assert plain["roles"] == {"poolkit": "ours", "psycopg_pool": "peer"}


def test_a_table_without_names_gets_them() -> None:
    """A key is made of the title; a baseline that was not measured is none."""
    plain = Table("32 threads, on 8!", [US], baseline="poolkit").plain()
    assert (plain["key"], plain["baseline"], plain["headline"]) == ("32-threads-on-8", None, "us")


@pytest.mark.parametrize(
    ("row", "role"),
    [
        ("poolkit", "ours"),
        ("pool of 3, poolkit", "ours"),
        ("poolkit, psycopg", "ours"),
        ("floor: Lock and deque", "floor"),
        ("bare psycopg", "floor"),
        ("ideal", "floor"),
        ("psycopg_pool", "peer"),
        ("barely", "peer"),
        ("notpoolkit", "peer"),
    ],
)
def test_a_name_tells_whose_a_row_is(row: str, role: str) -> None:
    """Unless the table says otherwise."""
    assert Table("t", [US]).role(row) == role
    assert Table("t", [US], roles={row: "peer"}).role(row) == "peer"


@pytest.mark.parametrize(
    ("target", "value", "reached"),
    [
        (Target("t", "poolkit", "us", at_most=1.2), 1.2, True),
        (Target("t", "poolkit", "us", at_most=1.1), 1.2, False),
        (Target("t", "poolkit", "us", at_least=2), 1.2, False),
        (Target("t", "poolkit", "us", at_most=1.2, at_least=1.2), 1.2, True),
        (Target("t", "poolkit", "us", at_most=0.25, how="ratio", of="psycopg_pool"), 0.25, True),
        (Target("t", "poolkit", "us", at_most=0.2, how="ratio", of="psycopg_pool"), 0.25, False),
        (Target("t", "poolkit", "us", at_most=0, how="difference", of="psycopg_pool"), -3.0, True),
        (Target("t", "poolkit", "us", at_most=1, how="ratio", of="nobody"), None, None),
        (Target("t", "nobody", "us", at_most=1), None, None),
        (Target("t", "psycopg_pool", "rate", at_most=1), None, None),
    ],
)
def test_targets_are_judged(target: Target, value: float | None, reached: bool | None) -> None:  # noqa: FBT001
    """By the median; a ratio and a difference round by round; what was not measured is neither reached nor missed."""
    plain = target.plain(filled().rows)
    assert plain["value"] == (value if value is None else pytest.approx(value))
    assert plain["reached"] is reached


def test_nothing_is_divided_by_nothing() -> None:
    """A ratio to what took no time at all is not measured."""
    table = Table("t", [US])
    table.add("poolkit", us=1.0)
    table.add("floor", us=0.0)
    assert Target("t", "poolkit", "us", at_most=1, how="ratio", of="floor").measured(table.rows) is None


def test_a_screen_says_what_was_reached() -> None:
    """Each target that was measured gets a line, the others none."""
    table = filled()
    table.targets = [
        Target("fast", "poolkit", "us", at_most=2), Target("faster", "poolkit", "us", at_most=1),
        Target("absent", "nobody", "us", at_most=1),
    ]  # fmt: skip
    assert list(judged(table)) == ["  reached: fast; it is 1.2", "  NOT reached: faster; it is 1.2"]


def test_a_spread() -> None:
    """The median, with the range where there is one."""
    assert spread([]) == "-"
    assert spread([1.0], 1) == "1.0"
    assert spread([1, 3, 2], 0) == "2 (1-3)"
