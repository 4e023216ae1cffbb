"""What `configure` did by SQL: temporary tables stay as they were made, and settings come back."""

from __future__ import annotations

from typing import Any

import pytest
from rigs import Rig

from poolkit.drivers._configured import Watched, is_for_all_sessions, temporary_names
from poolkit.drivers._statements import CLEAN, LASTING, STAINED, traces


def configured(rig: Rig, *statements: str) -> Any:
    """A connection as a pool lends it after `configure`."""
    conn = rig.open()
    rig.do(conn, *statements)
    rig.driver.settled(conn)
    return conn


def borrow(rig: Rig, conn: Any, *statements: str) -> None:
    """Run these in a borrowing of its own, and make the session as new where the driver asks for that."""
    if hasattr(rig.driver, "lend"):
        rig.driver.lend(conn)
    rig.do(conn, *statements)
    if not rig.driver.clean(conn):
        rig.reset(conn, full=False)


def test_rows_of_a_borrower_do_not_stay(rig: Rig) -> None:
    """The next borrower finds a temporary table of `configure` without what the last one wrote into it."""
    conn = configured(rig, "CREATE TEMPORARY TABLE scratch (id integer)")
    for _ in range(2):
        borrow(rig, conn, "INSERT INTO scratch VALUES (1)")
        assert rig.value(conn, "SELECT count(*) FROM scratch") == 0


@pytest.mark.parametrize(
    "text",
    [
        "CREATE SCHEMA IF NOT EXISTS kept_apart; SET search_path TO kept_apart",
        "DROP SCHEMA IF EXISTS not_there; SET search_path TO kept_apart;",
        "/* all */ CREATE TABLE pg_temp.beside (i int); SET search_path TO kept_apart",
    ],
)
def test_a_setting_beside_what_is_for_all_sessions(rig: Rig, text: str) -> None:
    """One text that makes a thing for every session and sets something for its own is sent again as a whole."""
    if not rig.postgres:
        pytest.skip("the libraries for other servers send one statement a time")
    conn = configured(rig, "SET client_min_messages = error", text)
    for _ in range(2):
        borrow(rig, conn, "SET work_mem = '71kB'")
        assert rig.value(conn, "SHOW search_path") == "kept_apart"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("CREATE TEMP TABLE scratch (i int)", ["scratch"]),
        ("create temporary table if not exists Scratch as select 1", ["Scratch"]),
        ("CREATE TEMP VIEW seen AS SELECT 1", ["seen"]),
        ("CREATE TEMP RECURSIVE VIEW seen (i) AS SELECT 1", ["seen"]),
        ("CREATE TABLE pg_temp . scratch (i int); CREATE TEMP SEQUENCE counted", ["scratch", "counted"]),
        ("SELECT 1 AS i INTO TEMP scratch", ["scratch"]),
        ('CREATE TEMP TABLE "Scratch" (i int)', ["Scratch"]),
        ("DO $$ BEGIN CREATE TEMP TABLE scratch (i int); END $$", ["scratch"]),
        ('CREATE TEMP TABLE "-" (i int)', [""]),
        ("SELECT temp FROM city", []),
        ("CREATE TABLE item (i int)", []),
    ],
)
def test_names_of_temporary_tables(text: str, names: list[str]) -> None:
    """A text's temporary tables are known by name; where the name is not plain, every text may mean them."""
    assert temporary_names(text) == names


@pytest.mark.parametrize(
    ("text", "all_of_it"),
    [
        ("CREATE TABLE IF NOT EXISTS item (i int)", True),
        ("  -- first\n create extension if not exists hstore;", True),
        ("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1; SELECT 2 $$", True),
        ("GRANT SELECT ON item TO PUBLIC; COMMENT ON TABLE item IS 'SET; x'", True),
        ("LOAD 'plpgsql'", True),
        ("CREATE TABLE item (i int); SET search_path TO app", False),
        ("CREATE TEMP TABLE item (i int)", False),
        ("DROP TABLE pg_temp.item", False),
        ("SET search_path TO app", False),
        ("SELECT set_config('app.tenant', 'CREATE', false)", False),
        ("", False),
    ],
)
def test_what_is_for_all_sessions(text: str, *, all_of_it: bool) -> None:
    """A text is not sent again only where every statement in it is for all sessions."""
    assert is_for_all_sessions(text) is all_of_it


def test_watched_tables() -> None:
    """A text that may write into a watched table is a change; others are what they are anyway."""
    levels = Watched(traces, ["scratch", "other"])
    assert levels["INSERT INTO Scratch VALUES (1)"] == STAINED
    assert levels[b"COPY other FROM STDIN"] == STAINED
    assert levels["WITH gone AS (DELETE FROM scratch RETURNING i) SELECT i FROM gone"] == STAINED
    assert levels["SELECT i FROM scratch"] == CLEAN
    assert levels["INSERT INTO item VALUES (1)"] == CLEAN
    assert levels["LOAD 'scratch'"] == LASTING
    assert not dict(levels)
