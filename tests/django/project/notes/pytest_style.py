"""Tests as users of pytest-django write them."""

import urllib.request

import pytest
from django.db import connection

from notes.models import Note


@pytest.mark.django_db
def test_client(client):
    """A request's work is seen, and is gone for the next test."""
    assert client.get("/add?word=new").status_code == 200
    assert client.get("/add?word=lost&fail").status_code == 404
    assert [note.word for note in Note.objects.all()] == ["new"]
    assert connection.in_atomic_block


@pytest.mark.django_db
def test_isolation():
    """Nothing of the test before is left."""
    assert Note.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_transactional(client):
    """Real transactions."""
    assert client.get("/add?word=new").status_code == 200
    assert not connection.in_atomic_block


def test_live_server(live_server):
    """A server in another thread."""
    with urllib.request.urlopen(f"{live_server.url}/add?word=live") as answer:
        assert answer.status == 200
    assert [note.word for note in Note.objects.all()] == ["live"]


def test_forbidden(client):
    """Without the mark the database is refused by pytest-django, as ever."""
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        client.get("/where")


def test_untouched(client):
    """A page that asks nothing of the database needs no mark."""
    assert client.get("/poolkit/health").status_code == 200
