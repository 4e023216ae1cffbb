"""PoolState: every decision a pool makes, and nothing else.

The law of this file: whatever decides who gets which resource, when one is opened or closed, who waits, who is
refused and when the server is asked again, stands here; and nothing here does I/O, takes a lock, reads a clock,
sleeps or logs. The shells (`threads`, `aio`) call these methods one at a time (under their lock, or in their loop),
pass the time in, and carry out the `Orders` they get back after the lock is let go: close the doomed, start the
opens, wake the woken.

Theory
------
A *slot* is the place of one resource. It is OPENING while somebody connects, then IDLE or OUT until it is DEAD:

    (nothing) --grow--> OPENING --opened--> OUT or IDLE <--give/take--> ... --doom--> DEAD

A returned slot whose session has to be made as new is RESETTING: its reset was sent and is not waited for. It is lent
only where nothing is idle, and before anything is opened; `Slot.reset` stays set then, and the borrower's shell reads
the answer before anything else is sent. A shell that reads the answer in the background takes the slot with
`claim_reset`, and ends that with `reset_done` or `reset_failed`.

A borrower that closes its resource ends its lease in the middle of its block. Another slot then has the resource
(`give_early`), and the lease is left with the old one, which is RETURNED for good: whatever the lease does later can't
reach the next borrower.

A *waiter* asked while nothing was idle. Waiters are served strictly in the order they asked, by hand-off: a returned or
newly opened slot goes to the oldest waiter *before* anyone else can see it, so nobody can overtake. It follows that
idle slots and waiters never exist together, nor resetting slots and waiters, which is why `take` need not look at the
queue.

It follows as well that a slot may be *taken* without the lock, as the threading shell does: `idle` is a deque, its pop
is one step, and whoever got a slot out of it owns it. Everything else happens under the lock, the return above all,
where it is decided between the queue and `idle`. So nothing in here may rely on `idle` keeping what it has: it can lose
slots at any moment (`_pop_idle`, `_doom_idle`), and a slot in neither place may be on its way to a borrower. What never
arrived, because of an interrupt, or was forgotten by its borrower, is found by the shell: nobody refers to it any more.

Opens belong to nobody. When someone has to wait, an open is ordered for them if there is room, but whoever is first in
line gets whatever comes first, a returned slot or a new one. So an open outlives the caller that caused it (a
cancellation wastes nothing), many opens run at once, and a waiter never sits behind its own slow connect while a
resource lies idle.

One number decides whether a slot may be lent again: `expires`. Age, use count, drain and close all work by setting it
to a moment that has passed; the hot path makes one comparison. `generation` is looked at only when an open ends: it was
stamped before the connect began, so that nothing begun before a drain (old credentials, an old host) enters after it.

Outages. The first failed open is followed by another after FIRST_RETRY seconds, then RETRY_GROWTH times that, up to
LAST_RETRY, one attempt at a time: so service is back within about a quarter of the outage's length. Waiters wait
through short outages. After BREAK_AFTER failures in a row the breaker is open: if no resource is out that might come
back, the waiters get `OpenFailed` with the driver's error, and new ones get it at once, but for the one that comes when
the next attempt is due: it is let in as the probe. The first success closes the breaker. (`on_outage="wait"`: everyone
waits for their timeout instead.)

A server that swallows packets fails no attempt, it only takes the time of each; and an attempt that was under way when
the network came back is found by the next retransmission, which may be as far off as the outage was long. So an attempt
gets `patience`: a few times what connects took of late, and not the whole open_timeout. A server that is or has become
slow is not to be locked out by that: beside the short attempts one patient attempt is made. An idle connection that was
asked and did not answer in that time casts doubt on all that lay idle as long: they are not asked one by one.

A refused connect (a wrong password, an unknown database) is no outage: nothing will help before something is
changed. Who waits gets `ConnectRejected` at once unless a resource is out that may come back, and so does everyone
who asks in the next REJECT_PAUSE seconds; after that one attempt is made, then one every LAST_REJECT_PAUSE seconds.

A demoted server (a failover left it read-only) ends its whole generation: connections to it look healthy for ever.

Urgent waiters (probes, administration) stand before all others, are not shed, and may be given `reserved` slots above
max_size. Those are above it for no longer than an urgent borrower has one.

Invariants, after every call (tests/state/test_model.py):
  size == idle + resetting + out + opening <= max_size (above it only after a resize downwards, until the surplus is
  returned, and by at most `reserved` for the urgent);
  nobody waits while a slot is idle or resetting; nobody waits while there is room, unless the server is away;
  one slot, one borrower; first come, first served, the urgent first; a doomed slot is ordered closed exactly once;
  closed means empty.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from poolkit.errors import ConnectRejected, LeaseError, NestedAcquire, OpenFailed, Overloaded, PoolClosed, PoolError
from poolkit.overload import CoDel, Pace
from poolkit.stats import Histogram, PoolStats

if TYPE_CHECKING:
    from poolkit.config import PoolConfig

__all__ = [
    "DEAD", "IDLE", "INHERITED", "OPENING", "OUT", "RESETTING", "RETURNED", "Orders", "PoolState", "Slot", "Waiter",
]  # fmt: skip

R = TypeVar("R")

OPENING, IDLE, OUT, DEAD, INHERITED = "opening", "idle", "out", "dead", "inherited"
RESETTING, RETURNED = "resetting", "returned"

FIRST_RETRY = 0.05  # a restarted server is back in 20 to 200 ms
RETRY_GROWTH = 1.25  # after an outage of t seconds the next attempt is at most t/4 away
LAST_RETRY = 0.5  # so that service is back within a second, at two cheap attempts a second and process
BREAK_AFTER = 8  # 50 + 62 + 78 + ... = 0.75 s: a longer outage is not worth a request's waiting
BREAK_AFTER_HUNG = 2  # of a second and more each
RETRY_JITTER = 0.2
LEAST_PATIENCE = 0.75  # so that service is back within a second of a silent network's return
PATIENCE = 4.0  # times the slowest connect of late
FORGETTING = 0.9  # how much of the slowest connect is left after each that was faster
REJECT_PAUSE = 5.0  # wrong settings are mended by hand: the first look at the change comes soon,
LAST_REJECT_PAUSE = 30.0  # and later ones seldom, for some servers lock out an account after a number of failures
DEMOTION_PAUSE = 1.0  # a server that stays read-only is not reconnected to for each refused write

_AT_EXIT = (
    "was closed because the process ends: an atexit handler that needs it must be registered after poolkit was "
    "imported, for what was registered last runs first"
)


def _told(error: BaseException | None) -> str:
    """Describe the error of a failed connect, with its place where it was raised in `configure`."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("raised in configure")]
    return f"{type(error).__name__}: {error}" + "".join(f" ({note})" for note in notes)


