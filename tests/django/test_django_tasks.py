"""django.tasks, which came with Django 6: a task that runs at once is a part of what enqueues it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django.http import Http404, HttpResponse
from django_rig import MakeSite, Rows, out, write

tasks = pytest.importorskip("django.tasks", reason="django.tasks came with Django 6")
AT_ONCE = {"default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}}
seen: list[Any] = []


def save(word: str) -> None:
    """What the task does."""
    seen.append(connection.in_atomic_block)
    write(word)


@pytest.fixture
def task() -> Any:
    """The task; it can't be made before Django is configured."""
    seen.clear()
    return tasks.task(save)


def test_in_a_request(task: Any, site: MakeSite, rows: Rows) -> None:
    """What it saved is committed with the request's work, on one connection, and undone with it."""

    def good(_: Any) -> HttpResponse:
        write("view")
        done = task.enqueue("task")
        return HttpResponse(f"{done.status} {out()}")

    def bad(_: Any) -> HttpResponse:
        task.enqueue("lost")
        raise Http404

    served = site(good, bad, TASKS=AT_ONCE)
    assert served.get("/good").body == b"SUCCESSFUL 1"
    assert served.get("/bad").status == 404
    assert [rows(word) for word in ("view", "task", "lost")] == [1, 1, 0]
    assert seen == [True, True]
    assert out() == 0


def test_on_commit(task: Any, site: MakeSite, rows: Rows) -> None:
    """Enqueued by on_commit() it runs after the COMMIT, in autocommit, and leaves nothing leased."""

    def later(_: Any) -> HttpResponse:
        write("view")
        transaction.on_commit(partial(task.enqueue, "task"))
        return HttpResponse(str(seen))

    assert site(later, TASKS=AT_ONCE).get("/later").body == b"[]"
    assert [rows(word) for word in ("view", "task")] == [1, 1]
    assert seen == [False]
    assert out() == 0


def test_from_an_async_view(task: Any, site: MakeSite, rows: Rows) -> None:
    """aenqueue() runs it in the request's own thread, and so in its transaction."""

    async def awaited(_: Any) -> HttpResponse:
        await task.aenqueue("lost")
        raise Http404

    assert site(awaited, TASKS=AT_ONCE).get("/awaited").status == 404
    assert rows("lost") == 0
    assert seen == [True]
    assert out() == 0
