"""The projects: what to install, how to lay one out, which tests are its own, and what a visitor does there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.django_suite.sources import Source, SuiteError

from .tutorial import files
from .visits import Visitor

__all__ = ["PROJECTS", "Layout", "Project"]


@dataclass(frozen=True)
class Layout:
    """Where a project is laid out: its folder, the interpreter, and Django's source."""

    folder: Path
    python: str
    django: Source

    def run(self, *arguments: str, environ: Mapping[str, str]) -> str:
        """Run the interpreter in the folder. Raises SuiteError where that fails."""
        command = [self.python, *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SuiteError(f"{' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout


@dataclass(frozen=True)
class Project:
    """A project of somebody else's.

    `tested` and `served` are the settings modules that a run's own settings add to: of its tests, and of the site.
    """

    name: str
    requirements: tuple[str, ...]
    labels: tuple[str, ...]
    tested: str
    served: str
    wsgi: str
    lay_out: Callable[[Layout], None]
    visit: Callable[[Visitor], None]
    burst: tuple[str, ...]
    more: Mapping[str, str] = field(default_factory=dict)
    """What else these settings need, by the name of their module."""


def _tutorial(layout: Layout) -> None:
    layout.run("-m", "django", "startproject", "mysite", ".", environ={})
    layout.run("manage.py", "startapp", "polls", environ={})
    for path, text in files(layout.django.folder / "docs").items():
        target = layout.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (layout.folder / "polls_settings.py").write_text(_POLLS_SETTINGS, encoding="utf-8")
    layout.run("manage.py", "makemigrations", "polls", "--settings", "polls_settings", environ={})


_POLLS_SETTINGS = """
from mysite.settings import *

INSTALLED_APPS = ["polls.apps.PollsConfig", *INSTALLED_APPS]
"""


def _visit_tutorial(visitor: Visitor) -> None:
    visitor.log_in("/admin/login/")
    question = {
        "question_text": "What's up?",
        "pub_date_0": "2020-01-01",
        "pub_date_1": "12:00:00",
        "choice_set-0-choice_text": "Not much",
        "choice_set-1-choice_text": "The sky",
    }
    visitor.submit("/admin/polls/question/add/", "question_text", question)
    visitor.get("/admin/polls/question/", "What&#x27;s up?")
    visitor.get("/polls/", "What&#x27;s up?")
    visitor.submit("/polls/1/", "choice", {"choice": "2"})
    visitor.get("/polls/1/results/", "The sky -- 1 vote")
    visitor.get("/polls/2/", status=404)


def _wagtail(layout: Layout) -> None:
    layout.run("-c", "from wagtail.bin.wagtail import main; main()", "start", "mysite", ".", environ={})


def _visit_wagtail(visitor: Visitor) -> None:
    visitor.get("/")
    visitor.log_in("/admin/login/")
    visitor.get("/admin/")
    page = {"title": "A page of a visitor", "slug": "of-a-visitor", "action-publish": "Publish"}
    visitor.submit("/admin/pages/add/home/homepage/3/", "title", page)
    visitor.get("/of-a-visitor/", "A page of a visitor")
    visitor.get("/admin/pages/3/", "A page of a visitor")
    visitor.get("/search/?query=visitor", "A page of a visitor")
    visitor.get("/admin/reports/site-history/")
    visitor.get("/nowhere/", status=404)


_WAGTAIL_TESTED = """
import pathlib
# Of its own accord it has them in its package's folder.
STATIC_ROOT = str(pathlib.Path(__file__).with_name("static"))
MEDIA_ROOT = str(pathlib.Path(__file__).with_name("media"))
"""
# The tests' settings add it themselves where the environment names Django's engine.
_WAGTAIL_POSTGRES = """
if DATABASES["default"]["ENGINE"].endswith("postgresql"):
    INSTALLED_APPS += ["django.contrib.postgres"]
"""

PROJECTS = {
    "tutorial": Project(
        name="tutorial",
        requirements=("gunicorn",),
        labels=("polls",),
        tested="polls_settings",
        served="polls_settings",
        wsgi="mysite.wsgi",
        lay_out=_tutorial,
        visit=_visit_tutorial,
        burst=("/polls/", "/polls/1/", "/polls/1/results/"),
    ),
    "wagtail": Project(
        name="wagtail",
        # What its extra `testing` names, less linters.
        requirements=("gunicorn", "jinja2", "boto3", "azure-mgmt-cdn>=12,<13", "azure-mgmt-frontdoor>=1,<1.1",
                      "django-pattern-library", "factory-boy", "freezegun", "polib", "responses", "tblib",
                      "python-dateutil"),
        labels=("wagtail",),
        tested="wagtail.test.settings",
        served="mysite.settings.dev",
        wsgi="mysite.wsgi",
        lay_out=_wagtail,
        visit=_visit_wagtail,
        burst=("/", "/of-a-visitor/", "/search/?query=visitor"),
        more={
            "wagtail.test.settings": _WAGTAIL_TESTED + _WAGTAIL_POSTGRES,
            "mysite.settings.dev": _WAGTAIL_POSTGRES,
        },
    ),
}  # fmt: skip
