"""Tests of the kinds that Django has beside the common ones, as users write them."""

import threading
import urllib.error
import urllib.request
from unittest import skipUnless

from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.test import TestCase, TransactionTestCase

from notes.models import Note
from poolkit_django import unit_of_work


class StaticLive(StaticLiveServerTestCase):
    """StaticLiveServerTestCase: as the live server, and it serves static files."""

    def test_served(self):
        """A row written through the socket, a file of the app, and a file that is not there."""
        with urllib.request.urlopen(f"{self.live_server_url}/add?word=static") as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{self.live_server_url}/static/notes/style.css") as answer:
            assert b"colour of notes" in answer.read()
        assert Note.objects.get().word == "static"

    def test_rolled_back(self):
        """A request that raises saves nothing, seen from the test's own connection."""
        with self.assertRaises(urllib.error.HTTPError) as caught:  # noqa: PT027  Django's way
            urllib.request.urlopen(f"{self.live_server_url}/add?word=lost&fail")
        caught.exception.close()
        assert not Note.objects.exists()


class Chunks(TransactionTestCase):
    """iterator(): more rows than a chunk has, in autocommit and in a transaction."""

    def setUp(self):
        """Save more than two chunks."""
        Note.objects.all().delete()
        Note.objects.bulk_create(Note(word=str(number)) for number in range(25))

    def test_whole(self):
        """All rows come once, while other queries run on the same connection."""
        seen = [(note.word, Note.objects.count()) for note in Note.objects.order_by("pk").iterator(chunk_size=10)]
        assert seen == [(str(number), 25) for number in range(25)]

    def test_abandoned(self):
        """An iterator left in the middle hurts nothing that comes after."""
        rows = Note.objects.order_by("pk").iterator(chunk_size=10)
        assert next(rows).word == "0"
        del rows
        assert Note.objects.count() == 25
        connection.close()
        assert Note.objects.count() == 25

    async def test_async(self):
        """Async iteration, too."""
        seen = [note.word async for note in Note.objects.order_by("pk").aiterator(chunk_size=10)]
        assert seen == [str(number) for number in range(25)]


class Fixtures(TestCase):
    """Fixtures are loaded into the test's transaction, with the checks of their constraints."""

    def test_loaded(self):
        """Loaded by its name."""
        call_command("loaddata", "three", verbosity=0)
        assert Note.objects.filter(word__startswith="fixed").count() == 3


def recording(seen, name):
    """A wrapper that notes what it sees."""

    def record(execute, sql, params, many, context):
        seen.append((name, sql, context["connection"].alias))
        return execute(sql, params, many, context)

    return record


class Wrappers(TransactionTestCase):
    """execute_wrapper() is the thread's, whatever connection is leased."""

    def test_over_many_leases(self):
        """It stays while connections come and go: the same one again, or another."""
        seen = []
        with connection.execute_wrapper(recording(seen, "one")):
            for _ in range(3):
                Note.objects.count()
                connection.close()
            with transaction.atomic():
                Note.objects.create(word="saved")
            with unit_of_work():
                Note.objects.count()
        connection.close()
        Note.objects.count()
        verbs = [sql.split()[0] for _, sql, _ in seen]
        assert [verb for verb in verbs if verb != "BEGIN"] == ["SELECT"] * 3 + ["INSERT", "SELECT"]  # SQLite's BEGIN

    def test_nested(self):
        """The first one comes first, the last may keep a statement from the server; each goes with its block."""
        seen = []

        def refuse(execute, sql, params, many, context):
            raise KeyError(sql)

        with connection.execute_wrapper(recording(seen, "outer")):
            with connection.execute_wrapper(recording(seen, "inner")):
                connection.close()
                Note.objects.count()
                with connection.execute_wrapper(refuse), self.assertRaises(KeyError):  # noqa: PT027  Django's way
                    Note.objects.count()
            connection.close()
            Note.objects.count()
        assert [name for name, *_ in seen] == ["outer", "inner"] * 2 + ["outer"]

    def test_refused_everything(self):
        """A transaction in which a wrapper refused every statement ends well, and the connection comes back."""

        def refuse(execute, sql, params, many, context):
            raise KeyError(sql)

        with connection.execute_wrapper(refuse), self.assertRaises(KeyError), unit_of_work():  # noqa: PT027
            Note.objects.count()
        assert getattr(connection, "lease", None) is None
        assert Note.objects.count() == 0

    def test_of_a_request(self):
        """What a view puts around its queries is gone with its block, in the thread's next request too."""
        seen = []
        with connection.execute_wrapper(recording(seen, "test")):
            assert self.client.get("/where").status_code == 200
        assert self.client.get("/where").status_code == 200
        assert [name for name, *_ in seen].count("test") == len(seen) >= 1
        assert connection.execute_wrappers == []

    def test_of_another_thread(self):
        """Another thread has wrappers of its own."""
        seen = []

        def count():
            with connection.execute_wrapper(recording(seen, "theirs")):
                Note.objects.count()
            connection.close()

        thread = threading.Thread(target=count)
        with connection.execute_wrapper(recording(seen, "mine")):
            thread.start()
            thread.join()
            Note.objects.count()
        assert [name for name, *_ in seen] == ["theirs", "mine"]

    def test_around_chunks(self):
        """It sees a server-side cursor's statement as any other."""
        Note.objects.bulk_create(Note(word=str(number)) for number in range(5))
        seen = []
        with connection.execute_wrapper(recording(seen, "one")):
            assert len(list(Note.objects.iterator(chunk_size=2))) == 5
        assert [sql.split()[0] for _, sql, _ in seen] == ["SELECT"]


class Around(TestCase):
    """What a test can lay around queries."""

    def test_execute_wrapper(self):
        """It sees each statement of its block, and may change it."""
        seen = []

        def record(execute, sql, params, many, context):
            seen.append((sql, context["connection"].alias))
            return execute(sql, params, many, context)

        with connection.execute_wrapper(record):
            Note.objects.count()
        Note.objects.count()
        assert [alias for _, alias in seen] == ["default"]

    def test_cursors_by_hand(self):
        """A cursor with and without a block, executemany, and one left open."""
        left = connection.cursor()
        left.execute("SELECT 1")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO notes_note (word) VALUES (%s)", [["by hand"], ["by hand"]])
            cursor.execute("SELECT count(*) FROM notes_note WHERE word = %s", ["by hand"])
            assert cursor.fetchone()[0] == 2
        assert left.fetchone()[0] == 1

    def test_the_test_s_database(self):
        """Migrations are recorded in it."""
        assert ("notes", "0001_initial") in MigrationRecorder(connection).applied_migrations()

    @skipUnless(connection.vendor == "postgresql", "a named cursor is PostgreSQL's")
    def test_chunked_cursor(self):
        """A server-side cursor by hand."""
        Note.objects.bulk_create(Note(word=str(number)) for number in range(5))
        with connection.chunked_cursor() as cursor:
            cursor.execute("SELECT word FROM notes_note WHERE word <= '9' ORDER BY word")
            assert cursor.fetchmany(2) == [("0",), ("1",)]
            assert len(cursor.fetchall()) == 3