class Slot(Generic[R]):
    """The place of one resource. `holder`, `label`, `scoped` and `stack` are the shell's, the rest is the state's."""

    __slots__ = (
        "__weakref__", "attempt", "begun", "born", "closing", "expires", "generation", "holder", "idled", "label",
        "patience", "reason", "references", "reported", "reset", "resource", "returned", "scoped", "since", "stack",
        "status", "uses",
    )  # fmt: skip

    def __init__(self, generation: int, patience: float = math.inf) -> None:
        self.resource: R = None  # type: ignore[assignment]  # set by opened(), before anybody sees the slot
        self.status = OPENING
        self.begun = 0  # the shell's: how much of what was ordered for it somebody has begun, nothing at first
        self.generation = generation
        self.attempt = 0  # how many opens in a row had failed when this one was ordered
        self.patience = patience  # how long the attempt to connect may take
        self.born = 0.0
        self.expires = math.inf  # the moment from which it is not lent any more
        self.since = 0.0  # when it last changed hands
        self.idled = 0.0  # for how long it lay idle before it was taken
        self.uses = 0
        self.reset: Any = None  # what the shell knows of a reset whose answer is still to be read
        self.references = 0  # the shell's: how many references to the resource are not a borrower's
        self.reason = ""  # why it was doomed
        self.holder: Any = None  # who has it: a thread's ident, or a task
        self.closing = 0  # which of its uses its borrower has begun to close
        self.label = ""  # what the holder is doing, where that is known: "GET /orders"
        self.returned: Any = None  # the shell's: the place where its borrower has closed the resource
        self.scoped = False  # taken by a `with` block: the holder itself will give it back
        self.stack: Any = None
        self.reported = -1.0  # the `since` for which a leak was reported


# All but `__weakref__`, and `returned`.
_PASSED_ON = tuple(name for name in Slot.__slots__ if name not in {"__weakref__", "returned"})


class Waiter(Generic[R]):
    """Somebody in the queue. `done` once it has a slot or an error; the shell adds how it is woken."""

    __slots__ = ("asked_at", "done", "error", "holder", "slot", "urgent")

    def __init__(self, holder: Any = None, *, urgent: bool = False) -> None:
        self.slot: Slot[R] | None = None
        self.error: PoolError | None = None
        self.done = False
        self.asked_at = 0.0
        self.holder = holder
        self.urgent = urgent


class Orders:
    """What the shell has to do once it has let go of the lock. Most hold one thing, and cost no more than that."""

    woken: Sequence[Any] = ()  # waiters that got a slot or an error
    doomed: Sequence[Any] = ()  # slots to close
    opens: Sequence[Any] = ()  # slots to connect, each within its `patience`; ends in opened() or open_failed()
    retry_in: float | None = None  # call retry() after so many seconds


