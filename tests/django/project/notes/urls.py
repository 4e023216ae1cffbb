"""The views of the project."""

import os

from django.db import connection, transaction
from django.http import Http404, JsonResponse
from django.urls import include, path

from notes.models import Note


def add(request):
    """Save a note, and fail afterwards where that is asked for."""
    note = Note.objects.create(word=request.GET["word"])
    transaction.on_commit(lambda: seen.append(note.word))
    if "fail" in request.GET:
        raise Http404
    return JsonResponse({"id": note.pk})


async def aadd(request):
    """Save two notes from an async view."""
    await Note.objects.acreate(word=request.GET["word"])
    await Note.objects.acreate(word=request.GET["word"])
    if "fail" in request.GET:
        raise Http404
    return JsonResponse({"pid": os.getpid()})


ASKED = {
    "postgresql": "SELECT pg_backend_pid(), %s::int, pg_sleep(0.005)",
    "mysql": "SELECT connection_id(), %s, sleep(0.005)",
    "sqlite": "SELECT 0, %s, 0",
}


def where(_):
    """Tell which process and which backend served, and answer a question that has one right answer."""
    with connection.cursor() as cursor:
        cursor.execute(ASKED[connection.vendor], [os.getpid()])
        backend, echo, _ = cursor.fetchone()
    return JsonResponse({"pid": os.getpid(), "backend": backend, "echo": echo})


seen = []
urlpatterns = [
    path("add", add),
    path("aadd", aadd),
    path("where", where),
    path("poolkit/", include("poolkit_django.urls")),
]
