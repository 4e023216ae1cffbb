"""What puts other people's projects together, visits them and judges them; on a project and pages of our own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.django_suite import databases
from tests.django_suite.sources import Source, SuiteError

from . import __main__ as program
from . import trials
from .projects import PROJECTS, Layout, Project
from .tutorial import files, merge_markup, merge_python, pieces
from .visits import Visitor, Wrong

# -- the tutorial ------------------------------------------------------------------------------------------------------

PAGE = """
Some words.

.. code-block:: python
    :caption: ``polls/views.py``
    :emphasize-lines: 1

    def index(request):
        return 1

.. code-block:: shell

    $ not a file
"""


def test_pieces_of_a_page() -> None:
    """A block with the name of a file is a piece of that; what is said around it, and a block without one, is not."""
    assert list(pieces(PAGE)) == [("polls/views.py", "def index(request):\n    return 1\n")]


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ("a = 1\n", "b = 2\n", "a = 1\nb = 2"),
        ("a = 1\nb = 2\n", "a = 3\n", "a = 3\nb = 2"),
        ("def f():\n    return 1\n", "import os\n\n\ndef f():\n    return 2\n", "import os\n\ndef f():\n    return 2"),
        ("def f():\n    return 1\n", "def f(): ...\n", "def f():\n    return 1"),
        (
            "class A:\n    x = 1\n",
            "class A(B):\n    # ...\n    def m(self):\n        return 2\n",
            "class A(B):\n    x = 1\n\n    def m(self):\n        return 2",
        ),
        (
            "class A:\n\n    def m(self):\n        return 1\n",
            "def m(self):\n    return 2\n",
            "class A:\n\n    def m(self):\n        return 2",
        ),
    ],
    ids=["new", "replaced", "imports first", "a reminder", "a class in part", "a method alone"],
)
def test_pieces_of_python(old: str, new: str, merged: str) -> None:
    """A piece replaces what has its name, leaves the rest, and adds what is new."""
    assert merge_python(old, new).strip() == merged


def test_pieces_of_templates() -> None:
    """A head comes first, one line replaces the one like it, and anything else is the whole of it."""
    assert merge_markup("<p>old</p>\n", "{% load static %}\n") == "{% load static %}\n<p>old</p>\n"
    assert merge_markup("<ul>\n<li>a</li>\n</ul>\n", "<li>a</li><b>\n") == "<ul>\n<li>a</li><b>\n</ul>\n"
    assert merge_markup("<p>old</p>\n<hr>\n", "<div>\nnew\n</div>\n") == "<div>\nnew\n</div>\n"


def test_a_tutorial_that_does_not_show_its_files(tmp_path: Path) -> None:
    """Where the pages are not as they were, it is said which files are missing."""
    (tmp_path / "intro").mkdir()
    (tmp_path / "intro" / "tutorial01.txt").write_text(PAGE, encoding="utf-8")
    with pytest.raises(SuiteError, match=r"mysite/urls\.py, polls/models\.py, polls/tests\.py$"):
        files(tmp_path)


# -- visits ------------------------------------------------------------------------------------------------------------

FORM = """<form action=""><input name="word" value="usual"><input type="checkbox" name="off" value="1">
<input type="checkbox" name="on" value="1" checked><select name="kind"><option value="a"><option value="b" selected>
</select><textarea name="text">as it was</textarea><input type="submit" name="go"></form>"""


class Echo(BaseHTTPRequestHandler):
    """Shows a form, and what was sent."""

    def do_GET(self) -> None:
        """Answer with the form, or that there is no such page."""
        self._answer(200 if self.path == "/form" else 404, FORM)

    def do_POST(self) -> None:
        """Answer with what was sent."""
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._answer(200, " ".join(f"{name}={values[0]}" for name, values in sorted(parse_qs(sent).items())))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def visitor() -> Iterator[Visitor]:
    """A visitor of a site with one form."""
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Visitor(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()


def test_a_form_is_sent_as_a_browser_would(visitor: Visitor) -> None:
    """What is filled in replaces what stands there; boxes that aren't ticked, and buttons, send nothing."""
    page = visitor.submit("/form", "word", {"word": "new"})
    assert page == "kind=b on=1 text=as it was word=new"
    assert visitor.seen == [("/form", 200), ("/form", 200)]


@pytest.mark.parametrize(
    "ask",
    [
        lambda visitor: visitor.get("/nowhere"),
        lambda visitor: visitor.get("/form", "not there"),
        lambda visitor: visitor.get("/form", status=404),
        lambda visitor: visitor.submit("/form", "another", {}),
    ],
    ids=["status", "text", "no error", "no form"],
)
def test_what_is_wrong_is_told(visitor: Visitor, ask: Callable[[Visitor], object]) -> None:
    """Another status, a text that is missing and a form that isn't there are no good visit."""
    with pytest.raises(Wrong):
        ask(visitor)


# -- a whole project ---------------------------------------------------------------------------------------------------

