"""What the borrowers of a round write down together: who has which connection, what they met, how long it took."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from typing import Any, NoReturn

import asyncpg
import psycopg
from soak_ledger import SAVED, UNDONE, UNKNOWN, Ledger, Work

from poolkit import CommitFailed, LeaseError, PoolClosed, PoolError, UnitOfWorkError

__all__ = ["SLACK", "Actor", "Boom", "Interrupt", "Journal", "SoftLimit", "boom", "may_happen", "settle"]

SLACK = 1.0  # seconds by which a borrower may be late on a machine with more to do than it has cores
_ENDS_SESSION = ("08", "57P", "25P03", "25P04")


class Boom(Exception):
    """What user code raises."""


def boom() -> NoReturn:
    """Raise it."""
    raise Boom


class Interrupt(KeyboardInterrupt):
    """What strikes a thread from outside, as Ctrl-C does."""


class SoftLimit(Exception):
    """What strikes a thread from outside, as a task queue's soft time limit does."""


class Actor:
    """One borrower: a thread or a task."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.doing = ""
        self.struck = 0  # how often it was interrupted from outside
        self.lock = threading.Lock()
        self.inside = False  # whether an interrupt can be thrown into it


class Journal:
    """The common book of a round. Every method may be called from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.over = False
        self.closing = False
        self.wrong: list[str] = []
        self.did: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.longest_wait = 0.0
        self._holders: dict[int, tuple[Actor, int]] = {}
        self._awaited: dict[str, float] = {}  # pool -> the moment since which its first success is waited for
        self.came_back: dict[str, float] = {}  # pool -> seconds after that moment

    def note(self, text: str) -> None:
        """Write down that something went wrong; a thousand of the same would hide the others."""
        if len(self.wrong) < 50:
            self.wrong.append(text)

    def surprise(self, actor: Actor, error: BaseException) -> None:
        """Write down an error that nobody should have met."""
        trace = "".join(traceback.format_exception(error))
        self.note(f"{actor.name}, in {actor.doing}, met {type(error).__name__}: {error}\n{trace}")

    def waited(self, actor: Actor, seconds: float, limit: float) -> None:
        """Write down how long a borrower stood in line that was ready to wait for `limit` seconds."""
        self.longest_wait = max(self.longest_wait, seconds - limit)
        if seconds > limit + SLACK:
            self.note(f"{actor.name}, in {actor.doing}, waited for {seconds:.2f} s with a timeout of {limit} s")

    # -- who has what ---------------------------------------------------------------------------------------------

    def take(self, conn: Any, actor: Actor) -> None:
        """A borrower got a connection: nobody else may have it.

        One who was struck since it took the connection may have lost it before it could say so.
        """
        before = self._holders.get(id(conn))
        if before is not None and before[0] is not actor and before[0].struck == before[1]:
            self.note(f"{actor.name}, in {actor.doing}, was given what {before[0].name} has, in {before[0].doing}")
        self._holders[id(conn)] = (actor, actor.struck)

    def leave(self, conn: Any) -> None:
        """It is about to end that."""
        self._holders.pop(id(conn), None)

    def left(self) -> int:
        """How many connections were not left."""
        return sum(actor.struck == struck for actor, struck in self._holders.values())

    # -- coming back ----------------------------------------------------------------------------------------------

    def await_service(self, pools: list[str]) -> None:
        """From now on, wait for the first success of each pool."""
        self.came_back = {}
        self._awaited = dict.fromkeys(pools, time.monotonic())

    def served(self, pool: str, began: float) -> None:
        """Somebody who asked this pool at `began` has just had an answer from the server."""
        since = self._awaited.get(pool)
        if since is not None and began >= since:
            self.came_back.setdefault(pool, time.monotonic() - since)


def may_happen(error: BaseException, journal: Journal) -> bool:
    """Whether an error is one of those that a borrower has to expect: refusals, the server's, the network's."""
    if isinstance(error, PoolClosed):
        return journal.closing
    if isinstance(error, LeaseError):
        return False
    # asyncpg has the last for a statement on a session whose goodbye it has read, and whose end it has not seen yet.
    of_asyncpg = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    return isinstance(error, (PoolError, UnitOfWorkError, Boom, psycopg.Error, OSError, *of_asyncpg))


def settle(work: Work, actor: Actor, error: BaseException | None, *, asked: bool) -> None:
    """Write down what the end of a unit tells about its work in one table; `asked`: whether COMMIT may have been sent.

    A COMMIT that failed was not carried out, unless the error says that nobody can know.
    """
    work.outcome = _outcome(work, error, asked=asked)
    work.told = f"{actor.name}, in {actor.doing}, {'after' if asked else 'before'} its end, by {error!r}"


def _outcome(work: Work, error: BaseException | None, *, asked: bool) -> str:
    if error is None:
        return SAVED
    if not asked:
        return UNDONE
    if isinstance(error, CommitFailed):
        if work.table in error.committed:
            return SAVED
        return UNKNOWN if error.lost and work.table not in error.undone else UNDONE
    state = getattr(error, "sqlstate", None)
    if isinstance(error, (psycopg.Error, asyncpg.PostgresError)) and state:
        return UNKNOWN if state.startswith(_ENDS_SESSION) else UNDONE
    return UNKNOWN
