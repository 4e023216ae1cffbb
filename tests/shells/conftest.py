"""Each case that takes `world` runs twice: in threads and in asyncio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from worlds import LoopWorld, ThreadWorld, World


@pytest.fixture(params=[ThreadWorld, LoopWorld], ids=["threads", "asyncio"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = request.param()
    yield world
    world.end()


@pytest.fixture
def threads() -> Iterator[ThreadWorld]:
    world = ThreadWorld()
    yield world
    world.end()


@pytest.fixture
def loop_world() -> Iterator[LoopWorld]:
    world = LoopWorld()
    yield world
    world.end()
