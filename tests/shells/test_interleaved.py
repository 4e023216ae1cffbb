"""Two threads on one pool, changed between at every point of what they do: nothing goes wrong in between.

A resource that lies idle is taken without the lock. So whatever is done under the lock can lose one in its middle, and
whoever has taken one can be overtaken by a drain, a close, a sweep before having looked at it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from turns import Plan, Player, Stuck, Turns

from poolkit import Pool, PoolClosed, shell, state, threads
from poolkit.testing import FakeConnection, FakeDriver, FakeServer, ManualRuntime

WATCHED = [threads, state, shell]


class Rig:
    """A pool whose threads take turns, and what everybody has to find at the end."""

    def __init__(self, turns: Turns, **settings: Any) -> None:
        self.turns = turns
        self.server = FakeServer()
        self.driver = FakeDriver(self.server)
        self.runtime = ManualRuntime()
        self.loans = self.looks = 0
        options = {"max_size": 2, "timeout": 1, "check_after": 10, "max_lifetime": None, "idle_timeout": None}
        self.pool: Pool[FakeConnection] = Pool(self.driver, runtime=self.runtime, **(options | settings))

    def use(self, connection: Any) -> None:
        """Be the only one who has it, while others go on."""
        self.loans += 1
        assert getattr(connection, "user", None) is None, "one connection, two borrowers"
        connection.user = player = self.turns.me() or Player(-1, _nothing)
        player.has += 1
        self.turns.point()
        player.has -= 1
        connection.execute("select")  # raises where it was closed meanwhile
        assert not connection.closed, "closed under its borrower"
        connection.user = None

    def borrow_all(self, count: int) -> list[threads.Lease[FakeConnection]]:
        leases = [self.pool.acquire(0) for _ in range(count)]
        for lease in leases:
            self.use(lease.resource)
        return leases

    def check(self) -> None:
        """Nothing is out, the books are right, and all of it can be lent and closed."""
        for connection in self.server.connections:
            connection.mute = False
        gc.collect(0)
        self.runtime.advance(1.5)
        stats, pool = self.pool.stats(), self.pool
        assert (stats.out, stats.opening, stats.waiting) == (0, 0, 0)
        assert stats.size == stats.idle == len(pool._state.slots) == self.server.open_now
        assert stats.size <= stats.max_size
        ended = stats.closed_by_reason  # some of them after they were taken, and before they were lent
        unseen = self.looks + sum(ended.get(reason, 0) for reason in ("dead", "drained", "lifetime"))
        assert self.loans <= stats.acquired <= self.loans + unseen, "each loan is counted, and once"
        assert not pool._state.issued, "an order was not carried out"
        if pool.closed:
            assert stats.size == 0
        else:
            for lease in self.borrow_all(stats.max_size):
                lease.release()
            assert pool.close()
        assert self.server.open_now == 0


# -- what lies there before -------------------------------------------------------------------------------------------


def idle(rig: Rig, count: int = 1) -> None:
    for lease in rig.borrow_all(count):
        lease.release()


def two(rig: Rig) -> None:
    idle(rig, 2)


def old(rig: Rig) -> None:
    """Two that have lain for long, the older one for longer, and answer no ping."""
    leases = rig.borrow_all(2)
    leases[0].release()
    rig.runtime.clock.advance(30)
    leases[1].release()
    rig.runtime.clock.advance(30)
    for connection in rig.server.connections:
        connection.mute = True


def killed(rig: Rig) -> None:
    idle(rig, 2)
    rig.server.kill()


def forgotten(rig: Rig) -> None:
    """One lies idle, and one was lost by its borrower."""
    leases = rig.borrow_all(2)
    leases.pop().release()


# -- what is done -----------------------------------------------------------------------------------------------------


def block(rig: Rig) -> None:
    with rig.pool.acquire() as connection:
        rig.use(connection)


def by_hand(rig: Rig) -> None:
    lease = rig.pool.acquire()
    rig.use(lease.resource)
    lease.release()


def dirty(rig: Rig) -> None:
    with rig.pool.acquire() as connection:
        connection.execute("dirty")
        rig.use(connection)


def discard(rig: Rig) -> None:
    lease = rig.pool.acquire()
    rig.use(lease.resource)
    lease.discard()


def detach(rig: Rig) -> None:
    lease = rig.pool.acquire()
    rig.use(lease.resource)
    lease.detach().close()


def forget(rig: Rig) -> None:
    rig.use(rig.pool.acquire().resource)


def twice(rig: Rig) -> None:
    block(rig)
    block(rig)


def sweep(rig: Rig) -> None:
    rig.pool.sweep()


def drain(rig: Rig) -> None:
    rig.pool.drain()


def shrink(rig: Rig) -> None:
    rig.pool.resize(1)


def close(rig: Rig) -> None:
    rig.pool.close(0)


def mend(rig: Rig) -> None:
    """What follows an interrupt of this thread that cut nothing short."""
    rig.pool._unwind(None, 0)


def look(rig: Rig) -> None:
    stats = rig.pool.stats()
    assert 0 <= stats.idle <= stats.size <= 3
    assert 0 <= stats.out <= stats.size
    assert all(holder.age >= 0 for holder in rig.pool.holders())
    repr(rig.pool)


def ready(rig: Rig) -> None:
    rig.looks += 1
    assert rig.pool.ready()


class Pair(NamedTuple):
    """Two things done at once."""

    first: Callable[[Rig], None]
    second: Callable[[Rig], None]
    before: Callable[[Rig], None] = two
    settings: dict[str, Any] = {}  # noqa: RUF012  nobody changes it

    def __str__(self) -> str:
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        return f"{self.first.__name__} and {self.second.__name__}, {self.before.__name__}{settings}"


ONE = {"max_size": 1}
PAIRS = [
    Pair(block, block, idle),
    Pair(block, block, idle, ONE),
    Pair(twice, twice, idle, ONE),
    Pair(twice, twice, two, {"order": "fifo"}),
    Pair(block, by_hand, idle, {"max_uses": 2}),
    Pair(block, dirty, idle, ONE),
    Pair(block, discard, idle, ONE),
    Pair(block, detach, idle, ONE),
    Pair(block, forget, idle),
    Pair(block, block, old),
    Pair(block, block, killed),
    Pair(block, sweep, old, {"idle_timeout": 10}),
    Pair(block, sweep, old, {"idle_timeout": 10, "min_size": 1, "order": "fifo"}),
    Pair(block, sweep, old, {"max_lifetime": 40, "lifetime_jitter": 0}),
    Pair(block, sweep, forgotten),
    Pair(block, forget, forgotten, {"max_size": 3}),
    Pair(block, drain, two),
    Pair(block, drain, idle, ONE),
    Pair(block, shrink, two),
    Pair(block, shrink, two, {"order": "fifo"}),
    Pair(block, close, two),
    Pair(twice, close, idle, ONE),
    Pair(block, close, forgotten),
    Pair(block, mend, two),
    Pair(block, mend, forgotten),
    Pair(block, look, idle),
    Pair(block, ready, idle, ONE),
    Pair(block, block, idle, {"leak_after": 100}),
    Pair(drain, close, two),
]


def play(monkeypatch: pytest.MonkeyPatch, pair: Pair, plan: Plan, *more: Callable[[Rig], None]) -> list[Player]:
    """Let both do their part, and others theirs, in the order of the plan."""
    turns = Turns(WATCHED)
    monkeypatch.setattr(threads, "threading", turns.primitives())
    rig = Rig(turns, **pair.settings)
    pair.before(rig)
    refused = PoolClosed if close in pair else ()

    def part(work: Callable[[Rig], None]) -> Callable[[], None]:
        def run() -> None:
            with contextlib.suppress(refused):
                work(rig)

        return run

    players = turns.play([part(work) for work in (pair.first, pair.second, *more)], plan)
    rig.check()
    return players


def turned(pair: Pair) -> tuple[Pair, Pair]:
    return pair, pair._replace(first=pair.second, second=pair.first)


OFTEN = {str(pair) for pair in (Pair(block, drain, idle, ONE), Pair(block, mend, forgotten))}  # the others take longer


def overtaking(stop: int, *, while_held: bool) -> Plan:
    """Hold up the first one at its point `stop`; the second one goes on to its end, or to where it has something."""
    return lambda player, number: (
        number == stop if player.number == 0 else while_held and player.number == 1 and player.has > 0
    )


@pytest.mark.parametrize(
    "pair", [pytest.param(pair, id=str(pair), marks=[] if str(pair) in OFTEN else pytest.mark.slow) for pair in PAIRS]
)
def test_one_overtakes_the_other_at_any_point(pair, monkeypatch):
    """One gets as far as that, the other does its part or half of it, the first goes on; and with parts changed."""
    for each, while_held in itertools.product(turned(pair), (False, True)):
        for stop in itertools.count():
            first, *_ = play(monkeypatch, each, overtaking(stop, while_held=while_held))
            if first.points <= stop:
                break
        assert stop > 10, "the points were not seen"


def interrupted(rig: Rig) -> None:
    """Give back, and be interrupted (Ctrl-C, a soft time limit) in the moment after that."""
    leave, player = rig.pool._leave, rig.turns.me()
    assert player is not None

    def cut_short() -> None:
        leave()
        if rig.turns.me() is player:
            rig.pool._leave = leave
            player.has += 1
            rig.turns.point()
            player.has -= 1
            raise KeyboardInterrupt

    lease = rig.pool.acquire()
    rig.loans += 1
    rig.pool._leave = cut_short
    with pytest.raises(KeyboardInterrupt):
        lease.release()


@pytest.mark.parametrize("order", ["lifo", "fifo"])
def test_who_was_interrupted_leaves_alone_what_another_one_has_taken(order, monkeypatch):
    """What was given back may be on its way to the next borrower, who has got as far as any point."""
    for stop in itertools.count():
        plan: Plan = lambda player, number, stop=stop: player.has > 0 if player.number == 0 else number == stop  # noqa: E731
        _, second = play(monkeypatch, Pair(interrupted, block, idle, {"max_size": 1, "order": order}), plan)
        if second.points <= stop:
            break
    assert stop > 10


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_three_change_places_at_random(pair, monkeypatch):
    """A third borrower comes between the two, and each is held up many times; the seed says where."""
    for seed in range(100):
        luck = random.Random(seed)
        often = luck.choice((0.02, 0.1, 0.5))
        play(monkeypatch, pair, lambda _player, _number, luck=luck, often=often: luck.random() < often, block)


def test_a_deadlock_is_seen():
    """Two who wait for each other are told, or the other tests would hang where they should fail."""
    turns = Turns(WATCHED)
    locks = [turns.primitives().RLock() for _ in range(2)]

    def take(one: Any, other: Any) -> Callable[[], None]:
        def run() -> None:
            with one, other:
                pass

        return run

    with pytest.raises(Stuck):
        turns.play([take(*locks), take(*reversed(locks))], lambda _player, number: number == 1)


def test_an_unsafe_take_is_seen(monkeypatch):
    """One in two steps lends a connection to two borrowers: the points lie close enough together to show it."""

    def in_two_steps(rig: Rig) -> None:
        idle(rig)
        lying = rig.pool._state.idle

        def pop() -> Any:
            slot = lying[-1]
            rig.turns.point()
            with contextlib.suppress(ValueError):
                lying.remove(slot)
            return slot

        rig.pool._pop = pop

    with pytest.raises(AssertionError, match="two borrowers"):
        test_one_overtakes_the_other_at_any_point(Pair(block, block, in_two_steps), monkeypatch)


def _nothing() -> None:
    return None