GUESTS = {
    "guests/models.py": """
from django.db import models

class Guest(models.Model):
    name = models.CharField(max_length=20)
""",
    "guests/tests.py": """
from django.db import connection
from django.test import TestCase
from guests.models import Guest

class Guests(TestCase):
    def test_kept(self):
        self.client.post("/guests/", {"name": "Ada"})
        self.assertEqual(Guest.objects.get().name, "Ada")

    def test_never(self):
        self.fail("with every engine")

    def test_djangos(self):
        self.assertTrue(connection.settings_dict["ENGINE"].startswith("django."))
""",
    "mysite/urls.py": """
from django.contrib import admin
from django.http import HttpResponse
from django.middleware.csrf import get_token
from django.urls import path
from guests.models import Guest

def guests(request):
    if request.method == "POST":
        Guest.objects.create(name=request.POST["name"])
    token = f'<input name="csrfmiddlewaretoken" value="{get_token(request)}">'
    names = ", ".join(Guest.objects.values_list("name", flat=True))
    return HttpResponse(f'<form action="">{token}<input name="name"></form>{names}')

urlpatterns = [path("admin/", admin.site.urls), path("guests/", guests)]
""",
    "guests_settings.py": """
from mysite.settings import *

INSTALLED_APPS = ["guests", *INSTALLED_APPS]
""",
}


def lay_out(layout: Layout) -> None:
    layout.run("-m", "django", "startproject", "mysite", ".", environ={})
    layout.run("manage.py", "startapp", "guests", environ={})
    for path, text in GUESTS.items():
        (layout.folder / path).write_text(text, encoding="utf-8")
    layout.run("manage.py", "makemigrations", "guests", "--settings", "guests_settings", environ={})


def visit(visitor: Visitor) -> None:
    visitor.log_in("/admin/login/")
    visitor.submit("/guests/", "name", {"name": "Ada"}, "Ada")


PROJECT = Project(
    name="guests",
    requirements=(),
    labels=("guests",),
    tested="guests_settings",
    served="guests_settings",
    wsgi="mysite.wsgi",
    lay_out=lay_out,
    visit=visit,
    burst=("/guests/",),
)
WAYS = [trials.WAYS["django"], trials.WAYS["poolkit"]]


@pytest.fixture(scope="module")
def where(pg_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """A database for the project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POOLKIT_TEST_PG_DSN", pg_dsn)
        with databases.aliases("postgresql", tmp_path_factory.mktemp("aliases")) as aliases:
            yield aliases["default"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The project, laid out, in this environment: nothing is fetched."""
    folder = tmp_path_factory.mktemp("guests")
    made = Layout(folder, sys.executable, Source("installed", folder))
    lay_out(made)
    return made


@pytest.mark.slow
def test_what_fails_with_ours_only_is_found(
    layout: Layout, where: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both engines run the project's own tests, and one result is held against the other."""
    options = program.parser().parse_args(["--parallel", "1", "--timeout", "60"])
    assert not program._tests(PROJECT, WAYS, layout, where, options)
    said = capsys.readouterr().out
    assert "tests, django: 3, 1 failed" in said
    assert "tests, poolkit: 3, 2 failed" in said
    assert "only with poolkit, not with django: 1; with both: 1; listed: 0" in said


@pytest.mark.slow
def test_a_site_is_started_visited_and_stopped(layout: Layout, where: dict[str, object]) -> None:
    """With the middleware: a visit and a burst are answered by no more sessions than the pool has, and none is left."""
    stay = trials.serve(PROJECT, trials.WAYS["middleware"], layout, where)
    assert (stay.problem, stay.left, stay.burst) == ("", 0, 40)
    assert stay.seen == (("/admin/login/", 200), ("/admin/login/", 200), ("/guests/", 200), ("/guests/", 200))
    assert 1 <= stay.sessions <= trials.POOL


# -- the program -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nobody"], "no project is called nobody"),
        (["--labels", "polls"], "are for one project"),
        (["tutorial", "--version", "1"], "version is Django's"),
    ],
)
def test_what_can_not_be_asked_for(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said before anything is fetched."""
    with pytest.raises(SystemExit):
        program.main(arguments)
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("name", PROJECTS)
@pytest.mark.parametrize("way", trials.WAYS.values(), ids=trials.WAYS)
def test_settings_of_a_run(name: str, way: trials.Way) -> None:
    """A run's settings are the project's own, but for the database, and the middleware where the way has it."""
    project = PROJECTS[name]
    text = trials.settings_text(project, project.tested, way, {"NAME": "x"}, "run")
    first, rest = text.split("\n", 1)
    assert first == f"from {project.tested} import *"
    session = "django.contrib.sessions.middleware.SessionMiddleware"
    made = {"MIDDLEWARE": [session], "INSTALLED_APPS": ["theirs"], "__file__": "settings.py"}
    exec(compile(rest, "settings", "exec"), made)  # our own text
    database = made["DATABASES"]["default"]
    assert (database["ENGINE"], database["NAME"]) == (f"{way.engines}.postgresql", "x")
    assert database.get("ATOMIC_REQUESTS", False) is (way.name == "django-atomic")
    before = ["poolkit_django.middleware.PoolkitMiddleware"] if way.name == "middleware" else []
    assert made["MIDDLEWARE"] == [*before, session]
    assert made["INSTALLED_APPS"][0] == "theirs"


def test_settings_of_another_engine() -> None:
    """What only PostgreSQL has is not asked of another database."""
    project = PROJECTS["wagtail"]
    text = trials.settings_text(project, project.tested, trials.WAYS["poolkit"], {"NAME": "x"}, "run", engine="sqlite3")
    made = {"INSTALLED_APPS": ["theirs"], "__file__": "settings.py"}
    exec(compile(text.split("\n", 1)[1], "settings", "exec"), made)
    engine, options = "poolkit_django.backends.sqlite3", {"pool": {"max_size": trials.POOL}}
    assert made["DATABASES"] == {"default": {"ENGINE": engine, "NAME": "x", "OPTIONS": options}}
    assert made["INSTALLED_APPS"] == ["theirs"]
