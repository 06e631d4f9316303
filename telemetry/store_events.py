"""How events get into their table: each id once, and never again after it was archived and removed."""

import datetime
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from serving.contracts.events import Event
from telemetry import bulk, tables

_NAMES = tuple(column.name for column in tables.events.columns if column.name != "position")
_ONCE = "ON CONFLICT (id) DO NOTHING"


def add(connection: sa.Connection, events: Sequence[Event], now: datetime.datetime) -> list[Event]:
    """Stores the events that were never stored before.

    Args:
        connection: in a transaction; on PostgreSQL it holds `Lock.WRITING`.
        events: in the order of arrival; ids may repeat.
        now: when they arrived.

    Returns:
        Those that were stored.
    """
    by_id: dict[str, Event] = {}
    for event in events:
        by_id.setdefault(event.id, event)
    for known in _removed(connection, list(by_id.values())):
        del by_id[known]
    if not by_id:
        return []
    # In one order everywhere, so that two collectors with the same events cannot wait for each other.
    new = [by_id[key] for key in sorted(by_id)]
    rows = [row(event, now) for event in new]
    stored = (_into_sqlite if connection.dialect.name == "sqlite" else _into_postgresql)(connection, rows)
    return new if stored is None else [event for event in by_id.values() if event.id in stored]


def row(event: Event, received_at: datetime.datetime) -> tuple[Any, ...]:
    """The columns of `tables.events`, without the position."""
    return (
        *(event.id, event.site, event.robot, event.session, event.type, event.sequence, event.release, event.engine),
        *(event.time, event.sentat, received_at, event.data),
    )


def packed(event_id: str) -> bytes:
    """An event's id in the table `removed`."""
    return uuid.UUID(event_id).bytes


def unpacked(event_id: bytes) -> str:
    return str(uuid.UUID(bytes=event_id))


def _removed(connection: sa.Connection, events: Sequence[Event]) -> list[str]:
    """Ids of those that were archived and removed; looked for only where a robot's clock was then that far."""
    latest = connection.execute(sa.select(sa.func.max(tables.removed_robots.c.captured_at))).scalar()
    suspects = [packed(event.id) for event in events if latest is not None and event.time <= latest]
    if not suspects:
        return []
    t = tables.removed
    return [unpacked(found) for found in connection.execute(sa.select(t.c.id).where(t.c.id.in_(suspects))).scalars()]


def _into_sqlite(connection: sa.Connection, rows: list[tuple[Any, ...]]) -> set[str] | None:
    """Ids of those that were stored; None: all."""
    t = tables.events
    before = connection.execute(sa.select(sa.func.max(t.c.position))).scalar() or 0
    if bulk.insert(connection, t, _NAMES, rows, _ONCE).rowcount == len(rows):
        return None
    # Only this transaction writes now, and a position is never given again.
    return set(connection.execute(sa.select(t.c.id).where(t.c.position > before)).scalars())


def _into_postgresql(connection: sa.Connection, rows: list[tuple[Any, ...]]) -> set[str] | None:
    stored = set(bulk.insert(connection, tables.events, _NAMES, rows, f"{_ONCE} RETURNING id").scalars())
    return None if len(stored) == len(rows) else stored
