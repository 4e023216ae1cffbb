"""Which unit of work, and whose registry, is the current one."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator

import pytest

from poolkit import Registry, UnitOfWork, blocks, configure, current, unit_of_work
from poolkit import registry as registry_module


def make(path: str = "a") -> Registry:
    return Registry({"default": {"url": f"sqlite:///{path}"}})


@pytest.fixture
def finders(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Empty the lists of the integrations for one test, and forget what was configured."""
    found: list[object] = []
    monkeypatch.setattr(registry_module, "_finders", found)
    monkeypatch.setattr(registry_module, "_process_finders", [])
    monkeypatch.setattr(registry_module, "_default", None)
    monkeypatch.setattr(registry_module, "_of_environ", None)
    return found


def test_a_block_joins_the_unit_around_it() -> None:
    """Inside a unit of the same registry, or where none is asked for, a block is part of that unit."""
    registry = make()
    with unit_of_work(registry) as outer, unit_of_work(registry) as inner, unit_of_work() as innermost:
        assert inner is outer
        assert innermost is outer


def test_a_block_of_another_registry_is_a_unit_of_its_own() -> None:
    """A unit has the connections of one registry: asked for another's, a block does not join it."""
    first, second = make("a"), make("b")
    with unit_of_work(first) as outer, unit_of_work(second) as inner:
        assert inner is not outer
        assert inner.registry is second


def test_a_bound_unit_is_the_current_one_over_a_block_around_it() -> None:
    """An integration's request inside somebody's block (a test) is not part of that block."""
    with unit_of_work(make()) as block:
        unit = UnitOfWork(make())
        token = blocks.bind(unit)
        assert current() is unit
        blocks.unbind(token)
        assert current() is block


def test_unbind_in_another_context_is_no_error() -> None:
    """A generator can be finalised by a thread that never ran it."""
    token = contextvars.copy_context().run(blocks.bind, UnitOfWork(make()))
    blocks.unbind(token)
    assert current() is None


def test_a_unit_ends_even_where_its_generator_is_finalised_elsewhere() -> None:
    """The end of a unit does not depend on the context it began in."""
    units: list[UnitOfWork] = []

    def work() -> Iterator[None]:
        with unit_of_work(make()) as unit:
            units.append(unit)
            yield

    generator = work()
    contextvars.copy_context().run(next, generator)
    generator.close()
    assert units[0].ended


def test_the_app_this_code_runs_for_comes_before_the_environment(
    finders: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `configure`, an app's registry is the default where its code runs, the environment's elsewhere."""
    monkeypatch.setenv("DATABASE_URL", "sqlite:///environment")
    registry: Registry | None = make()
    finders.append(lambda: registry)
    assert registry_module.default_registry() is registry
    registry = None
    assert registry_module.default_registry().url() == "sqlite:///environment"
    assert registry_module.default_registry() is registry_module.default_registry()


def test_what_was_configured_comes_first(finders: list[object]) -> None:
    """`configure` is what somebody said; a finder only knows where the code runs."""
    finders.append(make)
    registry = configure(make())
    assert registry_module.default_registry() is registry


def test_who_speaks_for_the_process_is_asked_last(finders: list[object]) -> None:
    """An app at hand comes before the settings of a whole process, whichever of the two was imported first."""
    process, app = make(), make()

    def find_process() -> Registry | None:
        return process

    def find_app() -> Registry | None:
        return app

    registry_module.add_finder(find_process, last=True)
    assert registry_module.default_registry() is process
    registry_module.add_finder(find_app)
    assert registry_module.default_registry() is app
