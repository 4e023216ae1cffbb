"""Errors: they say what happened, and survive a trip to another process."""

from __future__ import annotations

import copy
import pickle

import pytest

import poolkit
from poolkit import (
    AcquireTimeout,
    CommitFailed,
    ConfigError,
    ConnectRejected,
    Holder,
    LeaseError,
    NestedAcquire,
    OpenFailed,
    Overloaded,
    PoolClosed,
    PoolError,
    PoolkitError,
    UnitOfWorkError,
    WrongProcess,
)

HOLDERS = (Holder("GET /slow", 2.5, True, "  line 1\n"), Holder("thread x", 0.25))
ERRORS: list[PoolkitError] = [
    ConfigError(["one", "two"], "app.toml"),
    ConfigError("one"),
    PoolError("main", "could not"),
    PoolClosed("main"),
    WrongProcess("main"),
    AcquireTimeout("main", "no connection", waited=1.5, retry_after=2.0, holders=HOLDERS),
    Overloaded("main", "too many", retry_after=0.5),
    OpenFailed("main", "is away", 1.0, 4.0),
    ConnectRejected("main", "wrong password", 1.0),
    NestedAcquire("main", "holds all", holders=HOLDERS),
    LeaseError("has ended"),
    UnitOfWorkError("too late"),
    CommitFailed("half", ["a"], ["b"], lost=True),
]


def test_every_error_is_looked_at_here() -> None:
    """The tree has one root, and each public error of it is in the list above."""
    public = {value for value in vars(poolkit).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert {type(error) for error in ERRORS} == public - {PoolkitError}
    assert all(issubclass(kind, PoolkitError) for kind in public)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(error: PoolkitError, protocol: int) -> None:
    """A task queue or a process pool hands on the same error: text, arguments and every attribute."""
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_copying(error: PoolkitError) -> None:
    """Frameworks copy errors too."""
    again = copy.copy(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_handlers_for_the_languages_own_errors_see_ours() -> None:
    """A timeout is a TimeoutError, wrong settings are a ValueError, a lease used wrongly is a RuntimeError."""
    assert issubclass(AcquireTimeout, TimeoutError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(LeaseError, RuntimeError)
    assert not issubclass(OpenFailed, OSError), "the driver's own is its cause"


def test_an_error_tells_who_holds_what() -> None:
    """Pool, what happened, and each holder with its age, its state and where it took the connection."""
    assert str(ERRORS[5]) == (
        "pool 'main': no connection"
        "\n  held by GET /slow for 2.50 s, in a transaction, taken at:\n  line 1\n"
        "\n  held by thread x for 0.25 s"
    )
    assert str(Holder("x", 1, in_transaction=False)) == "x for 1.00 s, idle"


def test_settings_with_one_fault_say_it_in_one_line() -> None:
    """One fault reads as a sentence, several as a list."""
    assert str(ConfigError("one", "app.toml")) == "app.toml: one"
    assert str(ConfigError(["one", "two"])) == "2 problems\n  - one\n  - two"
