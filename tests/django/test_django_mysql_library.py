"""The engine for MySQL on each of the libraries that Django knows: in processes of their own, for one takes one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# It has to be built, so no lock has it.
needs_mysqlclient = pytest.mark.skipif(
    importlib.util.find_spec("MySQLdb") is None, reason="mysqlclient is not installed"
)


def program(library: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run the program beside this file on one library."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(HERE / "mysql_program.py"), library, url],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("library", ["pymysql", "installed as", pytest.param("mysqlclient", marks=needs_mysqlclient)])
def test_each_library_serves(library: str, mysql_dsn: str) -> None:
    """Results of procedures, sessions cut in a statement, forks: all the same, by the driver of that library."""
    done = program(library, mysql_dsn)
    assert done.returncode == 0, done.stderr


def test_without_a_library_it_says_what_to_install(mysql_dsn: str) -> None:
    """One clear error, with both names."""
    done = program("neither", mysql_dsn)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "pip install 'poolkit[mysql]' for PyMySQL, or 'poolkit[mysqlclient]'" in last
