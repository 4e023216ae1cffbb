"""Tasks; what became of each goes to a file of its worker."""

import json
import os
import threading
from pathlib import Path

from celery import shared_task
from celery.signals import task_postrun, task_prerun, worker_ready
from django.db import connection, transaction

from notes.models import Note
from poolkit_django import unit_of_work

folder = Path(os.environ.get("CELERY_FOLDER", "."))
ROUNDS = 20


def tell(**told):
    """Write a line."""
    with (folder / f"told-{os.getpid()}-{threading.get_ident()}").open("a") as file:
        file.write(json.dumps(told) + "\n")


def backend():
    """The session that serves."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


@shared_task
def plain(word):
    """Each statement commits for itself; on_commit() runs at once."""
    Note.objects.create(word=word)
    transaction.on_commit(lambda: tell(kind="plain", pid=os.getpid(), backend=backend()))


@shared_task
def atomic(word, *, fail):
    """A transaction of the task's own."""
    with transaction.atomic():
        Note.objects.create(word=word)
        transaction.on_commit(lambda: tell(kind="atomic", pid=os.getpid(), backend=backend()))
        if fail:
            raise KeyError(word)


@shared_task
def unit(word, *, fail):
    """A unit of work; what it gives back is free before the task is over."""
    with unit_of_work("unit"):
        Note.objects.create(word=word)
        Note.objects.create(word=word)
        found = backend()
        if fail:
            raise KeyError(word)
    tell(kind="unit", pid=os.getpid(), backend=found)


@shared_task
def broken(word):
    """Leaves its session aborted, and its transaction open."""
    connection.set_autocommit(False)
    Note.objects.create(word=word)
    raise KeyError(word)


@task_prerun.connect
def before(**_):
    """Tell whether this thread still holds the connection of its last task; Celery's own receiver comes after."""
    tell(kind="before", held=connection.lease is not None)


@task_postrun.connect
def after(**_):
    """Tell that a task is over."""
    tell(kind="after")


@worker_ready.connect
def send_all(**_):
    """Send all from here: this broker can't be read while another process writes to it."""
    for number in range(ROUNDS):
        plain.delay(f"plain {number}")
        atomic.delay(f"atomic {number}", fail=False)
        atomic.delay(f"lost {number}", fail=True)
        unit.delay(f"unit {number}", fail=False)
        unit.delay(f"lost {number}", fail=True)
        broken.delay(f"lost {number}")


if os.environ.get("QUERY_AT_IMPORT"):
    connection.cursor().execute("SELECT 1")  # careless: in the process that forks, before it does
