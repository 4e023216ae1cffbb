"""Native async connections in tests as users of Django write them."""

# ruff: noqa: PT027  with a TestCase of Django's its own way to ask

import asyncio
import threading
from unittest import skipUnless

from django.db import connection
from django.http import HttpResponse
from django.test import LiveServerTestCase, SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.test.testcases import DatabaseOperationForbidden
from django.urls import path

from notes.models import Note
from poolkit import UnitOfWorkError
from poolkit_django import aconnection, atransaction

on_postgresql = skipUnless(connection.vendor == "postgresql", "native connections are PostgreSQL's")
COUNT = "SELECT count(*) FROM notes_note"


async def count():
    """Count the notes over a connection of its own."""
    async with aconnection() as conn:
        cursor = await conn.execute(COUNT)
        return (await cursor.fetchone())[0]


async def show(_):
    """Show the count."""
    return HttpResponse(str(await count()))


urlpatterns = [path("count", show)]


@on_postgresql
class InATransaction(TestCase):
    """TestCase: its rows are nobody else's to see, so another connection is refused."""

    async def test_refused(self):
        """The error says what to do."""
        await Note.objects.acreate(word="mine")
        with self.assertRaisesRegex(UnitOfWorkError, "use TransactionTestCase"):
            await count()

    @override_settings(ROOT_URLCONF=__name__)
    def test_refused_in_a_view(self):
        """From the sync client, too."""
        with self.assertRaisesRegex(UnitOfWorkError, "use TransactionTestCase"):
            self.client.get("/count")

    @override_settings(ROOT_URLCONF=__name__)
    async def test_refused_in_a_view_of_the_async_client(self):
        """And from the async one."""
        with self.assertRaisesRegex(UnitOfWorkError, "use TransactionTestCase"):
            await self.async_client.get("/count")


@on_postgresql
class Forbidden(SimpleTestCase):
    """SimpleTestCase: no database, and so no native connection to it."""

    async def test_forbidden(self):
        """Django's own error."""
        with self.assertRaises(DatabaseOperationForbidden):
            await count()


@on_postgresql
class WithTransactions(TransactionTestCase):
    """TransactionTestCase: what is committed is seen from both sides, in the test's own database."""

    async def test_both_ways(self):
        """The ORM's rows natively, and native rows in the ORM."""
        await Note.objects.acreate(word="orm")
        assert await count() == 1
        async with atransaction() as conn:
            await conn.execute("INSERT INTO notes_note (word) VALUES ('native')")
            cursor = await conn.execute("SELECT current_database()")
            assert (await cursor.fetchone())[0] == connection.settings_dict["NAME"]
        assert await Note.objects.acount() == 2

    @override_settings(ROOT_URLCONF=__name__)
    def test_in_a_view(self):
        """From the sync client."""
        Note.objects.create(word="orm")
        assert self.client.get("/count").content == b"1"


@on_postgresql
class Straggler(LiveServerTestCase):
    """The last test leaves a loop with native connections behind; the database can be dropped all the same."""

    def test_left_behind(self):
        """A daemon thread's loop goes on, one connection lent and one idle."""
        taken = threading.Event()

        async def hold():
            async with aconnection():
                assert await count() == 0
                taken.set()
                await asyncio.Event().wait()

        threading.Thread(target=lambda: asyncio.run(hold()), daemon=True).start()
        assert taken.wait(10)
