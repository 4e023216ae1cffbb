"""The program: see `--help`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from poolkit.errors import PoolkitError

from . import databases, runs, sources, verdicts
from .runs import Report, Task
from .sources import SuiteError
from .verdicts import Verdict

LABELS = (
    *("transactions", "transaction_hooks", "handlers", "backends", "basic", "queries", "get_or_create"),
    *("select_for_update", "multiple_database", "requests_tests", "servers", "asgi", "async", "test_utils"),
    *("test_runner", "fixtures", "delete_regress", "bulk_create", "migrations", "schema", "sessions_tests"),
    "admin_views",
)
_ABOUT = """\
Run Django's own test suite twice, with Django's engine and with poolkit's, and hold the one against the other.

Django's source comes through pip and is kept in a cache. PostgreSQL and MariaDB are private servers that are gone
afterwards, unless POOLKIT_TEST_PG_DSN or POOLKIT_TEST_MYSQL_DSN names one. A test that goes well with Django's engine
only is a failure, unless known.toml tells why it can't hold for another engine.

Exit status: 0 all is as it should be, 1 something is not, 2 the suite could not be run.
"""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    engine: str
    driver: str
    version: str
    verdict: Verdict
    seconds: tuple[float, float]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    cores = min(os.cpu_count() or 1, 4)
    made = argparse.ArgumentParser(
        "python -m tests.django_suite", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add(
        "--django",
        action="append",
        metavar="VERSION",
        help="`newest`, a series like 5.2, or a version like 5.2.3; may be given again (5.2 and newest)",
    )
    add("--engine", action="append", choices=databases.ENGINES, help="may be given again (all of them)")
    add("--driver", choices=sorted({d for all_ in databases.DRIVERS.values() for d in all_}), help="see below")
    add("--labels", nargs="+", metavar="LABEL", help="what to run, as for Django's runtests.py (a database's labels)")
    add("--all", action="store_true", help="run all of Django's tests, rather than some labels")
    add("--here", action="store_true", help="with the Django and the drivers of this environment; none is made")
    add("--parallel", type=int, default=cores, metavar="N", help=f"processes for each run ({cores})")
    add("--timeout", type=float, default=3600, metavar="SECONDS", help="for each of the two runs (3600)")
    add("--cache", type=Path, default=sources.cache_folder(), metavar="FOLDER", help="for downloads (%(default)s)")
    add("--keep", action="store_true", help="keep settings, logs and results, and say where they are")
    drivers = "; ".join(f"{engine}: {' or '.join(names)}" for engine, names in databases.DRIVERS.items())
    made.epilog = f"drivers, the default first: {drivers}"
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, print what came out, and return the exit status."""
    made = parser()
    options = made.parse_args(arguments)
    engines = options.engine or [e for e in databases.ENGINES if options.driver in (None, *databases.DRIVERS[e])]
    wrong = [engine for engine in engines if options.driver not in (None, *databases.DRIVERS[engine])]
    if wrong:
        made.error(f"--driver {options.driver} is none for --engine {wrong[0]}")
    if options.here and options.django:
        made.error("--here takes the Django of this environment: leave --django out")
    if options.all and options.labels:
        made.error("--all runs every label: leave --labels out")
    try:
        found = _sources(options)
    except SuiteError as error:
        _say(f"django_suite: {error}")
        return 2
    return _compare_all(options, [(source, engine) for source in found for engine in engines])


def _compare_all(options: argparse.Namespace, wanted: list[tuple[sources.Source, str]]) -> int:
    """Make all comparisons, the others too where one can't be made."""
    rows = []
    for source, engine in wanted:
        try:
            rows.append(_row(options, source, engine))
        except (SuiteError, PoolkitError) as error:
            _say(f"django_suite: {error}")
    if rows:
        _say(table(rows))
    if len(rows) < len(wanted):
        return 2
    return 0 if all(row.verdict.good for row in rows) else 1


