"""What a task or a command does, run as a program: it is told by its arguments what to do."""

import subprocess
import sys
import time

import django

django.setup()

from django.db import connection, connections, transaction  # noqa: E402
from notes.models import Note, found  # noqa: E402

from poolkit_django import unit_of_work  # noqa: E402
from poolkit_django.routers import report, token, use, wrote  # noqa: E402

PRIMARY = int(connections["default"].settings_dict["PORT"])


def say(what):
    sys.stdout.write(f"{what}\n")


def fail():
    raise ZeroDivisionError


def is_primary(word="first"):
    return found(word)["port"] == PRIMARY


def until_replica(word):
    deadline = time.monotonic() + 15
    while is_primary(word):
        assert time.monotonic() < deadline, report()
        time.sleep(0.02)


def reads():
    assert not is_primary()
    with transaction.atomic():
        assert is_primary()
    assert not is_primary()


def units():
    """With the standby paused: what a unit has written it reads, and so does the next one, and the code after."""
    assert not is_primary()
    with unit_of_work():
        assert not is_primary()
        Note.objects.create(word="unit")
        assert found("unit") == {"count": 1, "port": PRIMARY}
    with unit_of_work():
        assert found("unit") == {"count": 1, "port": PRIMARY}
    time.sleep(0.3)
    assert found("unit") == {"count": 1, "port": PRIMARY}
    with unit_of_work():
        assert found("unit") == {"count": 1, "port": PRIMARY}


def autocommit():
    """With the standby paused: the same where each statement commits for itself, and for what only the code knows."""
    assert not is_primary()
    Note.objects.create(word="auto")
    assert is_primary("auto")
    time.sleep(0.3)
    assert is_primary("auto")


def rolled_back():
    """What was never committed is not waited for."""
    try:
        with transaction.atomic():
            Note.objects.create(word="never")
            fail()
    except ZeroDivisionError:
        assert not is_primary()


def unseen():
    """With the standby paused: a write that can't be seen is told."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM notes_added")
    assert found("unseen")["count"] == 0
    wrote()
    assert found("unseen") == {"count": 1, "port": PRIMARY}
    time.sleep(0.3)
    assert found("unseen") == {"count": 1, "port": PRIMARY}


def tokens():
    """With the standby paused: another process reads what this one has written, if it is given the token."""
    given = []
    with transaction.atomic():
        Note.objects.create(word="token")
        transaction.on_commit(lambda: given.append(token()))
    command = [sys.executable, "tasks.py", "told", *given, "forged", token()]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.split() == ["1", "0", "1", "0"], said


def told():
    for argument in sys.argv[2:]:
        with use(argument):
            say(found("token")["count"])
    say(found("token")["count"])


def back():
    """A while after the write the replica is read again."""
    Note.objects.create(word="back")
    until_replica("back")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    if sys.argv[1] != "told":
        say("well")
