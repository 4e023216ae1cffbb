"""PoolConfig: what may be set, from where, and how everything that is wrong is told at once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolkit import ConfigError, Pool, PoolConfig
from poolkit.config import nearest
from poolkit.testing import FakeDriver


def problems(**settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        PoolConfig.from_mapping(settings)
    return caught.value.problems


def test_the_defaults_are_valid_and_can_not_be_changed() -> None:
    """A pool needs no settings, and what one was made with stays so."""
    config = PoolConfig()
    assert PoolConfig.from_mapping({}) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_size = 3  # type: ignore[misc]
    assert PoolConfig.names() == tuple(field.name for field in dataclasses.fields(config))


def test_every_setting_survives_a_round_trip() -> None:
    """What a config says of itself makes the same config."""
    config = PoolConfig(min_size=1, max_size=7, timeout=2.5, max_lifetime=None, order="fifo", max_waiting=0)
    assert PoolConfig.from_mapping(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_size", 0, "max_size must be at least 1, not 0"),
        ("min_size", -1, "min_size must be at least 0, not -1"),
        ("min_size", 11, "min_size (11) is larger than max_size (10)"),
        ("max_size", 2.0, "max_size must be a whole number, not 2.0 (float)"),
        ("max_size", True, "max_size must be a whole number, not True (bool)"),
        ("max_size", "8", "max_size must be a whole number, not '8' (str)"),
        ("max_size", None, "max_size must be a whole number, not None (NoneType)"),
        ("max_waiting", -1, "max_waiting must be at least 0, not -1"),
        ("max_uses", 0, "max_uses must be at least 1, not 0"),
        ("timeout", 0, "timeout must be more than 0, not 0"),
        ("timeout", None, "timeout must be a number of seconds, not None (NoneType)"),
        ("timeout", math.nan, "timeout must be a number, not nan"),
        ("idle_timeout", "1h", "idle_timeout must be a number of seconds or None, not '1h' (str)"),
        ("max_lifetime", 0, "max_lifetime must be more than 0, not 0"),
        ("lifetime_jitter", 1.5, "lifetime_jitter must be at most 1, not 1.5"),
        ("target_delay", -0.5, "target_delay must be more than 0, not -0.5"),
        ("reset", "always", "reset must be one of 'auto', 'full', 'off', not 'always'"),
        ("order", None, "order must be one of 'lifo', 'fifo', not None"),
    ],
)
def test_what_can_not_work_is_refused(name: str, value: object, said: str) -> None:
    """The error names the setting, what it may be and what it was, from a mapping and from keywords alike."""
    assert problems(**{name: value}) == [said]
    with pytest.raises(ConfigError) as caught:
        PoolConfig(**{name: value})  # type: ignore[arg-type]
    assert caught.value.problems == [said]


@pytest.mark.parametrize("name", PoolConfig.names())
@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, 10**400, -(10**400)])
def test_numbers_beyond_what_a_timer_takes_are_refused(name: str, value: float) -> None:
    """A time that no clock can wait for would fail later, in the middle of a wait; None says "never" where it may."""
    (problem,) = problems(**{name: value})
    assert problem.startswith(name)
    assert len(problem) < 120


def test_the_largest_times_can_be_waited_for() -> None:
    """Every bound is one that a wait can take."""
    pool = Pool(FakeDriver(), timeout=1e9, close_timeout=1e9, open_timeout=1e9)
    pool.acquire().release()
    assert pool.close()
    endless = Pool(FakeDriver())
    endless.acquire().release()
    assert endless.close(timeout=math.inf)


def test_all_faults_are_in_one_error() -> None:
    """Whoever mends settings mends them once: the error lists each fault, and says where the settings stand."""
    with pytest.raises(ConfigError) as caught:
        PoolConfig.from_mapping({"max_siez": 5, "timeout": -1, "order": "any", "pre_ping": "yes"}, where="app.toml")
    assert caught.value.where == "app.toml"
    assert len(caught.value.problems) == 4
    assert str(caught.value).startswith(
        "app.toml: 4 problems\n  - unknown setting 'max_siez': did you mean 'max_size'?"
    )


def test_an_unknown_name_without_a_neighbour() -> None:
    """Where nothing is near, the error lists what there is."""
    (problem,) = problems(zzz=1)
    assert problem.startswith("unknown setting 'zzz': known are 'min_size', 'max_size'")


def test_a_fault_of_one_setting_does_not_invent_another() -> None:
    """Sizes are compared only where both are numbers."""
    assert problems(max_size="few", min_size=20) == ["max_size must be a whole number, not 'few' (str)"]


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ({"pool_size": 5, "max_overflow": 10}, {"max_size": 15}),
        ({"pool_size": 5}, {"max_size": 5}),
        ({"pool_timeout": 3}, {"timeout": 3}),
        ({"pool_recycle": 1800}, {"max_lifetime": 1800}),
        ({"pool_recycle": -1}, {"max_lifetime": None}),
        ({"pre_ping": True}, {"check_after": 0.0}),
        ({"pool_pre_ping": False}, {"check_after": None}),
        ({"reset_on_return": "rollback"}, {"reset": "auto"}),
        ({"pool_reset_on_return": None}, {"reset": "off"}),
        ({"reset_on_return": False}, {"reset": "off"}),
        ({"reset_on_return": True}, {"reset": "auto"}),
        ({"pool_use_lifo": True}, {"order": "lifo"}),
        ({"pool_use_lifo": False}, {"order": "fifo"}),
        ({"max_idle": 60}, {"idle_timeout": 60}),
    ],
)
def test_names_that_people_bring_along(foreign: dict[str, object], ours: dict[str, Any]) -> None:
    """The settings of SQLAlchemy and psycopg_pool mean here what they mean there."""
    assert PoolConfig.from_mapping(foreign) == PoolConfig(**ours)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_size": 5, "pool_size": 5}, "max_size is given twice"),
        ({"timeout": 5, "pool_timeout": 5}, "timeout is given twice"),
        ({"max_idle": 5, "idle_timeout": 5}, "idle_timeout is given twice"),
        ({"pre_ping": True, "pool_pre_ping": True}, "check_after is given twice"),
        ({"pool_size": "5", "max_overflow": 1}, "pool_size and max_overflow must be whole numbers"),
        ({"pool_size": 5, "max_overflow": -1}, "pool_size and max_overflow must be whole numbers"),
        ({"pool_size": 0, "max_overflow": 0}, "max_size must be at least 1"),
        ({"pool_recycle": 0}, "max_lifetime must be more than 0"),
        ({"pre_ping": "yes"}, "check_after must be a number"),
        ({"reset_on_return": "commit"}, "reset must be one of"),
        ({"pool_use_lifo": 1}, "order must be one of"),
    ],
)
def test_a_setting_given_twice_or_wrong_in_its_foreign_name(settings: dict[str, object], said: str) -> None:
    """Two names for one thing are an error, since one of them would be passed over."""
    assert any(problem.startswith(said) for problem in problems(**settings))


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2)
)
NAMES = st.sampled_from([
    *PoolConfig.names(), "pool_size", "max_overflow", "pool_recycle", "pre_ping", "reset_on_return", "pool_use_lifo",
    "max_idle", "other",
])  # fmt: skip


@settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, ANYTHING, max_size=6))
def test_any_mapping_makes_a_config_or_one_error(mapping: dict[str, object]) -> None:
    """Nothing that stands in a settings file gets another error than the one that explains it."""
    said: list[str] = []
    try:
        config = PoolConfig.from_mapping(mapping)
    except ConfigError as error:
        said, config = error.problems[1:], PoolConfig()
        said.append(error.problems[0])  # there is one
    assert all(isinstance(problem, str) and problem for problem in said)
    assert 0 <= config.min_size <= config.max_size


# -- the environment ---------------------------------------------------------------------------------------------------


def test_the_environment_sets_what_is_set() -> None:
    """Only variables that are there and not empty count; "none" is None where that is allowed."""
    environ = {"P_MAX_SIZE": "4", "P_TIMEOUT": "2.5", "P_ORDER": "fifo", "P_MAX_LIFETIME": "None", "P_MAX_USES": "",
               "P_MIN_SIZE": "", "Q_MAX_SIZE": "9"}  # fmt: skip
    assert PoolConfig.options_from_environ(environ, "P") == {
        "max_size": 4, "timeout": 2.5, "order": "fifo", "max_lifetime": None,
    }  # fmt: skip


def test_what_the_environment_has_wrong_is_told_by_variable() -> None:
    """Who reads the error set a variable, not a keyword."""
    with pytest.raises(ConfigError) as caught:
        PoolConfig.options_from_environ({"P_MAX_SIZE": "1e3", "P_TIMEOUT": "5s"}, "P")
    assert caught.value.where == "environment"
    assert caught.value.problems == [
        "P_MAX_SIZE must be a whole number, not '1e3'",
        "P_TIMEOUT must be a number of seconds, not '5s'",
    ]


def test_a_misspelt_variable_is_told() -> None:
    """What was surely meant for the pool is an error; another pool's, and what others set, is left alone."""
    environ = {"P_MAXSIZE": "4", "P_TIMOUT": "5", "P_MIN_SIZ": "", "P_MORE_MAX_SIZE": "9", "P_SERVICE_HOST": "x",
               "P_URL": "x", "Q_MAXSIZE": "4"}  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        PoolConfig.options_from_environ(environ, "P")
    assert caught.value.problems == [
        "P_MAXSIZE is not known: did you mean P_MAX_SIZE?",
        "P_TIMOUT is not known: did you mean P_TIMEOUT?",
    ]


@pytest.mark.parametrize("digits", ["9" * 30, "9" * 5000])
def test_a_number_without_end(digits: str) -> None:
    """However many digits somebody writes, the error fits on a line."""
    with pytest.raises(ConfigError) as caught:
        PoolConfig.from_mapping(PoolConfig.options_from_environ({"P_MAX_SIZE": digits}, "P"))
    assert len(str(caught.value)) < 120


def test_nearest_finds_what_was_meant() -> None:
    """A near name is found whatever its case; a far one is not guessed."""
    assert nearest("MAX_SIZE", ["max_size", "timeout"]) == "max_size"
    assert nearest("colour", ["max_size", "timeout"]) is None
