"""`poolkit bench URL`: what pools cost in front of your own database, and how large yours should be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from poolkit import ConfigError, PoolError
from poolkit.bench import SUITES
from poolkit.bench.advice import Situation, advise
from poolkit.bench.database import LIBRARIES, Database, Facts, examine, room, run, understood, usable
from poolkit.bench.sampling import Plan

__all__ = ["poolkit"]

AT_LEAST_ONE = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.group()
@click.version_option(package_name="poolkit")
def poolkit() -> None:
    """Connection pools for threads and asyncio."""


@poolkit.command()
@click.argument("url")
@click.argument("suites", nargs=-1, type=click.Choice(SUITES), metavar="[SUITE]...")
@click.option("--quick", is_flag=True, help="Once through, and less of it.")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True), help="Write every sample to this file.")
@click.option("--size", type=AT_LEAST_ONE, default=8, show_default=True, help="Connections of the pools compared.")
@click.option("--workers", type=AT_LEAST_ONE, default=1, show_default=True, help="Processes you run, for the advice.")
@click.option("--rate", type=POSITIVE, help="Requests a second you expect, all workers together, for the advice.")
@click.option("--hold", type=POSITIVE, help="Milliseconds a request keeps its connection, for the advice.")
def bench(  # noqa: PLR0913, PLR0917 - one for each option
    url: str,
    suites: Sequence[str],
    quick: bool,  # noqa: FBT001 - click hands it over
    file: str | None,
    size: int,
    workers: int,
    rate: float | None,
    hold: float | None,
) -> None:
    """Measure poolkit and what else is installed against the database at URL (postgresql:// or sqlite:///).

    SUITE: micro, query, round_trips, contention; all of them unless some are named. Only reads: SELECT 1, pg_sleep and
    the server's limits. Ends with advice on the pool's size.
    """
    with plainly():
        database, unusable = usable(understood(url))
        facts = examine(database)
        refused = room(facts.limits, size)
        if refused:
            raise click.ClickException(refused)
        chosen = suites or SUITES
        click.echo(intent(database, facts, chosen, size))
        for library, error in unusable.items():
            click.echo(f"Left out: {library}, which can't connect with this URL ({error}).")
        plan = Plan.quick() if quick else Plan()
        report = run(database, chosen, plan, size, lambda line: click.echo(line, err=True))
    given = Situation(facts.transaction, facts.round_trip, os.cpu_count() or 1, facts.limits, workers, rate)
    advice = advise(given._replace(hold=None if hold is None else hold / 1000))
    report.conditions["advice"] = {"max_size": advice.size, "lines": advice.lines}
    report.finish(file)
    click.echo("\nHow large a pool?")
    for line in advice.lines:
        click.echo(f"  {line}")


@contextmanager
def plainly() -> Iterator[None]:
    """Turn what a database or its library fails with into one line; faults of our own stay what they are."""
    try:
        yield
    except (ConfigError, PoolError) as error:
        raise click.ClickException(str(error)) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in LIBRARIES:
            raise
        # Without its text, which may hold the URL, and so a password.
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        raise click.ClickException(f"the database failed in the middle of it ({kind}); is it still there?") from None


def intent(database: Database, facts: Facts, suites: Sequence[str], size: int) -> str:
    """Say what is about to be done, and with how much of the server."""
    what = "reads only" if facts.limits is None else "sends SELECT 1, pg_sleep, BEGIN and COMMIT, and writes nothing"
    lines = [f"{database.shown}: {', '.join(suites)}; {what}."]
    if facts.limits is not None:
        lines.append(f"It takes {size} connections at a time, for moments {2 * size}; {facts.limits.free} are free.")
    lines.append(f"Libraries: {', '.join(database.drivers)}.")
    return "\n".join(lines)
