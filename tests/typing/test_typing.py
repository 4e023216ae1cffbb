"""What a type checker makes of the public names: checked by mypy itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKED = Path(__file__).with_name("checked.py")


def test_an_editor_knows_what_a_pool_lends(pytestconfig: pytest.Config) -> None:
    """A pool of a driver lends that driver's connections, one of a URL anything; what can't work is an error.

    Each expected error stands in the file as an ignore with its code, and mypy complains of one that is not needed.
    """
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed (the extra 'dev')")
    cache = pytestconfig.cache.mkdir("mypy") if pytestconfig.cache else "/dev/null"
    root = Path(__file__).parent.parent.parent
    config = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(cache)]
    command = [sys.executable, "-m", "mypy", *config, str(CHECKED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert (done.stdout.strip(), done.returncode) == ("Success: no issues found in 1 source file", 0), done.stderr
