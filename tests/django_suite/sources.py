"""Get Django's source distribution, and an environment to run its tests in.

Both come through pip, from whatever index it is set up for, and stay in a cache folder.
"""

from __future__ import annotations

import contextlib
import email.parser
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Source",
    "SuiteError",
    "cache_folder",
    "get_environment",
    "get_source",
    "installed_django",
    "make_environment",
]

_EXACT = re.compile(r"\d+\.\d+(\.\d+|(a|b|rc)\d+)+")
_SERIES = re.compile(r"\d+\.\d+")
# Of what Django's tests can make use of: pure Python, and asked for by the labels that touch a database. The rest
# wants compilers, browsers or services, and its tests skip themselves.
_OF_USE = frozenset({"aiosmtpd", "asgiref", "docutils", "jinja2", "pyyaml", "sqlparse", "tblib", "tzdata"})
_OWN_LIST = {"psycopg": "postgres.txt", "mysqlclient": "mysql.txt"}
_BY_NAME = {"psycopg2": ["psycopg2-binary"], "pymysql": ["pymysql"], "sqlite3": []}


class SuiteError(Exception):
    """The suite can't be run here; the text says why and what to do."""


@dataclass(frozen=True)
class Source:
    """An unpacked source distribution."""

    version: str
    folder: Path

    @property
    def tests(self) -> Path:
        """The folder with runtests.py."""
        return self.folder / "tests"


def cache_folder() -> Path:
    """Where downloads stay unless another folder is named: below XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poolkit" / "django-suite"


def installed_django(python: str) -> str:
    """Return the version of Django that an interpreter imports. Raises SuiteError where there is none."""
    return _run([python, "-c", "import django; print(django.__version__)"], "importing Django").strip()


def get_source(wanted: str, cache: Path) -> Source:
    """Return Django's source: `newest`, the newest of a series like `5.2`, or an exact version like `5.2.3`.

    An exact version that is in the cache needs no network.
    """
    requirement = _requirement(wanted)
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        found = _unpacked(cache, wanted)
        return found if found is not None else _download(requirement, wanted, cache)


def _requirement(wanted: str) -> str:
    if wanted == "newest":
        return "django"
    if _SERIES.fullmatch(wanted):
        return f"django~={wanted}.0"
    if _EXACT.fullmatch(wanted):
        return f"django=={wanted}"
    raise SuiteError(f"{wanted!r} is no version of Django: give `newest`, a series like 5.2, or a version like 5.2.3")


def _unpacked(cache: Path, version: str) -> Source | None:
    folder = cache / f"django-{version}"
    return Source(version, folder) if (folder / "tests" / "runtests.py").exists() else None


def _download(requirement: str, wanted: str, cache: Path) -> Source:
    with tempfile.TemporaryDirectory(dir=cache) as name:
        scratch = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "django"]
        _run([*command, "--dest", str(scratch), requirement], f"downloading the source of {requirement}")
        archives = [path for path in scratch.iterdir() if path.name.lower().startswith("django-")]
        if len(archives) != 1 or not archives[0].name.endswith(".tar.gz"):
            got = ", ".join(path.name for path in scratch.iterdir()) or "nothing"
            raise SuiteError(f"pip was to fetch the source archive of {requirement}, and fetched {got}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(scratch, filter="data")
        (folder,) = [path for path in scratch.iterdir() if path.is_dir()]
        version = _checked_version(folder, wanted)
        found = _unpacked(cache, version)
        if found is None:
            shutil.rmtree(cache / f"django-{version}", ignore_errors=True)
            folder.rename(cache / f"django-{version}")
            found = _unpacked(cache, version)
    if found is None:
        raise SuiteError(f"the source of Django {version} has no tests/runtests.py")
    return found


def _checked_version(folder: Path, wanted: str) -> str:
    """Return what the archive itself says it is, if that is what was asked for."""
    about = email.parser.Parser().parsestr((folder / "PKG-INFO").read_text(encoding="utf-8"))
    name, version = str(about["Name"]), str(about["Version"])
    series = bool(_SERIES.fullmatch(wanted)) and version.startswith(f"{wanted}.")
    fits = series or wanted in ("newest", version)
    if name.lower() != "django" or not fits:
        raise SuiteError(f"Django {wanted} was asked for, and the archive says it is {name} {version}")
    return version


def get_environment(source: Source, driver: str, cache: Path) -> str:
    """Return the interpreter of a virtual environment with this Django and one driver; made on first use.

    One driver only: Django takes psycopg where there are both, and an engine must not need what its user lacks.
    """
    wanted = ["--editable", str(source.folder), *_requirements(source, driver)]
    return make_environment(f"{source.version}-{driver}", wanted, cache)


def make_environment(name: str, wanted: list[str], cache: Path) -> str:
    """Return the interpreter of a virtual environment with what pip is told to install; made on first use."""
    mark = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:8]
    folder = cache / f"venv-{name}-{mark}"
    python = str(folder / "bin" / "python")
    done = folder / "complete"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)], "making a virtual environment")
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*install, *wanted], f"installing what {name} needs")
            done.touch()
    return python


def _requirements(source: Source, driver: str) -> list[str]:
    lists = source.tests / "requirements"
    useful = [line for line in _lines(lists / "py3.txt") if re.split(r"[^\w-]", line)[0].lower() in _OF_USE]
    return useful + (_lines(lists / _OWN_LIST[driver]) if driver in _OWN_LIST else _BY_NAME[driver])


def _lines(path: Path) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Let one process at a time fill the cache."""
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], what: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        raise SuiteError(f"{what} took more than ten minutes") from None
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-6:])
        raise SuiteError(f"{what} failed:\n{said}")
    return done.stdout
