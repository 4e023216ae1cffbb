"""LazyAtomic: a block of atomic() takes no connection before its first query.

Django's outermost atomic() asks for the autocommit mode, and so connects; a view that never queries then holds a
connection for nothing. Here a wrapper that isn't connected remembers what it was asked for (autocommit off, and the
savepoints of the blocks inside) and does it when the first query connects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.utils.asyncio import async_unsafe

__all__ = ["LazyAtomic"]


class LazyAtomic:
    """Mix in before a DatabaseWrapper."""

    connection: Any
    in_atomic_block: bool
    atomic_blocks: list[Any]
    closed_in_transaction: bool
    savepoint_ids: list[Any]
    needs_rollback: bool
    commit_on_exit: bool
    run_on_commit: list[Any]
    settings_dict: dict[str, Any]
    run_commit_hooks_on_set_autocommit_on: bool
    autocommit: bool

    by_unit = False
    """Whether a unit of work is entering or leaving its own block, whose statements are none of a test's."""
    units_block: Any = None
    """The block that a unit of work entered last."""
    force_debug_cursor: bool
    _quiet = False
    _wanted_autocommit: bool | None = None
    _connecting = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting_savepoints: list[str] = []

    @property
    def queries_logged(self) -> bool:
        """Whether queries are logged; for a test that counts them (`assertNumQueries`), not those of a unit's end."""
        return (self.force_debug_cursor and not self._quiet) or settings.DEBUG

    @contextlib.contextmanager
    def _as_unit(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    @property
    def is_lazy(self) -> bool:
        """Whether there is no connection, and none is needed to answer."""
        closed_inside = self.in_atomic_block and self.closed_in_transaction
        return self.connection is None and not self._connecting and not closed_inside

    def get_autocommit(self) -> bool:
        """Answer from memory where there is no connection."""
        if self.is_lazy:
            return self.settings_dict["AUTOCOMMIT"] if self._wanted_autocommit is None else self._wanted_autocommit
        return super().get_autocommit()  # type: ignore[misc]

    def set_autocommit(self, autocommit: bool, **kwargs: Any) -> None:  # noqa: FBT001  Django's signature
        """Remember the mode where there is no connection; run the hooks of a block that never had one.

        Who turns it off by hand is connected at once, as Django does it: only atomic() is lazy.
        """
        by_hand = not autocommit and not kwargs.get("force_begin_transaction_with_broken_autocommit")
        if by_hand or not self.is_lazy:
            super().set_autocommit(autocommit, **kwargs)  # type: ignore[misc]
            return
        self.validate_no_atomic_block()  # type: ignore[attr-defined]
        self._wanted_autocommit = self.autocommit = autocommit
        self._waiting_savepoints.clear()  # a block begins, or has ended
        self.closed_in_transaction = False  # of the block before; Django forgets it when it connects
        if autocommit and self.run_commit_hooks_on_set_autocommit_on:
            self.run_and_clear_commit_hooks()  # type: ignore[attr-defined]
            self.run_commit_hooks_on_set_autocommit_on = False

    @async_unsafe
    def connect(self) -> None:
        """Connect, and catch up on what the blocks entered before have asked for."""
        wanted, self._wanted_autocommit = self._wanted_autocommit, None
        self._connecting = True
        try:
            if wanted is None and not self.in_atomic_block:
                self._connect_now()
            else:
                self._connect_inside(wanted)
        finally:
            self._connecting = False
            if self.connection is None:  # the connect failed: still lazily inside the block
                self._wanted_autocommit = wanted
        if self._waiting_savepoints:
            self._set_waiting_savepoints()

    def _connect_now(self) -> None:
        """Connect as Django does."""
        super().connect()  # type: ignore[misc]

    def _connect_inside(self, wanted: bool | None) -> None:  # noqa: FBT001
        # What a connect resets, and a block that was entered before it must keep. The last one has to be parked as
        # well: without it a hook registered inside another hook would run too early.
        block = self.in_atomic_block, self.savepoint_ids, self.atomic_blocks
        end = self.needs_rollback, self.commit_on_exit
        hooks = self.run_on_commit, self.run_commit_hooks_on_set_autocommit_on
        self.run_commit_hooks_on_set_autocommit_on = False
        try:
            self._connect_now()
            if wanted is False:
                self._quiet = bool(block[2]) and block[2][0] is self.units_block
                super().set_autocommit(False, force_begin_transaction_with_broken_autocommit=True)  # type: ignore[misc]
        finally:
            self._quiet = False
            self.in_atomic_block, self.savepoint_ids, self.atomic_blocks = block
            self.needs_rollback, self.commit_on_exit = end
            self.run_on_commit, self.run_commit_hooks_on_set_autocommit_on = hooks

    def _set_waiting_savepoints(self) -> None:
        waiting, self._waiting_savepoints = self._waiting_savepoints, []
        doomed, self.needs_rollback = self.needs_rollback, False  # they were asked for before it was doomed
        try:
            for sid in waiting:
                super()._savepoint(sid)  # type: ignore[misc]
        finally:
            self.needs_rollback = self.needs_rollback or doomed

    @contextlib.contextmanager
    def temporary_connection(self) -> Iterator[Any]:
        """Connect for a moment; inside a block that has no connection yet it is the block's, and stays."""
        if self.in_atomic_block and self.is_lazy:
            self.ensure_connection()  # type: ignore[attr-defined]
        with super().temporary_connection() as cursor:  # type: ignore[misc]
            yield cursor

    def _savepoint(self, sid: str) -> None:
        if self.is_lazy and not self._in_a_testcase:
            self.validate_no_broken_transaction()  # type: ignore[attr-defined]
            self._waiting_savepoints.append(sid)
        elif self.by_unit:
            with self._as_unit():
                super()._savepoint(sid)  # type: ignore[misc]
        else:
            super()._savepoint(sid)  # type: ignore[misc]

    @property
    def _in_a_testcase(self) -> bool:
        """Whether the block around is a TestCase's own: its tests begin connected, as they do on Django's engines.

        Else the first query of a test would log BEGIN and the savepoint among the test's own statements.
        """
        return bool(self.atomic_blocks) and getattr(self.atomic_blocks[-1], "_from_testcase", False)

    def _savepoint_rollback(self, sid: str) -> None:
        if not self._drop_waiting(sid, itself=False):
            with self._as_unit() if self.by_unit else contextlib.nullcontext():
                super()._savepoint_rollback(sid)  # type: ignore[misc]

    def _savepoint_commit(self, sid: str) -> None:
        if not self._drop_waiting(sid, itself=True):
            with self._as_unit() if self.by_unit else contextlib.nullcontext():
                super()._savepoint_commit(sid)  # type: ignore[misc]

    def _drop_waiting(self, sid: str, *, itself: bool) -> bool:
        """Drop the savepoints after `sid`; whether it was one of those that wait. The server knows all others."""
        if not self.is_lazy or sid not in self._waiting_savepoints:
            return False
        self.validate_no_broken_transaction()  # type: ignore[attr-defined]
        place = self._waiting_savepoints.index(sid)
        del self._waiting_savepoints[place if itself else place + 1 :]
        return True

    def forget_mode(self) -> None:
        """Go back to the mode of the settings: called where Django would have closed the connection."""
        if not self.in_atomic_block:
            self._wanted_autocommit = None
            self._waiting_savepoints.clear()
