"""How a store's tables come to be: made, brought up to date, refused."""

import contextlib
import datetime
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner

from serving.errors import OperatorError
from telemetry import rollups, schema, tables
from telemetry.databases import make_engine
from telemetry.store import Batch, Store, open_reader, open_store
from telemetry.store_cli import group
from tests.servers.postgres import postgres  # noqa: F401
from tests.test_telemetry_samples import event, state
from tests.test_telemetry_store import url  # noqa: F401


def first_version(url: str, events: int) -> list[str]:
    """A store as jetloop made it before it had migrations; gives the ids of its events."""
    engine = make_engine(url, create=True)
    config = schema._config()
    made = [event(n, robot=f"r{n % 2}") for n in range(1, events + 1)]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(sa.text("DROP TABLE alembic_version"))
        old = sa.Table("events", sa.MetaData(), *(c._copy() for c in tables.events.columns if c.name != "position"))
        arrival = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
        values = []
        for number, one in enumerate(made):
            row = {name: getattr(one, name) for name in ("id", "site", "robot", "session", "type", "sequence", "data")}
            times = {"captured_at": one.time, "sent_at": one.sentat}
            arrived = arrival - datetime.timedelta(seconds=number)
            values.append({**row, **times, "release": one.release, "engine": one.engine, "received_at": arrived})
        connection.execute(sa.insert(old), values)
    engine.dispose()
    return [one.id for one in made]


def test_the_migrations_lead_to_the_tables(url: str) -> None:
    """What the migrations make is what tables.py says, column by column and index by index."""
    store = open_store(url)
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = compare_metadata(context, tables.metadata)
    store.close()
    ours = [change for change in found if "schema_version" not in str(change)]
    assert not ours


def test_an_older_store_is_upgraded(url: str) -> None:
    """Its events stay, are numbered, and are counted; then it works like any other, and opens again."""
    ids = first_version(url, 40)
    with pytest.raises(OperatorError, match=r"version 0001.*`jetloop store upgrade"):
        open_reader(url)
    done = CliRunner().invoke(group, ["upgrade", "--store", url])
    assert done.exit_code == 0, done.output
    store = open_store(url)
    with store._engine.connect() as connection:
        numbered = sa.select(tables.events.c.id).order_by(tables.events.c.position)
        assert sorted(connection.execute(numbered).scalars()) == sorted(ids)
        assert schema.version(connection) == schema.newest()
    assert sum(row["events"] for row in store.rollups(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))) == 40
    assert store.add(Batch(events=[event(99)], states=[state()])).stored == 1
    store.close()
    shown = CliRunner().invoke(group, ["status", "--store", url])
    assert "41 events" in shown.output


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole upgrade is one transaction: killed or failed in the middle, the next start begins it again."""
    first_version(url, 5)

    def fails(_: Any) -> int:
        raise ValueError("no room")

    monkeypatch.setattr(rollups, "rebuild", fails)
    with pytest.raises(Exception, match="no room"):
        open_store(url)
    monkeypatch.undo()
    engine = make_engine(url, create=True)
    with engine.connect() as connection:
        assert schema.version(connection) == "0001"
        assert connection.execute(sa.text("SELECT count(*) FROM events")).scalar() == 5
        assert not sa.inspect(connection).has_table("rollups")
    engine.dispose()
    open_store(url).close()


def _at_once(count: int, what: Callable[[], Any]) -> list[Any]:
    begin, results = threading.Barrier(count), []

    def one() -> None:
        begin.wait()
        try:
            results.append(what())
        except Exception as problem:
            results.append(problem)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("before", ["empty", "first version"])
def test_several_start_at_once(url: str, before: str) -> None:
    """Collectors that start together on a new or old store all get it, upgraded once."""
    if before == "first version":
        first_version(url, 10)
    stores = _at_once(4, lambda: open_store(url))
    assert all(isinstance(store, Store) for store in stores), stores
    with stores[0]._engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.store)).scalar() == 1
    for store in stores:
        store.close()


@pytest.mark.parametrize("held_s", [0.5, 60.0])
def test_a_new_file_that_another_holds_is_waited_for(
    held_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself does not wait when it switches a file to its write-ahead log; and not for ever either."""
    monkeypatch.setattr("telemetry.databases.SQLITE_TIMEOUT_S", 5.0 if held_s < 5 else 0.5)
    other = sqlite3.connect(tmp_path / "events.db", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE held (x)")
    other.execute("BEGIN IMMEDIATE")
    with contextlib.closing(other):
        let_go = threading.Timer(held_s, other.rollback)
        let_go.start()
        try:
            if held_s < 5:
                open_store(f"sqlite:///{tmp_path}/events.db").close()
            else:
                with pytest.raises(OperatorError, match="locked"):
                    open_store(f"sqlite:///{tmp_path}/events.db")
        finally:
            let_go.cancel()
            let_go.join()


def test_an_older_jetloop_refuses_a_newer_store(url: str) -> None:
    """A program from before the migrations looks at `schema_version` for 1; a store of the future is refused here."""
    store = open_store(url)
    with store._engine.begin() as connection:
        assert connection.execute(sa.text("SELECT version FROM schema_version")).scalar() == 2
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0099'"))
    store.close()
    for open_it in (open_store, open_reader):
        with pytest.raises(OperatorError, match=r"version 0099.*a newer one"):
            open_it(url)


def test_a_database_without_tables_is_refused_by_readers(postgres: Any) -> None:
    """The line says which command makes them."""
    with pytest.raises(OperatorError, match="has no tables yet; `jetloop collector"):
        open_reader(postgres.database())
