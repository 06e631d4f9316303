"""`jetloop archive`: events as Parquet, in a folder or on S3, for as long as you like and for any tool.

Here are the commands; archive_run.py writes, archive_manifest.py says what belongs to an archive and why each event is
in it once.
"""

import contextlib
import csv
import datetime
import decimal
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from serving.command_line import log_to_stderr
from serving.contracts.events import utc_now

_store = click.option(
    "--store", "url", default="sqlite:///build/events.db", show_default=True, help="URL of the event store."
)
_endpoint = click.option(
    "--endpoint-url", default="", help="Of an S3 that is not Amazon's, such as http://s3.lab:8333."
)


def _place(name: str) -> Callable[[Any], Any]:
    text = "The archive: a folder, or s3://BUCKET/PREFIX."
    return click.option(name, "where", default="build/archive", show_default=True, help=text)


@click.group()
def group() -> None:
    """Events as Parquet, divided by date and site, each event once.

    \b
    jetloop archive run --to s3://fleet/events      as often as you like, from cron for instance
    jetloop archive compact --to s3://fleet/events  once a day: many small files become few
    jetloop archive query "select type, count(*) from events group by type" --from s3://fleet/events
    jetloop archive retain --days 30 --to s3://fleet/events   the store keeps 30 days
    """


@group.command(short_help="Write what is new in the store into the archive.")
@_store
@_place("--to")
@_endpoint
@click.option(
    "--rows", default=250_000, show_default=True, type=click.IntRange(1), help="Of a commit: about 1 kB of memory each."
)
def run(url: str, where: str, endpoint_url: str, rows: int) -> None:
    """Writes what the store has and the archive has not, then ends.

    \b
    reads    STORE   table events, beside the collector
    writes   TO      events/date=YYYY-MM-DD/site=SITE/*.parquet, manifests/*.json

    The date is that of the robot's clock, in UTC. Killed at any moment, it goes on where it was when it is run again;
    two at once do no harm.
    """
    from telemetry.archive_places import place_of
    from telemetry.archive_run import run as run_archive
    from telemetry.store import open_reader

    log_to_stderr()
    with contextlib.closing(open_reader(url)) as store, _progress("archiving") as progress:
        done = run_archive(store, place_of(where, endpoint_url), rows, progress)
    click.echo(f"{done.rows} events archived in {done.files} files, at {where}")


@group.command(short_help="Put small files together, and delete what nothing needs.")
@_place("--to")
@_endpoint
@click.option("--target-mb", default=64, show_default=True, type=click.IntRange(1, 1024), help="Size of a large file.")
def compact(where: str, endpoint_url: str, target_mb: int) -> None:
    """Writes small files of one day and site into larger ones; the newest manifest names one or the other, never both.

    Then deletes files that no manifest names any more, once they are a day old: what was replaced, and what a killed
    archiver left.
    """
    from telemetry.archive_manifest import sweep
    from telemetry.archive_places import place_of
    from telemetry.archive_run import compact as compact_archive

    log_to_stderr()
    place = place_of(where, endpoint_url)
    with _progress("compacting") as progress:
        done = compact_archive(place, target_mb * 1_000_000, progress)
    swept = sweep(place)
    click.echo(f"{done.replaced} files became {done.files}; {swept} files deleted, at {where}")


@group.command(short_help="Show what is in the archive.")
@_place("--from")
@_endpoint
def status(where: str, endpoint_url: str) -> None:
    """Shows how many events and files of how many days and sites there are, and how old the newest commit is."""
    from telemetry.archive_manifest import newest
    from telemetry.archive_places import place_of

    current = newest(place_of(where, endpoint_url))
    if current is None:
        click.echo(f"nothing is archived at {where} yet")
        return
    dates = sorted({file.date for file in current.files})
    size_mb, sites = sum(file.bytes for file in current.files) / 1e6, len({file.site for file in current.files})
    click.echo(f"{current.rows} events, {len(current.files)} files, {size_mb:.1f} MB, {sites} sites")
    click.echo(f"from {dates[0]} to {dates[-1]}" if dates else "no events")
    click.echo(f"manifest {current.number} of {current.at:%Y-%m-%d %H:%M:%S} UTC")


@group.command(short_help="Ask the archive in SQL.")
@click.argument("sql")
@_place("--from")
@_endpoint
@click.option("--format", "form", default="table", show_default=True, type=click.Choice(["table", "csv", "json"]))
def query(sql: str, where: str, endpoint_url: str, form: str) -> None:
    """Asks the view `events` in DuckDB's SQL: no server, nothing from the internet.

    \b
    Columns: date, site, id, robot, session, type, sequence, release, engine,
             captured_at, sent_at, received_at (UTC), data (JSON: data->>'$.p_blocked')

    \b
    jetloop archive query "select robot, count(*) from events
        where date = '2026-11-23' and type = 'avoidance.started' group by robot order by 2 desc"
    """
    from telemetry.archive_places import place_of
    from telemetry.archive_query import query as ask

    names, rows = ask(place_of(where, endpoint_url), sql)
    {"table": _table, "csv": _csv, "json": _json}[form](names, rows)


@group.command(short_help="Remove from the store what is archived and old.")
@click.option("--days", required=True, type=click.IntRange(1), help="What arrived in the last so many days stays.")
@_store
@_place("--to")
@_endpoint
def retain(days: int, url: str, where: str, endpoint_url: str) -> None:
    """Removes events from the store that arrived over DAYS days ago, if the archive has them; rollups stay.

    The archive's files are looked at first. The store remembers the ids of what it removed, 16 bytes each, so that an
    event which a robot sends again is still known.
    """
    from telemetry.archive_places import place_of
    from telemetry.archive_retain import retain as retain_days
    from telemetry.store import open_store

    log_to_stderr()
    before = utc_now() - datetime.timedelta(days=days)
    with contextlib.closing(open_store(url)) as store, _progress("removing") as progress:
        removed = retain_days(store, place_of(where, endpoint_url), before, progress)
    click.echo(f"{removed} events removed from {store.name}; they are at {where}")


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a person; a log has the lines."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(names: list[str], rows: Iterable[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in names:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*(Text(_shown(row[name])) for name in names))
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width).print(table)


def _csv(names: list[str], rows: Iterable[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(names)
    writer.writerows([_shown(row[name]) for name in names] for row in rows)


def _json(_names: list[str], rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        click.echo(json.dumps(row, default=_plain))


def _plain(value: Any) -> Any:
    """What JSON has no word for: a sum is a decimal in DuckDB, a moment is text."""
    if isinstance(value, decimal.Decimal):
        return int(value) if value == int(value) else float(value)
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    return "" if value is None else str(value)
