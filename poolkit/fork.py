"""The life of the process: what happens to pools when it forks and when it ends.

A connection inherited over a fork is the parent's: the server knows one session, and whatever the child says on it, a
goodbye included, ends up in the parent's conversation. So every pool and client is known here, and in the child of a
fork each starts afresh with a new lock (the old one may be held by a thread that does not exist here), no resources,
and the inherited ones kept referenced for ever, because collecting one could say goodbye too. Nothing on the hot path
pays for this: the operating system tells us (`os.register_at_fork`), and uWSGI, which forks without telling Python,
has a hook of its own.

At exit whatever is still open is closed, in this process only, without starting or joining a thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

__all__ = ["Member", "forget", "keep", "know"]


class Member(Protocol):
    """Something that has to know about forks and about the end."""

    def after_fork_in_child(self) -> None:
        """Start afresh; keep what is inherited, unused."""

    def at_exit(self) -> None:
        """Close what is open now; must not wait."""


logger = logging.getLogger("poolkit")

_members: WeakKeyDictionary[Member, None] = WeakKeyDictionary()  # in the order they came: owners before the owned
_kept: list[Any] = []


def know(member: Member) -> None:
    """Tell `member` about forks and about the end of the process. Held weakly."""
    _hook_uwsgi()
    _members[member] = None


def forget(member: Member) -> None:
    """Leave `member` alone from now on."""
    _members.pop(member, None)


def keep(inherited: Any) -> None:
    """Keep inherited resources referenced for the life of the process: their finalizers must never run here."""
    _kept.append(inherited)


def _after_fork_in_child() -> None:
    for member in list(_members):
        _guarded(member.after_fork_in_child)


def _at_exit() -> None:
    for member in list(_members):
        _guarded(member.at_exit)


def _guarded(tell: Callable[[], object]) -> None:
    # One member's fault must not leave the others with what is their parent's.
    try:
        tell()
    except Exception:
        logger.exception("poolkit could not follow a fork or the end of the process")


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)


def _hook_uwsgi() -> None:
    """Chain into uWSGI's post-fork hook: uWSGI forks its workers without running Python's own hooks."""
    uwsgi = sys.modules.get("uwsgi")
    previous = getattr(uwsgi, "post_fork_hook", None)
    if uwsgi is None or isinstance(previous, _UwsgiHook):  # not so where uwsgidecorators set its own after us
        return
    uwsgi.post_fork_hook = _UwsgiHook(previous)  # type: ignore[attr-defined]


class _UwsgiHook:
    """Ours, after whoever's stood there before."""

    def __init__(self, previous: Callable[[], object] | None) -> None:
        self._previous = previous

    def __call__(self) -> None:
        if self._previous is not None:
            self._previous()
        _after_fork_in_child()
