"""The decisions about replicas, with a clock of the test's own and no server."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from django.db import DatabaseError

from poolkit_django.fleet import Retry
from poolkit_django.replicas import (
    Course,
    Limits,
    Mark,
    Replica,
    Sight,
    end_of_record,
    fittest,
    limits_from,
    lsn,
    lsn_text,
    marks_from,
    merged,
)

LIMITS = Limits(max_lag=5, pause=1, timeout=1)


def seen(position, now, course, age=None, limits=LIMITS):
    replica = Replica("replica1", limits)
    replica.heard(now, Sight(position, age=age), course)
    return replica


def course_of(*sights):
    course = Course()
    for now, position in sights:
        course.note(now, Sight(position, standby=False, started="primary"))
    return course


def test_positions():
    """A position is read and spelled as PostgreSQL does; what is none is refused."""
    assert lsn("16/B374D848") == 0x16_B374D848
    assert lsn_text(lsn("16/B374D848")) == "16/B374D848"
    for text in ("", "16", "/", "16/", "x/y", "123456789/0"):
        with pytest.raises(ValueError):
            lsn(text)


@pytest.mark.parametrize(("position", "end"), [(8192 + 24, 8192), (8192 + 40, 8192), (8192 + 48, 8192 + 48), (0, 0)])
def test_a_header_is_no_record(position, end):
    """The place after a page's header is the end of the record before it."""
    assert end_of_record(position) == end


def test_a_replica_with_everything_is_not_late():
    """However long nothing was written: a replica at the primary's position has no lag."""
    replica = seen(100, 1000.0, course_of((0.0, 100), (1000.0, 100)), age=5000.0)
    assert replica.lag == 0
    assert replica.is_fit(1000.0)


def test_lag_is_what_is_known_of_the_primary():
    """Behind by at most the time since the primary was where the replica is now, or since what it replayed last."""
    course = course_of((0.0, 100), (7.0, 200), (8.0, 300))
    assert seen(200, 9.0, course, age=60.0).lag == 2.0
    assert seen(200, 9.0, course, age=0.5).lag == 0.5
    assert seen(50, 9.0, course, age=60.0).lag == 60.0
    assert not seen(50, 9.0, course, age=60.0).is_fit(9.0)
    assert seen(100, 9.0, course, age=None).lag == 9.0


def test_lag_in_bytes():
    """A limit in bytes leaves out a replica that is late by more."""
    course = course_of((0.0, 1000))
    limits = Limits(max_lag_bytes=100)
    assert seen(900, 0.0, course, limits=limits).is_fit(0.0)
    assert not seen(899, 0.0, course, limits=limits).is_fit(0.0)


def test_without_the_primary_replicas_are_read():
    """A primary that was not seen lately says nothing about its replicas: reads go on."""
    replica = seen(50, 100.0, course_of((0.0, 1000)), age=60.0)
    assert replica.lag is None
    assert replica.is_fit(100.0)


def test_a_sight_gets_old():
    """A replica that was not seen for a while is not fit until it is looked at, and worth waiting for."""
    replica = seen(100, 0.0, course_of((0.0, 100)))
    assert replica.is_fit(LIMITS.trust)
    assert not replica.is_fit(LIMITS.trust + 0.1)
    assert replica.is_worth_waiting_for(LIMITS.trust + 0.1)
    assert not replica.is_worth_waiting_for(0.0)


def test_a_failure_leaves_out_until_it_is_heard_again():
    """One failure is enough, nobody waits for such a one, and the next answer brings it back; the error stays known."""
    course = course_of((0.0, 100))
    replica = seen(100, 0.0, course)
    replica.failed("no answer\nand more")
    assert not replica.is_fit(0.0)
    assert not replica.is_worth_waiting_for(100.0)
    replica.heard(1.0, Sight(100), course)
    assert replica.is_fit(1.0)
    assert replica.as_dict(1.5) == {
        "alias": "replica1",
        "in_use": True,
        "position": "0/64",
        "lag_seconds": 0.0,
        "lag_bytes": 0,
        "seen_seconds_ago": 0.5,
        "out": None,
        "last_error": "no answer",
    }


