"""The options of the soak. Asked for by `--soak-seconds`, it runs for that long; else 30 s, with the slow tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from soak_bench import Bench

from poolkit.testing.postgres import PostgresNotFound

IN_CI = 30.0
ROUND = 30.0  # seconds; what runs for hours is many rounds, so that what goes wrong is found soon after
SPARE = 120.0  # seconds beyond, before a hung run is ended by force


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the soak's options."""
    group = parser.getgroup("soak")
    group.addoption("--soak-seconds", type=float, default=None, help="run the soak for so many seconds")
    group.addoption("--soak-seed", type=int, default=None, help="begin with the faults of this seed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whoever says for how long, or with which seed, wants it: it is slow only for everybody else."""
    for item in items:
        if "soak_rounds" not in getattr(item, "fixturenames", ()):
            continue
        item.add_marker(pytest.mark.timeout(_seconds(config) + SPARE))
        if config.getoption("soak_seconds", None) is None and config.getoption("soak_seed", None) is None:
            item.add_marker(pytest.mark.slow)


def _seconds(config: pytest.Config) -> float:
    return float(config.getoption("soak_seconds", None) or IN_CI)


@pytest.fixture
def soak_rounds(request: pytest.FixtureRequest) -> list[tuple[int, float]]:
    """The seed and the length in seconds of every round."""
    seed = request.config.getoption("soak_seed", None)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    seconds = _seconds(request.config)
    count = max(1, round(seconds / ROUND))
    return [(seed + number, seconds / count) for number in range(count)]


@pytest.fixture
def bench(unavailable: object) -> Iterator[Bench]:
    """A server and a network of the soak's own."""
    try:
        manager = Bench().running()
        made = manager.__enter__()
    except PostgresNotFound as error:
        unavailable("postgres", f"{error} (a server that runs already is no help: this one is stopped and killed)")  # type: ignore[operator]
    try:
        yield made
    finally:
        manager.__exit__(None, None, None)
