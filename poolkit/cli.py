"""The `poolkit` command. What it is made with comes with the extra `cli`; without it, one sentence says so."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

NEEDS = ("click", "rich")


def main() -> None:
    """Run the command, with the arguments of the process; ends it with its status."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"poolkit: the command needs {' and '.join(missing)}; pip install 'poolkit[cli]'")
    from poolkit.bench.command import poolkit  # noqa: PLC0415 - only now is it sure that it can be imported

    poolkit(prog_name="poolkit")
