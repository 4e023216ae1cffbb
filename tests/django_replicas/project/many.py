"""Where models live: run as a program, it asks the routers."""

import sys

import django

django.setup()

from django.db import router, transaction  # noqa: E402
from notes.models import Note  # noqa: E402
from places import Places  # noqa: E402

from poolkit_django import unit_of_work  # noqa: E402


def main():
    def asked():
        return router.db_for_read(Note), router.db_for_write(Note)

    assert asked() == ("replica1", "default"), asked()
    Places.place = "second"
    assert asked() == ("second_replica", "second"), asked()
    Places.place = "archive"
    assert asked() == ("archive", "archive"), asked()
    Places.place = None

    def found(alias):
        note = Note()
        note._state.db = alias
        return note

    for alias, read, write in [
        ("replica1", "replica1", "default"),
        ("default", "replica1", "default"),
        ("second", "second_replica", "second"),
        ("second_replica", "second_replica", "second"),
        ("archive", "archive", "archive"),
    ]:
        hints = {"instance": found(alias)}
        assert (router.db_for_read(Note, **hints), router.db_for_write(Note, **hints)) == (read, write), alias
    assert router.allow_relation(found("replica1"), found("default"))
    assert not router.allow_relation(found("replica1"), found("second_replica"))
    assert not router.allow_relation(found("replica1"), found("archive"))
    assert [router.allow_migrate(db, "notes") for db in ("default", "replica1", "archive")] == [True, False, True]

    with transaction.atomic(using="second"):  # one primary's transaction is none of the other's
        assert asked() == ("replica1", "default"), asked()
        Places.place = "second"
        assert asked() == ("second", "second"), asked()
    Places.place = None
    with unit_of_work():
        assert router.db_for_read(Note) == "replica1"
        Note.objects.create(word="many")
        assert router.db_for_read(Note) == "default"
        Places.place = "second"
        assert router.db_for_read(Note) == "second_replica"
    sys.stdout.write("well\n")


if __name__ == "__main__":
    main()
