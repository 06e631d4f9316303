"""The event store: every event once, the latest of each robot, and what was refused.

SQLite now, PostgreSQL by another URL; the tables are in tables.py. One collector writes, any number of consoles read.
A batch is one transaction, and what the collector acknowledges to the broker the broker forgets; so SQLite runs with
`synchronous=FULL`: a commit is on the disk when it returns. With NORMAL, a power cut takes the last commits back.
"""

import contextlib
import datetime
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serving.contracts.events import Event, RobotState, utc_now
from serving.errors import OperatorError, RejectedError
from telemetry import tables
from telemetry.databases import make_engine
from telemetry.messages import Forgotten, printable
from telemetry.robots import Row, after_event, after_state

MAX_REJECTED = 1000  # rows kept; the oldest go first
MAX_REJECTED_PAYLOAD_BYTES = 2048  # of a refused payload that are kept
_ID_CHARACTERS = frozenset("0123456789abcdef-")
_PREFIX_LENGTH = 4  # shortest beginning of an id that is looked up


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


@dataclass(frozen=True)
class Gap:
    """Sequence numbers of a robot that never arrived, both ends included."""

    site: str
    robot: str
    first: int
    last: int

    @property
    def missing(self) -> int:
        return self.last - self.first + 1


class Store:
    """Use `open_store` or `open_reader` to get one.

    All methods raise OperatorError when the database does not answer or cannot be written, in one line that names it.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self.name = engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

    # ---- writing

    def add(self, batch: Batch, received_at: datetime.datetime | None = None) -> Added:
        """Stores a batch in one transaction; an event whose id is there already is left as it is.

        Raises:
            OperatorError: the database cannot take it now; nothing of the batch is stored.
            RejectedError: the database will never take something in it; nothing of the batch is stored.
        """
        now = received_at or utc_now()
        with self._transaction() as connection:
            new = self._add_events(connection, batch.events, now)
            self._update_robots(connection, new, batch.states, now)
            self._add_rejected(connection, batch.rejected, now)
        return Added(stored=len(new), duplicates=len(batch.events) - len(new))

    def _add_events(self, connection: sa.Connection, events: Sequence[Event], now: datetime.datetime) -> list[Event]:
        by_id: dict[str, Event] = {}
        for event in events:
            by_id.setdefault(event.id, event)
        if not by_id:
            return []
        statement = self._insert(tables.events).on_conflict_do_nothing(index_elements=["id"])
        rows = [_event_row(event, now) for event in by_id.values()]
        stored = set(connection.execute(statement.returning(tables.events.c.id), rows).scalars())
        return [event for event in by_id.values() if event.id in stored]

    def _update_robots(
        self,
        connection: sa.Connection,
        events: Sequence[Event],
        states: Sequence[RobotState | Forgotten],
        now: datetime.datetime,
    ) -> None:
        t = tables.robots
        keys = {(one.site, one.robot) for one in (*events, *states)}
        for site, robot in sorted(keys):
            here = (t.c.site == site) & (t.c.robot == robot)
            found = connection.execute(sa.select(t).where(here)).mappings().first()
            row: Row | None = dict(found) if found else None
            for state in states:
                if (state.site, state.robot) == (site, robot):
                    row = None if isinstance(state, Forgotten) else after_state(row, state, now)
            for event in events:
                if (event.site, event.robot) == (site, robot):
                    row = after_event(row, event, now)
            if row is None:
                connection.execute(sa.delete(t).where(here))
                continue
            statement = self._insert(t).values(row)
            keep = {name: statement.excluded[name] for name in row if name not in ("site", "robot")}
            connection.execute(statement.on_conflict_do_update(index_elements=["site", "robot"], set_=keep))

    def _add_rejected(self, connection: sa.Connection, rejected: Sequence[Rejected], now: datetime.datetime) -> None:
        t = tables.rejected
        for one in rejected:
            statement = self._insert(t).values(_rejected_row(one, now))
            again = {"last_at": now, "times": t.c.times + 1}
            connection.execute(statement.on_conflict_do_update(index_elements=["digest"], set_=again))
        if rejected:
            newest = sa.select(t.c.last_at).order_by(t.c.last_at.desc()).offset(MAX_REJECTED - 1).limit(1)
            oldest_kept = connection.execute(newest).scalar()
            if oldest_kept is not None:
                connection.execute(sa.delete(t).where(t.c.last_at < oldest_kept))

    # ---- reading

    def recent(
        self, limit: int = 100, *, site: str = "", robot: str = "", metrics: bool = True
    ) -> list[Mapping[str, Any]]:
        """The newest events by arrival, newest first; `metrics=False` leaves the metrics out."""
        t = tables.events
        query = sa.select(t).order_by(t.c.received_at.desc(), t.c.id.desc()).limit(limit)
        if robot:
            query = query.where(t.c.site == site, t.c.robot == robot)
        if not metrics:
            query = query.where(t.c.type != "metrics")
        return self._rows(query)

    def event(self, id_or_prefix: str) -> Mapping[str, Any]:
        """One event by its id, or by the beginning of its id when only one begins so.

        Raises:
            RejectedError: no such event, or more than one.
        """
        wanted = id_or_prefix.strip().lower()
        if len(wanted) < _PREFIX_LENGTH or not _ID_CHARACTERS.issuperset(wanted):
            raise RejectedError(
                f"`{id_or_prefix[:50]}` is not an event's id, nor its first {_PREFIX_LENGTH} digits or more"
            )
        t = tables.events
        found = self._rows(sa.select(t).where(t.c.id.startswith(wanted, autoescape=True)).limit(2))
        if not found:
            raise RejectedError(f"no event `{wanted}` in {self.name}; the console's page of events shows what is there")
        if len(found) > 1:
            raise RejectedError(f"more than one event begins with `{wanted}`; give more of the id")
        return found[0]

    def robots(self) -> list[Mapping[str, Any]]:
        """The latest of each robot (the columns of `tables.robots`), by site and name."""
        t = tables.robots
        return self._rows(sa.select(t).order_by(t.c.site, t.c.robot))

    def rejected(self, limit: int = 100) -> list[Mapping[str, Any]]:
        """What was refused, newest first."""
        t = tables.rejected
        return self._rows(sa.select(t).order_by(t.c.last_at.desc()).limit(limit))

    def count(self) -> int:
        """All events."""
        with self._transaction() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(tables.events)).scalar_one())

    def counts_by_type(self, site: str = "", robot: str = "") -> dict[str, int]:
        """How many events of each type, of one robot or of all."""
        t = tables.events
        query = sa.select(t.c.type, sa.func.count().label("events")).group_by(t.c.type).order_by(t.c.type)
        if robot:
            query = query.where(t.c.site == site, t.c.robot == robot)
        return {row["type"]: row["events"] for row in self._rows(query)}

    def counts_by_robot(self) -> dict[tuple[str, str], int]:
        """How many events of each (site, robot)."""
        t = tables.events
        query = sa.select(t.c.site, t.c.robot, sa.func.count().label("events")).group_by(t.c.site, t.c.robot)
        return {(row["site"], row["robot"]): row["events"] for row in self._rows(query)}

    def gaps(self, *, from_first: bool = False) -> list[Gap]:
        """Sequence numbers that never arrived.

        Args:
            from_first: also what is missing before the first stored event of a robot, down to sequence 1; true only
                where this store is as old as the robots.
        """
        t = tables.events
        before = sa.func.lag(t.c.sequence).over(partition_by=(t.c.site, t.c.robot), order_by=t.c.sequence)
        inner = sa.select(t.c.site, t.c.robot, t.c.sequence, before.label("before")).subquery()
        start = sa.func.coalesce(inner.c.before, 0) if from_first else inner.c.before
        query = (
            sa.select(inner.c.site, inner.c.robot, (start + 1).label("first"), (inner.c.sequence - 1).label("last"))
            .where(inner.c.sequence > start + 1)
            .order_by(inner.c.site, inner.c.robot, inner.c.sequence)
        )
        return [Gap(**row) for row in self._rows(query)]

    # ---- inside

    def _rows(self, query: sa.Select[Any]) -> list[Mapping[str, Any]]:
        with self._transaction() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _insert(self, table: sa.Table) -> Any:
        """The one statement that dialects spell differently: INSERT ... ON CONFLICT."""
        return {"sqlite": sqlite, "postgresql": postgresql}[self._engine.dialect.name].insert(table)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sa.exc.DataError, sa.exc.IntegrityError) as problem:
            raise RejectedError(f"the store {self.name} does not take this: {_first_line(problem)}") from None
        except sa.exc.DBAPIError as problem:
            raise OperatorError(f"the store {self.name} does not work: {_first_line(problem)}") from None
        except (
            sa.exc.StatementError,
            ValueError,
            OverflowError,
        ) as problem:  # no value for the column, says the driver
            raise RejectedError(f"the store {self.name} does not take this: {_first_line(problem)}") from None


def open_store(url: str) -> Store:
    """Opens the store for writing, making it when it is not there.

    Args:
        url: of SQLAlchemy: `sqlite:///build/events.db`, `postgresql+psycopg://user@host/name`.

    Raises:
        OperatorError: the URL is none, or the database cannot be made or written, or is of another version.
    """
    engine = make_engine(url, create=True)
    store = Store(engine)
    with store._transaction() as connection:
        tables.metadata.create_all(connection)
        found = connection.execute(sa.select(tables.schema_version.c.version)).scalar()
        if found is None:
            connection.execute(tables.schema_version.insert().values(version=tables.SCHEMA_VERSION))
            found = tables.SCHEMA_VERSION
    _must_be_known(store, found)
    return store


def open_reader(url: str) -> Store:
    """Opens a store that a collector has made, for reading.

    Raises:
        OperatorError: there is none, or it cannot be read, or is of another version.
    """
    store = Store(make_engine(url, create=False))
    try:
        with store._transaction() as connection:
            found = connection.execute(sa.select(tables.schema_version.c.version)).scalar()
    except OperatorError as problem:
        raise OperatorError(f"{problem}; `jetloop collector --store {store.name}` makes it") from None
    _must_be_known(store, found)
    return store


def _must_be_known(store: Store, found: int | None) -> None:
    if found != tables.SCHEMA_VERSION:
        raise OperatorError(
            f"the store {store.name} has tables of version {found}, this jetloop writes version "
            f"{tables.SCHEMA_VERSION}: give another --store, or use the jetloop that made it"
        )


def _event_row(event: Event, now: datetime.datetime) -> dict[str, Any]:
    names = ("id", "site", "robot", "session", "type", "sequence", "release", "engine", "data")
    row = {name: getattr(event, name) for name in names}
    return {**row, "captured_at": event.time, "sent_at": event.sentat, "received_at": now}


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


def _first_line(problem: Exception) -> str:
    return str(getattr(problem, "orig", None) or problem).strip().splitlines()[0]
