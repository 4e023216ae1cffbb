"""One row of the matrix, lived through: started, asked, its worker killed, stopped; and what the database saw of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
from life_rows import HERE, Row
from psycopg import sql

from poolkit.testing._machine import free_port

T = TypeVar("T")
COLUMNS = ("worker", "before", "stop", "kill")
PATIENCE = 20.0
# What nobody says whose processes live in peace with their pools.
COMPLAINTS = re.compile(r"Traceback|WARN|Warning|ERROR|CRITICAL|Exception ignored|never awaited|was destroyed|unclosed")

OURS = re.compile(r"poolkit|psycopg|never awaited|was destroyed|unclosed")  # where a server tells of what was cut


def until(condition: Callable[[], T], what: str, within: float = PATIENCE) -> T:
    """Ask until the answer is true; fail with the last answer."""
    end = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {within:g} s: {what} (last answer: {answer!r})"
        time.sleep(0.05)
    return answer


@contextmanager
def own_database(dsn: str) -> Iterator[str]:
    """Make a database for one row, so that its sessions are told from all others."""
    name = f"life_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


class Host:
    """A running server, or whatever else has workers."""

    def __init__(self, row: Row, url: str, admin: psycopg.Connection) -> None:
        self.row = row
        self.admin = admin
        self.database = urlsplit(url).path[1:]
        self.folder = Path(tempfile.mkdtemp(prefix="life"))
        self.file = self.folder / "reports"
        self.port = free_port()
        (self.folder / "broker").mkdir()
        (self.folder / "watched.py").touch()
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("POOLKIT_", "PYTEST_"))}
        environ |= {
            "LIFE_URL": url, "LIFE_FILE": str(self.file), "LIFE_FOLDER": str(self.folder / "broker"),
            "PYTHONPATH": str(HERE), "PYTHONWARNINGS": row.python_warnings, **row.environ,
        }  # fmt: skip
        self.log = (self.folder / "log").open("w+b")
        self.process = subprocess.Popen(
            [part.format(port=self.port, folder=self.folder) for part in row.command],
            cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True,
        )  # fmt: skip
        self.family: set[psutil.Process] = set()
        self.hanging: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()
        if self.hanging is not None:
            self.hanging.close()
        shutil.rmtree(self.folder)

    # -- asking it ------------------------------------------------------------------------------------------------

    def said(self, since: int = 0) -> str:
        """What it wrote, less what is always there."""
        text = os.pread(self.log.fileno(), 10**6, since).decode(errors="replace")
        return "\n".join(line for line in text.splitlines() if not re.search(self.row.noise, line))

    def written(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def complaints(self, since: int = 0) -> list[str]:
        """The lines of its log that should not be there."""
        lines = self.said(since).splitlines()
        bad = OURS if self.hanging is not None or (since and self.row.tasks) else COMPLAINTS
        return [line for line in lines if bad.search(line) and not any(re.search(s, line) for s in self.row.says)]

    def get(self, path: str = "/") -> dict[str, Any]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            found: dict[str, Any] = json.loads(body)
            return found
        finally:
            connection.close()

    def reports(self) -> list[dict[str, Any]]:
        """Some reports; of all that were written where the workers write by themselves."""
        assert self.process.poll() is None or self.row.name == "xdist", self.said()
        self.remember()
        if self.row.http:
            with ThreadPoolExecutor(8) as threads:
                return list(threads.map(lambda _: self.get(), range(16)))
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text().splitlines() if line.endswith("}")]

    def remember(self) -> None:
        """Note who belongs to it, for the end."""
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.process.pid)
            self.family |= {leader, *leader.children(recursive=True)}

    def sessions(self) -> dict[int, str]:
        """What the database says: its sessions, and the names that they gave."""
        rows = self.admin.execute(
            "SELECT pid, application_name FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type = 'client backend'", (self.database,)
        )  # fmt: skip
        return dict(rows.fetchall())

    def sessions_of(self, pid: int) -> set[int]:
        return {session for session, name in self.sessions().items() if name.endswith(f":{pid}")}

    # -- the life of it -------------------------------------------------------------------------------------------

    def start(self) -> list[dict[str, Any]]:
        """Wait until every worker has answered, or enough have come and gone; return all that was reported."""
        found: list[dict[str, Any]] = []
        wanted = self.row.workers + (3 if self.row.recycled else 0)

        def enough() -> bool:
            with suppress(ConnectionError, http.client.HTTPException):
                found.extend(self.reports())
            return len(found) >= 20 and len({report["pid"] for report in found}) >= wanted

        try:
            until(enough, f"reports of {wanted} workers")
        except AssertionError as error:
            error.add_note(self.said())
            raise
        return found

    def worker(self, found: list[dict[str, Any]]) -> None:
        """Each worker has sessions of its own, which bear its pid."""
        owners: dict[int, set[int]] = {}
        for report in found:
            for session in {report["early"], report["late"], report.get("loop", report["late"])}:
                owners.setdefault(session, set()).add(report["pid"])
        assert all(len(pids) == 1 for pids in owners.values()), owners
        names = {session: name for session, name in self.sessions().items() if session in owners}
        wrong = {session: name for session, name in names.items() if not name.endswith(f":{min(owners[session])}")}
        assert not wrong, (wrong, owners)
        self.no_session_without_a_process()
        missing = [text for text in self.row.says if not re.search(text, self.said())]
        assert not missing, self.said()
        assert not self.complaints(), self.said()

    def no_session_without_a_process(self) -> None:
        """Whoever has gone, by himself or by a limit on requests, has left nothing."""

        def orphans() -> list[str]:
            names = self.sessions().values()
            return [name for name in names if not psutil.pid_exists(int(name.rpartition(":")[2] or 0))]

        until(lambda: not orphans(), f"no session of a worker that has gone: {orphans()}", 5)

    def before(self, found: list[dict[str, Any]]) -> None:
        """What was opened before the fork is the parent's still, and no child has used it."""
        for report in found:
            assert (report["imported_by"] != report["pid"]) == self.row.forks, report
            if self.row.forks and report["before"] is not None:
                assert report["before"] not in {report["early"], report["late"]}, report
                assert self.sessions().get(report["before"], "").endswith(f":{report['imported_by']}"), report

    def kill(self) -> None:
        """A worker killed with -9 leaves no session, and takes none of the others'."""
        found = self.reports()
        known = {report["pid"] for report in found}
        if self.row.tasks:
            self.kill_itself()
            return
        while not (living := [report["pid"] for report in found if self.sessions_of(report["pid"])]):
            found = self.reports()  # those that answered may have been recycled since
        pid = living[-1]
        known |= {report["pid"] for report in found}
        others = {session for session, name in self.sessions().items() if not name.endswith(f":{pid}")}
        with contextlib.suppress(ProcessLookupError):  # recycled in this moment
            os.kill(pid, signal.SIGKILL)
        until(lambda: not self.sessions_of(pid), "its sessions are gone", 5)
        if self.row.ends_with_worker:
            self.process.wait(PATIENCE)
            self.nothing_left()
            return
        if not self.row.recycled and self.row.name != "executor":  # there the others end as well
            assert others <= self.sessions().keys()
        if self.row.reloads:  # it looks at files, and not at its worker
            (self.folder / "watched.py").write_text("changed_again = True\n")
        until(lambda: self.pids() - known, "another has come in its place")

    def kill_itself(self) -> None:
        """The same where the worker has to do it: in the middle of a task, when it holds no lock of its parent's."""
        known = self.pids()  # now: the one that takes its place may be quick
        order = self.folder / "die"
        order.touch()
        until(lambda: not order.exists(), "a worker takes the order")
        self.no_session_without_a_process()
        until(lambda: self.pids() - known, "another has come in its place")

    def pids(self) -> set[int]:
        try:
            return {report["pid"] for report in self.reports()}
        except (ConnectionError, http.client.HTTPException):  # the connection was the dead one's to accept
            return set()

    def reload(self) -> None:
        """A changed file replaces the worker; the old one's sessions go with it."""
        pid = self.get()["pid"]
        (self.folder / "watched.py").write_text("changed = True\n")
        until(lambda: self.pids() - {pid}, "the new worker answers")
        until(lambda: not self.sessions_of(pid), "the old one's sessions are gone", 5)

    def hang(self) -> None:
        """Begin a request that never ends, in the middle of a transaction."""
        self.hanging = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self.hanging.request("GET", "/hang")
        until(lambda: self.count_in_transaction() == 1, "it is in a transaction")

    def count_in_transaction(self) -> int:
        rows = self.admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state = 'idle in transaction'",
            (self.database,),
        )
        return int((rows.fetchone() or [0])[0])

    def stop(self) -> None:
        """SIGTERM ends it within seconds: no session, no process, no complaint."""
        if self.row.tasks:  # Celery ends in order when its workers are not coming and going
            (self.folder / "enough").touch()
            until(self.is_quiet, "the tasks under way are done")
        since = self.written()
        self.remember()
        self.process.terminate()
        status = self.process.wait(PATIENCE)
        assert status in self.row.status, (status, self.said(since))
        self.nothing_left()
        assert not self.complaints(since), self.said(since)

    def is_quiet(self) -> bool:
        before = len(self.reports())
        time.sleep(0.5)
        return len(self.reports()) == before

    def nothing_left(self) -> None:
        _, alive = psutil.wait_procs(self.family, timeout=5)
        assert not alive, alive
        until(lambda: not self.sessions(), f"no session is left: {self.sessions()}", 5)


