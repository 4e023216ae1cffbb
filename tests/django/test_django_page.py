"""The page on Django tells the truth: its blocks make a project that runs, and what it lists is what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django_rig import database

from poolkit_django import conf, signals
from poolkit_django.management.commands.poolkit import Command

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "django.md"
BLOCK = re.compile(r"^```python\n# (\w+)\.py[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SETTINGS = """
SECRET_KEY = "of the test"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
INSTALLED_APPS = [
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
    "django.contrib.messages", "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware", "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
STATIC_URL = "/static/"
DATABASES = %r
"""
# The libraries of PostGIS are not there: what is shown is that the engine of the page's shape works.
POSTGIS = "django.contrib.gis.db.backends.postgis"
OWN_ENGINE = """
DATABASES["own"] = {**DATABASES["default"], "ENGINE": "own_engine"}
"""
URLS = """
import inspect
from django.contrib import admin
from django.urls import path
import views

urlpatterns = [path("admin/", admin.site.urls)]
urlpatterns += [
    path(name, view) for name, view in vars(views).items()
    if callable(view) and getattr(view, "__module__", "") == "views"
]
"""
RUN = """
import django, warnings
warnings.simplefilter("error")
django.setup()
from django.core.management import call_command
from django.test import Client
from django.contrib.auth.models import User
import poolkit_django

call_command("check", "--fail-level", "INFO")
call_command("poolkit", "check")
call_command("migrate", verbosity=0)
import monitoring, tasks
tasks.send_invoices()
from django.db import connections
from poolkit_django.backends import pools
with poolkit_django.unit_of_work("own"), connections["own"].cursor() as cursor:
    cursor.execute("SELECT 1")
    assert pools.pool_for(connections["own"]).holders()[0].label == "own"
client = Client()
for route in ("doomed", "early", "report", "transfer", "import_all", "poolkit/health", "poolkit/ready"):
    reply = client.get("/" + route)
    assert reply.status_code == 200, (route, reply.status_code)
    print(route, reply.getvalue())
client.force_login(User.objects.create(username="one", is_staff=True))
for route in ("admin/poolkit/pools/", "poolkit/pools/", "poolkit/stats.json", "admin/poolkit/pools.json"):
    assert client.get("/" + route).status_code == 200, route
poolkit_django.conf.registry().close()
"""


def blocks() -> dict[str, str]:
    """The page's blocks, those of one file after each other."""
    found: dict[str, str] = defaultdict(str)
    for name, code in BLOCK.findall(PAGE.read_text()):
        found[name] += code
    return found


@pytest.fixture
def empty(monitor: psycopg.Connection[Any]) -> Iterator[str]:
    """The name of a database of the project's own."""
    name = f"poolkit_page_{os.getpid()}"
    monitor.execute(f"CREATE DATABASE {name}")
    yield name
    monitor.execute(f"DROP DATABASE {name}")  # refused where the project has left a session


@pytest.mark.slow
def test_the_blocks_make_a_project_that_runs(dsn: str, empty: str, tmp_path: Path) -> None:
    """A settings.py as Django makes it, with the page's blocks after it: the checks are content, every view answers."""
    found = blocks()
    assert {"settings", "views", "urls", "tasks", "monitoring"} <= found.keys()
    plain = {**database(dsn), "NAME": empty, "ENGINE": "django.db.backends.postgresql", "OPTIONS": {}}
    found["settings"] = SETTINGS % {"default": plain} + found["settings"] + OWN_ENGINE
    found["urls"] = URLS + found["urls"]
    engine = tmp_path / "own_engine"
    engine.mkdir()
    (engine / "__init__.py").touch()
    (engine / "base.py").write_text(found.pop("base").replace(POSTGIS, "django.db.backends.postgresql"))
    for name, code in found.items():
        (tmp_path / f"{name}.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
            "REPLICA_HOST": str(plain.get("HOST", "")),  # the primary itself: no standby, and so left out
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert r"report b'1\n2\n3\n'" in done.stdout


def test_every_block_is_of_a_file() -> None:
    """So that none is left out of the project above."""
    assert PAGE.read_text().count("```python") == len(BLOCK.findall(PAGE.read_text()))


def test_the_ids_of_the_checks() -> None:
    """All of them are explained, and none that is gone."""
    given = "".join(path.read_text() for path in (ROOT / "poolkit_django").rglob("*.py"))
    explained = set(re.findall(r"^\| `(poolkit\.\w+)`", PAGE.read_text(), re.MULTILINE))
    assert explained == set(re.findall(r'"(poolkit\.[EWI]\d+)"', given))


def test_the_signals() -> None:
    """All of them are in the table."""
    table = PAGE.read_text().partition("## Signals")[2].partition("\n## ")[0]
    named = set(re.findall(r"`((?:connection|unit)_\w+)`", table))
    assert named - {"connection_created"} == {name for name in signals.__all__ if name != "attach"}


def test_the_settings() -> None:
    """Each that is read is named."""
    read = re.findall(r"^(POOLKIT\w*) ", conf.__doc__ or "", re.MULTILINE)
    assert len(read) > 4
    assert [name for name in read if f"`{name}`" not in PAGE.read_text()] == []


def test_the_commands_options() -> None:
    """Those that the page names are taken."""
    table = PAGE.read_text().partition("## Commands")[2].partition("\n## ")[0]
    parser = Command().create_parser("manage.py", "poolkit")
    for action, options in re.findall(r"`manage\.py poolkit (\w+)[^`]*` \|(.*)", table):
        for option in re.findall(r"`(--[\w-]+)`", options):
            value = {"--database": ["default"], "--timeout": ["1"], "--count": ["1"]}.get(option, [])
            assert parser.parse_args([action, option, *value]).action == action
