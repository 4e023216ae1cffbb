"""Django's own management commands, on each engine; and runserver, which starts itself anew."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django_rig import database, eventually
from programs_rig import PROJECT, environment, program, running, sessions

from poolkit.testing._machine import free_port

COMMANDS = """
import io, json
from pathlib import Path
import django
django.setup()
from django.core.management import call_command
from django.core.cache import cache
from django.db import connection, connections
from notes.models import Note
from poolkit_django.backends import pools

def said(*arguments, **options):
    out = io.StringIO()
    call_command(*arguments, stdout=out, **options)
    return out.getvalue()

said("migrate", interactive=False)
assert "No planned migration operations" in said("migrate", plan=True)
said("createcachetable")
cache.set("key", [1, 2])
assert cache.get("key") == [1, 2]
Note.objects.bulk_create(Note(word=str(number)) for number in range(250))
said("dumpdata", "notes", output="notes.json")
said("flush", interactive=False)
assert not Note.objects.exists()
assert "Installed 250 object(s)" in said("loaddata", "notes.json")
assert sorted(Note.objects.values_list("word", flat=True)) == sorted(str(number) for number in range(250))
assert "class NotesNote(models.Model)" in said("inspectdb", "notes_note")
assert "word = models." in said("inspectdb", "notes_note")
assert "no issues" in said("check", databases=["default"])
assert "notes_note" in said("sqlflush")
said("migrate", "notes", "0001", interactive=False)
said("migrate", "notes", interactive=False)
said("shell", command="from notes.models import Note; assert Note.objects.count() == 250")
Note.objects.bulk_create(Note(word="more") for number in range(2000))
assert len(json.loads(said("dumpdata", "notes"))) == 2250  # more than one chunk
connections.close_all()
(stats,) = (pool.stats() for pool in pools.live())
assert (stats.out, stats.size) == (0, 1), stats
"""


@pytest.fixture
def sqlite_dsn(tmp_path: Path) -> str:
    """A database in a file."""
    return f"sqlite://{tmp_path}/db.sqlite3"


@pytest.mark.slow
@pytest.mark.parametrize("url", ["own_dsn", "mysql_dsn", "sqlite_dsn"])
def test_commands(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """migrate, createcachetable, dumpdata, flush, loaddata, inspectdb, check, shell: one connection does it all."""
    environ = environment(request.getfixturevalue(url))
    program("-W", "error", "-c", f"import os; os.chdir({str(tmp_path)!r})\n{COMMANDS}", environ=environ)


@pytest.mark.slow
def test_each_command_leaves_nothing(own_dsn: str, monitor: psycopg.Connection[Any]) -> None:
    """A command of its own process ends its sessions, also the one that fails."""
    environ = environment(own_dsn)
    program("manage.py", "migrate", environ=environ)
    assert "250" not in program("manage.py", "dumpdata", "notes", environ=environ)
    with pytest.raises(AssertionError, match="Unknown command"):
        program("manage.py", "no_such_command", environ=environ)
    with pytest.raises(AssertionError, match="DoesNotExist"):
        program("manage.py", "shell", "-c", "from notes.models import Note; Note.objects.get()", environ=environ)
    eventually(lambda: sessions(monitor, environ["APPLICATION"]) == [])


SHELLS = {
    "own_dsn": ("psql", "-Atc", "SELECT 'and well'"),
    "mysql_dsn": ("mysql", "-Ne", "SELECT 'and well'"),
    "sqlite_dsn": ("sqlite3", "SELECT 'and well'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("url", SHELLS)
def test_dbshell(url: str, request: pytest.FixtureRequest) -> None:
    """Dbshell hands the settings to the database's own client, and not the pool's."""
    client, *asked = SHELLS[url]
    if shutil.which(client) is None:
        pytest.skip(f"{client} is not there")
    said = program("manage.py", "dbshell", "--", *asked, environ=environment(request.getfixturevalue(url)))
    assert said.splitlines()[0] == "and well"


def test_dbshell_is_told_nothing_of_the_pool(dsn: str) -> None:
    """The client's arguments and environment are those that Django's engine gives."""
    from django.db.backends.postgresql.client import DatabaseClient  # noqa: PLC0415  after Django is configured

    ours = database(dsn, sslmode="prefer", fold_begin=False)
    theirs = {**ours, "OPTIONS": {name: given for name, given in ours["OPTIONS"].items() if name == "sslmode"}}
    asked = [DatabaseClient.settings_to_cmd_args_env(given, ["-c", "SELECT 1"]) for given in (ours, theirs)]
    assert asked[0] == asked[1]
    assert asked[0][1]["PGSSLMODE"] == "prefer"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the project, whose files may be changed."""
    ours_alone = shutil.ignore_patterns("__pycache__")  # other programs write there meanwhile
    return Path(shutil.copytree(PROJECT, tmp_path / "project", ignore=ours_alone))


@pytest.fixture
def environ(own_dsn: str, copied: Path) -> dict[str, str]:
    """The environment of the copy."""
    made = environment(own_dsn)
    made["PYTHONPATH"] = made["PYTHONPATH"].replace(str(PROJECT), str(copied))
    program("manage.py", "migrate", "--verbosity=0", environ=made)
    return made


def sockets(pid: int) -> list[str]:
    """The sockets of a process."""
    links = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if link.startswith("socket:")]


def connected(monitor: psycopg.Connection[Any], environ: dict[str, str]) -> set[int]:
    """The sessions of a project's processes."""
    return {session for session, _ in sessions(monitor, environ["APPLICATION"])}


def change(file: Path, noticed: Callable[[], bool]) -> None:
    """Change a file until that is noticed: a reloader that has only begun compares with nothing, and misses it."""
    deadline = time.monotonic() + 40
    while True:
        with file.open("a") as opened:
            opened.write("# changed\n")
        try:
            eventually(noticed, 5)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        else:
            return


@pytest.mark.slow
def test_runserver(environ: dict[str, str], copied: Path, monitor: psycopg.Connection[Any]) -> None:
    """Each restart ends the sessions before it; the outer process has none; Ctrl-C ends all."""
    port = free_port()
    command = ("django", "runserver", f"127.0.0.1:{port}")
    with running(*command, environ=environ, port=port, cwd=copied, log=copied / "log") as server:
        eventually(server.answers, 30)
        processes = set()
        for _ in range(2):
            found = [server.get("/where") for _ in range(6)]
            (pid,) = {answer["pid"] for answer in found}
            assert pid not in processes
            assert pid != server.process.pid
            processes.add(pid)
            mine = connected(monitor, environ)
            assert {answer["backend"] for answer in found} <= mine
            assert len(mine) <= 4
            assert sockets(server.process.pid) == []
            assert sockets(pid)
            change(copied / "notes" / "urls.py", lambda mine=mine: mine.isdisjoint(connected(monitor, environ)))
            eventually(server.answers, 30)
        os.killpg(server.process.pid, signal.SIGINT)
        server.process.wait(20)
        eventually(lambda: sessions(monitor, environ["APPLICATION"]) == [])
    said = (copied / "log").read_text()
    assert said.count("development server at http") >= 3
    assert "Traceback" not in said
