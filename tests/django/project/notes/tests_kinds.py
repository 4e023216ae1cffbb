"""Tests of the kinds that Django has beside the common ones, as users write them."""

import urllib.error
import urllib.request
from unittest import skipUnless

from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import TestCase, TransactionTestCase

from notes.models import Note


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
