"""The tables of the event store as they are now, in SQLAlchemy Core, the same on SQLite and PostgreSQL.

How a store gets from older tables to these is in migrations/.
"""

import datetime
from typing import Any

import sqlalchemy as sa


class UtcDateTime(sa.types.TypeDecorator[datetime.datetime]):
    """A moment: aware in Python, always UTC in the database. SQLite keeps no offset, so it is given none."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, dialect: Any) -> datetime.datetime | None:
        if value is None:
            return None
        utc = value.astimezone(datetime.UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime.datetime | None, dialect: Any) -> datetime.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


metadata = sa.MetaData()
_Position = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers INTEGER keys only

events = sa.Table(
    "events",
    metadata,
    # In the order in which they were stored, never used again: what the archive reads up to.
    sa.Column("position", _Position, sa.Identity(), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False),  # UUIDv7
    sa.Column("site", sa.String(100), nullable=False),
    sa.Column("robot", sa.String(100), nullable=False),
    sa.Column("session", sa.String(100), nullable=False),
    sa.Column("type", sa.String(100), nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),  # per robot
    sa.Column("release", sa.String(200), nullable=False),
    sa.Column("engine", sa.String(64), nullable=False),  # sha256; empty while the robot had no model
    sa.Column("captured_at", UtcDateTime, nullable=False),  # the robot's clock
    sa.Column("sent_at", UtcDateTime),  # the robot's clock
    sa.Column("received_at", UtcDateTime, nullable=False),  # the collector's clock
    sa.Column("data", sa.JSON, nullable=False),
    sa.UniqueConstraint("id", name="events_by_id"),
    sa.Index("events_by_robot", "site", "robot", "sequence"),
    sa.Index("events_by_arrival", "received_at"),
    sqlite_autoincrement=True,
)

robots = sa.Table(
    "robots",
    metadata,
    sa.Column("site", sa.String(100), primary_key=True),
    sa.Column("robot", sa.String(100), primary_key=True),
    # What the robot last said of itself (contract `RobotState`); a last will changes online, mode, reason and at only.
    sa.Column("session", sa.String(100), nullable=False, default=""),
    sa.Column("online", sa.Boolean, nullable=False, default=False),
    sa.Column("at", UtcDateTime),
    sa.Column("mode", sa.String(500), nullable=False, default="unknown"),
    sa.Column("reason", sa.String(500), nullable=False, default=""),
    sa.Column("ring", sa.String(500), nullable=False, default=""),
    sa.Column("target", sa.String(500), nullable=False, default=""),
    sa.Column("release", sa.String(500), nullable=False, default=""),
    sa.Column("model_version", sa.String(500), nullable=False, default=""),
    sa.Column("engine", sa.String(500), nullable=False, default=""),
    sa.Column("uptime_s", sa.Float, nullable=False, default=0.0),
    sa.Column("temperature_c", sa.Float),
    sa.Column("disk_free_mb", sa.Float),
    sa.Column("outbox_depth", sa.BigInteger, nullable=False, default=0),
    # What its events told.
    sa.Column(
        "seen_at", UtcDateTime, nullable=False
    ),  # the collector's clock: last message of any kind but a last will
    sa.Column("last_sequence", sa.BigInteger, nullable=False, default=0),  # highest of all its events
    sa.Column("last_event_sequence", sa.BigInteger, nullable=False, default=0),  # of the four below
    sa.Column("last_event", sa.String(36), nullable=False, default=""),  # id; metrics are not counted
    sa.Column("last_event_type", sa.String(100), nullable=False, default=""),
    sa.Column("last_event_at", UtcDateTime),
    sa.Column("metrics", sa.JSON),  # `data` of the newest metrics event
    sa.Column("metrics_at", UtcDateTime),
)

rejected = sa.Table(
    "rejected",
    metadata,
    sa.Column(
        "digest", sa.String(64), primary_key=True
    ),  # sha256 of topic and payload: a message sent again is one row
    sa.Column("topic", sa.String(500), nullable=False),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),  # its beginning
    sa.Column("payload_bytes", sa.BigInteger, nullable=False),
    sa.Column("first_at", UtcDateTime, nullable=False),
    sa.Column("last_at", UtcDateTime, nullable=False),
    sa.Column("times", sa.BigInteger, nullable=False),
)

# One row for each hour of the robots' clocks. All are counts or sums, so that a batch adds to them: rollups.py.
rollups = sa.Table(
    "rollups",
    metadata,
    sa.Column("hour", UtcDateTime, primary_key=True),  # its beginning
    sa.Column("site", sa.String(100), primary_key=True),
    sa.Column("robot", sa.String(100), primary_key=True),
    sa.Column("release", sa.String(200), primary_key=True),
    sa.Column("events", sa.BigInteger, nullable=False),  # of all types
    sa.Column("avoidances", sa.BigInteger, nullable=False),
    sa.Column("collisions", sa.BigInteger, nullable=False),
    sa.Column("interventions", sa.BigInteger, nullable=False),
    sa.Column("went_back", sa.BigInteger, nullable=False),
    sa.Column("decisions", sa.BigInteger, nullable=False),
    sa.Column("blocked", sa.BigInteger, nullable=False),  # of the decisions
    # What a robot measures over some seconds, each weighted with its decisions: microseconds times decisions.
    sa.Column("latency_decisions", sa.BigInteger, nullable=False),
    sa.Column("latency_p50_us", sa.BigInteger, nullable=False),
    sa.Column("latency_p99_us", sa.BigInteger, nullable=False),
    sa.Column("latency_p99_max_us", sa.BigInteger, nullable=False),  # the worst of the hour, not weighted
    sa.Column("removed", sa.BigInteger, nullable=False),  # of the events: archived, and no longer in the store
)

# What `archive retain` took out of the store, so that an event which comes again after that is still known.
removed = sa.Table("removed", metadata, sa.Column("id", sa.LargeBinary(16), primary_key=True))  # the UUID's bytes

removed_robots = sa.Table(
    "removed_robots",
    metadata,
    sa.Column("site", sa.String(100), primary_key=True),
    sa.Column("robot", sa.String(100), primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),  # highest of the removed
    sa.Column("captured_at", UtcDateTime, nullable=False),  # latest of the removed
    sa.Index("removed_robots_by_time", "captured_at"),
)

# One row: by which name archives know this store.
store = sa.Table("store", metadata, sa.Column("id", sa.String(36), primary_key=True))
