"""UnitOfWork: from the first use of a connection to one COMMIT or ROLLBACK."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rig import Rig

from poolkit import CommitFailed, ConfigError, UnitOfWork, UnitOfWorkError, current, unit_of_work
from poolkit.testing.fakes import FakeError


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def unit(rig: Rig) -> UnitOfWork:
    return UnitOfWork(rig.registry, "GET /")


# -- the way it goes -------------------------------------------------------------------------------------------------


def test_nothing_is_leased_before_the_first_use(rig: Rig, unit: UnitOfWork) -> None:
    """A unit that asks for nothing takes nothing, and its end is an end all the same."""
    done: list[str] = []
    unit.on_commit(lambda: done.append("committed"))
    assert not unit.used
    unit.finish()
    assert (unit.ended, unit.committed, done) == (True, True, ["committed"])
    assert rig.servers["default"].opened == 0


def test_the_second_use_is_of_the_same_connection(rig: Rig, unit: UnitOfWork) -> None:
    """One request can't wait for itself: it has one connection of each name, in a transaction from the start."""
    connection = unit.get()
    assert unit.get() is connection
    assert connection.in_transaction
    assert unit.get("other") is not connection
    assert rig.out() == 2
    assert str(rig.registry.pool().holders()[0]).startswith("GET / for")


def test_an_end_in_success_commits_and_gives_back(rig: Rig, unit: UnitOfWork) -> None:
    """One COMMIT for each connection, in the order of their first use, then all are idle again."""
    order: list[str] = []
    for name in ("other", "default"):
        unit.get(name).execute(f"insert {name}")
    unit.on_commit(lambda: order.extend(rig.said("other")[-1:] + rig.said("default")[-1:] + [str(rig.out())]))
    unit.finish()
    assert order == ["commit", "commit", "0"], "hooks run when all is over"
    assert unit.committed is True


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_an_end_in_any_error_rolls_back(rig: Rig, unit: UnitOfWork, error: BaseException) -> None:
    """Whatever leaves the block, nothing is saved, and the error goes on as it is."""
    undone: list[str] = []
    unit.on_rollback(lambda: undone.append("undone"))
    unit.on_commit(lambda: undone.append("committed"))
    with pytest.raises(type(error)) as caught, unit:  # noqa: PT012  the block and its end
        unit.get().execute("insert")
        raise error
    assert caught.value is error
    assert rig.said() == ["begin", "insert", "rollback"]
    assert (unit.committed, undone, rig.out()) == (False, ["undone"], 0)


