"""`jetloop store`: the event store itself: what is in it, its version, its rollups."""

import click

from serving.command_line import log_to_stderr

_store = click.option(
    "--store", "url", default="sqlite:///build/events.db", show_default=True, help="URL of the event store."
)


@click.group()
def group() -> None:
    """The event store: SQLite in a file, or PostgreSQL.

    The collector makes the tables and brings them up to date when it starts; these commands are for doing it without.
    """


@group.command()
@_store
def status(url: str) -> None:
    """Shows the version of the tables, and how much is in them."""
    from telemetry import schema
    from telemetry.store import open_reader

    store = open_reader(url)
    try:
        by_robot = store.counts_by_robot()
        click.echo(
            f"{store.name}: version {schema.newest()}, {sum(by_robot.values())} events of {len(by_robot)} robots"
        )
        for kind, count in store.counts_by_type().items():
            click.echo(f"{count:>12}  {kind}")
    finally:
        store.close()


@group.command()
@_store
def upgrade(url: str) -> None:
    """Makes the tables, or brings older ones up to date: one transaction, whole or not at all.

    Collectors and consoles of an older jetloop refuse the store afterwards; end them before.
    """
    from telemetry import schema
    from telemetry.store import open_store

    log_to_stderr()
    store = open_store(url)
    store.close()
    click.echo(f"{store.name}: version {schema.newest()}")


@group.command()
@_store
def rebuild(url: str) -> None:
    """Counts the hourly rollups anew from the events; collectors wait for its end.

    They are kept up with every batch, so this is for the case that somebody changed the tables by hand. Hours of which
    events were archived and removed stay as they are.
    """
    from telemetry.store import open_store

    log_to_stderr()
    store = open_store(url)
    try:
        click.echo(f"{store.rebuild_rollups()} rows of rollups counted from {store.count()} events")
    finally:
        store.close()
