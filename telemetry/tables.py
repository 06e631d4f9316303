"""The tables of the event store, in SQLAlchemy Core, the same on SQLite and PostgreSQL."""

import datetime
from typing import Any

import sqlalchemy as sa

SCHEMA_VERSION = 1


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

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),  # UUIDv7
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
    sa.Index("events_by_robot", "site", "robot", "sequence"),
    sa.Index("events_by_arrival", "received_at"),
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

schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))
