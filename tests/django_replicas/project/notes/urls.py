"""Views that tell which server they have read."""

import time

from django.db import connection, transaction
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import include, path

from notes.models import Note, found
from poolkit_django import current_unit
from poolkit_django.routers import report


def read(request):
    return JsonResponse(found(request.GET["word"]))


async def aread(request):
    note = await Note.objects.with_port().filter(word=request.GET["word"]).afirst()
    return JsonResponse({"count": 0 if note is None else 1, "port": None if note is None else note.port})


def write(request):
    Note.objects.create(word=request.GET["word"])
    return JsonResponse({})


def write_raw(request):
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO notes_note (word) VALUES (%s)", [request.GET["word"]])
    return JsonResponse({})


def read_write_read(request):
    before = found(request.GET["word"])
    Note.objects.create(word=request.GET["word"])
    return JsonResponse({"before": before, "after": found(request.GET["word"])})


def write_and_doom(request):
    Note.objects.create(word=request.GET["word"])
    current_unit().doom("on purpose")
    return JsonResponse({})


@transaction.non_atomic_requests
def write_by_itself(request):
    Note.objects.create(word=request.GET["word"])
    return JsonResponse({})


def write_and_stream(request):
    current_unit().stream()
    Note.objects.create(word=request.GET["word"])
    return StreamingHttpResponse(iter([b"{}"]))


def in_atomic(request):
    with transaction.atomic():
        return JsonResponse(found(request.GET["word"]))


def locks(request):
    with transaction.atomic():
        note = Note.objects.select_for_update().first()
    return JsonResponse({"alias": note._state.db})


def change(request):
    """Save what was read from a replica."""
    note = Note.objects.get(word=request.GET["word"])
    read_from = note._state.db
    note.save()
    child = Note.objects.create(word="child", parent=note)
    return JsonResponse({"read_from": read_from, "saved_to": note._state.db, "child": child._state.db})


def slow(request):
    """Read twice with one connection, and wait in between."""
    first = found(request.GET["word"])
    time.sleep(float(request.GET["seconds"]))
    return JsonResponse({"first": first, "second": found(request.GET["word"])})


def long(request):
    """Read for a second and a half in one statement."""
    sql = "SELECT id, word, current_setting('port')::int AS port, pg_sleep(1.5) FROM notes_note WHERE word = 'first'"
    return JsonResponse({"port": Note.objects.raw(sql)[0].port})


def state(request):
    return JsonResponse({"replicas": report()})


VIEWS = [
    *(read, aread, write, write_raw, read_write_read, write_and_doom, write_by_itself, write_and_stream),
    *(in_atomic, locks, change, slow, long, state),
]
urlpatterns = [path(view.__name__, view) for view in VIEWS]
urlpatterns.append(path("poolkit/", include("poolkit_django.urls")))
