"""Real threads that run one at a time, and change places only where a plan says so.

What two threads do to each other depends on where the interpreter happens to change between them. Here that is chosen:
every line of the watched modules, and every return from a call of something written in C, is a *point* at which a
thread may be made to wait and another one goes on. That is finer than what CPython does, which changes threads only
after calls and in loops. The locks, bells and events of `poolkit.threads` are replaced by ones that say when they
block, so that the next thread goes on, and so that it is known when nobody can.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

PATIENCE = 20.0  # seconds of real time; reached only by a fault of this file

Plan = Callable[["Player", int], bool]  # at its n-th point, has this one to let another go on?


class Stuck(AssertionError):
    """Nobody can go on: a deadlock, or a wake-up that was lost."""


class Player:
    """One of the threads."""

    def __init__(self, number: int, work: Callable[[], object]) -> None:
        self.number = number
        self.work = work
        self.points = 0
        self.has = 0  # how many resources; the work says so
        self.go = threading.Semaphore(0)
        self.waits_for: Callable[[], bool] | None = None
        self.timed = False  # whether it waits for a time only
        self.timed_out = False
        self.done = False
        self.error: BaseException | None = None

    @property
    def can_go_on(self) -> bool:
        return not self.done and (self.waits_for is None or self.waits_for())


class Turns:
    """Who goes on, and the primitives that the watched code blocks on."""

    def __init__(self, modules: list[ModuleType]) -> None:
        self._files = {module.__file__ for module in modules}
        self.players: list[Player] = []
        self._plan: Plan = _never
        self._by_ident: dict[int, Player] = {}
        self._over = threading.Semaphore(0)

    def play(self, works: list[Callable[[], object]], plan: Plan) -> list[Player]:
        """Run the works to their ends, the first one first. Raises what they raise, or `Stuck`."""
        self.players = [Player(number, work) for number, work in enumerate(works)]
        self._plan = plan
        threads = [threading.Thread(target=self._life, args=(player,), daemon=True) for player in self.players]
        for thread in threads:
            thread.start()
        self.players[0].go.release()
        assert self._over.acquire(timeout=PATIENCE), "the players lost their baton"
        for thread in threads:
            thread.join(PATIENCE)
        for player in self.players:
            if player.error is not None:
                raise player.error
        return self.players

    def _life(self, player: Player) -> None:
        self._by_ident[threading.get_ident()] = player
        player.go.acquire()
        try:
            self._check_in(player)
            sys.settrace(self._trace)
            sys.setprofile(self._profile)
            try:
                player.work()
            finally:
                sys.setprofile(None)
                sys.settrace(None)
        except BaseException as error:  # noqa: BLE001  raised again by `play`
            player.error = error
        player.done = True
        player.work = _nothing  # or this thread would keep what it worked with
        self._pass_on(player)

    def _check_in(self, player: Player) -> None:
        if player.error is not None:
            raise player.error

    def me(self) -> Player | None:
        """Which player this thread is; None in the thread of the test itself."""
        return self._by_ident.get(threading.get_ident())

    # -- points -------------------------------------------------------------------------------------------------------

    def _trace(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self.point()
        return self._line

    def _profile(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event == "c_return" and frame.f_code.co_filename in self._files:
            self.point()

    def point(self) -> None:
        """Come to a point: go on, or let another one go on first."""
        player = self.me()
        if player is None:
            return
        number, player.points = player.points, player.points + 1
        if self._plan(player, number):
            self._pass_on(player)

    # -- changing places ----------------------------------------------------------------------------------------------

    def block(self, happened: Callable[[], bool], *, timed: bool) -> bool:
        """Let others go on until it has happened; False where nobody could, and only time can end the wait."""
        player = self.me()
        if happened():
            return True
        if player is None:
            assert timed, "the test's own thread would wait for ever"
            return False
        player.waits_for, player.timed, player.timed_out = happened, timed, False
        self._pass_on(player)
        player.waits_for = None
        return not player.timed_out

    def _pass_on(self, player: Player) -> None:
        others = [*self.players[player.number + 1 :], *self.players[: player.number]]
        following = next((other for other in others if other.can_go_on), None)
        if following is None and not player.can_go_on:
            following = self._by_time(player)
            if following is None:
                return
        if following is None or following is player:
            return
        following.go.release()
        if not player.done:
            player.go.acquire()
            self._check_in(player)

    def _by_time(self, player: Player) -> Player | None:
        """Nobody can go on: the time of one who waits for a time has come, or all is over, or all are stuck."""
        waiting = [other for other in self.players if not other.done]
        if not waiting:
            self._over.release()
            return None
        following = next((other for other in waiting if other.timed), None)
        if following is not None:
            following.timed, following.timed_out, following.waits_for = False, True, None
            return following
        stuck = Stuck(f"players {[other.number for other in waiting]} wait for ever")
        for other in waiting:
            other.error, other.waits_for = stuck, None
        if not player.done:
            raise stuck
        return waiting[0]

    # -- in place of `threading` --------------------------------------------------------------------------------------

    def primitives(self) -> Any:
        """What `poolkit.threads` is to use instead of the module `threading`."""
        turns = self

        class Primitives:
            TIMEOUT_MAX = threading.TIMEOUT_MAX
            get_ident = staticmethod(threading.get_ident)
            enumerate = staticmethod(threading.enumerate)

            @staticmethod
            def RLock() -> _RLock:  # noqa: N802  as it is called there
                return _RLock(turns)

            @staticmethod
            def Lock() -> _Lock:  # noqa: N802
                return _Lock(turns)

            @staticmethod
            def Event() -> _Event:  # noqa: N802
                return _Event(turns)

        return Primitives


class _RLock:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._owner: int | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002
        me = threading.get_ident()
        self._turns.point()
        while self._owner not in {None, me}:
            self._turns.block(lambda: self._owner is None, timed=False)
        self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        if self._owner != threading.get_ident():
            raise RuntimeError("cannot release un-acquired lock")
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._turns.point()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Lock:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._taken = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002
        self._turns.point()
        if self._taken and (not blocking or not self._turns.block(lambda: not self._taken, timed=timeout >= 0)):
            return False
        self._taken = True
        return True

    def release(self) -> None:
        if not self._taken:
            raise RuntimeError("release unlocked lock")
        self._taken = False
        self._turns.point()


class _Event:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._set = False

    def set(self) -> None:
        self._set = True
        self._turns.point()

    def wait(self, timeout: float | None = None) -> bool:
        return self._turns.block(lambda: self._set, timed=timeout is not None)

    def is_set(self) -> bool:
        return self._set


def _never(_player: Player, _number: int) -> bool:
    return False


def _nothing() -> None:
    return None