def test_one_that_is_no_standby():
    """A server that is no standby is left out, unless it is the primary itself."""
    course = course_of((0.0, 100))
    replica = Replica("replica1", LIMITS)
    replica.heard(0.0, Sight(500, standby=False, started="another"), course)
    assert not replica.is_fit(0.0)
    replica.heard(0.0, Sight(500, standby=False, started="primary"), course)
    assert replica.is_fit(0.0)


def test_another_primary_begins_a_new_course():
    """After a failover the log may go back: what was seen of the old primary counts no more."""
    course = course_of((0.0, 1000), (1.0, 500))
    assert course.position(0.0) == 500
    assert course.reached_by(1000) == 1.0


def test_marks():
    """A mark is met by a replica that has replayed it, by an old sight as well; one in time by nobody before."""
    replica = seen(100, 0.0, course_of((0.0, 100)))
    assert replica.has(Mark(100), wall=0)
    assert not replica.has(Mark(101), wall=0)
    assert not replica.has(Mark(until=10), wall=9)
    assert replica.has(Mark(until=10), wall=10)
    assert fittest([replica], Mark(100), 0.0, 0.0) == [replica]
    assert fittest([replica], Mark(101), 0.0, 0.0) == []
    unknown = Replica("mysql", LIMITS)
    unknown.heard(0.0, Sight(), Course())
    assert unknown.is_fit(0.0)
    assert unknown.has(Mark(), 0.0)
    assert not unknown.has(Mark(1), 0.0)


def test_marks_are_joined():
    """Of two marks on one primary both must be met; primaries have nothing to do with each other."""
    assert merged({"a": Mark(5, 1.0)}, {"a": Mark(3, 2.0), "b": Mark(1)}) == {"a": Mark(5, 2.0), "b": Mark(1)}


@pytest.mark.parametrize(
    "plain", [None, [], "x", {"default": 5}, {"default": ["x", 1]}, {"default": [1, 2]}, {"other": []}]
)
def test_marks_that_are_none(plain):
    """What is not understood demands nothing."""
    assert marks_from(plain, ["default"]) == {}


def test_marks_survive_json():
    """What was spelled is read again, but for primaries that are none any more."""
    mark = Mark(lsn("16/B374D848"), 12.5)
    assert marks_from({"default": mark.plain(), "gone": mark.plain()}, ["default"]) == {"default": mark}


def test_limits():
    """Every setting is taken; all that is wrong is said at once."""
    assert limits_from({}) == Limits()
    assert limits_from({"max_lag": 3, "cookie": None}) == Limits(max_lag=3, cookie=None)
    with pytest.raises(
        ValueError, match=r"'max_lg' is not one of max_lag, .*; 'pause' must be a positive number of sec"
    ):
        limits_from({"max_lg": 1, "pause": 0})


@pytest.mark.parametrize(
    "given",
    [
        [],
        {"max_lag": "10"},
        {"max_lag": True},
        {"max_lag": float("inf")},
        {"max_lag_bytes": 1.5},
        {"cookie": ""},
        {"cookie": 5},
        {"max_lag": 100, "remember": 99},
    ],
)
def test_limits_that_can_not_work(given):
    """Wrong types and values, and a memory shorter than the lag it has to outlive, are refused."""
    with pytest.raises(ValueError):
        limits_from(given)


@dataclass
class Wrapper:
    """The wrapper of a replica whose connection was lost during a read."""

    stands_in: str
    alias: str = "copy"
    in_atomic_block: bool = False
    connection: object = "lost"

    def get_autocommit(self) -> bool:
        return True

    def is_gone(self, connection: object) -> bool:
        return connection == "lost"


@pytest.mark.parametrize(("stands_in", "again"), [("", True), ("replica", True), ("primary", False)])
def test_a_lost_read_runs_again_until_the_primary_was_asked(stands_in: str, *, again: bool) -> None:
    """Another replica that stood in may be lost as well; where the primary is lost, there is nowhere else to go."""
    assert Retry._may_run_again(Wrapper(stands_in), DatabaseError("lost"), "SELECT 1") is again
