"""PoolStats and events: plain data that can be handed on."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit import Pool, events
from poolkit.stats import BOUNDS, Histogram
from poolkit.testing import FakeDriver, ManualRuntime


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_counts_each_value_once(values: list[float]) -> None:
    """A value falls into the first bucket whose bound it does not exceed; count and total are of all."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    taken = histogram.snapshot()
    bounds = [*BOUNDS, float("inf")]
    lows = [float("-inf"), *BOUNDS]
    expected = [sum(low < value <= bound for value in values) for low, bound in zip(lows, bounds, strict=True)]
    assert list(taken.buckets) == expected
    assert taken.count == len(values)
    assert taken.total == pytest.approx(sum(values))


def test_a_snapshot_stays_as_it_was() -> None:
    """What is counted later does not change what was taken before."""
    histogram = Histogram()
    before = histogram.snapshot()
    histogram.add(1.0)
    assert before.count == sum(before.buckets) == 0


def test_the_numbers_of_a_pool_go_anywhere() -> None:
    """A snapshot is JSON and can be pickled, and its gauges belong together."""
    runtime = ManualRuntime()
    pool = Pool(FakeDriver(), max_size=3, runtime=runtime)
    leases = [pool.acquire() for _ in range(2)]
    leases[0].release()
    stats = pool.stats()
    assert (stats.size, stats.idle, stats.out, stats.opening, stats.waiting) == (2, 1, 1, 0, 0)
    assert (stats.acquired, stats.opened, stats.closed_by_reason) == (2, 2, {})
    assert pickle.loads(pickle.dumps(stats)) == stats
    plain = json.loads(json.dumps(stats.as_dict()))
    assert plain["max_size"] == 3
    assert plain["wait"]["bounds"] == list(BOUNDS)
    assert set(plain) == {field.name for field in dataclasses.fields(stats)}
    leases[1].discard("odd")
    assert stats.out == 1, "a snapshot is of its moment"
    assert pool.stats().closed_by_reason == {"odd": 1}


def made(kind: type[events.Event]) -> events.Event:
    values: dict[str, Any] = {"pool": "main", "error": ValueError("x"), "reason": "idle", "holder": "thread x",
                              "taken": "a\n", "now": "b\n"}  # fmt: skip
    return kind(**{field.name: values.get(field.name, 1.5) for field in dataclasses.fields(kind)})


KINDS = [value for _, value in inspect.getmembers(events, inspect.isclass)
         if issubclass(value, events.Event) and value is not events.Event]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_a_plain_record(kind: type[events.Event]) -> None:
    """Every event names its pool, can't be changed by one listener before the next sees it, and can be handed on."""
    event = made(kind)
    assert event.pool == "main"
    assert kind.__name__ in events.__all__
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        event.pool = "other"  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(event))
    assert type(again) is kind
    assert repr(again) == repr(event)
