"""Settings over settings: the environment over the code's, the user's over the driver's, in any spelling."""

from __future__ import annotations

from poolkit.config import overlay
from poolkit.web import registry_from


def test_another_name_for_the_same_setting_gives_way():
    """`max_size` takes the place of `pool_size` and `max_overflow`, `timeout` that of `pool_timeout`."""
    base = {"url": "x", "pool_size": 5, "max_overflow": 5, "pool_timeout": 3, "pre_ping": True}
    assert overlay(base, {"max_size": 8, "timeout": 1.0}) == {
        "url": "x",
        "pre_ping": True,
        "max_size": 8,
        "timeout": 1.0,
    }
    assert overlay({"max_size": 1}, {"pool_size": 2}) == {"pool_size": 2}


def test_the_environment_sizes_a_pool_that_the_code_sized_in_sqlalchemys_words():
    """A deployment sizes its pools, however the code did."""
    settings = {"default": {"url": "sqlite:///shop.db", "pool_size": 5, "max_overflow": 10}}
    registry = registry_from(settings, where="POOLKIT", environ={"POOLKIT_DEFAULT_MAX_SIZE": "8"})
    assert registry.pool().config.max_size == 8
