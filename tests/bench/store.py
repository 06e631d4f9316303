"""`python -m tests.bench.store`: how fast the store takes batches, against a bare executemany insert of the same rows.

The bare insert is the database's driver alone: the events' rows into a table with the same keys and indexes, the same
batches, the same commits; no rollups, no robots, no look at what is there. SQLite in a file with synchronous=FULL,
and PostgreSQL with its defaults (fsync on), where it is installed.
"""

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

from serving.command_line import run
from serving.contracts.events import Event, utc_now
from telemetry import bulk, store_events, tables
from telemetry.databases import make_engine
from telemetry.store import Batch, open_store
from tests.bench.events import synthetic
from tests.servers import postgres

ROBOTS = 100


def measure(folder: Path, url: str, batches: list[list[Event]]) -> dict[str, float]:
    """Events a second of `Store.add` and of the bare insert, in turns, each into tables of its own."""
    store = open_store(url)
    names = ", ".join(column.name for column in tables.events.columns if column.name != "position")
    took = {"store": 0.0, "bare": 0.0}
    bare = _bare_sqlite(folder / "bare.db", names) if url.startswith("sqlite") else _bare_postgresql(url, names)
    for batch in batches:
        begun = time.perf_counter()
        store.add(Batch(events=batch))
        took["store"] += time.perf_counter() - begun
        took["bare"] += bare(batch)
    with store._engine.connect() as connection:
        stored = connection.execute(sa.select(sa.func.count()).select_from(tables.events)).scalar()
    assert stored == sum(map(len, batches))
    store.close()
    events = sum(map(len, batches))
    return {**{name: events / seconds for name, seconds in took.items()}, "share": took["bare"] / took["store"]}


def _bare_sqlite(path: Path, names: str) -> Callable[[list[Event]], float]:
    with closing(make_engine(f"sqlite:///{path}", create=True).connect()) as connection:
        tables.metadata.create_all(connection, tables=[tables.events])
        connection.commit()
    bare = sqlite3.connect(path)
    bare.execute("PRAGMA synchronous=FULL")
    statement = f"INSERT INTO events ({names}) VALUES ({', '.join('?' * len(names.split(', ')))})"

    def insert(batch: list[Event]) -> float:
        rows = [_sqlite_row(event) for event in batch]
        begun = time.perf_counter()
        with bare:
            bare.executemany(statement, rows)
        return time.perf_counter() - begun

    return insert


def _bare_postgresql(url: str, names: str) -> Callable[[list[Event]], float]:
    import psycopg

    address = sa.make_url(url)
    bare = psycopg.connect(host=address.host, port=address.port, user=address.username, dbname=address.database)
    bare.execute("CREATE TABLE bare (LIKE events INCLUDING ALL)")
    bare.commit()
    statement = f"INSERT INTO bare ({names}) VALUES ({', '.join(['%s'] * len(names.split(', ')))})"

    def insert(batch: list[Event]) -> float:
        rows = [_postgresql_row(event) for event in batch]
        begun = time.perf_counter()
        with bare.cursor() as cursor:
            cursor.executemany(statement, rows)
        bare.commit()
        return time.perf_counter() - begun

    return insert


def _sqlite_row(event: Event) -> list[Any]:
    *ready, captured_at, sent_at, received_at, data = store_events.row(event, utc_now())
    return [*ready, *map(bulk.sqlite_text, (captured_at, sent_at, received_at)), json.dumps(data)]


def _postgresql_row(event: Event) -> list[Any]:
    *ready, data = store_events.row(event, utc_now())
    return [*ready, json.dumps(data)]


@click.command()
@click.option("--events", default=50_000, show_default=True)
@click.option("--batch", "size", default=500, show_default=True, help="Events of a batch, as the collector commits.")
def command(events: int, size: int) -> None:
    """Prints events a second of the store and of the bare insert, and writes build/bench/store.json."""
    made = list(synthetic(events, ROBOTS))
    batches = [made[start : start + size] for start in range(0, events, size)]
    results = {}
    folder = Path(tempfile.mkdtemp(prefix="jetloop-bench-store-"))
    try:
        results["sqlite"] = measure(folder, f"sqlite:///{folder / 'events.db'}", batches)
        if Path("/usr/lib/postgresql").exists():
            with closing(postgres.Postgres("fsync=on")) as server:
                results["postgresql"] = measure(folder, server.database(), batches)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, result in results.items():
        click.echo(
            f"{name:<12}{result['store']:>10,.0f} events/s   bare executemany {result['bare']:>10,.0f}   "
            f"share {result['share']:.2f}"
        )
    target = Path("build/bench/store.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"events": events, "batch": size, "robots": ROBOTS, **results}, indent=2) + "\n")


if __name__ == "__main__":
    run(command)
