"""Events, robots, rejected messages: the tables of jetloop before it had migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.String(36), primary_key=True),
        *(sa.Column(name, sa.String(100), nullable=False) for name in ("site", "robot", "session", "type")),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("release", sa.String(200), nullable=False),
        sa.Column("engine", sa.String(64), nullable=False),
        sa.Column("captured_at", _MOMENT, nullable=False),
        sa.Column("sent_at", _MOMENT),
        sa.Column("received_at", _MOMENT, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_index("events_by_robot", "events", ["site", "robot", "sequence"])
    op.create_index("events_by_arrival", "events", ["received_at"])
    op.create_table(
        "robots",
        sa.Column("site", sa.String(100), primary_key=True),
        sa.Column("robot", sa.String(100), primary_key=True),
        sa.Column("session", sa.String(100), nullable=False),
        sa.Column("online", sa.Boolean, nullable=False),
        sa.Column("at", _MOMENT),
        *(
            sa.Column(name, sa.String(500), nullable=False)
            for name in ("mode", "reason", "ring", "target", "release", "model_version", "engine")
        ),
        sa.Column("uptime_s", sa.Float, nullable=False),
        sa.Column("temperature_c", sa.Float),
        sa.Column("disk_free_mb", sa.Float),
        sa.Column("outbox_depth", sa.BigInteger, nullable=False),
        sa.Column("seen_at", _MOMENT, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("last_event_sequence", sa.BigInteger, nullable=False),
        sa.Column("last_event", sa.String(36), nullable=False),
        sa.Column("last_event_type", sa.String(100), nullable=False),
        sa.Column("last_event_at", _MOMENT),
        sa.Column("metrics", sa.JSON),
        sa.Column("metrics_at", _MOMENT),
    )
    op.create_table(
        "rejected",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("topic", sa.String(500), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("payload_bytes", sa.BigInteger, nullable=False),
        sa.Column("first_at", _MOMENT, nullable=False),
        sa.Column("last_at", _MOMENT, nullable=False),
        sa.Column("times", sa.BigInteger, nullable=False),
    )
    op.create_table("schema_version", sa.Column("version", sa.Integer, primary_key=True))
    op.execute("INSERT INTO schema_version VALUES (1)")
