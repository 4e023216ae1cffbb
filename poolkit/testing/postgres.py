"""A private PostgreSQL for tests and demonstrations: made in a temporary folder, gone without a trace afterwards.

Nothing is installed and no service is touched: `LocalPostgres` finds the server's programs (see `find_programs`), makes
a cluster in a third of a second, runs the server on a free loopback port and on a Unix socket, and lets a test do
to it what happens to real ones: restart, crash, hang, fail over. It runs for root as well, under an account that owns
nothing else. Nothing is synced to disk; a committed row survives `kill()`, not the machine's own crash.

What keeps it from outliving its maker is the watchdog, a shell that holds the end of a pipe. However this process ends,
`kill -9` included, the pipe closes; the shell then ends the server and removes the folder.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from weakref import WeakSet

from poolkit.testing._machine import (
    WATCHDOG,
    Account,
    PostgresFailed,
    PostgresNotFound,
    children,
    find_programs,
    free_port,
    lines_of,
    link_or_copy,
    ordinary_account,
)

__all__ = ["LocalPostgres", "PostgresFailed", "PostgresNotFound", "Setting", "StopMode", "find_programs"]

Setting = str | int | float | bool
StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_FAST: dict[str, Setting] = {
    # What is written survives a killed server all the same; only the machine's own crash would lose it. So commits stay
    # synchronous: a write without the sync costs next to nothing, and a test may count on what was committed.
    "fsync": False,
    "full_page_writes": False,
    "max_connections": 100,
    "shared_buffers": "32MB",
    # In the folder rather than in /dev/shm, where a killed server would leave it for good.
    "dynamic_shared_memory_type": "mmap",
}


class LocalPostgres:
    """Run a private PostgreSQL server; use it with `with`, or call `start()` and `close()`.

    `port` is a free one unless given. Settings go to the server as they are (`max_connections=200`,
    `idle_in_transaction_session_timeout="1s"`) and win over the ones that make it fast. Connections over TCP need the
    password that `dsn` carries; the socket is for this account alone. Not for use by several threads at once.

    Raises PostgresNotFound where no server can be run, PostgresFailed where one does not start. POSIX only.
    """

    def __init__(self, *, port: int | None = None, **settings: Setting) -> None:
        self.port = port or 0
        self.settings: dict[str, Setting] = {**_FAST, **settings}
        self._port_given = port is not None
        self._password = secrets.token_hex(8)
        self._programs: Path | None = None
        self._folder: Path | None = None
        self._account: Account = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        """Say where it listens and whether it runs; the password stays out."""
        state = f"pid {self.pid}" if self.running else "not running"
        return f"<LocalPostgres port {self.port or 'not chosen yet'}, {state}>"

    # What there is to know.

    @property
    def dsn(self) -> str:
        """The URL for a connection over TCP as the superuser; known once `start()` has returned."""
        self._home()
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    @property
    def socket_dsn(self) -> str:
        """The URL for a connection over the Unix socket: no password, and no network for a fault proxy to cut."""
        return f"postgresql://postgres@/postgres?host={self._home()}&port={self.port}"

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

    def start(self, timeout: float = 30) -> Self:
        """Start the server and wait until it takes connections, at most `timeout` seconds; made first if need be.

        After `stop()` or `kill()` it comes back with its data, on the same port.
        """
        if self.running:
            return self
        if self._folder is None:
            self._prepare()
        if not (self._home() / "data" / "PG_VERSION").exists():
            self._make_cluster()
        for last_try in (False, False, True):
            if not self.port:
                self.port = free_port()
            log_size = len(self.log)
            self._launch()
            if self._wait_until_ready(timeout):
                return self
            said = self.log[log_size:]
            if self._port_given or last_try or "in use" not in said:
                raise PostgresFailed(f"PostgreSQL did not start:\n{said[-2000:].strip()}")
            self.port = 0  # another process was faster; nobody knows our port yet, so any other will do
        raise AssertionError  # pragma: no cover - the last try returns or raises

    def stop(self, mode: StopMode = "fast", timeout: float = 20) -> None:
        """Stop the server: `smart` waits for its clients, `fast` ends them, `immediate` is a crash with a goodbye.

        Raises PostgresFailed if it still runs after `timeout` seconds. Does nothing if it is not running.
        """
        if self._server is None or not self.running:
            return
        self.resume()
        self._server.send_signal(_SIGNALS[mode])
        try:
            self._server.wait(timeout)
        except subprocess.TimeoutExpired:
            said = f"PostgreSQL (pid {self._server.pid}) has not stopped within {timeout:g} s in mode {mode}"
            raise PostgresFailed(said) from None
        self._tell_watchdog()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again; every connection is lost, the data is kept."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the server and all its processes at once, as a power cut would. `start()` makes it recover."""
        if self._server is None or not self.running:
            return
        self._signal_all(signal.SIGKILL)
        self._server.wait()
        self._tell_watchdog()

    def pause(self) -> None:
        """Freeze every process of the server: connections stay open and nothing answers, as on a hung host."""
        self._tell_watchdog(*self._signal_all(signal.SIGSTOP))

    def resume(self) -> None:
        """Let a paused server go on."""
        self._tell_watchdog(*self._signal_all(signal.SIGCONT)[:1])

    def close(self) -> None:
        """Stop the server, by force if it takes more than 5 s, and remove every trace of it. May be called twice."""
        if self._watchdog is None:  # never started, closed already, or in the child of a fork: then it is not ours
            return
        atexit.unregister(self.close)
        try:
            self.stop(timeout=5)
        except PostgresFailed:
            self.kill()
        self._free_shared_memory()
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

    # Replication.

    def standby(self, **settings: Setting) -> LocalPostgres:
        """Return a hot standby of this running server, copied and ready for `start()` (or `with`).

        It inherits this server's settings (PostgreSQL demands as many `max_connections`) and its password.
        """
        replica = LocalPostgres()
        replica.settings = {**self.settings, **settings}
        replica._password = self._password
        replica._prepare()
        try:
            replica._run(
                "pg_basebackup",
                *(
                    "--pgdata",
                    "data",
                    "--host",
                    str(self._home()),
                    "--port",
                    str(self.port),
                    "--username",
                    "postgres",
                ),
                *(
                    "--write-recovery-conf",
                    "--wal-method=stream",
                    "--checkpoint=fast",
                    "--no-sync",
                    "--no-password",
                ),
            )
        except BaseException:
            replica.close()
            raise
        return replica

    def promote(self) -> None:
        """Turn a standby into a primary and wait until it is one (a tenth of a second)."""
        self._run("pg_ctl", "promote", "--pgdata", "data", "--wait")

    # From here on: how.

    def _home(self) -> Path:
        if self._folder is None:
            raise RuntimeError("this LocalPostgres has not been started: call start() first, or use it with `with`")
        return self._folder

    def _prepare(self) -> None:
        """Find the programs, make the folder, and set the watchdog on it before anything can be left behind."""
        if os.name != "posix":
            raise PostgresNotFound("LocalPostgres needs POSIX signals; use a PostgreSQL that runs already")
        self._programs = find_programs()
        # /tmp where there is one: the path of a Unix socket may have only about 100 characters.
        place = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108 - mkdtemp makes a folder nobody guesses
        self._folder = Path(tempfile.mkdtemp(prefix="poolkit-pg-", dir=place))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "watchdog", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        atexit.register(self.close)
        _started.add(self)
        try:
            if os.geteuid() == 0:
                self._step_down()
        except BaseException:
            self.close()
            raise

    def _step_down(self) -> None:
        """Have the programs run as an ordinary account: PostgreSQL refuses to run as root."""
        self._account = ordinary_account()
        os.chown(self._home(), self._account["user"], self._account["group"])
        if self._can_run():
            return
        # The account cannot reach the programs, say in a virtual environment in root's home: give it a copy.
        # The layout is kept, because they find their libraries by a path relative to their own.
        install = self._bin().parent
        copy = self._home() / install.parent.name / install.name
        shutil.copytree(install, copy, symlinks=True, copy_function=link_or_copy)
        libraries = install.parent.with_name(install.parent.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, self._home() / libraries.name, copy_function=link_or_copy)
        self._programs = copy / "bin"
        if not self._can_run():
            raise PostgresNotFound(f"an account other than root cannot run the PostgreSQL programs of {install}")

    def _can_run(self) -> bool:
        try:
            self._run("postgres", "--version")
        except (OSError, PostgresFailed):
            return False
        return True

    def _make_cluster(self) -> None:
        secret = self._home() / "password"
        secret.touch(mode=0o600)
        secret.write_text(self._password)
        if self._account:
            os.chown(secret, self._account["user"], self._account["group"])
        self._run(
            "initdb",
            *("--pgdata", "data", "--username", "postgres", "--pwfile", "password", "--encoding", "UTF8"),
            # The password is sent as it is: it never leaves the loopback, and a hash costs milliseconds a connection.
            *("--auth-local=trust", "--auth-host=password", "--locale=C", "--no-sync"),
        )
        secret.unlink()

    def _launch(self) -> None:
        settings = self.settings | {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._home()),
            "unix_socket_permissions": "0700",
        }
        command = [str(self._bin() / "postgres"), "-D", "data"]
        for name, value in settings.items():
            command += ["-c", f"{name}={_spell(value)}"]
        with (self._home() / "log").open("ab") as log:
            self._server = self._spawn(command, stdout=log.fileno(), stderr=log.fileno())
        self._tell_watchdog(self._server.pid)

    def _wait_until_ready(self, timeout: float) -> bool:
        """Tell whether the server came up (False: it ended); raise PostgresFailed if it did neither in time."""
        if self._server is None:
            raise RuntimeError("nothing has been launched")
        status = self._home() / "data" / "postmaster.pid"
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._server.poll() is not None:
                self._tell_watchdog()
                return False
            lines = lines_of(status)
            # The file of a server that was killed still says "ready": only our own pid counts.
            if len(lines) > 7 and lines[0] == str(self._server.pid) and lines[7].strip() in ("ready", "standby"):
                return True
            time.sleep(0.01)
        self.kill()
        raise PostgresFailed(f"PostgreSQL was not ready within {timeout:g} s:\n{self.log[-2000:].strip()}")

    def _signal_all(self, number: signal.Signals) -> list[int]:
        """Send a signal to the server and all its processes; return their pids, the server's first."""
        server = self.pid
        if server is None:
            return []
        os.kill(server, signal.SIGSTOP)  # so that it starts no more of them while they are counted
        family = [server, *children(server)]
        for pid in reversed(family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return family

    def _free_shared_memory(self) -> None:
        """Give back the one segment that a killed server has left in the kernel; a stopped one leaves none."""
        lines = lines_of(self._home() / "data" / "postmaster.pid")
        ipcrm = shutil.which("ipcrm")
        if len(lines) > 6 and ipcrm:
            # It fails where PostgreSQL has freed it already, which is just as well.
            subprocess.run([ipcrm, "-m", lines[6].split()[-1]], check=False, capture_output=True)

    def _tell_watchdog(self, *pids: int) -> None:
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.write(f"{' '.join(map(str, pids))}\n".encode())
            self._watchdog.stdin.flush()

    def _bin(self) -> Path:
        if self._programs is None:
            self._programs = find_programs()
        return self._programs

    def _run(self, program: str, *arguments: str) -> None:
        """Run a program to its end; raise PostgresFailed with what it said unless it succeeds."""
        process = self._spawn(
            [str(self._bin() / program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if not self.running:
            self._tell_watchdog(process.pid)
        said = process.communicate()[0].decode(errors="replace").strip()
        if not self.running:
            self._tell_watchdog()
        if process.returncode:
            raise PostgresFailed(f"{program} failed with exit status {process.returncode}:\n{said[-2000:]}")

    def _spawn(self, command: list[str], *, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=self._home(),
            env=environment | {"LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C is meant for the program that uses the server
            **self._account,
        )

    def _disown(self) -> None:
        """Forget, in the child of a fork, what is the parent's: the child must neither stop it nor keep it alive."""
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        for process in (self._watchdog, self._server):
            if process is not None:
                process.returncode = 0  # there is nothing to wait for here
        self._watchdog = self._server = None


_started: WeakSet[LocalPostgres] = WeakSet()


def _disown_all() -> None:
    for server in list(_started):
        server._disown()  # noqa: SLF001 - the hook below is of this class


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def _spell(value: Setting) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