def _sources(options: argparse.Namespace) -> list[sources.Source]:
    wanted = [sources.installed_django(sys.executable)] if options.here else options.django or ["5.2", "newest"]
    found = [sources.get_source(version, options.cache) for version in wanted]
    return list({source.version: source for source in found}.values())


def _row(options: argparse.Namespace, source: sources.Source, engine: str) -> Row:
    driver = options.driver or databases.DRIVERS[engine][0]
    labels = () if options.all else tuple(options.labels or LABELS)
    _check_labels(labels, source)
    python = sys.executable if options.here else sources.get_environment(source, driver, options.cache)
    _say(f"\nDjango {source.version}, {engine} through {driver}:")
    with _folder(options) as folder, databases.aliases(engine, folder) as where:
        task = Task(python, source, labels, folder, options.parallel, options.timeout)
        reports = []
        for name, package in (("django", "django.db.backends"), ("poolkit", "poolkit_django.backends")):
            report = runs.run(task, name, databases.settings_text(f"{package}.{engine}", driver, where))
            _check_report(report, f"{package}.{engine}")
            reports.append(report)
    theirs, ours = reports
    known = [entry for entry in verdicts.read_known() if entry.concerns(engine, driver, source.version)]
    verdict = verdicts.compare(theirs, ours, known)
    _say(details(verdict))
    return Row(engine, driver, source.version, verdict, (theirs.seconds, ours.seconds))


def _check_labels(labels: tuple[str, ...], source: sources.Source) -> None:
    unknown = [label for label in labels if not (source.tests / label.partition(".")[0]).exists()]
    if unknown:
        raise SuiteError(f"Django {source.version} has no tests called {', '.join(unknown)}: see {source.tests}")


def _check_report(report: Report, backend: str) -> None:
    _say(f"  {len(report.outcomes)} tests with {backend}, {len(report.failed)} failed, {report.seconds:.0f} s")
    if not report.complete:
        hung = [test for test, outcome in report.outcomes.items() if outcome.kind == "unfinished"]
        where = f"; not finished: {', '.join(hung)}" if hung else ""
        raise SuiteError(f"the run with {backend} did not come to its end{where}\n{report.log[-3000:]}")


@contextlib.contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    if options.keep:
        folder = Path(tempfile.mkdtemp(prefix="django-suite-"))
        _say(f"  logs and results: {folder}")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="django-suite-") as name:
        yield Path(name)


def details(verdict: Verdict) -> str:
    """Return what is wrong, test by test, and the end of each traceback."""
    lines = []
    for test, outcome in verdict.only_ours.items():
        lines.append(f"  only with poolkit's engine: {test}: {outcome.kind}")
        lines += [textwrap.indent(line, "      ") for line in outcome.detail.strip().splitlines()[-12:]]
    lines += [f"  with both engines: {test}" for test in verdict.both]
    lines += [f"  only with Django's engine: {test}" for test in verdict.only_theirs]
    lines += [f"  listed: {test}: {reason}" for test, reason in verdict.listed.items()]
    lines += [f"  listed in known.toml without need: {test}: {why}" for test, why in verdict.stale.items()]
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """Return the table of all comparisons."""
    head = ("engine", "Django", "tests", "failed with both", "only poolkit", "listed", "listed in vain", "seconds")
    cells: list[tuple[str, ...]] = [head]
    for row in rows:
        v = row.verdict
        name = row.engine if row.engine == row.driver else f"{row.engine}, {row.driver}"
        counts = (v.tests, len(v.both), len(v.only_ours), len(v.listed), len(v.stale))
        cells.append((name, row.version, *map(str, counts), f"{row.seconds[0]:.0f} / {row.seconds[1]:.0f}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n" + "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _say(text: str) -> None:
    if text:
        print(text, flush=True)  # noqa: T201  its output


if __name__ == "__main__":
    raise SystemExit(main())
