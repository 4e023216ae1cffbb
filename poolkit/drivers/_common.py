"""What the drivers share: where a URL comes from, checking options, and looking at a socket without a round trip."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import re
import select
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from poolkit.config import nearest, shown
from poolkit.drivers import _url_parameters
from poolkit.errors import ConfigError

__all__ = [
    "ENDING",
    "KEEPALIVE",
    "REFUSED_IN_ABORTED",
    "Source",
    "UrlDriver",
    "application_name",
    "ask",
    "ask_aside",
    "causes",
    "check_options",
    "demotes",
    "ends_session",
    "hang_up",
    "hang_up_on",
    "harmless_functions",
    "is_seconds",
    "keep_alive",
    "poller",
    "postgres_url",
    "silence",
    "wait_for",
]

Source = str | Callable[[], str] | Callable[[], Awaitable[str]]

# A server that vanishes without a word (a crashed host, a NAT that forgot) is found after two hours of silence by the
# system's own settings, and after a quarter of an hour where data is under way. These find it in 60 + 3 * 10 s of
# silence, and 30 s after data went unacknowledged. The names are libpq's.
KEEPALIVE = {"keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 30_000}
_SOCKET_OPTIONS = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}

# Seconds after its return in which a connection is lent again without a look at its socket, which is a system call, and
# a third of what an acquire costs. What happens within a millisecond can as well happen while a statement is under way.
ALIVE_BYPASS = 0.001

# Shutdown by an administrator, after a crash, cannot connect now, database dropped, idle too long; in a transaction;
# transaction too long.
ENDING = {"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"}
_READ_ONLY = "25006"
REFUSED_IN_ABORTED = "25P02"
"""What each statement is told that comes after the one that has aborted a transaction."""

_MAX_APPLICATION_NAME = 63  # PostgreSQL cuts longer names off


class UrlDriver:
    """What the drivers that connect by a URL have in common."""

    _fixed: Any
    """What the URL says; None where a callable is asked for it at each connect."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    @property
    def defaults(self) -> Mapping[str, object]:
        """Nothing: the defaults of `PoolConfig` suit a server of a database."""
        return MappingProxyType({})

    @property
    def rotates(self) -> bool:
        """Whether each connect asks for the URL anew, so that one which was refused is worth a second try."""
        return self._fixed is None


def ask(source: Source, where: str) -> str:
    """Return the URL, from the callable where there is one. Raises `ConfigError` where it returns no string."""
    return _text(source if isinstance(source, str) else source(), where)


async def ask_aside(source: Source, where: str) -> str:
    """The same in asyncio. A coroutine function is awaited; any other runs in a thread, while the loop goes on."""
    if isinstance(source, str):
        return source
    if inspect.iscoroutinefunction(source):
        return _text(await source(), where)
    answer = await _in_thread(source)
    return _text(await answer if inspect.isawaitable(answer) else answer, where)


def _text(url: object, where: str) -> str:
    if not isinstance(url, str):
        raise ConfigError(f"the URL callable must return a string, not {type(url).__name__}", where)
    return url.strip()


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Run what may block in a thread of its own: neither the loop's executor nor the end of the program waits for it.

    Where the caller is cancelled, the thread goes on, and its answer is dropped.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def tell(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not done.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            report = (done.set_result, work())
        except BaseException as error:  # noqa: BLE001  it is raised where it is awaited
            # a future takes no StopIteration
            report = (done.set_exception, RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, *report)

    threading.Thread(target=run, name="poolkit-url", daemon=True).start()
    return await done


def check_options(
    options: Mapping[str, object], known: Collection[str], refused: Mapping[str, str], where: str
) -> None:
    """Raise one `ConfigError` for every option that is unknown, or that `refused` explains away."""
    problems = []
    for name in options:
        if name in refused:
            problems.append(f"option {name!r} can't be set: {refused[name]}")
        elif name not in known:
            guess = nearest(str(name), known)
            hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(sorted(known))}"
            problems.append(f"unknown option {shown(name)}: {hint}")
    if problems:
        raise ConfigError(problems, where)


def harmless_functions(given: object, where: str) -> tuple[str, ...]:
    """Check the option `harmless_functions`: names of SQL functions. Raises `ConfigError`."""
    if isinstance(given, str) or not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"harmless_functions must be a list of names of functions, not {shown(given)}", where)
    return tuple(given)


def postgres_url(url: str, where: str) -> str:
    """Return the URL as the client libraries want it. Raises `ConfigError` where it can't be taken apart."""
    url = _url_parameters.well_formed(url, where)
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url, count=1, flags=re.IGNORECASE)
    if not plain.startswith("postgresql://"):
        raise ConfigError("expected a URL like postgresql://user@host:5432/database", where)
    if not _hosts_are_plain(plain):
        raise ConfigError(
            "malformed PostgreSQL URL: the port must be a number, and special characters in the user and the "
            "password must be percent-encoded",
            where,
        )
    return plain