class PoolState(Generic[R]):
    """The decisions of one pool. `random` gives numbers in [0, 1) and spreads lifetimes and retries."""

    def __init__(self, config: PoolConfig, name: str, random: Callable[[], float]) -> None:
        self.name = name
        self.min_size = config.min_size
        self.max_size = config.max_size
        self.closed = False
        self.at_exit = False  # the shell's: it was closed because the process ends
        self.generation = 0
        self.size = 0
        self.opening = 0
        self._stale = 0  # opens begun before a drain: they count against max_size, but will serve nobody
        self.idle: deque[Slot[R]] = deque()
        self.resetting: deque[Slot[R]] = deque()  # the one whose reset was sent first at its head
        self.waiters: OrderedDict[Waiter[R], None] = OrderedDict()  # the urgent ones first
        self.urgent = 0  # how many those are
        self.slots: set[Slot[R]] = set()
        self.doomed: list[Slot[R]] = []  # not ordered closed yet
        self.failures = 0  # failed opens in a row
        self.last_error: BaseException | None = None
        self.rejections = 0  # refused opens in a row
        self._config = config
        self._refuses = config.on_outage == "refuse"
        self._limit = config.open_timeout
        self._check_after = math.inf if config.check_after is None else config.check_after
        self._slowest: float | None = None  # connect of late; None before the first
        self._hung = False  # an attempt was given up for its patience since the last success
        self._patient: Slot[R] | None = None  # the attempt that is given all of open_timeout
        self._demoted_at = -math.inf
        self._random = random
        self.pop = self.idle.pop if config.order == "lifo" else self.idle.popleft
        self._max_uses = math.inf if config.max_uses is None else config.max_uses
        self._codel = None if config.target_delay is None else CoDel(config.target_delay)
        self._pace = Pace()
        self._woken: list[Waiter[R]] = []
        self._opens: list[Slot[R]] = []
        self.witness: Slot[R] | None = None  # one whose holder was seen not to wait for another
        self._first_expiry = math.inf  # nothing that lies idle expires before
        self._retry_at = 0.0
        self._retrying = False  # the shell was ordered to call retry()
        self._retry_in: float | None = None
        self._init_counters()

    def _init_counters(self) -> None:
        self.ended = self.timeouts = self.overloaded = self.shed = self.refused = 0
        self.opened_total = self.open_failures = self.leaked = 0
        self.used = 0.0
        self.wait_time = Histogram()
        self.open_time = Histogram()
        self.reasons: dict[str, int] = {}

    # -- the hot path ---------------------------------------------------------------------------------------------

    def take(self, now: float) -> Slot[R] | None:
        """Lend an idle slot, or None. May leave expired ones in `doomed`."""
        while self.idle:
            try:
                slot = self.pop()
            except IndexError:  # another thread was faster
                break
            if slot.expires > now:
                slot.status = OUT
                slot.idled = now - slot.since
                slot.since = now
                slot.uses += 1
                return slot
            self._doom(slot, "lifetime")
        return self._take_resetting(now) if self.resetting else None

    def _take_resetting(self, now: float) -> Slot[R] | None:
        """Lend a slot whose reset is under way; the shell reads the answer first."""
        while self.resetting:
            slot = self.resetting.popleft()
            if slot.expires <= now:
                self._doom(slot, "lifetime")
                continue
            slot.status = OUT
            slot.idled = 0.0
            slot.since = now
            slot.uses += 1
            return slot
        return None

    def give(self, slot: Slot[R], now: float) -> Orders | None:
        """Take a slot back: to the oldest waiter, to the idle, or to its end."""
        if slot.status is not OUT:
            raise LeaseError(f"pool {self.name!r}: this connection was given back before")
        self.used += now - slot.since
        self.ended += 1
        retired = slot.expires <= now or slot.uses >= self._max_uses or self.size > self.max_size
        if retired and not self._is_lent_on(slot, now):
            return self._retire(slot, now)
        if self.waiters:
            self._serve(slot, now)
            return self._orders()
        if slot.reset is not None:
            slot.status = RESETTING
            slot.since = now
            self.resetting.append(slot)
            return None
        slot.status = IDLE
        slot.since = now
        self.idle.append(slot)
        return None

    def give_early(self, resource: R) -> tuple[Slot[R], Slot[R]] | None:
        """Part a borrowed resource from its lease, whose slot is RETURNED from now on; None where it is not borrowed.

        Returns that slot, and the one that has the resource: it is still to be given.
        """
        old = self.lent(resource)
        if old is None:
            return None
        new: Slot[R] = Slot(old.generation)
        for name in _PASSED_ON:
            setattr(new, name, getattr(old, name))
        old.status = RETURNED
        self.slots.add(new)
        self.slots.discard(old)
        return old, new

    def lent(self, resource: R) -> Slot[R] | None:
        """Return the slot of a borrowed resource; None where it is not borrowed."""
        for slot in list(self.slots):
            if slot.status is OUT and slot.resource is resource:
                return slot
        return None

    # -- resetting ------------------------------------------------------------------------------------------------

    def claim_reset(self, slot: Slot[R]) -> bool:
        """Take a resetting slot to read the answer to its reset; False where a borrower has it, or it has ended."""
        if slot.status is not RESETTING:
            return False
        try:
            self.resetting.remove(slot)
        except ValueError:  # claimed before
            return False
        return True

    def claim_resets(self) -> list[Slot[R]]:
        """Take all resetting slots, to look for answers that have come."""
        claimed = list(self.resetting)
        self.resetting.clear()
        return claimed

    def reset_done(self, slot: Slot[R], now: float) -> Orders | None:
        """Let a claimed slot be lent again: its session is as new, or `slot.reset` says that no answer came yet."""
        if slot.status is not RESETTING:  # the pool was closed or drained meanwhile
            return None
        if (slot.expires <= now or self.size > self.max_size) and not self._is_lent_on(slot, now):
            return self._retire(slot, now)
        if self.waiters:  # a borrower asked meanwhile
            slot.status = OUT
            self._serve(slot, now)
            return self._orders()
        if slot.reset is not None:
            self.resetting.append(slot)
        else:
            slot.status = IDLE
            slot.since = now
            self.idle.append(slot)
        return None

    def reset_failed(self, slot: Slot[R], now: float) -> Orders | None:
        """End a claimed slot whose session could not be made as new."""
        if slot.status is not RESETTING:
            return None
        self._doom(slot, "broken")
        self._after_loss(now)
        return self._orders()

    # -- waiting --------------------------------------------------------------------------------------------------

    def ask(self, waiter: Waiter[R], now: float) -> Orders | None:
        """Put a waiter in line, or end it at once with an error."""
        waiter.asked_at = now
        if self.idle or self.resetting:  # one may have come back since the caller looked
            waiter.slot = self.take(now)
        if waiter.slot is None:
            waiter.error = self._refusal(waiter, now)
        if waiter.slot is not None or waiter.error is not None:
            waiter.done = True
        elif waiter.urgent:
            self.waiters[waiter] = None
            for other in [waiter, *reversed(list(islice(self.waiters, self.urgent)))]:
                self.waiters.move_to_end(other, last=False)
            self.urgent += 1
            self._grow(now)
        else:
            self.waiters[waiter] = None
            if self.size < self.max_size:
                self._grow(now)
        return self._orders()

    def _next_in_line(self) -> Waiter[R]:
        waiter, _ = self.waiters.popitem(last=False)
        self.urgent -= waiter.urgent
        return waiter

    def give_up(self, waiter: Waiter[R], now: float, *, timed_out: bool = False) -> Orders | None:
        """Leave the line; a slot that was handed over in the same moment goes on to the next."""
        if waiter.slot is not None:
            slot, waiter.slot, waiter.done = waiter.slot, None, True
            return self.give(slot, now)
        if not waiter.done:
            waiter.done = True
            with contextlib.suppress(KeyError):  # interrupted before it stood in line
                del self.waiters[waiter]
                self.urgent -= waiter.urgent
                self.timeouts += timed_out
                self.wait_time.add(now - waiter.asked_at)
        return self._orders()

    def count_timeout(self) -> None:
        """Count one whose time went by outside the line, on resources that turned out to be dead."""
        self.timeouts += 1

    def _refusal(self, waiter: Waiter[R], now: float) -> PoolError | None:
        if self.closed:
            return self._closed_error()
        if self.failures and self._is_hopeless() and not self._probe_due(now):
            return self._open_failed_error(0.0, now)
        seen = self.witness
        if (seen is None or seen.status is not OUT or seen.holder == waiter.holder) and self._is_nested(waiter):
            return self._nested_error()
        return None if self._config.max_waiting is None else self._overload(waiter)

    def _is_hopeless(self) -> bool:
        """Whether nobody is to wait: the server is away for long, and no resource is out that might come back."""
        return (self._refuses or self.rejections > 0) and self.broken and self.size == self.opening

    def _nested_error(self) -> NestedAcquire:
        self.refused += 1
        return NestedAcquire(
            self.name,
            f"waiting could never end: this thread or task holds a connection already, and all {self.size} connections "
            "are held by such as wait for another; use the connection you have, or set max_size higher",
        )

    def _refuse_the_nested(self, now: float) -> None:
        """Refuse those who wait for each other since the pool was made smaller: the last of them, one by one."""
        if self.opening or self.size < self.max_size or len(self._blocks()) < len(self.slots):
            return
        for waiter in reversed(list(self.waiters)):
            if self._is_nested(waiter):
                self._refuse(waiter, self._nested_error(), now)
                del self.waiters[waiter]
                self.urgent -= waiter.urgent

    def _overload(self, waiter: Waiter[R]) -> Overloaded | None:
        limit = self._config.max_waiting
        if limit is None or waiter.urgent or not self._no_room():
            return None
        if len(self.waiters) - self.urgent - self.opening < limit:
            return None
        self.overloaded += 1
        return Overloaded(
            self.name,
            f"{len(self.waiters)} are waiting for {self.max_size} connections already (max_waiting={limit})",
            retry_after=self._drain_time(),
        )

    def _is_nested(self, waiter: Waiter[R]) -> bool:
        """Whether all slots are held by this waiter, or by such as wait themselves: nobody could ever give one back.

        One slot shows that it is not so: one whose holder does not wait. It is remembered, for to look through all of
        them each time takes long. It can be believed until its holder, whoever that is by then, asks for another: who
        was handed it, or took it when it lay idle, does not wait any more.
        """
        mine = waiter.holder
        if mine is None or self.opening or self.size < self.max_size + self._reserve(waiter):
            return False
        waiting: list[Any] = []
        for slot in list(self.slots):
            if slot.scoped:
                # no set: who has ended has no hash any more; no generator: one that is cut short swallows an interrupt
                waiting = waiting or [mine, *[other.holder for other in self.waiters]]
                if slot.holder in waiting:
                    continue
            self.witness = slot
            return False
        return mine in self._blocks()

    def _blocks(self) -> list[Any]:
        """Who holds a slot in a block that gives it back."""
        # no generator: one that is cut short swallows an interrupt
        return [slot.holder for slot in list(self.slots) if slot.scoped]

    def _reserve(self, waiter: Waiter[R]) -> int:
        return self._config.reserved if waiter.urgent else 0

    def _no_room(self) -> bool:
        return self.size >= self.max_size or self.failures > 0

    # -- opening --------------------------------------------------------------------------------------------------

    def opened(self, slot: Slot[R], resource: R, now: float, took: float = 0.0) -> Orders | None:
        """A connect succeeded: the slot goes to the oldest waiter or lies idle, unless it is stale."""
        slot.resource = resource
        self.opening -= 1
        self.opened_total += 1
        self.open_time.add(took)
        slot.born = now
        if slot.generation != self.generation:
            self._stale -= 1
            self._doom(slot, "drained")
            self._grow(now)
            self._refuse_the_nested(now)
            return self._orders()
        self._recovered(took)
        slot.expires = self._expiry(now)
        self._first_expiry = min(self._first_expiry, slot.expires)
        if self.size > self.max_size and not self._is_lent_on(slot, now):  # made smaller meanwhile, or come too late
            self._doom(slot, "resized")
            self._refuse_the_nested(now)
        elif self.waiters:
            slot.status = OUT
            self._serve(slot, now)
        else:
            slot.status = IDLE
            slot.since = now
            self.idle.append(slot)
        self._grow(now)
        return self._orders()

    def open_failed(
        self, slot: Slot[R], error: BaseException, now: float, kind: Literal["away", "refused"] = "away"
    ) -> Orders | None:
        """A connect failed: schedule the next attempt, and refuse the waiters where the outage lasts."""
        slot.status = DEAD
        self.slots.discard(slot)
        self.opening -= 1
        self.size -= 1
        self.open_failures += 1
        failed = False
        if slot.generation != self.generation:  # it tells nothing about this generation
            self._stale -= 1
        elif slot.attempt == self.failures or self.failures:  # else it is left over from an outage that has ended
            failed = True
            self.last_error = error
            self._hung = self._hung or now - slot.since >= slot.patience
            if slot.attempt == self.failures:  # of many begun together, the first one to fail
                self.failures += 1
                self.rejections = self.rejections + 1 if kind == "refused" else 0
                # An attempt that took its time was a pause as well; not so one that was cut off, by a loop that ends.
                began = slot.since if isinstance(error, Exception) else now
                self._retry_at = began + self._backoff()
        if slot is self._patient:
            self._patient = None
        self._refuse_the_nested(now)
        self._refuse_the_hopeless(now, failed=failed)
        self._grow(now)
        return self._orders()

    def retry(self, now: float) -> Orders | None:
        """The time ordered by `retry_in` has come."""
        self._retrying = False
        self._grow(now)
        return self._orders()

    @property
    def broken(self) -> bool:
        """Whether the breaker is open."""
        return self.rejections > 0 or self.failures >= (BREAK_AFTER_HUNG if self._hung else BREAK_AFTER)

    @property
    def patience(self) -> float:
        """How long a server that is there may take for a connect, or for less than that."""
        return self._patience(self.max_size)

    @property
    def quick_answer(self) -> float:
        """About how long a round trip may take on a good day: a connect takes several. 0 before the first one."""
        return self._slowest or 0.0

    @property
    def ample_time(self) -> float:
        """After how long a silence speaks of the server, and not only of the one connection that was asked."""
        return min(self.patience, PATIENCE * self.quick_answer)

    def _probe_due(self, now: float) -> bool:
        return now >= self._retry_at and not self._coming()

    def _coming(self) -> int:
        """How many opens are under way that may serve a waiter soon."""
        return self.opening - self._stale - (self._hung and self._patient is not None)

    def _grow(self, now: float) -> None:
        """Order as many opens as there are waiters without one, and what min_size lacks, within the limits."""
        if self.closed:
            return
        coming = self._coming()
        room = self.max_size - self.size
        wanted = min(max(len(self.waiters) - coming, self.min_size - self.size), room)
        if self.urgent:
            room += self._config.reserved
            wanted = max(wanted, min(self.urgent - coming, room))
        if wanted <= 0:
            return
        if self.failures:
            self._try_again(now, room)
        else:
            for _ in range(wanted):
                if self._slowest is None and self._patient is None:  # nothing is known of this server yet
                    self._patient = self._order_open(self._limit, now)
                else:
                    self._order_open(self._patience(room), now)

    def _order_open(self, patience: float, now: float) -> Slot[R]:
        slot: Slot[R] = Slot(self.generation, patience)
        slot.attempt = self.failures
        slot.since = now
        self.size += 1
        self.opening += 1
        self.slots.add(slot)
        self._opens.append(slot)
        return slot

    def _try_again(self, now: float, room: int) -> None:
        """During an outage: one attempt if it is time, else an order to come back when it is; a patient one beside."""
        if not self._coming():
            if now >= self._retry_at:
                self._order_open(self._patience(room), now)
            elif not self._retrying:
                self._retrying = True
                self._retry_in = self._retry_at - now
        if self._hung and self._patient is None and room > 1 and now >= self._retry_at:
            self._patient = self._order_open(self._limit, now)

    def _patience(self, room: int) -> float:
        """How long an attempt may take, where there is room for `room` of them."""
        if self._hung and room == 1 and not self.failures % 4:  # there is no place for a patient one beside it
            return self._limit
        return min(self._limit, max(LEAST_PATIENCE, PATIENCE * (self._slowest or 0.0)))

    def _recovered(self, took: float) -> None:
        self.failures = self.rejections = 0
        self.last_error = None
        self._retry_at = 0.0
        self._hung = False
        self._patient = None
        self._slowest = max(took, FORGETTING * (self._slowest or 0.0))

    def _backoff(self) -> float:
        if self.rejections:
            return REJECT_PAUSE if self.rejections == 1 else LAST_REJECT_PAUSE
        delay: float = min(LAST_RETRY, FIRST_RETRY * RETRY_GROWTH ** min(self.failures - 1, 20))
        return delay * (1 + RETRY_JITTER * (self._random() - 0.5))

    def _expiry(self, now: float) -> float:
        lifetime = self._config.max_lifetime
        if lifetime is None:
            return math.inf
        return now + lifetime * (1 - self._config.lifetime_jitter * self._random())

    def _refuse_the_hopeless(self, now: float, *, failed: bool = False) -> None:
        """Refuse everyone in line where the breaker is open, and the last attempt has failed or the next is not due."""
        if self._is_hopeless() and (failed or now < self._retry_at) and not self._coming():
            while self.waiters:
                waiter = next(iter(self.waiters))
                self._refuse(waiter, self._open_failed_error(now - waiter.asked_at, now), now)
                self._next_in_line()

    def _open_failed_error(self, waited: float, now: float) -> OpenFailed:
        self.refused += 1
        wait = max(0.0, self._retry_at - now)
        if self.rejections:
            return self._rejected_error(waited, wait)
        error = OpenFailed(
            self.name,
            f"no connection can be opened ({self.failures} attempts failed in a row, the next one in {wait:.2f} s): "
            f"{_told(self.last_error)}",
            waited=waited,
            retry_after=wait,
        )
        error.__cause__ = self.last_error
        return error

    def _rejected_error(self, waited: float, wait: float) -> ConnectRejected:
        error = ConnectRejected(
            self.name,
            f"the connection was refused: {_told(self.last_error)}. Check the URL, the credentials and the options; "
            f"the next attempt is made in {wait:.1f} s",
            waited=waited,
        )
        error.__cause__ = self.last_error
        return error

    # -- ending slots ---------------------------------------------------------------------------------------------

    def drop(self, slot: Slot[R], now: float, reason: str) -> Orders | None:
        """End a borrowed slot instead of giving it back."""
        self._take_from_borrower(slot, now, reason)
        self._after_loss(now)
        return self._orders()

    def _take_from_borrower(self, slot: Slot[R], now: float, reason: str) -> None:
        if slot.status is not OUT:
            raise LeaseError(f"pool {self.name!r}: this connection was given back before")
        self.used += now - slot.since
        self.ended += 1
        self._doom(slot, reason)

    def demoted(self, slot: Slot[R], now: float) -> Orders | None:
        """End a borrowed slot whose server takes no writes any more, and all that was opened when it was.

        Once in DEMOTION_PAUSE: while the server stays as it is, only what was refused a write is replaced.
        """
        self._take_from_borrower(slot, now, "demoted")
        if slot.generation == self.generation and now - self._demoted_at >= DEMOTION_PAUSE:
            self._demoted_at = now
            self._end_generation()
            self._retry_at = 0.0
        self._after_loss(now)
        return self._orders()

    def found_dead(self, slot: Slot[R], now: float) -> Orders | None:
        """End a borrowed slot that did not live, and after a long idleness all that lay idle as long."""
        self._take_from_borrower(slot, now, "dead")
        if slot.idled > self._check_after:
            last_seen = slot.since - slot.idled
            for other in [other for other in list(self.idle) if other.since <= last_seen]:  # copied in one step
                self._doom_idle(other, "dead")
        self._after_loss(now)
        return self._orders()

    def detach(self, slot: Slot[R], now: float) -> Orders | None:
        """Let a borrowed resource leave the pool for good, open."""
        self._take_from_borrower(slot, now, "detached")
        self.doomed.remove(slot)  # before anything is ordered: whoever sees the orders may carry them out
        self._after_loss(now)
        return self._orders()

    def sweep(self, now: float) -> Orders | None:
        """Doom what is too old or idle for too long, and bring the pool up to min_size."""
        limit = self._config.idle_timeout
        if self._patient is not None and now - self._patient.since >= LEAST_PATIENCE:
            self._hung = True  # the very first attempt: others are made beside it
        if now >= self._first_expiry or (limit is not None and now - self._idle_since() >= limit):
            self._sort_out(now, math.inf if limit is None else limit)
        self._grow(now)
        return self._orders()

    def _idle_since(self) -> float:
        """Return since when the one lies idle that does so for longest: in either order it is the first."""
        try:
            return self.idle[0].since
        except IndexError:
            return math.inf

    def _sort_out(self, now: float, limit: float) -> None:
        self._first_expiry = min([slot.expires for slot in list(self.slots) if slot.expires > now], default=math.inf)
        for slot in list(self.idle):
            if slot.expires <= now:
                self._doom_idle(slot, "lifetime")
            elif now - slot.since >= limit and self.size > self.min_size:
                self._doom_idle(slot, "idle")

    def drain(self, now: float) -> Orders | None:
        """Let nothing opened or begun before this moment be lent again."""
        self._end_generation()
        self._retry_at = 0.0  # the new generation may have another address: try at once
        self._grow(now)
        return self._orders()

    def _end_generation(self) -> None:
        self.generation += 1
        self._stale = self.opening
        self._patient = None
        self._hung = False
        for slot in list(self.slots):  # copied: a finalizer of this thread may end one meanwhile
            slot.expires = -math.inf
        while (idle := self._pop_idle() or self._pop_resetting()) is not None:
            self._doom(idle, "drained")

    def resize(self, max_size: int, now: float, min_size: int | None = None) -> Orders | None:
        """Change the limits. Surplus idle slots go now, surplus borrowed ones when they are returned."""
        self.max_size = max_size
        self.min_size = min(self.min_size, max_size) if min_size is None else min_size
        while self.size > max_size and (slot := self._pop_idle() or self._pop_resetting()) is not None:
            self._doom(slot, "resized")
        self._grow(now)
        self._refuse_the_nested(now)
        return self._orders()

    def close(self, now: float) -> Orders | None:
        """End everything: no slot is lent again, every waiter gets `PoolClosed`."""
        self.closed = True
        self._end_generation()
        while self.waiters:
            self._refuse(next(iter(self.waiters)), self._closed_error(), now)
            self._next_in_line()
        return self._orders()

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(self.name, _AT_EXIT) if self.at_exit else PoolClosed(self.name)

    def _is_lent_on(self, slot: Slot[R], now: float) -> bool:
        """Whether a slot that may be one too many goes to an urgent waiter all the same."""
        fit = slot.expires > now and slot.uses < self._max_uses
        return bool(fit and self.urgent and self.size <= self.max_size + self._config.reserved)

    def _retire(self, slot: Slot[R], now: float) -> Orders | None:
        self._doom(slot, self._why(slot, now))
        self._after_loss(now)
        return self._orders()

    def _why(self, slot: Slot[R], now: float) -> str:
        if slot.generation != self.generation:
            return "drained"
        if slot.expires <= now:
            return "lifetime"
        return "uses" if slot.uses >= self._max_uses else "resized"

    def outlived(self, slot: Slot[R], now: float) -> None:
        """End a slot that was taken without the lock and turned out to be too old to be lent."""
        self.ended += 1  # it was out, for all who looked; what they read of that must not become less
        self._doom(slot, self._why(slot, now))
        self._after_loss(now)  # somebody may have stood in line meanwhile

    def _after_loss(self, now: float) -> None:
        self._refuse_the_hopeless(now)
        self._grow(now)
        self._refuse_the_nested(now)

    def _pop_idle(self) -> Slot[R] | None:
        """Take the one away that has been idle for longest."""
        try:
            return self.idle.popleft()
        except IndexError:
            return None

    def _pop_resetting(self) -> Slot[R] | None:
        return self.resetting.popleft() if self.resetting else None

    def _doom_idle(self, slot: Slot[R], reason: str) -> None:
        try:
            self.idle.remove(slot)
        except ValueError:  # somebody took it in this moment
            return
        self._doom(slot, reason)

    def _doom(self, slot: Slot[R], reason: str) -> None:
        so_far = self.reasons.get(reason, 0)  # an interrupt comes where something is called, so the call is the first
        self.reasons[reason] = so_far + 1
        slot.status = DEAD
        slot.reason = reason
        self.size -= 1
        self.doomed.append(slot)
        self.slots.discard(slot)

    def recover(self, lost: Iterable[Slot[R]], now: float) -> Orders | None:
        """End slots that nobody refers to any more: forgotten by a borrower, or lost by an interrupt on their way."""
        for slot in lost:
            if slot.status is OUT:
                self._take_from_borrower(slot, now, "lost")
            elif self._is_nowhere(slot):
                self._doom(slot, "broken")
        self._after_loss(now)
        return self._orders()

    def _is_nowhere(self, slot: Slot[R]) -> bool:
        """Whether a slot was on its way out of a queue and never arrived."""
        if slot.status is RESETTING:
            return slot not in self.resetting
        return slot.status is IDLE and slot not in self.idle

    def mend(self, now: float, lost: Iterable[Slot[R]] = ()) -> Orders | None:
        """Put the books right after an interrupt (a signal handler that raised) cut a call short, wherever that was.

        `lost`: the slots that nobody refers to.
        """
        for slot in [slot for slot in lost if self._is_nowhere(slot)]:
            self._doom(slot, "broken")
        self.slots = {slot for slot in self.slots if slot.status not in (DEAD, RETURNED)}
        line = sorted((waiter for waiter in self.waiters if not waiter.done), key=lambda waiter: not waiter.urgent)
        self.waiters = OrderedDict.fromkeys(line)
        opening = [slot for slot in self.slots if slot.status is OPENING]
        self._opens += [slot for slot in opening if not slot.begun and slot not in self._opens]  # twice does no harm
        self.size, self.opening = len(self.slots), len(opening)
        self._stale = sum(slot.generation != self.generation for slot in opening)
        self._patient = self._patient if self._patient in opening else None
        self.urgent = sum(waiter.urgent for waiter in self.waiters)
        self._after_loss(now)
        return self._orders()

    # -- serving --------------------------------------------------------------------------------------------------

    def _serve(self, slot: Slot[R], now: float) -> None:
        """Hand an unowned slot (status OUT) to the oldest waiter worth serving; there is at least one."""
        waiter = next(iter(self.waiters))
        while self._codel is not None and self._sheds(waiter, now) and len(self.waiters) > 1:
            # never the last in line: refusing it would serve nobody, and leave the slot idle
            self.overloaded += 1
            self.shed += 1
            self._refuse(waiter, self._shed_error(now - waiter.asked_at), now)
            self._next_in_line()
            waiter = next(iter(self.waiters))
        delay = now - waiter.asked_at
        self._pace.note(delay, now)
        self.wait_time.add(delay)
        slot.since = now
        slot.idled = 0.0
        slot.uses += 1
        waiter.slot = slot
        waiter.done = True
        self._woken.append(waiter)
        self._next_in_line()  # at last: one who is done and still in line is taken out of it by `mend`

    def _sheds(self, waiter: Waiter[R], now: float) -> bool:
        return self._codel is not None and not waiter.urgent and not self._codel.admits(now - waiter.asked_at, now)

    def _refuse(self, waiter: Waiter[R], error: PoolError, now: float) -> None:
        self.wait_time.add(now - waiter.asked_at)
        waiter.error = error
        waiter.done = True
        self._woken.append(waiter)

    def _shed_error(self, delay: float) -> Overloaded:
        return Overloaded(
            self.name,
            f"refused after {delay:.3f} s in the queue: the wait has been above "
            f"target_delay={self._config.target_delay} for too long",
            waited=delay,
            retry_after=self._drain_time(),
        )

    def _drain_time(self) -> float:
        """About how long the queue of now takes to drain, in seconds."""
        apart = self._pace.seconds
        if apart is None:  # nobody has been served from a queue yet
            apart = self.used / self.ended / self.max_size if self.ended else 0.0
        return (len(self.waiters) + 1) * apart

    def _orders(self) -> Orders | None:
        if not (self._woken or self.doomed or self._opens or self._retry_in is not None):
            return None
        orders = Orders()
        self._issue(orders)
        if self._woken:
            orders.woken, self._woken = self._woken, []
        if self.doomed or self._opens or self._retry_in is not None:
            orders.doomed, orders.opens, orders.retry_in = self.doomed, self._opens, self._retry_in
            self.doomed, self._opens, self._retry_in = [], [], None
        return orders

    def _issue(self, orders: Orders) -> None:
        """Let the shell remember what it will be ordered; what is filled in after that is in no other place."""

    def orders(self) -> Orders | None:
        """Collect what `take` left behind."""
        return self._orders()

    # -- looking --------------------------------------------------------------------------------------------------

    def overdue(self, now: float) -> list[Slot[R]]:
        """Slots out for longer than `leak_after` and not reported yet."""
        limit = self._config.leak_after
        if limit is None:
            return []
        late = [s for s in list(self.slots) if s.status is OUT and now - s.since > limit and s.reported != s.since]
        for slot in late:
            slot.reported = slot.since
        self.leaked += len(late)
        return late

    def timeout_hint(self) -> float:
        """Seconds after which one who gave up should try again."""
        return self._drain_time()

    def stats(self) -> PoolStats:
        """Take a snapshot."""
        idle, resetting = len(self.idle), sum([slot.status is RESETTING for slot in list(self.slots)])
        out = self.size - idle - resetting - self.opening
        error = self.last_error
        return PoolStats(
            name=self.name,
            size=self.size,
            idle=idle,
            out=out,
            resetting=resetting,
            opening=self.opening,
            waiting=len(self.waiters),
            min_size=self.min_size,
            max_size=self.max_size,
            generation=self.generation,
            closed=self.closed,
            acquired=self.ended + out,
            timeouts=self.timeouts,
            overloaded=self.overloaded,
            shed=self.shed,
            refused=self.refused,
            opened=self.opened_total,
            open_failures=self.open_failures,
            closed_by_reason=dict(self.reasons),
            leaked=self.leaked,
            used_seconds=self.used,
            wait=self.wait_time.snapshot(),
            open_time=self.open_time.snapshot(),
            outage=None if error is None else _told(error),
            rejected=error is not None and self.rejections > 0,
        )
