"""Questions to the event store. Any number of processes ask, beside the collectors that write."""

import contextlib
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from serving.errors import OperatorError, RejectedError, first_line
from telemetry import rollups, tables

_ID_CHARACTERS = frozenset("0123456789abcdef-")
_PREFIX_LENGTH = 4  # shortest beginning of an id that is looked up
_LOWEST_ID, _HIGHEST_ID = ("-".join(digit * count for count in (8, 4, 4, 4, 12)) for digit in "0f")

Row = Mapping[str, Any]


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


class StoreReader:
    """What can be asked. `telemetry.store.open_reader` opens one.

    All methods raise OperatorError when the database does not answer, in one line that names it.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self.name = engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

    def recent(self, limit: int = 100, *, site: str = "", robot: str = "", metrics: bool = True) -> list[Row]:
        """The newest events by arrival, newest first; `metrics=False` leaves the metrics out."""
        t = tables.events
        query = sa.select(t).order_by(t.c.received_at.desc(), t.c.id.desc()).limit(limit)
        if robot:
            query = query.where(t.c.site == site, t.c.robot == robot)
        if not metrics:
            query = query.where(t.c.type != "metrics")
        return self._rows(query)

    def event(self, id_or_prefix: str) -> Row:
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
        lowest, highest = (wanted + end[len(wanted) :] for end in (_LOWEST_ID, _HIGHEST_ID))
        in_range = t.c.id.between(lowest, highest)  # the index helps with this, and not with LIKE
        found = self._rows(sa.select(t).where(in_range, t.c.id.startswith(wanted, autoescape=True)).limit(2))
        if not found:
            raise RejectedError(f"no event `{wanted}` in {self.name}; the console's page of events shows what is there")
        if len(found) > 1:
            raise RejectedError(f"more than one event begins with `{wanted}`; give more of the id")
        return found[0]

    def robots(self) -> list[Row]:
        """The latest of each robot (the columns of `tables.robots`), by site and name."""
        t = tables.robots
        return self._rows(sa.select(t).order_by(t.c.site, t.c.robot))

    def rejected(self, limit: int = 100) -> list[Row]:
        """What was refused, newest first."""
        t = tables.rejected
        return self._rows(sa.select(t).order_by(t.c.last_at.desc()).limit(limit))

    def rollups(self, since: datetime.datetime, site: str = "", robot: str = "") -> list[Row]:
        """What the robots did, hour by hour: a row for each hour, site, robot and release, oldest first.

        Args:
            since: from the hour that holds this moment on.
            site: of this site only.
            robot: of this robot only.

        Returns:
            The columns of `tables.rollups`, and what `rollups.figures` adds.
        """
        t = tables.rollups
        hour = since.astimezone(datetime.UTC).replace(minute=0, second=0, microsecond=0)
        query = sa.select(t).where(t.c.hour >= hour).order_by(t.c.hour, t.c.site, t.c.robot, t.c.release)
        if site:
            query = query.where(t.c.site == site)
        if robot:
            query = query.where(t.c.robot == robot)
        return [rollups.figures(row) for row in self._rows(query)]

    def count(self) -> int:
        """All events."""
        with self.transaction() as connection:
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
        """Sequence numbers that never arrived; of what was archived and removed nothing is said.

        Args:
            from_first: also what is missing before the first stored event of a robot, down to sequence 1; true only
                where this store is as old as the robots.
        """
        t, gone = tables.events, tables.removed_robots
        before = sa.func.lag(t.c.sequence).over(partition_by=(t.c.site, t.c.robot), order_by=t.c.sequence)
        inner = (
            sa.select(t.c.site, t.c.robot, t.c.sequence, before.label("before"), gone.c.sequence.label("removed"))
            .outerjoin(gone, (gone.c.site == t.c.site) & (gone.c.robot == t.c.robot))
            .subquery()
        )
        known = sa.case((inner.c.before < inner.c.removed, inner.c.removed), else_=inner.c.before)
        start = sa.func.coalesce(known, inner.c.removed, *([0] if from_first else []))
        query = (
            sa.select(inner.c.site, inner.c.robot, (start + 1).label("first"), (inner.c.sequence - 1).label("last"))
            .where(inner.c.sequence > start + 1)
            .order_by(inner.c.site, inner.c.robot, inner.c.sequence)
        )
        return [Gap(**row) for row in self._rows(query)]

    def _rows(self, query: sa.Select[Any]) -> list[Row]:
        with self.transaction() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sa.exc.DataError, sa.exc.IntegrityError) as problem:
            raise RejectedError(f"the store {self.name} does not take this: {described(problem)}") from None
        except sa.exc.DBAPIError as problem:
            raise OperatorError(f"the store {self.name} does not work: {described(problem)}") from None
        except (
            sa.exc.StatementError,
            ValueError,
            OverflowError,
        ) as problem:  # no value for the column, says the driver
            raise RejectedError(f"the store {self.name} does not take this: {described(problem)}") from None


def described(problem: Exception) -> str:
    """What the driver says, without SQLAlchemy's own words around it; in one line."""
    return first_line(getattr(problem, "orig", None) or problem)
