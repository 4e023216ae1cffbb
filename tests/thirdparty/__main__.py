"""The program: see `--help`."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from poolkit.errors import PoolkitError
from tests.django_suite import databases, sources, verdicts
from tests.django_suite.__main__ import details
from tests.django_suite.runs import Report
from tests.django_suite.sources import SuiteError

from . import trials
from .projects import PROJECTS, Layout, Project
from .trials import WAYS, Stay

_LIBRARIES = {"postgresql": ["psycopg[binary]"], "mysql": ["mysqlclient"], "sqlite3": []}
_ABOUT = """\
Run projects of other people on poolkit's engine: their own tests, and the site itself.

    tutorial  Django's tutorial project, put together from the tutorial that Django's source carries
    wagtail   the content management system from the package index, with the tests that it carries; all of them take
              about half an hour on two cores for each of the four ways

The tests run with Django's engine and with poolkit's, with ATOMIC_REQUESTS on Django's and with PoolkitMiddleware on
poolkit's; a test that goes well on Django's and not on poolkit's is a failure. The site runs under gunicorn with more
threads than the pool has connections, is visited (a login, forms, a burst), and stopped.

The server is a private PostgreSQL, or the one that POOLKIT_TEST_PG_DSN names. With --engine it is another database, and
only the tests are run.
Exit status: 0 all is as it should be, 1 something is not, 2 it could not be run.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m tests.thirdparty", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("projects", nargs="*", metavar="PROJECT", help=f"{', '.join(PROJECTS)} (both)")
    add("--version", help="a version of the project, rather than the newest that fits")
    add("--engine", choices=_LIBRARIES, default="postgresql", help="which database to run the tests on (%(default)s)")
    add("--django", default="newest", metavar="VERSION", help="`newest`, or a series like 5.2 (newest)")
    add("--way", action="append", choices=WAYS, help="may be given again (all of them)")
    add("--labels", nargs="+", metavar="LABEL", help="which of the project's tests, rather than all")
    add("--no-tests", action="store_true", help="only the site")
    add("--no-site", action="store_true", help="only the tests")
    add("--parallel", type=int, default=min(os.cpu_count() or 1, 4), metavar="N", help="processes of each test run")
    add("--timeout", type=float, default=3600, metavar="SECONDS", help="for each test run (3600)")
    add("--cache", type=Path, default=sources.cache_folder(), metavar="FOLDER", help="for downloads (%(default)s)")
    add("--keep", action="store_true", help="keep settings, logs and results, and say where they are")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Try what is asked for, print what came out, and return the exit status."""
    made = parser()
    options = made.parse_args(arguments)
    unknown = set(options.projects) - set(PROJECTS)
    if unknown:
        made.error(f"no project is called {', '.join(sorted(unknown))}: there are {', '.join(PROJECTS)}")
    names = options.projects or list(PROJECTS)
    if len(names) > 1 and (options.version or options.labels):
        made.error("--version and --labels are for one project: name it")
    if options.version and names == ["tutorial"]:
        made.error("the tutorial's version is Django's: give --django")
    try:
        return 0 if all([_try(PROJECTS[name], options) for name in names]) else 1  # noqa: C419  each of them
    except (SuiteError, PoolkitError) as error:
        _say(f"thirdparty: {error}")
        return 2


def _try(project: Project, options: argparse.Namespace) -> bool:
    django = sources.get_source(options.django, options.cache)
    wanted = [*project.requirements, *_LIBRARIES[options.engine]]
    if project.name != "tutorial":
        wanted.append(f"{project.name}=={options.version}" if options.version else project.name)
    python = sources.make_environment(project.name, [*wanted, f"django=={django.version}"], options.cache)
    ways = [WAYS[name] for name in options.way or WAYS]
    with _folder(options) as folder, databases.aliases(options.engine, folder) as aliases:
        layout = Layout(folder, python, django)
        _say(f"\n{_title(project, layout, options.engine)}, Python {layout.run('-V', environ={}).split()[1]}")
        project.lay_out(layout)
        good = options.no_tests or _tests(project, ways, layout, aliases["default"], options)
        no_site = options.no_site or options.engine != "postgresql"
        return (no_site or _sites(project, ways, layout, aliases["default"])) and good


def _title(project: Project, layout: Layout, engine: str) -> str:
    names = ["django", *(requirement.partition("[")[0] for requirement in _LIBRARIES[engine])]
    names += [project.name] if project.name != "tutorial" else []
    script = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    return f"{project.name} on {engine}: {layout.run('-c', script, *names, environ={}).strip()}"


def _tests(
    project: Project, ways: list[trials.Way], layout: Layout, where: dict[str, object], options: argparse.Namespace
) -> bool:
    reports: dict[str, Report] = {}
    good = True
    for way in ways:
        report = reports[way.name] = trials.run_tests(project, way, layout, where, options)
        _say(f"  tests, {way.name}: {len(report.outcomes)}, {len(report.failed)} failed, {report.seconds:.0f} s")
        if not report.complete:
            raise SuiteError(f"the tests did not come to their end\n{report.log[-3000:]}")
        if way.like in reports:
            known = [entry for entry in _known() if entry.concerns(project.name, way.name, "")]
            verdict = verdicts.compare(reports[way.like], report, known)
            _say(details(verdict))
            _say(f"    only with {way.name}, not with {way.like}: {len(verdict.only_ours)}; with both: "
                 f"{len(verdict.both)}; listed: {len(verdict.listed)}")  # fmt: skip
            good = good and verdict.good
    return good


def _known() -> list[verdicts.Known]:
    """Read the list of tests that can't hold: `engines` are projects there, and `drivers` are ways."""
    return verdicts.read_known(Path(__file__).with_name("known.toml"))


def _sites(project: Project, ways: list[trials.Way], layout: Layout, where: dict[str, object]) -> bool:
    good = True
    for way in ways:
        stay = trials.serve(project, way, layout, where)
        _say(f"  site, {way.name}: {len(stay.seen)} pages and forms, {stay.burst} requests in a burst; sessions after "
             f"it {stay.sessions}, after the end {stay.left}")  # fmt: skip
        problem = stay.problem or _judged(stay, way)
        if problem:
            _say(f"    {problem}")
        good = good and not problem
    return good


def _judged(stay: Stay, way: trials.Way) -> str:
    if way.like and stay.sessions > trials.POOL:
        return f"more sessions than the pool may have: {trials.POOL}"
    return "sessions outlived the site" if stay.left else ""


@contextlib.contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    if options.keep:
        folder = Path(tempfile.mkdtemp(prefix="thirdparty-"))
        _say(f"  logs and results: {folder}")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="thirdparty-") as name:
        yield Path(name)


def _say(text: str) -> None:
    if text:
        print(text, flush=True)  # noqa: T201  its output


if __name__ == "__main__":
    raise SystemExit(main())
