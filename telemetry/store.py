"""The event store: every event once, the latest of each robot, hourly rollups, and what was refused.

SQLite, or PostgreSQL by another URL. Here is the writing; the questions are in store_reading.py, the tables in
tables.py, how events get into them in store_events.py. Collectors write (one on SQLite, several on PostgreSQL), any
number of consoles read.
A batch is one transaction, and what the collector acknowledges to the broker the broker forgets; so SQLite runs with
`synchronous=FULL`: a commit is on the disk when it returns. With NORMAL, a power cut takes the last commits back.
"""

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from serving.contracts.events import Event, RobotState, utc_now
from telemetry import bulk, rollups, schema, store_events, tables
from telemetry.databases import Lock, insert, lock, make_engine
from telemetry.messages import Forgotten, printable
from telemetry.robots import Row, after_event, after_state
from telemetry.store_reading import Gap, StoreReader

__all__ = ["Added", "Batch", "Gap", "Rejected", "Store", "open_reader", "open_store"]

MAX_REJECTED = 1000  # rows kept; the oldest go first
MAX_REJECTED_PAYLOAD_BYTES = 2048  # of a refused payload that are kept
_ROBOT = tuple(column.name for column in tables.robots.columns)
_NEW_ROBOT = ", ".join(f'"{name}" = excluded."{name}"' for name in _ROBOT if name not in ("site", "robot"))


@dataclass(frozen=True)
class Rejected:
    """A message that was not taken, and why."""

    topic: str
    payload: bytes
    reason: str


@dataclass
class Batch:
    """What goes into the store in one transaction, in the order of arrival."""

    events: list[Event] = field(default_factory=list)
    states: list[RobotState | Forgotten] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events) + len(self.states) + len(self.rejected)


@dataclass(frozen=True)
class Added:
    stored: int
    duplicates: int


class Store(StoreReader):
    """Use `open_store` or `open_reader` to get one.

    All methods raise OperatorError when the database does not answer or cannot be written, in one line that names it.
    """

    def add(self, batch: Batch, received_at: datetime.datetime | None = None) -> Added:
        """Stores a batch in one transaction; an event whose id is there already, or was, is left as it is.

        Raises:
            OperatorError: the database cannot take it now; nothing of the batch is stored.
            RejectedError: the database will never take something in it; nothing of the batch is stored.
        """
        now = received_at or utc_now()
        with self.transaction() as connection:
            lock(connection, Lock.WRITING, shared=True)
            new = store_events.add(connection, batch.events, now)
            rollups.add(connection, new)
            _update_robots(connection, new, batch.states, now)
            _add_rejected(connection, batch.rejected, now)
        return Added(stored=len(new), duplicates=len(batch.events) - len(new))

    def rebuild_rollups(self) -> int:
        """Counts the rollups anew from the events; collectors wait for its end.

        Returns:
            The number of rows counted anew.
        """
        with self.transaction() as connection:
            return rollups.rebuild(connection)


def open_store(url: str) -> Store:
    """Opens the store for writing, making it when it is not there, and bringing older tables up to date.

    Args:
        url: of SQLAlchemy: `sqlite:///build/events.db`, `postgresql+psycopg://user@host/name`.

    Raises:
        OperatorError: the URL is none, or the database cannot be made or written, or is of a version not known here.
    """
    store = Store(make_engine(url, create=True))
    with store.transaction() as connection:
        schema.upgrade(connection, store.name)
    return store


def open_reader(url: str) -> Store:
    """Opens a store that a collector has made, for reading.

    Raises:
        OperatorError: there is none, or it cannot be read, or is of another version.
    """
    store = Store(make_engine(url, create=False))
    with store.transaction() as connection:
        found = schema.version(connection)
    schema.must_be_known(found, store.name, current=True)
    return store


def _update_robots(
    connection: sa.Connection, events: Sequence[Event], states: Sequence[RobotState | Forgotten], now: datetime.datetime
) -> None:
    """One look at the rows of all robots in the batch, and one statement that writes them."""
    t = tables.robots
    messages: dict[tuple[str, str], list[Event | RobotState | Forgotten]] = {}
    for one in (*states, *events):
        messages.setdefault((one.site, one.robot), []).append(one)
    if not messages:
        return
    keys = sorted(messages)  # so that two collectors cannot wait for each other
    here = sa.tuple_(t.c.site, t.c.robot)
    query = sa.select(t).where(here.in_(keys)).order_by(t.c.site, t.c.robot).with_for_update()
    found: dict[tuple[str, str], Row] = {
        (row["site"], row["robot"]): dict(row) for row in connection.execute(query).mappings()
    }
    after = {key: _after(found.get(key), messages[key], now) for key in keys}
    gone = [key for key, row in after.items() if row is None]
    if gone:
        connection.execute(sa.delete(t).where(here.in_(gone)))
    rows = [row for row in after.values() if row is not None]
    if rows:
        values = [tuple(row[name] for name in _ROBOT) for row in rows]
        bulk.insert(connection, t, _ROBOT, values, f"ON CONFLICT (site, robot) DO UPDATE SET {_NEW_ROBOT}")


def _after(row: Row | None, messages: Iterable[Event | RobotState | Forgotten], now: datetime.datetime) -> Row | None:
    """A robot's row after what came from it; None when it is off the list."""
    for one in messages:
        if isinstance(one, Forgotten):
            row = None
        else:
            row = after_event(row, one, now) if isinstance(one, Event) else after_state(row, one, now)
    return row


def _add_rejected(connection: sa.Connection, rejected: Sequence[Rejected], now: datetime.datetime) -> None:
    if not rejected:
        return
    t = tables.rejected
    again = {"last_at": now, "times": t.c.times + 1}
    statement = insert(connection, t).on_conflict_do_update(index_elements=["digest"], set_=again)
    connection.execute(statement, sorted((_rejected_row(one, now) for one in rejected), key=lambda row: row["digest"]))
    newest = sa.select(t.c.last_at).order_by(t.c.last_at.desc()).offset(MAX_REJECTED - 1).limit(1)
    oldest_kept = connection.execute(newest).scalar()
    if oldest_kept is not None:
        connection.execute(sa.delete(t).where(t.c.last_at < oldest_kept))


def _rejected_row(one: Rejected, now: datetime.datetime) -> dict[str, Any]:
    return {
        "digest": hashlib.sha256(one.topic.encode(errors="replace") + b"\0" + one.payload).hexdigest(),
        "topic": printable(one.topic),
        "reason": printable(one.reason),
        "payload": one.payload[:MAX_REJECTED_PAYLOAD_BYTES],
        "payload_bytes": len(one.payload),
        "first_at": now,
        "last_at": now,
        "times": 1,
    }
