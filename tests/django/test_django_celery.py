"""Celery: its Django fixup gives connections back after each task, and a prefork worker keeps its pool."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django_rig import eventually
from programs_rig import environment, program, running, sessions

pytestmark = pytest.mark.slow
ROUNDS = 20
TASKS = 6 * ROUNDS


@pytest.fixture
def environ(own_dsn: str, tmp_path: Path) -> dict[str, str]:
    """The project on a database of its own, migrated, and a folder for Celery's messages."""
    made = {**environment(own_dsn), "CELERY_FOLDER": str(tmp_path), "QUERY_AT_IMPORT": "1"}
    (tmp_path / "broker").mkdir()
    program("manage.py", "migrate", "--verbosity=0", environ={**made, "QUERY_AT_IMPORT": ""})
    return made


def told(folder: Path) -> list[dict[str, Any]]:
    """What the tasks have written."""
    return [json.loads(line) for path in folder.glob("told-*") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["prefork", "threads"])
def test_tasks(kind: str, environ: dict[str, str], own_dsn: str) -> None:
    """Each task's work is saved or undone, nothing is held between tasks, and connections serve many of them."""
    command = ("celery", "-A", "celery_app", "worker", "--pool", kind, "-c", "2", "--loglevel", "ERROR")
    folder = Path(environ["CELERY_FOLDER"])
    with (
        psycopg.connect(own_dsn, autocommit=True) as monitor,
        running(*command, environ=environ, log=folder / "log") as worker,
    ):
        eventually(lambda: Counter(line["kind"] for line in told(folder))["after"] == TASKS, 30)
        found = told(folder)
        assert [line for line in found if line.get("held")] == []
        told_of = {"before": TASKS, "after": TASKS, "plain": ROUNDS, "atomic": ROUNDS, "unit": ROUNDS}
        assert Counter(line["kind"] for line in found) == told_of
        assert saved(monitor) == {"plain": ROUNDS, "atomic": ROUNDS, "unit": 2 * ROUNDS}
        served = {(line["backend"], line["pid"]) for line in found if "backend" in line}
        assert len({backend for backend, _ in served}) == len(served), "two processes used one session"
        assert len(served) <= 4, "connections were not kept for the next task"
        assert all(state == "idle" for _, state in sessions(monitor, environ["APPLICATION"]))
        worker.stop()
        eventually(lambda: sessions(monitor, environ["APPLICATION"]) == [])


def saved(monitor: psycopg.Connection[Any]) -> dict[str, int]:
    """How many notes of which kind were saved."""
    asked = "SELECT split_part(word, ' ', 1), count(*) FROM notes_note GROUP BY 1"
    return dict(monitor.execute(asked).fetchall())
