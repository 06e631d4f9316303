"""Migrations of the event store, run by alembic: `telemetry.schema.upgrade`.

One file a version in versions/, each with its own copy of what it makes; tables.py says what comes out in the end.
"""
