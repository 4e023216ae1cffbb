"""serialized_rollback, run alone: beside flushed tables Django can't restore its content types, with any engine."""

from django.contrib.auth.models import Group
from django.test import TransactionTestCase


class Serialized(TransactionTestCase):
    """serialized_rollback: what migrations have saved is there for each test, although tables are flushed."""

    serialized_rollback = True

    def test_first(self):
        """Take it away."""
        self._look_and_take()

    def test_second(self):
        """Take it away again."""
        self._look_and_take()

    def _look_and_take(self):
        found = Group.objects.filter(name="readers")
        assert found.count() == 1
        found.delete()
