"""What judges a soak must itself be able to find a fault: each is shown one of every kind."""

from __future__ import annotations

from itertools import pairwise

import psycopg
import pytest
from soak_journal import SLACK, Actor, Interrupt, Journal, settle
from soak_ledger import SAVED, UNDONE, UNKNOWN, Found, Ledger
from soak_plan import draw

from poolkit import CommitFailed


def ledger_of(outcome: str, rows: int = 2) -> Ledger:
    ledger = Ledger()
    work = ledger.begin(ledger.number(), "main")
    work.rows, work.outcome, work.bumps = rows, outcome, 1
    return ledger


@pytest.mark.parametrize(
    ("outcome", "found", "counted", "fault"),
    [
        (SAVED, Found(2), 1, ""),
        (SAVED, Found(0), 1, "has 0 of its 2 rows"),
        (SAVED, Found(1), 1, "has 1 of its 2 rows"),
        (SAVED, Found(2), 0, "the counter is at 0"),
        (SAVED, Found(2, ghosts=1), 1, "rolled back to a savepoint"),
        (UNDONE, Found(0), 0, ""),
        (UNDONE, Found(2), 0, "has 2 of its 2 rows"),
        (UNDONE, Found(0), 1, "the counter is at 1"),
        (UNKNOWN, Found(2), 1, ""),
        (UNKNOWN, Found(0), 0, ""),
        (UNKNOWN, Found(1), 0, "has 1 of its 2 rows"),
    ],
)
def test_the_ledger(outcome, found, counted, fault):
    """What was saved is there, what was undone is not, and what nobody can know is whole or absent."""
    faults = ledger_of(outcome).faults({"main": {1: found} if any(found) else {}}, counted)
    assert len(faults) == bool(fault)
    assert fault in "".join(faults)


def test_a_unit_that_nobody_began():
    """Rows of an unknown unit are a fault."""
    assert "nobody began it" in Ledger().faults({"main": {7: Found(1)}}, 0)[0]


@pytest.mark.parametrize(
    ("error", "asked", "outcome"),
    [
        (None, True, SAVED),
        (ValueError(), False, UNDONE),
        (psycopg.errors.UniqueViolation(), True, UNDONE),
        (psycopg.errors.AdminShutdown(), True, UNKNOWN),
        (psycopg.OperationalError(), True, UNKNOWN),
        (Interrupt(), True, UNKNOWN),
        (CommitFailed("", committed=["main"]), True, SAVED),
        (CommitFailed("", undone=["main"], lost=True), True, UNDONE),
        (CommitFailed("", committed=["ledger"]), True, UNDONE),
        (CommitFailed("", committed=["ledger"], lost=True), True, UNKNOWN),
    ],
)
def test_what_a_unit_was_told(error, asked, outcome):
    """An error before the COMMIT was sent, or the server's refusal, undoes; a lost connection leaves it open."""
    work = Ledger().begin(1, "main")
    settle(work, Actor("a"), error, asked=asked)
    assert work.outcome == outcome


def test_one_connection_for_two():
    """A connection that somebody has is not given to another; one who was struck may have lost it."""
    journal, conn = Journal(Ledger()), object()
    first, second = Actor("first"), Actor("second")
    journal.take(conn, first)
    journal.take(conn, second)
    assert len(journal.wrong) == 1
    second.struck += 1
    journal.take(conn, first)
    assert len(journal.wrong) == 1
    assert journal.left() == 1
    journal.leave(conn)
    assert journal.left() == 0


def test_a_borrower_that_waited_too_long():
    """Somebody is late only beyond what a loaded machine explains."""
    journal = Journal(Ledger())
    journal.waited(Actor("a"), 1 + SLACK / 2, limit=1)
    assert journal.wrong == []
    journal.waited(Actor("a"), 1.1 + SLACK, limit=1)
    assert "waited for" in journal.wrong[0]


def test_the_same_seed_gives_the_same_faults():
    """A replay meets the same settings and faults; another seed, others."""
    assert draw(1, 30) == draw(1, 30)
    assert draw(1, 30) != draw(2, 30)


def test_the_faults_of_a_track_come_one_by_one():
    """Nothing begins on a track before what was there has ended; the last is an outage."""
    for seed in range(20):
        plan = draw(seed, 30)
        for track in ("server", "network"):
            faults = [fault for fault in plan.faults if fault.track == track]
            assert all(one.at + one.lasts <= two.at for one, two in pairwise(faults))
        assert plan.faults[-1].lasts >= 1
