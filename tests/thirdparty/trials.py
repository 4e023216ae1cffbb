"""Try a project out: its own tests with one way to connect, and the site itself, started and visited."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psycopg
from psycopg import sql

from tests.django_suite import runs
from tests.django_suite.sources import SuiteError

from .projects import Layout, Project
from .visits import PASSWORD, USER, Visitor, Wrong

__all__ = ["WAYS", "Stay", "Way", "run_tests", "serve"]

THREADS = 8
POOL = 4


@dataclass(frozen=True)
class Way:
    """A way to connect: whose engines, and what else is in the settings. It is judged by `like`."""

    name: str
    engines: str
    more: str = ""
    like: str = ""


_MIDDLEWARE = """
MIDDLEWARE = list(MIDDLEWARE)
MIDDLEWARE.insert(
    MIDDLEWARE.index("django.contrib.sessions.middleware.SessionMiddleware"),
    "poolkit_django.middleware.PoolkitMiddleware",
)
INSTALLED_APPS = [*INSTALLED_APPS, "poolkit_django"]
"""
_OURS, _THEIRS = "poolkit_django.backends", "django.db.backends"
_ATOMIC = 'DATABASES["default"]["ATOMIC_REQUESTS"] = True\n'
WAYS = {
    way.name: way
    for way in (
        Way("django", _THEIRS),
        Way("poolkit", _OURS, like="django"),
        # What counts queries sees one savepoint more in each request: with both of these, for the same reason.
        Way("django-atomic", _THEIRS, _ATOMIC),
        Way("middleware", _OURS, _MIDDLEWARE, like="django-atomic"),
    )
}


@dataclass(frozen=True)
class Stay:
    """What was seen of a site: its answers, its sessions on the server after a burst, and after its end."""

    seen: tuple[tuple[str, int], ...]
    burst: int
    sessions: int
    left: int
    problem: str = ""


def settings_text(
    project: Project, base: str, way: Way, where: Mapping[str, Any], name: str, *, engine: str = "postgresql"
) -> str:
    """Return a settings module: one of the project's own, on our database. Its sessions have that name."""
    options: dict[str, Any] = {"application_name": name} if engine == "postgresql" else {}
    if way.engines == _OURS:
        options["pool"] = {"max_size": POOL}
    database = {"ENGINE": f"{way.engines}.{engine}", **where, "OPTIONS": options}
    runner = '\nTEST_RUNNER = "suite_runner.Runner"\nALLOWED_HOSTS = ["*"]\n'
    return (
        f"from {base} import *\n\nDATABASES = {{'default': {database!r}}}{runner}{project.more.get(base, '')}{way.more}"
    )


def run_tests(project: Project, way: Way, layout: Layout, where: Mapping[str, Any], options: Any) -> runs.Report:
    """Run the project's own tests, and return what became of each."""
    place = layout.folder / f"tests-{way.name}"
    text = settings_text(project, project.tested, way, where, f"thirdparty_{way.name}", engine=options.engine)
    runs.lay_out(place, text)
    environ = runs.environment(place)
    environ["PYTHONPATH"] += f"{os.pathsep}{layout.folder}"
    command = [layout.python, "-m", "django", "test", "--noinput", f"--parallel={options.parallel}"]
    began = time.monotonic()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--settings=suite_settings", *(options.labels or project.labels)],
            cwd=place, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        runs.finish(process, options.timeout)
    report = runs.read_results(place / "results")
    report.seconds = time.monotonic() - began
    report.log = (place / "log").read_text(errors="replace")
    return report


def serve(project: Project, way: Way, layout: Layout, where: Mapping[str, Any]) -> Stay:
    """Migrate a database, start the site under gunicorn, visit it, and stop it."""
    place = layout.folder / f"site-{way.name}"
    name = f"thirdparty_site_{way.name}"
    with _database(where) as admin:
        runs.lay_out(place, settings_text(project, project.served, way, where, name))
        environ = runs.environment(place) | {
            "DJANGO_SETTINGS_MODULE": "suite_settings",
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        }
        environ["PYTHONPATH"] += f"{os.pathsep}{layout.folder}"
        layout.run("manage.py", "migrate", "--verbosity=0", environ=environ)
        account = ("--username", USER, "--email", "visitor@example.org")
        layout.run("manage.py", "createsuperuser", "--noinput", *account, environ=environ)
        return _visited(project, layout, environ, lambda: _sessions(admin, name), place / "log")


def _visited(project: Project, layout: Layout, environ: Mapping[str, str], sessions: Any, log: Path) -> Stay:
    seen: list[tuple[str, int]] = []
    burst = held = 0
    problem = ""
    with _gunicorn(project, layout, environ, log) as address:
        visitor = Visitor(address)
        try:
            project.visit(visitor)
            burst = _burst(project, address)
            held = len(sessions())
            busy = [state for state in sessions() if state != "idle"]
            problem = f"after the burst there are sessions in the state {', '.join(busy)}" if busy else ""
        except Wrong as wrong:
            problem = str(wrong)
        seen = visitor.seen
    return Stay(tuple(seen), burst, held, _rest(sessions), problem)


def _burst(project: Project, address: str) -> int:
    """Ask from many threads at once; return how many were answered well. Raises Wrong at the first that was not."""
    paths = list(project.burst) * 40
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda path: Visitor(address).get(path), paths))
    return len(paths)


def _rest(sessions: Any) -> int:
    """Return how many sessions are left, a moment after the end."""
    end = time.monotonic() + 5
    while (left := len(sessions())) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _sessions(admin: psycopg.Connection[Any], name: str) -> list[str]:
    rows = admin.execute("SELECT state FROM pg_stat_activity WHERE application_name = %s", (name,)).fetchall()
    return [row[0] for row in rows]


@contextlib.contextmanager
def _database(where: Mapping[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """Make the site's database, drop it afterwards; meanwhile give a connection that looks on."""
    spelt = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    params = {ours: where[theirs] for ours, theirs in spelt.items() if where[theirs]}
    name = sql.Identifier(where["NAME"])
    with psycopg.connect(dbname="postgres", autocommit=True, **params) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            yield admin
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@contextlib.contextmanager
def _gunicorn(project: Project, layout: Layout, environ: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run the site with more threads than its pool has connections; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [layout.python, "-m", "gunicorn", project.wsgi, "-b", f"127.0.0.1:{port}", "-k", "gthread"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--threads", str(THREADS)],
            cwd=layout.folder, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait_for(f"http://127.0.0.1:{port}/", process, log)
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            process.wait(20)
        finally:
            runs.finish(process, 0)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            urlopen(address, timeout=30).close()
        except URLError as error:
            if hasattr(error, "code"):  # an answer, if not a page
                error.close()  # type: ignore[attr-defined]
                return
            time.sleep(0.1)
        else:
            return
    raise SuiteError(f"the site does not answer:\n{log.read_text(errors='replace')[-3000:]}")
