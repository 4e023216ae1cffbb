"""Where a process can't serve as it should, because of how it was set up: said once, in plain words, with what to do.

poolkit uses threads: those who borrow, one per connect, and the housekeeper. gevent makes greenlets of them, which is
fine as long as that happens before anything else is imported, and before anything is forked that has begun to work.
uWSGI lets no thread run between requests unless it is told to. Nothing of these is imported here: what is there is
seen in `sys.modules`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

__all__ = ["warn_of_inherited_greenlets", "warn_of_unfit"]

logger = logging.getLogger("poolkit")

_PRELOADED = (
    "gunicorn runs its workers with gevent, and this pool is made before gevent has patched the process, as with "
    "--preload: whatever is imported now blocks the whole worker at each wait, for the database too. Leave --preload "
    "out, or patch first: `from gevent import monkey; monkey.patch_all()` at the top of gunicorn.conf.py"
)
_LATE = (
    "gevent has patched this process after psycopg was imported: a greenlet that waits for the database stops all the "
    "others. Patch before anything else is imported: `from gevent import monkey; monkey.patch_all()` as the first "
    "lines of the program (with gunicorn --preload: of gunicorn.conf.py)"
)
_MYSQLCLIENT = (
    "gevent has patched this process, and mysqlclient was imported: it waits in C, so a greenlet that waits for the "
    "database stops all the others. Use PyMySQL: uninstall mysqlclient, and install 'poolkit[mysql]'"
)
_INHERITED = (
    "this process was forked after a pool had been used, and its greenlets go on in the child: one that was connecting "
    "talks on the parent's socket. Use no pool before the fork (with gunicorn --preload: while the application is "
    "imported)"
)
_THREADLESS = (
    "uWSGI runs without threads: those of poolkit stand still between requests, so idle and old connections are not "
    "closed, and a pool is not refilled. Start uWSGI with --enable-threads (its own default from 2.0.27 on)"
)

_said: set[str] = set()


def _gevent_has_patched(*modules: str) -> bool:
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and any(map(monkey.is_module_patched, modules))


def warn_of_unfit() -> None:
    """Warn, once, of each thing that keeps the threads of this process from running as they should."""
    if _gevent_has_patched("threading", "select"):
        if _waits_in_c():
            _warn(_LATE)
        if "MySQLdb._mysql" in sys.modules:
            _warn(_MYSQLCLIENT)
    elif "gunicorn.workers.ggevent" in sys.modules:
        _warn(_PRELOADED)
    elif _uwsgi_without_threads():
        _warn(_THREADLESS)


def warn_of_inherited_greenlets() -> None:
    """Warn in the child of a fork beside a pool at work, where its threads are greenlets."""
    if _gevent_has_patched("threading"):
        _warn(_INHERITED)


def _waits_in_c() -> bool:
    """Whether psycopg waits in C, where no greenlet can run: it chooses how to wait when it is imported."""
    waiting = sys.modules.get("psycopg.waiting")
    in_c = getattr(waiting, "wait_c", None)
    return in_c is not None and getattr(waiting, "wait", None) is in_c


def _uwsgi_without_threads() -> bool:
    return getattr(sys.modules.get("uwsgi"), "has_threads", 1) == 0


def _warn(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning(text)