def test_a_doomed_unit_rolls_back_though_it_returns(
    rig: Rig, unit: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """`doom` is for an answer that is no error and is not to be saved; its reason can be found."""
    with caplog.at_level(logging.INFO, "poolkit"), unit:
        unit.get().execute("insert")
        assert unit.is_open
        unit.doom("dry run")
        assert unit.doomed
        assert not unit.is_open
    assert rig.said()[-1] == "rollback"
    assert "GET /" in caplog.text
    assert "dry run" in caplog.text


def test_an_apps_veto_on_the_status(rig: Rig) -> None:
    """`rollback_on` sees the status and decides; a unit without a status is not asked about."""
    for status, committed in [(500, False), (200, True), (None, True)]:
        unit = UnitOfWork(rig.registry, rollback_on=lambda status: status >= 500)
        unit.get()
        unit.finish(status=status)
        assert unit.committed is committed


def test_the_end_comes_once(rig: Rig, unit: UnitOfWork) -> None:
    """A second `finish`, with whatever verdict, does nothing; `close` after it neither."""
    unit.get()
    unit.finish()
    unit.finish(ValueError())
    unit.close()
    assert rig.said() == ["begin", "commit"]
    assert unit.committed is True


def test_a_unit_never_finished_is_rolled_back(rig: Rig, unit: UnitOfWork) -> None:
    """Only `finish` commits: `close` alone is what happens to a request that was lost."""
    unit.get().execute("insert")
    unit.close()
    assert rig.said()[-1] == "rollback"
    assert unit.committed is False


def test_commit_in_the_middle_is_the_end(rig: Rig, unit: UnitOfWork) -> None:
    """After `commit()` the connection is given back, and what comes later is outside of any transaction."""
    unit.get().execute("insert")
    unit.commit()
    assert rig.out() == 0
    late = unit.get()
    assert not late.in_transaction
    late.execute("select")
    with pytest.raises(UnitOfWorkError, match=r"commit.*too late"):
        unit.commit()
    assert rig.out() == 1
    assert unit.get() is late
    unit.close()
    assert rig.out() == 0
    assert rig.said() == ["begin", "insert", "commit", "select"]


def test_what_is_in_no_transaction_may_go_before_the_end(rig: Rig, unit: UnitOfWork) -> None:
    """An open unit keeps what it has; after it, all goes but what its user has begun a transaction on."""
    unit.get()
    assert (unit.let_go(), rig.out()) == (["default"], 1)
    unit.finish()
    unit.get()
    unit.get("other").in_transaction = True
    assert (unit.let_go(), rig.out()) == (["other"], 1)
    unit.get("other").in_transaction = False
    assert (unit.let_go(), rig.out()) == ([], 0)
    unit.get()
    unit.close()
    assert rig.out() == 0


@pytest.mark.parametrize("call", [
    lambda unit: unit.doom(), lambda unit: unit.stream(), lambda unit: unit.commit(), lambda unit: unit.restart(),
    lambda unit: unit.on_commit(print), lambda unit: unit.on_rollback(print),
])  # fmt: skip
def test_what_comes_too_late_is_told_so(unit: UnitOfWork, call: Callable[[UnitOfWork], object]) -> None:
    """After the end nothing can change it: a call that tries to is an error and not forgotten."""
    unit.finish()
    with pytest.raises(UnitOfWorkError, match="too late"):
        call(unit)


def test_stream_asks_for_a_transaction_to_the_end_of_the_body(unit: UnitOfWork) -> None:
    """The flag is the integration's to act on."""
    assert not unit.streaming
    unit.stream()
    assert unit.streaming


def test_an_unknown_name_is_an_error_with_the_nearest(unit: UnitOfWork) -> None:
    """A misspelt name takes nothing and says what was probably meant."""
    with pytest.raises(ConfigError, match="did you mean 'other'"):
        unit.get("othr")
    assert not unit.used


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_a_hook_that_raises_changes_nothing(rig: Rig, unit: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """The work is saved: the error is logged, and the other hooks run."""
    ran: list[str] = []
    unit.on_commit(lambda: 1 / 0)
    unit.on_commit(lambda: ran.append("second"))
    unit.finish()
    assert (unit.committed, ran) == (True, ["second"])
    assert "ZeroDivisionError" in caplog.text


def test_a_hook_may_use_a_connection(rig: Rig, unit: UnitOfWork) -> None:
    """In a hook the unit has ended: what it asks for is outside of any transaction, and given back with the unit."""
    with unit:
        unit.get().execute("insert")
        unit.on_commit(lambda: unit.get().execute("notify"))
    assert rig.said() == ["begin", "insert", "commit", "notify"]
    assert rig.out() == 0


def test_a_hook_that_has_to_be_awaited_is_refused(unit: UnitOfWork) -> None:
    """Hooks are called: a coroutine function would never run, so it is refused where it is given."""

    async def hook() -> None:
        """Never runs."""

    for register in (unit.on_commit, unit.on_rollback):
        with pytest.raises(UnitOfWorkError, match=r"hook.*awaits nothing"):
            register(hook)


# -- errors at the end -------------------------------------------------------------------------------------------------


def test_a_failing_commit_is_the_drivers_error(rig: Rig, unit: UnitOfWork) -> None:
    """With one connection the error is the driver's own; the unit is rolled back, its hooks say so."""
    undone: list[str] = []
    unit.on_rollback(lambda: undone.append("undone"))
    rig.servers["default"].fail_commit = True
    unit.get().execute("insert")
    with pytest.raises(FakeError, match="refuses the commit"):
        unit.finish()
    assert (unit.committed, undone, rig.out()) == (False, ["undone"], 0)


def test_the_second_of_two_commits_fails(rig: Rig, unit: UnitOfWork) -> None:
    """What was committed stays, what failed did not, and the error says which is which."""
    rig.servers["other"].fail_commit = True
    unit.get().execute("insert")
    unit.get("other").execute("insert")
    with pytest.raises(CommitFailed) as caught:
        unit.finish()
    assert caught.value.committed == ("default",)
    assert rig.out() == 0


def test_a_swallowed_error_is_not_reported_as_success(rig: Rig, unit: UnitOfWork) -> None:
    """A failed statement whose error was ignored has aborted its transaction: the end says that nothing was saved."""
    with pytest.raises(CommitFailed, match="nothing was saved") as caught, unit:  # noqa: PT012  the block and its end
        unit.get("other").execute("insert")
        with pytest.raises(FakeError):
            unit.get().execute("bad")
    assert "'default'" in str(caught.value)
    assert rig.said()[-1] == rig.said("other")[-1] == "rollback"


def test_a_failing_rollback_does_not_hide_the_error(
    rig: Rig, unit: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """The error that led to the rollback matters more; the other is in the log."""
    rig.faults["default"].plan("rollback", FakeError("line is dead"))
    with pytest.raises(ValueError, match="first"), unit:  # noqa: PT012  the block and its end
        unit.get()
        raise ValueError("first")
    assert "line is dead" in caplog.text
    assert rig.out() == 0


@pytest.mark.parametrize("method", ["aborted", "commit", "reset"])
def test_an_interrupt_at_the_end_is_raised_and_all_is_given_back(rig: Rig, unit: UnitOfWork, method: str) -> None:
    """Ctrl-C in a COMMIT stops the program, but only after every connection was ended and given back."""
    rig.faults["default"].plan(method, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), unit:  # noqa: PT012  the block and its end
        unit.get().dirty = True
        unit.get("other")
    assert rig.out() == 0


METHODS = st.sampled_from(["begin", "commit", "rollback", "reset", "aborted", "is_broken"])
PLANS = st.lists(st.tuples(st.sampled_from(["default", "other"]), METHODS), max_size=12)


@settings(max_examples=100, deadline=None, database=None)
@given(plans=PLANS, fail=st.booleans())
@example(plans=[("default", "commit"), ("default", "is_broken")], fail=False)
@example(plans=[("default", "reset"), ("default", "is_broken"), ("default", "is_broken")], fail=True)
def test_whatever_a_driver_raises_everything_is_given_back(plans: list[tuple[str, str]], *, fail: bool) -> None:
    """A fault in any method of a driver, even in one that must not raise, costs at most the connection it hit."""
    rig = Rig()
    for name, method in plans:
        rig.faults[name].plan(method, FakeError(method))
    unit = UnitOfWork(rig.registry)
    with contextlib.suppress(FakeError, ValueError, CommitFailed), unit:
        unit.get().dirty = True
        unit.get("other").dirty = True
        if fail:
            raise ValueError
    assert unit.ended
    assert rig.out() == 0
    for pool in rig.registry.live_pools():
        stats = pool.stats()
        assert stats.size == stats.idle == rig.servers[pool.name].open_now


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_a_block_commits_at_its_end(rig: Rig) -> None:
    """Outside a request a block is the unit, and within it this is the current one."""
    with unit_of_work(rig.registry, label="import") as unit:
        assert current() is unit
        assert unit.label == "import"
        unit.get().execute("insert")
    assert current() is None
    assert rig.said() == ["begin", "insert", "commit"]


def test_a_new_unit_inside_another_is_independent(rig: Rig) -> None:
    """`new=True` commits by itself, whatever becomes of the one around it."""
    with pytest.raises(ValueError), unit_of_work(rig.registry) as outer:  # noqa: PT012  the block and its end
        outer.get().execute("outer")
        with unit_of_work(rig.registry, new=True) as inner:
            assert inner is not outer
            inner.get().execute("inner")
        assert current() is outer
        raise ValueError
    assert rig.said() == ["begin", "outer", "begin", "inner", "commit", "rollback"]


def test_an_ended_unit_is_not_joined(rig: Rig) -> None:
    """What comes after `commit()` in a block is a unit of its own, not part of one that is over."""
    with unit_of_work(rig.registry) as outer:
        outer.commit()
        with unit_of_work(rig.registry) as inner:
            assert inner is not outer
            inner.get().execute("insert")
    assert rig.said() == ["begin", "insert", "commit"]


def test_threads_have_units_of_their_own(rig: Rig) -> None:
    """A thread started in a block is not part of it: a connection is used by one thread at a time."""
    seen: list[Any] = []
    with unit_of_work(rig.registry):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [None]
