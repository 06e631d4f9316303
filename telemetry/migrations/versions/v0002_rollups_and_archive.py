"""Positions for the archive, rollups, and what is remembered of events that were archived and removed."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_MOMENT = sa.DateTime(timezone=True)
_COLUMNS = "id, site, robot, session, type, sequence, release, engine, captured_at, sent_at, received_at, data"
_ROLLED_UP = (
    *("events", "avoidances", "collisions", "interventions", "went_back", "decisions", "blocked"),
    *("latency_decisions", "latency_p50_us", "latency_p99_us", "latency_p99_max_us", "removed"),
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _number_on_sqlite()
    else:
        _number_on_postgresql()
    op.create_table(
        "rollups",
        sa.Column("hour", _MOMENT, primary_key=True),
        sa.Column("site", sa.String(100), primary_key=True),
        sa.Column("robot", sa.String(100), primary_key=True),
        sa.Column("release", sa.String(200), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _ROLLED_UP),
    )
    op.create_table("removed", sa.Column("id", sa.LargeBinary(16), primary_key=True))
    op.create_table(
        "removed_robots",
        sa.Column("site", sa.String(100), primary_key=True),
        sa.Column("robot", sa.String(100), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("captured_at", _MOMENT, nullable=False),
    )
    op.create_index("removed_robots_by_time", "removed_robots", ["captured_at"])
    store = op.create_table("store", sa.Column("id", sa.String(36), primary_key=True))
    op.bulk_insert(store, [{"id": str(uuid.uuid4())}])
    # A jetloop from before the migrations looks here, and refuses what it does not know. Nobody else does.
    op.execute("UPDATE schema_version SET version = 2")


def _number_on_sqlite() -> None:
    """SQLite adds no key to a table: it is made anew, in the order of arrival."""
    op.drop_index("events_by_robot")
    op.drop_index("events_by_arrival")
    op.rename_table("events", "events_before")
    op.create_table(
        "events",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(36), nullable=False),
        *(sa.Column(name, sa.String(100), nullable=False) for name in ("site", "robot", "session", "type")),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("release", sa.String(200), nullable=False),
        sa.Column("engine", sa.String(64), nullable=False),
        sa.Column("captured_at", _MOMENT, nullable=False),
        sa.Column("sent_at", _MOMENT),
        sa.Column("received_at", _MOMENT, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.UniqueConstraint("id", name="events_by_id"),
        sqlite_autoincrement=True,
    )
    op.execute(f"INSERT INTO events ({_COLUMNS}) SELECT {_COLUMNS} FROM events_before ORDER BY received_at, id")
    op.drop_table("events_before")
    op.create_index("events_by_robot", "events", ["site", "robot", "sequence"])
    op.create_index("events_by_arrival", "events", ["received_at"])


def _number_on_postgresql() -> None:
    op.drop_constraint("events_pkey", "events", type_="primary")
    op.add_column("events", sa.Column("position", sa.BigInteger, sa.Identity(), nullable=False))
    op.create_primary_key("events_pkey", "events", ["position"])
    op.create_unique_constraint("events_by_id", "events", ["id"])
