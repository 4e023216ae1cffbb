"""Tests as a user would write them: the replicas mirror the primary, and nobody has to think of it."""

from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings

from notes.models import Note, found
from poolkit_django.replica_settings import check_replicas, replica_limits, replicas
from poolkit_django.routers import token, use


class InATransaction(TestCase):
    """A TestCase, which is allowed the primary only."""

    def test_what_is_written_is_read(self):
        """The ORM, and a request, see what the test has written; no client gets a mark, no hook is left behind."""
        with self.captureOnCommitCallbacks() as callbacks, self.assertNumQueries(3):
            Note.objects.create(word="here")
            assert found("here")["count"] == 1
        assert callbacks == []
        assert self.client.get("/read", {"word": "here"}).json()["count"] == 1
        answer = self.client.get("/write", {"word": "here"})
        assert not answer.cookies
        assert found("here")["count"] == 2

    def test_tokens(self):
        """A token of a test demands nothing, and works."""
        Note.objects.create(word="here")
        with use(token()):
            assert found("here")["count"] == 1

    def test_relations(self):
        """What a request would have read from a replica goes together with what is on the primary."""
        parent, other = Note.objects.create(word="parent"), Note(word="child")
        parent._state.db, other._state.db = "replica1", "default"
        other.parent = parent
        other.save()
        assert (other._state.db, parent.children.get()) == ("default", other)


class WithoutATransaction(TransactionTestCase):
    """A TransactionTestCase, which is allowed the primary only."""

    def test_what_is_written_is_read(self):
        """The same where everything is committed."""
        with transaction.atomic():
            Note.objects.create(word="there")
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO notes_note (word) VALUES ('there')")
        assert found("there")["count"] == 2
        assert self.client.get("/read_write_read", {"word": "there"}).json()["after"]["count"] == 3
        assert self.client.get("/read", {"word": "there"}).json()["count"] == 3


class Settings(SimpleTestCase):
    """What settings can't work, and what the checks say."""

    def test_wrong_ones(self):
        """Each is refused with what is wrong."""
        cases = [
            (["replica1"], "must be a mapping"),
            ({"default": 5}, "must be a list of aliases"),
            ({"default": ["replica3"]}, "'replica3' is not an alias of DATABASES"),
            ({"default": ["replica1", "replica1"]}, "'replica1' is named twice"),
            ({"default": ["default"]}, "'default' is named twice"),
        ]
        for given, message in cases:
            with (
                self.subTest(given=given),
                override_settings(POOLKIT_REPLICAS=given),
                self.assertRaisesMessage(ImproperlyConfigured, message),
            ):
                replicas()
        with mock.patch.dict(connection.settings_dict, ENGINE="django.db.backends.postgresql"):
            cases = [
                "'default' has no engine of poolkit_django.backends",
                "'replica1' has another ENGINE than 'default'",
            ]
            for message in cases:
                with (
                    override_settings(POOLKIT_REPLICAS={"default": ["replica1"]}),
                    self.assertRaisesMessage(ImproperlyConfigured, message),
                ):
                    replicas()
        with (
            override_settings(POOLKIT_REPLICA_OPTIONS={"max_lgg": 1}),
            self.assertRaisesMessage(ImproperlyConfigured, "POOLKIT_REPLICA_OPTIONS: 'max_lgg' is not one of"),
        ):
            replica_limits()

    def test_checks(self):
        """The project's own settings are well; each fault has a message."""
        call_command("check")
        assert list(check_replicas()) == []
        with override_settings(DATABASE_ROUTERS=[]):
            assert [message.id for message in check_replicas()] == ["poolkit.W020"]
        with override_settings(POOLKIT_REPLICAS={"default": ["nobody"]}):
            assert [message.id for message in check_replicas()] == ["poolkit.E020"]
        with override_settings(POOLKIT_REPLICAS={"replica1": ["default"]}):
            assert [message.id for message in check_replicas()] == ["poolkit.W021"]
