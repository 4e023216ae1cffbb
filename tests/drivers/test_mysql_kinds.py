"""No kind of state that a borrower leaves in a session of MySQL's reaches the next one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mysql_kinds import KINDS, Kind, prepare, run
from rigs import MYSQL, Rig

from poolkit.threads import Pool

REPLACED = {"SET ROLE kind_role"}  # no reset undoes it

every_library = pytest.mark.parametrize("rig_name", MYSQL, indirect=True)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


@pytest.fixture
def ready(rig: Rig, mysql_admin: Any) -> Iterator[Rig]:
    prepare(mysql_admin)
    yield rig
    rig.close_all()  # with their locks
    rig._opened.clear()
    mysql_admin.query("DROP ROLE kind_role")


@every_library
@every_kind
def test_a_kind_shows(ready: Rig, kind: Kind) -> None:
    """Each kind is seen on the connection that has it, and not on a new one; and the driver sees it as well."""
    new, conn = ready.open(), ready.open()
    before = kind.seen(new)
    assert ready.clean(conn)
    kind.make(conn)
    assert not ready.clean(conn)
    assert kind.seen(conn) != before


@every_library
@every_kind
def test_a_reset_removes_it(ready: Rig, kind: Kind) -> None:
    """A reset leaves nothing of it, or refuses."""
    conn = ready.open()
    before = kind.seen(conn)
    kind.make(conn)
    if kind.name in REPLACED:
        with pytest.raises(ready.errors, match="undone by no reset"):
            ready.reset(conn, full=False)
        return
    ready.reset(conn, full=False)
    assert ready.clean(conn)
    assert kind.seen(conn) == before


@every_library
@every_kind
def test_the_next_borrower(ready: Rig, kind: Kind) -> None:
    """The next borrower of a pool's only connection finds a session as it was when new."""
    with Pool(ready.driver, max_size=1) as pool:
        with pool.acquire() as conn:
            before = kind.seen(conn)
        with pool.acquire() as conn:
            kind.make(conn)
        with pool.acquire() as conn:
            assert kind.seen(conn) == before
        assert pool.stats().opened == (2 if kind.name in REPLACED else 1)


# By the words of the docs: how to leave it, and how to look for it.
UNSEEN = {
    "GET_LOCK inside of a trigger": ("DELETE FROM kind_seen", "SELECT is_used_lock('kind_unseen') = connection_id()"),
    "of a function that a view calls": (
        "SELECT * FROM kind_view",
        "SELECT is_used_lock('kind_unseen') = connection_id()",
    ),
    "`LAST_INSERT_ID()`": ("INSERT INTO kind_numbered VALUES ()", "SELECT last_insert_id()"),
    "`FOUND_ROWS()`": ("SELECT SQL_CALC_FOUND_ROWS seq FROM seq_1_to_7 LIMIT 1", "SELECT found_rows()"),
}


@every_library
@pytest.mark.parametrize("words", UNSEEN)
def test_what_the_docs_say_is_not_seen(ready: Rig, mysql_admin: Any, words: str) -> None:
    """What is left to the next borrower stands in the table of docs/sessions.md; a full reset undoes it."""
    for statement in (
        "CREATE OR REPLACE TABLE kind_seen (id integer)",
        "INSERT INTO kind_seen VALUES (1)",
        "CREATE OR REPLACE TRIGGER kind_unseen AFTER DELETE ON kind_seen FOR EACH ROW DO get_lock('kind_unseen', 0)",
        "CREATE OR REPLACE FUNCTION kind_unseen() RETURNS integer RETURN get_lock('kind_unseen', 0)",
        "CREATE OR REPLACE VIEW kind_view AS SELECT kind_unseen()",
        "CREATE OR REPLACE TABLE kind_numbered (id integer AUTO_INCREMENT PRIMARY KEY)",
    ):
        run(mysql_admin, statement)
    dirty, look = UNSEEN[words]
    conn = ready.open()
    new = run(conn, look)
    run(conn, dirty)
    assert ready.clean(conn)
    assert run(conn, look) != new
    text = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| not seen", "| not undone"))]
    assert words in " ".join(row[4] for row in rows)
    ready.reset(conn, full=True)
    assert run(conn, look) == new


@every_library
def test_a_temporary_table_that_configure_filled(rig: Rig) -> None:
    """Its rows can't be made again, so a changed connection is replaced, and the next borrower finds them."""

    def configure(conn: Any) -> None:
        run(conn, "CREATE TEMPORARY TABLE own (id integer)")
        run(conn, "INSERT INTO own VALUES (8)")

    with Pool(rig.driver, max_size=1, configure=configure) as pool:
        for _ in range(2):
            with pool.acquire() as conn:
                assert rig.value(conn, "SELECT id FROM own") == 8
        assert pool.stats().opened == 1
        with pool.acquire() as conn:
            run(conn, "SET @mine = 1")
        with pool.acquire() as conn:
            assert rig.value(conn, "SELECT id FROM own") == 8
            assert rig.value(conn, "SELECT @mine") is None
        assert pool.stats().opened == 2