def live(row: Row, dsn: str) -> dict[str, BaseException | None]:
    """Live through a row; return how each column ended. What can't be reached for an earlier fault has that fault."""
    ended: dict[str, BaseException | None] = {}

    def attempt(column: str, step: Callable[[], Any]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001  raised by the test of its column
            ended[column] = error
        else:
            ended[column] = None

    with psycopg.connect(dsn, autocommit=True) as admin, own_database(dsn) as url:
        (live_to_its_own_end if row.name == "xdist" else live_as_server)(row, url, admin, attempt)
    return ended


def live_as_server(row: Row, url: str, admin: psycopg.Connection, attempt: Callable[..., None]) -> None:
    with Host(row, url, admin) as host:
        try:
            found = host.start()
        except Exception as error:  # noqa: BLE001
            for column in COLUMNS:
                attempt(column, _raise(error))
            return
        attempt("worker", lambda: host.worker(found))
        attempt("before", lambda: host.before(found))
        if row.reloads:
            attempt("worker", host.reload)
        if not row.ends_with_worker:
            attempt("kill", host.kill)
        if row.hangs:
            host.hang()
        attempt("stop", host.stop)
    if row.ends_with_worker:  # so that one needs a life of its own
        with Host(row, url, admin) as host:
            host.start()
            attempt("kill", host.kill)


def live_to_its_own_end(row: Row, url: str, admin: psycopg.Connection, attempt: Callable[..., None]) -> None:
    """A run of tests, one of which kills its worker."""
    with Host(row, url, admin) as host:
        host.process.wait(60)
        found = host.reports()
        said = host.said()
        attempt("worker", lambda: _same(len({report["pid"] for report in found}) >= 2, said))
        attempt("before", lambda: host.before(found))
        attempt("kill", lambda: _same("1 failed, 12 passed" in said and "crashed while running" in said, said))
        attempt("stop", lambda: _same(host.process.returncode == 1, said) or host.nothing_left())


def _same(truth: bool, said: str) -> None:  # noqa: FBT001
    assert truth, said


def _raise(error: Exception) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step
