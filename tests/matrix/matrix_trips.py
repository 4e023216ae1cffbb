"""What a request waits for after another one, counted in round trips by a proxy before the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from matrix_cells import Way, eventually, rows, session

from poolkit.testing import FaultProxy

__all__ = ["at_saturation", "beside_an_idle_one", "by_default"]

CLEAN = "SELECT 1"
DIRTY = {"postgresql": "SET work_mem = '71kB'", "mysql": "SET @mine = 1"}
LATE = 0.4  # seconds until the answer to a reset comes
MakeWay = Callable[..., Way]


def by_default(cells: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Make parameters of cells, of which those without a transaction on PostgreSQL's first driver are not slow."""
    quick = {"acquire", "def acquire", "autocommit", "native"}

    def name(part: Any) -> str:
        return part.__name__.removesuffix("Way") if isinstance(part, type) else part

    return [
        pytest.param(
            cell,
            id="-".join(map(name, cell)),
            marks=[] if "postgresql" in cell and not quick.isdisjoint(cell) else [pytest.mark.slow],
        )
        for cell in cells
    ]


class Visits:
    """Requests of one statement each."""

    def __init__(self, way: Way, proxy: FaultProxy, kind: str) -> None:
        self.way, self.proxy, self.kind = way, proxy, kind
        self.session = 0

    def clean(self) -> int:
        """Give a request that leaves its session as it was; return how many trips went by."""

        async def work(conn: Any) -> None:
            await rows(conn, CLEAN)
            self.session = session(conn)

        return self._count(lambda: self.way.serve(work))

    def dirty(self, after: Callable[[], object] = int) -> int:
        """Give a request that changes its session; `after` is called when it has."""

        async def work(conn: Any) -> None:
            await rows(conn, DIRTY[self.kind])
            self.session = session(conn)
            after()

        return self._count(lambda: self.way.serve(work))

    def _count(self, serve: Callable[[], int]) -> int:
        before = self.proxy.round_trips
        assert serve() == 200
        return self.proxy.round_trips - before


def beside_an_idle_one(make: MakeWay, proxy: FaultProxy, kind: str) -> None:
    """A request after a clean or a dirty one waits for not one trip more than on a pool that nobody has changed."""
    way = make(max_size=2, min_size=2, order="fifo")
    try:
        visits = Visits(way, proxy, kind)
        visits.clean()
        eventually(lambda: way.stats.idle == 2)
        for _ in range(12):  # each library has prepared what it will
            visits.clean()
        usual = visits.clean()
        assert visits.clean() == visits.clean() == usual

        before = proxy.round_trips
        visits.dirty(lambda: proxy.delay(down=LATE))
        changed = visits.session
        eventually(lambda: proxy.round_trips == before + usual + 1)  # the reset was sent
        sent = time.monotonic()
        time.sleep(LATE / 8)  # the server has answered, and the answer is on its way
        proxy.heal()
        assert visits.clean() == usual
        assert visits.session != changed
        assert way.stats.resetting == 1 or time.monotonic() - sent > LATE / 2
        eventually(lambda: way.stats.resetting == 0)
        assert visits.clean() == usual
        assert way.stats.opened == 2
        assert proxy.round_trips == before + 3 * usual + 1
    finally:
        way.close()


def at_saturation(make: MakeWay, proxy: FaultProxy, kind: str) -> None:
    """A request after a dirty one on the only connection waits for one trip more, and after a clean one for none."""
    way = make(max_size=1)
    try:
        visits = Visits(way, proxy, kind)
        for _ in range(12):
            visits.clean()
        usual, first = visits.clean(), visits.session
        assert visits.clean() == usual
        before = proxy.round_trips
        for _ in range(3):
            visits.dirty()
            visits.clean()
            assert visits.session == first
        assert proxy.round_trips == before + 3 * (2 * usual + 1)
    finally:
        way.close()
