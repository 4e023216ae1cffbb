"""Where threads can't run as they should, a pool says so when it is made: once, in plain words, with what to do."""

from __future__ import annotations

import logging
import sys
import types

import psycopg.waiting
import pytest

from poolkit import Pool, surroundings
from poolkit.housekeeper import Housekeeper
from poolkit.testing import FakeDriver


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(surroundings, "_said", set())


@pytest.fixture
def there(monkeypatch):
    """Put a module in `sys.modules` that has these members."""

    def there(name, **members):
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    return there


@pytest.fixture
def said(caplog):
    """Make a pool; return what was warned of."""

    def said():
        Pool(FakeDriver()).close()
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    return said


def patched(*modules):
    return lambda name: name in modules


ALL = ("threading", "socket", "select", "os")


def test_an_ordinary_process(said):
    """Nothing is said where there is nothing to say."""
    assert said() == []


def test_gevent_that_is_only_imported(there, said):
    """Whoever imports gevent and patches nothing has threads as ever."""
    there("gevent.monkey", is_module_patched=patched())
    assert said() == []


def test_gevent_after_psycopg(there, said, monkeypatch):
    """The driver was imported before the patch, so it waits in C, where no greenlet runs."""
    there("gevent.monkey", is_module_patched=patched(*ALL))
    monkeypatch.setattr(psycopg.waiting, "wait", psycopg.waiting.wait_c)
    [text] = said()
    assert "after psycopg was imported" in text
    assert "monkey.patch_all()" in text
    assert len(said()) == 1, "once is enough"


def test_gevent_before_psycopg(there, said, monkeypatch):
    """The order as it should be."""
    there("gevent.monkey", is_module_patched=patched(*ALL))
    monkeypatch.setattr(psycopg.waiting, "wait", psycopg.waiting.wait_selector)
    assert said() == []


def test_gevent_and_mysqlclient(there, said, monkeypatch):
    """It waits in C, whenever it was imported; where only its name is there, for PyMySQL, nothing is said."""
    monkeypatch.setattr(psycopg.waiting, "wait", psycopg.waiting.wait_selector)
    there("gevent.monkey", is_module_patched=patched(*ALL))
    there("MySQLdb")
    assert said() == []
    there("MySQLdb._mysql")
    [text] = said()
    assert "mysqlclient was imported" in text
    assert "Use PyMySQL" in text
    assert len(said()) == 1, "once is enough"


def test_mysqlclient_in_an_ordinary_process(there, said):
    """Threads wait in C as well as anywhere: it lets the others run meanwhile."""
    there("MySQLdb._mysql")
    assert said() == []


def test_gunicorn_with_gevent_and_preload(there, said):
    """The master imports the application before the workers patch themselves."""
    there("gevent.monkey", is_module_patched=patched())
    there("gunicorn.workers.ggevent")
    [text] = said()
    assert "--preload" in text
    assert "gunicorn.conf.py" in text


def test_uwsgi_without_threads(there, said):
    """Its own default before 2.0.27."""
    there("uwsgi", has_threads=0)
    [text] = said()
    assert "--enable-threads" in text


def test_uwsgi_with_threads(there, said):
    """Its own default since."""
    there("uwsgi", has_threads=1)
    assert said() == []


def test_a_pool_at_work_at_a_fork_under_gevent(there, caplog):
    """Greenlets go on in the child; threads would not."""
    keeper = Housekeeper()
    keeper._thread = object()
    there("gevent.monkey", is_module_patched=patched(*ALL))
    keeper.after_fork_in_child()
    assert "its greenlets go on in the child" in caplog.text
    assert keeper._thread is None


@pytest.mark.parametrize(("modules", "at_work"), [((), True), (ALL, False)])
def test_a_fork_that_is_no_harm(there, caplog, modules, at_work):
    """Without gevent, or before the pool was used."""
    keeper = Housekeeper()
    keeper._thread = object() if at_work else None
    there("gevent.monkey", is_module_patched=patched(*modules))
    keeper.after_fork_in_child()
    assert caplog.text == ""
