"""`bench --report DIR`: run the suites, or take what they have written before, and make the page of it.

    python3 run.py bench --report DIR [SUITE ...] [--quick]       run them, each in a process of its own
    python3 run.py bench --report DIR FILE.json ...               take these

Each suite's JSON is kept in DIR. A suite that fails is told of, and the page is made of the rest.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.charts import Chart
from benchmarks.results import Result, ResultError, load

__all__ = ["main", "write"]


def main(argv: Sequence[str], suites: Mapping[str, object] | Sequence[str]) -> int:
    """Make the report; `argv` is the folder, then files or suites, then options for all suites."""
    folder, named, options = _told(argv)
    unknown = [name for name in named if not name.endswith(".json") and name not in suites]
    if folder is None or unknown:
        said = f"no suite {unknown[0]!r}; there are {', '.join(suites)}" if unknown else "--report needs a folder"
        sys.stderr.write(f"bench: {said}\n")
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    files = [Path(name) for name in named if name.endswith(".json")]
    wanted = [name for name in named if name in suites] or ([] if files else list(suites))
    failed = [suite for suite in wanted if not _measured(suite, folder, options)]
    files += [_file(folder, suite) for suite in wanted if suite not in failed]
    try:
        results = load(files)
    except ResultError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    if results:
        sys.stdout.write(f"{write(results, folder)}\n")
    for suite in failed:
        sys.stderr.write(f"bench: the suite {suite} failed, and is not in the report\n")
    return 1 if failed or not results else 0


def _told(argv: Sequence[str]) -> tuple[Path | None, list[str], list[str]]:
    rest = list(argv)
    folder = Path(rest.pop(0)) if rest and not rest[0].startswith("-") else None
    named = [word for word in rest if not word.startswith("-")]
    return folder, named, [word for word in rest if word.startswith("-")]


def _file(folder: Path, suite: str) -> Path:
    return folder / f"{suite}.json"


def _measured(suite: str, folder: Path, options: Sequence[str]) -> bool:
    """Run a suite in a process of its own, so that what one leaves behind is not measured with the next."""
    command = [sys.executable, "-m", "benchmarks", suite, "--json", str(_file(folder, suite)), *options]
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode == 0


def write(results: Sequence[Result], folder: Path) -> Path:
    """Write the page and its plots; return the page's path."""
    from benchmarks.page import render  # noqa: PLC0415
    from benchmarks.plots import inline, save  # noqa: PLC0415  who only measures needs no matplotlib

    def draw(chart: Chart, key: str) -> str:
        save(chart, folder)
        return inline(chart, key)

    page = folder / "index.html"
    page.write_text(render(results, draw, f"{datetime.now(UTC):%d %B %Y}"), encoding="utf-8")
    return page
