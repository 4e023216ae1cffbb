"""No kind of state that a borrower leaves in a session of MySQL's reaches the next one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from mysql_kinds import KINDS, Kind, prepare
from rigs import MYSQL, Rig

from poolkit.threads import Pool

REPLACED = {"SET ROLE kind_role"}  # no reset undoes it

pytestmark = [
    pytest.mark.parametrize("rig_name", MYSQL, indirect=True),
    pytest.mark.parametrize("kind", KINDS, ids=str),
]


@pytest.fixture
def ready(rig: Rig, mysql_admin: Any) -> Iterator[Rig]:
    prepare(mysql_admin)
    yield rig
    rig.close_all()  # with their locks
    rig._opened.clear()
    mysql_admin.query("DROP ROLE kind_role")


def test_a_kind_shows(ready: Rig, kind: Kind) -> None:
    """Each kind is seen on the connection that has it, and not on a new one; and the driver sees it as well."""
    new, conn = ready.open(), ready.open()
    before = kind.seen(new)
    assert ready.clean(conn)
    kind.make(conn)
    assert not ready.clean(conn)
    assert kind.seen(conn) != before


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
