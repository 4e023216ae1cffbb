"""Tests as users of Django write them."""

import contextlib
import threading
import urllib.request

from django.db import connection, connections
from django.test import LiveServerTestCase, SimpleTestCase, TestCase, TransactionTestCase

from notes import urls
from notes.models import Note
from poolkit_django import unit_of_work


class InATransaction(TestCase):
    """TestCase: everything happens in a transaction that is rolled back."""

    @classmethod
    def setUpTestData(cls):
        """One note for all."""
        cls.note = Note.objects.create(word="first")

    def test_saved(self):
        """A request's work is seen afterwards, in the same transaction."""
        assert self.client.get("/add?word=new").status_code == 200
        assert Note.objects.count() == 2
        assert connection.in_atomic_block

    def test_rolled_back(self):
        """A request that raises undoes its own work and nothing else."""
        assert self.client.get("/add?word=new&fail").status_code == 404
        assert [note.word for note in Note.objects.all()] == ["first"]

    def test_hooks(self):
        """CaptureOnCommitCallbacks works around a request."""
        urls.seen.clear()
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            self.client.get("/add?word=hooked")
            assert urls.seen == []
        assert (len(callbacks), urls.seen) == (1, ["hooked"])

    def test_units_are_savepoints(self):
        """unit_of_work() inside a test's transaction."""
        with contextlib.suppress(KeyError), unit_of_work():
            Note.objects.create(word="undone")
            raise KeyError
        assert Note.objects.count() == 1

    def test_queries_are_counted(self):
        """A request's own savepoint and its release are not among them."""
        with self.assertNumQueries(1):
            self.client.get("/where")

    async def test_async_client(self):
        """The async client, and async views."""
        response = await self.async_client.get("/aadd?word=async")
        assert response.status_code == 200
        assert await Note.objects.filter(word="async").acount() == 2
        response = await self.async_client.get("/aadd?word=lost&fail")
        assert response.status_code == 404
        assert await Note.objects.filter(word="lost").acount() == 0


class WithTransactions(TransactionTestCase):
    """TransactionTestCase: transactions are real, tables are flushed."""

    def test_saved(self):
        """What is committed is seen by another connection."""
        self.client.get("/add?word=new")
        with connection.copy().cursor() as other:
            other.execute("SELECT count(*) FROM notes_note")
            assert other.fetchone() == (1,)
            other.db.close()
        assert self.client.get("/add?word=lost&fail").status_code == 404
        assert Note.objects.count() == 1

    def test_a_thread_that_forgets_to_close(self):
        """Used to keep the test database from being dropped."""
        threads = [threading.Thread(target=Note.objects.count) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Note.objects.count() == 0


class Live(LiveServerTestCase):
    """LiveServerTestCase: a server in another thread, on the same test database."""

    def test_served(self):
        """A request through the socket is committed before its answer."""
        with urllib.request.urlopen(f"{self.live_server_url}/add?word=live") as answer:
            assert answer.status == 200
        assert [note.word for note in Note.objects.all()] == ["live"]


class WithoutDatabase(SimpleTestCase):
    """SimpleTestCase: the database is forbidden, and a page that needs none does not touch it."""

    def test_health(self):
        """The middleware alone asks nothing."""
        assert self.client.get("/poolkit/health").status_code == 200


class Straggler(TransactionTestCase):
    """The last test leaves a thread with a connection behind; the database can be dropped all the same."""

    def test_left_behind(self):
        """A daemon thread holds a connection for ever."""
        taken = threading.Event()

        def hold():
            connections["default"].cursor().execute("SELECT 1")
            taken.set()
            threading.Event().wait()

        threading.Thread(target=hold, daemon=True).start()
        assert taken.wait(10)
