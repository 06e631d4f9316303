"""What the robots did, hour by hour: counts and sums that grow with the events, in the same transaction.

An event counts once, when it is stored. The hour is that of the robot's clock (`captured_at`), so a late event counts
where it belongs. All figures are whole numbers: adding them up in any order gives the same.
"""

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from serving.contracts.events import Event
from telemetry import bulk, tables
from telemetry.databases import Lock, lock

COUNTED = tuple(column.name for column in tables.rollups.columns if not column.primary_key)
MAX_DECISIONS = 100_000  # of one metrics event; more is no robot
MAX_LATENCY_MS = 60_000.0
MAX_COLLISIONS = 1_000  # of one collision event
_KEY = tuple(column.name for column in tables.rollups.primary_key)
_LARGEST = frozenset({"latency_p99_max_us"})  # the others are sums
_BY_TYPE = {
    "avoidance.started": "avoidances",
    "intervention": "interventions",
    "model.rolled-back": "went_back",
}
_BATCH = 5000  # events that a rebuild holds in memory

Counters = dict[str, int]


class Key(NamedTuple):
    """Of one row."""

    hour: datetime.datetime
    site: str
    robot: str
    release: str

    @classmethod
    def of(cls, captured_at: datetime.datetime, site: str, robot: str, release: str) -> "Key":
        """The row in which such an event counts."""
        hour = captured_at.astimezone(datetime.UTC).replace(minute=0, second=0, microsecond=0)
        return cls(hour, site, robot, release)


class Told(NamedTuple):
    """What of an event is counted."""

    captured_at: datetime.datetime
    site: str
    robot: str
    release: str
    type: str
    data: Any


def add(connection: sa.Connection, events: Iterable[Event]) -> None:
    """Counts events that were not stored before."""
    _grow(connection, counted(Told(e.time, e.site, e.robot, e.release, e.type, e.data) for e in events))


def counted(events: Iterable[Told]) -> dict[Key, Counters]:
    """The rows that these events alone would give. Pure."""
    rows: dict[Key, Counters] = {}
    for event in events:
        key = Key.of(event.captured_at, event.site, event.robot, event.release)
        row = rows.get(key)
        if row is None:
            row = rows[key] = dict.fromkeys(COUNTED, 0)
        row["events"] += 1
        if event.type == "metrics":
            _add_metrics(row, event.data)
        elif event.type == "collision":
            row["collisions"] += int(_number(event.data, "count", 1, MAX_COLLISIONS) or 1)
        elif event.type in _BY_TYPE:
            row[_BY_TYPE[event.type]] += 1
    return rows


def removed(connection: sa.Connection, keys: Iterable[Key]) -> None:
    """Notes that an event of each of these rows is no longer in the store; the figures stay."""
    nothing = dict.fromkeys(COUNTED, 0)
    _grow(connection, {key: {**nothing, "removed": count} for key, count in Counter(keys).items()})


def rebuild(connection: sa.Connection) -> int:
    """Counts all events of the store anew, within the caller's transaction; collectors wait for its end.

    Rows of which events were archived and removed stay as they are: nothing here could count those again.

    Returns:
        The number of rows counted anew.
    """
    lock(connection, Lock.WRITING, shared=False)
    t, e = tables.rollups, tables.events
    kept = {Key(*row) for row in connection.execute(sa.select(*(t.c[name] for name in _KEY)).where(t.c.removed > 0))}
    connection.execute(sa.delete(t).where(t.c.removed == 0))
    columns = (e.c.captured_at, e.c.site, e.c.robot, e.c.release, e.c.type, e.c.data)
    after = 0
    while True:
        query = sa.select(e.c.position, *columns).where(e.c.position > after).order_by(e.c.position).limit(_BATCH)
        found = connection.execute(query).all()
        if not found:
            break
        grown = counted(Told(*row[1:]) for row in found)
        _grow(connection, {key: row for key, row in grown.items() if key not in kept})
        after = found[-1].position
    rows = connection.execute(sa.select(sa.func.count()).select_from(t).where(t.c.removed == 0)).scalar_one()
    return int(rows)


def figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table with what follows from it.

    Adds `blocked_rate` (share of the decisions), `latency_p50_ms` and `latency_p99_ms` (of the robot's own percentiles
    over some seconds, the mean weighted by decisions) and `latency_p99_max_ms` (the worst of them); None without
    decisions.
    """
    weight = row["latency_decisions"] * 1000
    return {
        **row,
        "blocked_rate": row["blocked"] / row["decisions"] if row["decisions"] else None,
        "latency_p50_ms": row["latency_p50_us"] / weight if weight else None,
        "latency_p99_ms": row["latency_p99_us"] / weight if weight else None,
        "latency_p99_max_ms": row["latency_p99_max_us"] / 1000 if weight else None,
    }


def _grow(connection: sa.Connection, rows: Mapping[Key, Counters]) -> None:
    """Adds to what the table has. In the order of the keys, so that two collectors cannot wait for each other."""
    if not rows:
        return
    larger = "max" if connection.dialect.name == "sqlite" else "greatest"
    grown = ", ".join(
        f"{name} = {larger}(rollups.{name}, excluded.{name})"
        if name in _LARGEST
        else f"{name} = rollups.{name} + excluded.{name}"
        for name in COUNTED
    )
    values = [(*key, *counters.values()) for key, counters in sorted(rows.items())]
    on_conflict = f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {grown}"
    bulk.insert(connection, tables.rollups, (*_KEY, *COUNTED), values, on_conflict)


def _add_metrics(row: Counters, data: Any) -> None:
    decisions = int(_number(data, "decisions", 0, MAX_DECISIONS) or 0)
    row["decisions"] += decisions
    row["blocked"] += round((_number(data, "blocked_rate", 0, 1) or 0) * decisions)
    p50_ms, p99_ms = (_number(data, name, 0, MAX_LATENCY_MS) for name in ("latency_p50_ms", "latency_p99_ms"))
    if decisions and p50_ms is not None and p99_ms is not None:
        p99_us = round(p99_ms * 1000)
        row["latency_decisions"] += decisions
        row["latency_p50_us"] += round(p50_ms * 1000) * decisions
        row["latency_p99_us"] += p99_us * decisions
        row["latency_p99_max_us"] = max(row["latency_p99_max_us"], p99_us)


def _number(data: Any, name: str, smallest: float, largest: float) -> float | None:
    """What a robot says, when it is a number that can be; None otherwise."""
    value = data.get(name) if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not smallest <= value <= largest:
        return None
    return value
