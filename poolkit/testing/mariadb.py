"""A private MariaDB or MySQL for tests: made in a temporary folder, gone without a trace afterwards.

`LocalMariadb` finds the server's programs (see `find_programs`), makes a data folder in about a second, runs the server
on a free loopback port and on a Unix socket, and lets a test do to it what happens to real ones: restart, crash, hang.
Nothing is installed and no service is touched; no configuration file of the machine is read.

What keeps it from outliving its maker is the watchdog of `LocalPostgres`: however this process ends, the server ends
and the folder goes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from weakref import WeakSet

from poolkit.errors import PoolkitError
from poolkit.testing._machine import WATCHDOG, free_port

__all__ = ["LocalMariadb", "MariadbFailed", "MariadbNotFound", "Programs", "Setting", "find_programs"]

Setting = str | int | float | bool

_FAST: dict[str, Setting] = {
    "skip_log_bin": True,
    "innodb_buffer_pool_size": "32M",
    # Written at each commit, synced once a second: what was committed survives `kill()`, not the machine's own crash.
    "innodb_flush_log_at_trx_commit": 2,
    "max_connections": 200,
    "skip_name_resolve": True,
    "host_cache_size": 0,  # else the server locks out a host after a hundred clients that hung up early
}
_USER = "poolkit"
# Read at each start. A statement has to stand on one line.
_ENTRANCE = """\
CREATE DATABASE IF NOT EXISTS {user};
ALTER USER root@localhost IDENTIFIED BY '{password}';
CREATE USER IF NOT EXISTS {user}@'127.0.0.1' IDENTIFIED BY '{password}', {user}@localhost IDENTIFIED BY '{password}';
GRANT ALL ON *.* TO {user}@'127.0.0.1' WITH GRANT OPTION;
GRANT ALL ON *.* TO {user}@localhost WITH GRANT OPTION;
"""
_PLACES = ("/usr/sbin", "/usr/libexec", "/usr/local/mysql/bin", "/opt/homebrew/bin", "/usr/local/bin")
_GREETING_AT = 4  # a packet's head is four bytes; then comes the protocol's version
_PROTOCOL = 10


class MariadbNotFound(PoolkitError):
    """No MariaDB or MySQL server can be run here; the text says where it was looked for and what to do."""


class MariadbFailed(PoolkitError):
    """A program of the server failed or took too long; the text ends with what it said."""


class Programs(NamedTuple):
    """The server, and MariaDB's program that makes a data folder (MySQL's server does that itself)."""

    server: Path
    installer: Path | None


def find_programs() -> Programs:
    """Return the server's programs, or raise MariadbNotFound.

    Looked for in POOLKIT_MARIADB_BIN (which is used or refused, never passed over), else on PATH and in the folders
    where distributions put servers.
    """
    chosen = os.environ.get("POOLKIT_MARIADB_BIN")
    path = chosen or os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES])
    server = shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)
    # MariaDB's installer is a shell script beside the server, or in the folder of the clients.
    path = f"{chosen}{os.pathsep}{chosen}/../bin{os.pathsep}{chosen}/../scripts" if chosen else path
    installer = shutil.which("mariadb-install-db", path=path) or shutil.which("mysql_install_db", path=path)
    if server and (installer or not _is_mariadb(server)):
        return Programs(Path(server), Path(installer) if installer and _is_mariadb(server) else None)
    if chosen:
        raise MariadbNotFound(
            f"POOLKIT_MARIADB_BIN is {chosen}, but mariadbd and mariadb-install-db, or mysqld, are not in it: "
            "set it to the folder that holds the server's programs"
        )
    raise MariadbNotFound(
        "no MariaDB or MySQL server was found: no mariadbd and no mysqld on PATH or in the usual folders. Install one "
        "(`apt-get install mariadb-server`, `brew install mariadb`), or set POOLKIT_MARIADB_BIN to its folder"
    )


def _is_mariadb(server: str) -> bool:
    said = subprocess.run([server, "--no-defaults", "--version"], capture_output=True, text=True, check=False).stdout
    return "mariadb" in said.lower()


class LocalMariadb:
    """Run a private MariaDB or MySQL server; use it with `with`, or call `start()` and `close()`.

    `port` is a free one unless given. Settings go to the server as they are (`max_connections=50`,
    `innodb_rollback_on_timeout=True`) and win over the ones that make it fast. The account of `dsn` may do everything.
    Not for use by several threads at once.

    Raises MariadbNotFound where no server can be run, MariadbFailed where one does not start. POSIX only.
    """

    def __init__(self, *, port: int | None = None, **settings: Setting) -> None:
        self.port = port or 0
        self.settings: dict[str, Setting] = {**_FAST, **settings}
        self._port_given = port is not None
        self._password = secrets.token_hex(8)
        self._programs: Programs | None = None
        self._folder: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        """Say where it listens and whether it runs; the password stays out."""
        state = f"pid {self.pid}" if self.running else "not running"
        return f"<LocalMariadb port {self.port or 'not chosen yet'}, {state}>"

    # What there is to know.

    @property
    def dsn(self) -> str:
        """The URL for a connection over TCP, to an empty database; known once `start()` has returned."""
        self._home()
        return f"mysql://{_USER}:{self._password}@127.0.0.1:{self.port}/{_USER}"

    @property
    def socket_dsn(self) -> str:
        """The URL for a connection over the Unix socket."""
        return f"mysql://{_USER}:{self._password}@localhost/{_USER}?unix_socket={self._home()}/socket"

    @property
    def running(self) -> bool:
        """Whether the server process lives (a paused one does)."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the server while it runs, else None."""
        return self._server.pid if self._server is not None and self.running else None

    @property
    def log(self) -> str:
        """What the server has written to its log so far."""
        with contextlib.suppress(FileNotFoundError):
            return (self._home() / "log").read_text(errors="replace")
        return ""

    # Starting and stopping.

    def start(self, timeout: float = 60) -> Self:
        """Start the server and wait until it takes connections, at most `timeout` seconds; made first if need be.

        After `stop()` or `kill()` it comes back with its data, on the same port.
        """
        if self.running:
            return self
        if self._folder is None:
            self._prepare()
        if not (self._home() / "init.sql").exists():
            self._make_data()
        for last_try in (False, False, True):
            if not self.port:
                self.port = free_port()
            log_size = len(self.log)
            self._launch()
            if self._wait_until_ready(timeout):
                return self
            said = self.log[log_size:]
            if self._port_given or last_try or "in use" not in said:
                raise MariadbFailed(f"the server did not start:\n{said[-2000:].strip()}")
            self.port = 0  # another process was faster; nobody knows our port yet, so any other will do
        raise AssertionError  # pragma: no cover - the last try returns or raises

    def stop(self, timeout: float = 20) -> None:
        """Stop the server: it says goodbye to its clients. Raises MariadbFailed if it runs on for `timeout` seconds."""
        if self._server is None or not self.running:
            return
        self.resume()
        self._server.terminate()
        try:
            self._server.wait(timeout)
        except subprocess.TimeoutExpired:
            raise MariadbFailed(f"the server (pid {self._server.pid}) has not stopped within {timeout:g} s") from None
        self._tell_watchdog()

    def restart(self) -> None:
        """Stop and start again; every connection is lost, the data is kept."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill the server at once, as a power cut would. `start()` makes it recover."""
        if self._server is None or not self.running:
            return
        self._server.kill()
        self._server.wait()
        self._tell_watchdog()

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing answers, as on a hung host."""
        if self._server is not None and self.running:
            self._server.send_signal(signal.SIGSTOP)
            if hasattr(os, "waitid"):  # one thread stops after the other, and the last ones would still answer
                os.waitid(os.P_PID, self._server.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused server go on."""
        if self._server is not None and self.running:
            self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server at once, and remove every trace of it: its data needs no goodbye. May be called twice."""
        if self._watchdog is None:  # never started, closed already, or in the child of a fork: then it is not ours
            return
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self._home(), ignore_errors=True)
        self._watchdog.communicate()  # only now: until here it was needed, and now it finds nothing left to do
        self._watchdog = self._folder = None
        if not self._port_given:
            self.port = 0

    def __enter__(self) -> Self:
        """Start, and leave nothing behind if that fails."""
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and remove it."""
        self.close()

    # From here on: how.

    def _home(self) -> Path:
        if self._folder is None:
            raise RuntimeError("this LocalMariadb has not been started: call start() first, or use it with `with`")
        return self._folder

    def _prepare(self) -> None:
        """Find the programs, make the folder, and set the watchdog on it before anything can be left behind."""
        if os.name != "posix":
            raise MariadbNotFound("LocalMariadb needs POSIX signals; use a server that runs already")
        self._programs = find_programs()
        # /tmp where there is one: the path of a Unix socket may have only about 100 characters.
        place = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108 - mkdtemp makes a folder nobody guesses
        self._folder = Path(tempfile.mkdtemp(prefix="poolkit-my-", dir=place))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "watchdog", str(self._folder), "TERM"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        atexit.register(self.close)
        _started.add(self)

    def _make_data(self) -> None:
        """Make the data folder, then the file that the server reads at each start: who may come in."""
        installer = self._found().installer
        if installer is not None:
            # `force`: the machine's own name need not have an address, for nobody comes in by it
            how = ("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", "--force")
            command = [str(installer), *self._common(), *how]
        else:
            command = [str(self._found().server), *self._common(), "--initialize-insecure"]
        with (self._home() / "log").open("ab") as log:
            process = self._spawn(command, log.fileno())
            self._tell_watchdog(process.pid)
            process.wait()
        self._tell_watchdog()
        if process.returncode:
            raise MariadbFailed(f"{command[0]} failed with status {process.returncode}:\n{self.log[-2000:].strip()}")
        made = self._home() / "init.sql"
        made.touch(mode=0o600)
        made.write_text(_ENTRANCE.format(user=_USER, password=self._password))

    def _common(self) -> list[str]:
        user = ["--user=root"] if os.geteuid() == 0 else []  # asked for by name, it runs as root
        return ["--no-defaults", f"--datadir={self._home()}/data", *user]

    def _launch(self) -> None:
        settings = self.settings | {
            "port": self.port,
            "bind_address": "127.0.0.1",
            "socket": f"{self._home()}/socket",
            "pid_file": f"{self._home()}/pid",
            "init_file": f"{self._home()}/init.sql",
        }
        command = [str(self._found().server), *self._common()]
        command += [f"--{name.replace('_', '-')}={_spell(value)}" for name, value in settings.items()]
        if self._found().installer is None:
            command.append("--mysqlx=0")  # MySQL's second protocol, on a port that another server may have
        with (self._home() / "log").open("ab") as log:
            self._server = self._spawn(command, log.fileno())
        self._tell_watchdog(self._server.pid)

    def _wait_until_ready(self, timeout: float) -> bool:
        """Tell whether the server came up (False: it ended); raise MariadbFailed if it did neither in time."""
        if self._server is None:
            raise RuntimeError("nothing has been launched")
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._server.poll() is not None:
                self._tell_watchdog()
                return False
            if self._greets():
                return True
            time.sleep(0.02)
        self.kill()
        raise MariadbFailed(f"the server was not ready within {timeout:g} s:\n{self.log[-2000:].strip()}")

    def _greets(self) -> bool:
        """Whether the server says hello; it listens earlier than that, and lets its clients wait."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(f"{self._home()}/socket")
            said = probe.recv(64)
            return len(said) > _GREETING_AT and said[_GREETING_AT] == _PROTOCOL
        return False

    def _found(self) -> Programs:
        if self._programs is None:
            self._programs = find_programs()
        return self._programs

    def _spawn(self, command: list[str], log: int) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MYSQL", "MARIADB"))}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self._home(),
            # A server that starts removes the temporary tables it finds, also of another's installer.
            env=environment | {"LC_ALL": "C", "TMPDIR": str(self._home())},
            start_new_session=True,  # Ctrl-C is meant for the program that uses the server
        )

    def _tell_watchdog(self, *pids: int) -> None:
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.write(f"{' '.join(map(str, pids))}\n".encode())
            self._watchdog.stdin.flush()

    def _disown(self) -> None:
        """Forget, in the child of a fork, what is the parent's: the child must neither stop it nor keep it alive."""
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        for process in (self._watchdog, self._server):
            if process is not None:
                process.returncode = 0  # there is nothing to wait for here
        self._watchdog = self._server = None


_started: WeakSet[LocalMariadb] = WeakSet()


def _disown_all() -> None:
    for server in list(_started):
        server._disown()  # noqa: SLF001 - the hook below is of this class


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def _spell(value: Setting) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
