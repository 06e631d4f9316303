"""A store as the archive sees it: its events in the order in which they were stored, up to what is settled."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import sqlalchemy as sa

from serving.errors import OperatorError
from telemetry import tables
from telemetry.archive_files import COLUMNS
from telemetry.archive_manifest import Archived
from telemetry.databases import Lock, lock
from telemetry.store_events import packed
from telemetry.store_reading import StoreReader

BATCH = 20_000  # rows of one query
_MOMENTS = ("captured_at", "sent_at", "received_at")
_READ = pa.schema([pa.field("site", pa.string()), *COLUMNS])


@dataclass(frozen=True)
class Events:
    """Some events, in the order of their positions: the columns of the archive and `site`."""

    table: pa.Table
    archived: Archived  # how far the archive is with them


def store_id(store: StoreReader) -> str:
    """By which name archives know this store."""
    with store.transaction() as connection:
        return str(connection.execute(sa.select(tables.store.c.id)).scalar_one())


def settled(store: StoreReader) -> int:
    """The highest position below which nothing will appear any more.

    Two collectors on PostgreSQL may commit in another order than they got their positions. Who waits here until
    all that were writing have committed has seen everything up to the highest position. SQLite has one writer.
    """
    with store.transaction() as connection:
        lock(connection, Lock.WRITING, shared=False)
        return connection.execute(sa.select(sa.func.max(tables.events.c.position))).scalar() or 0


def waiting(store: StoreReader, after: int, up_to: int) -> int:
    """How many events there are with these positions."""
    position = tables.events.c.position
    query = sa.select(sa.func.count()).where(position > after, position <= up_to)
    with store.transaction() as connection:
        return int(connection.execute(query).scalar_one())


def batches(store: StoreReader, after: int, up_to: int, rows: int) -> Iterator[Events]:
    """At most `rows` events, `BATCH` at a time, each batch in a transaction of its own."""
    while rows > 0 and after < up_to:
        found = _read(store, after, up_to, min(BATCH, rows))
        if found is None:
            return
        yield found
        rows, after = rows - found.table.num_rows, found.archived.position


def check_is_same(store: StoreReader, archived: Archived) -> None:
    """Refuses a store that is older than the archive: put back from a copy, it gives out positions again.

    Raises:
        OperatorError: the last archived event is not where it was.
    """
    t, gone = tables.events, tables.removed
    with store.transaction() as connection:
        found = connection.execute(sa.select(t.c.id).where(t.c.position == archived.position)).scalar()
        removed = connection.execute(sa.select(gone.c.id).where(gone.c.id == packed(archived.event))).scalar()
    if found != archived.event and not (found is None and removed is not None):
        raise OperatorError(
            f"the store {store.name} is not as it was when it was archived up to event {archived.event}: was it put "
            "back from a copy? Archive it to another place, where nothing is yet"
        )


def _read(store: StoreReader, after: int, up_to: int, limit: int) -> Events | None:
    t = tables.events
    with store.transaction() as connection:
        columns = [_as_stored(t.c[name], connection.dialect.name).label(name) for name in _READ.names]
        query = sa.select(*columns, t.c.position).where(t.c.position > after, t.c.position <= up_to)
        rows = connection.execute(query.order_by(t.c.position).limit(limit)).all()
    if not rows:
        return None
    *values, positions = zip(*rows, strict=True)
    arrays = [_array(field, column) for field, column in zip(_READ, values, strict=True)]
    last = dict(zip(_READ.names, rows[-1], strict=False))
    return Events(pa.Table.from_arrays(arrays, schema=_READ), Archived(position=positions[-1], event=last["id"]))


def _as_stored(column: "sa.Column[object]", dialect: str) -> "sa.ColumnElement[object]":
    """What the driver gives with the least work: no moment and no JSON is made into an object of Python."""
    if dialect == "sqlite":
        return sa.type_coerce(column, sa.String) if column.name in (*_MOMENTS, "data") else column
    if column.name in _MOMENTS:
        return sa.cast(sa.extract("epoch", column) * 1_000_000, sa.BigInteger)
    return sa.cast(column, sa.Text) if column.name == "data" else column


def _array(field: pa.Field, values: tuple[object, ...]) -> pa.Array:
    if field.name not in _MOMENTS:
        return pa.array(values, field.type)
    if any(isinstance(value, str) for value in values):  # SQLite's text, in UTC
        return pa.array(values, pa.string()).cast(pa.timestamp("us")).cast(field.type)
    return pa.array(values, pa.int64()).cast(field.type)
