"""libpq's service files, read for the hosts in them: the time for a connect is shared among all addresses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["parameters"]


def parameters(service: str) -> dict[str, str]:
    """Read a service's parameters from the first file that has it. Whatever is wrong is for libpq to say."""
    for path in _files():
        with contextlib.suppress(OSError, UnicodeError):
            section, found = None, dict[str, str]()
            for line in map(str.strip, path.read_text(encoding="utf-8").splitlines()):
                if line.startswith("["):
                    section = line[1:].partition("]")[0]
                elif section == service and not line.startswith("#"):
                    key, equals, value = line.partition("=")
                    if equals:
                        found.setdefault(key.strip(), value.strip())
            if found:
                return found
    return {}


def _files() -> Iterator[Path]:
    yield Path(os.environ.get("PGSERVICEFILE") or "~/.pg_service.conf").expanduser()
    yield Path(os.environ.get("PGSYSCONFDIR") or "/etc/postgresql-common", "pg_service.conf")
