"""What the console asks the store beyond what the store answers by itself: search, the course of one robot, health."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from serving.contracts.events import utc_now
from telemetry import tables
from telemetry.databases import make_engine
from telemetry.store import open_reader
from telemetry.store_reading import StoreReader

FOUND = 200  # events that a search shows
TREND = 30  # values of a sparkline
_COUNTED = ("decisions", "blocked", "avoidances", "collisions", "interventions", "went_back")
Row = Mapping[str, Any]
Key = tuple[str, str]  # site, robot


@dataclass(frozen=True)
class Wanted:
    """A search for events; what is empty is not asked for."""

    robot: str = ""  # part of site/robot
    kind: str = ""  # a type; `all` with metrics, empty: all but metrics
    text: str = ""  # in the data, the release, the engine, the session or the id
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None


@dataclass(frozen=True)
class Health:
    """What the robots that ran a release told."""

    robots: int = 0
    decisions: int = 0
    blocked: int = 0  # of the decisions
    avoidances: int = 0
    collisions: int = 0
    interventions: int = 0
    went_back: int = 0  # robots left the release by their own judgement
    blocked_rate: float | None = None
    latency_p99_ms: float | None = None  # of the robots' own, weighted with their decisions

    def per_decisions(self, times: int) -> float | None:
        """How often in 10,000 decisions; None before there are as many."""
        return 1e4 * times / self.decisions if self.decisions >= 1e4 else None


class ConsoleStore(StoreReader):
    """A store that only reads. All methods raise OperatorError when the database does not answer."""

    def search(self, wanted: Wanted, limit: int = FOUND) -> list[Row]:
        """Events, newest first by the robots' clocks within the newest that came."""
        t = tables.events
        query = sa.select(t).order_by(t.c.received_at.desc(), t.c.id.desc()).limit(limit)
        if wanted.kind == "":
            query = query.where(t.c.type != "metrics")
        elif wanted.kind != "all":
            query = query.where(t.c.type == wanted.kind)
        site, slash, robot = wanted.robot.partition("/")
        if slash:
            query = query.where(t.c.site == site, t.c.robot == robot)
        elif site:
            query = query.where(t.c.site.contains(site, autoescape=True) | t.c.robot.contains(site, autoescape=True))
        if wanted.text:
            columns = (sa.cast(t.c.data, sa.Text), t.c.release, t.c.engine, t.c.session, t.c.id)
            parts = [sa.func.lower(one).contains(wanted.text.lower(), autoescape=True) for one in columns]
            query = query.where(sa.or_(*parts))
        if wanted.since:
            query = query.where(t.c.received_at >= wanted.since)
        if wanted.until:
            query = query.where(t.c.received_at <= wanted.until)
        return self._rows(query)

    def told_since(self, since: datetime.datetime, limit: int) -> list[Row]:
        """Events without metrics that came since a moment, newest first."""
        return self.search(Wanted(since=since), limit)

    def robot(self, site: str, robot: str) -> Row | None:
        t = tables.robots
        found = self._rows(sa.select(t).where(t.c.site == site, t.c.robot == robot))
        return found[0] if found else None

    def course(self, site: str, robot: str, limit: int, *, metrics: bool) -> list[Row]:
        """The newest of one robot, by its own count: metrics alone, or all but metrics."""
        t = tables.events
        kind = t.c.type == "metrics" if metrics else t.c.type != "metrics"
        return self._rows(
            sa.select(t).where(t.c.site == site, t.c.robot == robot, kind).order_by(t.c.sequence.desc()).limit(limit)
        )

    def latencies(self, robots: Sequence[Key]) -> dict[Key, list[float]]:
        """The last TREND latencies (p99, ms) of each robot, the oldest first."""
        found = {}
        for site, robot in robots:
            values = [row["data"].get("latency_p99_ms") for row in self.course(site, robot, TREND, metrics=True)]
            found[site, robot] = [float(value) for value in reversed(values) if isinstance(value, int | float)]
        return found

    def avoided(self, since: datetime.datetime) -> dict[Key, datetime.datetime]:
        """When each robot avoided something last."""
        t = tables.events
        query = (
            sa.select(t.c.site, t.c.robot, sa.func.max(t.c.captured_at, type_=tables.UtcDateTime).label("at"))
            .where(t.c.received_at >= since, t.c.type == "avoidance.started")
            .group_by(t.c.site, t.c.robot)
        )
        return {(row["site"], row["robot"]): row["at"] for row in self._rows(query)}

    def health(self, hours: float) -> dict[str, Health]:
        """Health of each release, of the last hours of the robots' clocks.

        Returns:
            release id -> what its robots told.
        """
        t = tables.rollups
        since = (utc_now() - datetime.timedelta(hours=hours)).replace(minute=0, second=0, microsecond=0)
        sums = [sa.func.sum(t.c[name]).label(name) for name in (*_COUNTED, "latency_decisions", "latency_p99_us")]
        robots = sa.func.count(sa.distinct(t.c.site + "/" + t.c.robot)).label("robots")
        query = sa.select(t.c.release, robots, *sums).where(t.c.hour >= since, t.c.release != "").group_by(t.c.release)
        return {
            row["release"]: Health(
                robots=int(row["robots"]),
                **{name: int(row[name]) for name in _COUNTED},
                latency_p99_ms=_share(row["latency_p99_us"], 1000 * row["latency_decisions"]),
                blocked_rate=_share(row["blocked"], row["decisions"]),
            )
            for row in self._rows(query)
        }


def _share(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def open_console_store(url: str) -> ConsoleStore:
    """Opens a store that a collector has made.

    Raises:
        OperatorError: there is none, or it cannot be read, or is of another version.
    """
    open_reader(url).close()  # says what is wrong with it
    return ConsoleStore(make_engine(url, create=False))