def _hosts_are_plain(url: str) -> bool:
    """Whether each host's port can be one, and a single @ ends the password: the libraries differ about a second."""
    try:
        user, _, hosts = urlsplit(url).netloc.rpartition("@")
    except ValueError:
        return False
    ports = []
    for host in hosts.split(","):  # PostgreSQL takes several hosts, each with a port
        _, bracket, rest = host.rpartition("]")
        ports.append((rest if bracket else host).partition(":")[2])
    return "@" not in user and all(not port or _is_port(port) for port in ports)


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536


def ends_session(sqlstate: str | None) -> bool:
    """Whether PostgreSQL closes the session with this error."""
    return sqlstate is not None and (sqlstate in ENDING or sqlstate.startswith("08"))


def demotes(sqlstate: str | None, *, read_only: bool, standby: object, read_only_server: object) -> bool:
    """Whether PostgreSQL refused to write, and nobody but the server itself asked for read-only.

    Then it was demoted, and another connection may find the new primary. `standby` and `read_only_server` are what it
    reports of itself (`in_hot_standby` and `default_transaction_read_only`, from version 14 on): where both are off, it
    is somebody's own transaction that is read-only.
    """
    if sqlstate != _READ_ONLY or read_only:
        return False
    return not (standby == read_only_server == "off")


def is_seconds(value: object, *, zero: bool = False) -> bool:
    """Whether `value` is a finite number of seconds, more than zero or also zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and (value > 0 or (zero and value == 0))


def application_name() -> str:
    """Name this process to the server: `poolkit:<host>:<pid>`."""
    pid = str(os.getpid())
    host = socket.gethostname().encode("ascii", "replace").decode()
    return f"poolkit:{host[: _MAX_APPLICATION_NAME - len('poolkit::') - len(pid)]}:{pid}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what it was raised from, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def poller(fd: int) -> Callable[[int], object]:
    """Return a function that, called with 0, says without waiting whether something can be read from `fd`.

    A registered poll object costs 0.3 us a call; a selector, ten times that. Where there is no poll, select does it.
    """
    if hasattr(select, "poll"):
        watch = select.poll()
        watch.register(fd, select.POLLIN)
        return watch.poll

    def readable(timeout: int) -> object:
        return select.select([fd], [], [], timeout)[0]

    return readable


def wait_for(fd: int, seconds: float, *, read: bool = True, write: bool = False) -> bool:
    """Wait until something can be read from `fd`, or written to it; whether that is so within `seconds`."""
    if not hasattr(select, "poll"):
        ready = select.select([fd] if read else [], [fd] if write else [], [], seconds)
        return bool(ready[0] or ready[1])
    watch = select.poll()
    watch.register(fd, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
    return bool(watch.poll(seconds * 1000))


def keep_alive(sock: Any, given: Mapping[str, int] = MappingProxyType({})) -> None:
    """Have the system look after a silent TCP connection; sockets of other kinds are left alone.

    Args:
        sock: The socket, or asyncio's stand-in for one.
        given: Values that take the place of those of `KEEPALIVE`; 0 does not.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, option in _SOCKET_OPTIONS.items():
        if hasattr(socket, option):  # not every system has every one
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), given.get(name) or KEEPALIVE[name])


def hang_up(fd: int) -> None:
    """End both ways of a connection, and leave its descriptor to whoever still waits on it: that one wakes at once."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as view:  # the peer was faster
        view.shutdown(socket.SHUT_RDWR)


def hang_up_on(descriptor: Callable[[], int | None]) -> None:
    """Hang up on a connection that another thread uses, and may close in this moment.

    `descriptor` tells its file descriptor, None once it is closed. It is asked again when the copy is made: if the
    connection is open then, the copy is not of what has got the same number since.
    """
    fd = descriptor()
    if fd is None:
        return
    with contextlib.suppress(OSError):  # it was closed, or the peer was faster
        copy = os.dup(fd)
        try:
            if descriptor() == fd:
                hang_up(copy)
        finally:
            os.close(copy)


def silence(fd: int) -> None:
    """Put a dead socket in the place of `fd`: whatever is written there from now on reaches nobody.

    For a connection inherited over a fork: the parent's descriptor, and with it the session, stay as they are.
    """
    os.dup2(_dead_socket(os.getpid()), fd, inheritable=False)


@cache
def _dead_socket(pid: int) -> int:  # noqa: ARG001  one per process: a fork of a fork makes its own
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()
