"""mysqlclient where it is installed, else PyMySQL under its name: Django's backend knows only that one.

It is what `pymysql.install_as_MySQLdb()` does, and with a version that Django takes: nothing of PyMySQL itself is
changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from django.core.exceptions import ImproperlyConfigured

__all__ = ["is_pymysql", "provide"]

_CLAIMED = (2, 2, 7, "final", 0)  # what this much of mysqlclient's interface amounts to


class _AsMySQLdb(ModuleType):
    """PyMySQL, as far as Django can tell."""

    version_info = _CLAIMED
    __version__ = "2.2.7"

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules["pymysql"], name)


def provide() -> None:
    """Have `import MySQLdb` work. Raises `ImproperlyConfigured` where neither library is installed."""
    if sys.modules.get("MySQLdb") is not None or importlib.util.find_spec("MySQLdb") is not None:
        return
    try:
        pymysql = importlib.import_module("pymysql")
    except ImportError as error:
        raise ImproperlyConfigured(
            "poolkit_django.backends.mysql needs a library: pip install 'poolkit[mysql]' for PyMySQL, or "
            "'poolkit[mysqlclient]'"
        ) from error
    alike = _AsMySQLdb("MySQLdb")
    alike.__path__ = []
    alike.__spec__ = pymysql.__spec__
    sys.modules["MySQLdb"] = alike
    for part in ("constants", "constants.CLIENT", "constants.FIELD_TYPE", "converters", "cursors"):
        sys.modules[f"MySQLdb.{part}"] = importlib.import_module(f"pymysql.{part}")


def is_pymysql() -> bool:
    """Whether `MySQLdb` is PyMySQL here; also where somebody else has called `install_as_MySQLdb`."""
    library = sys.modules["MySQLdb"]
    return isinstance(library, _AsMySQLdb) or library is sys.modules.get("pymysql")
