"""How a robot's row in the store follows from what the robot tells. Pure: no I/O here."""

import datetime
from typing import Any

from serving.contracts.events import Event, RobotState

Row = dict[str, Any]  # the columns of tables.robots


def after_state(row: Row | None, state: RobotState, now: datetime.datetime) -> Row:
    """The row after a state message.

    A last will knows nothing but that the robot is gone, so the rest stays. MQTT keeps the order within a connection;
    a last will of an earlier start of the daemon may still come late, and must not take the new one offline.
    """
    row = row or _unknown(state.site, state.robot, now)
    if not state.online:
        if row["online"] and row["session"] != state.session and row["at"] is not None and state.at < row["at"]:
            return row
        return {**row, "online": False, "mode": state.mode, "reason": state.reason, "session": state.session}
    said = {name: getattr(state, name) for name in row if hasattr(state, name)}
    return {**row, **said, "seen_at": now}


def after_event(row: Row | None, event: Event, now: datetime.datetime) -> Row:
    """The row after an event that was not stored before; events may come in any order."""
    row = {**(row or _unknown(event.site, event.robot, now)), "seen_at": now}
    row["last_sequence"] = max(row["last_sequence"], event.sequence)
    if event.type == "metrics":
        if row["metrics_at"] is None or event.time >= row["metrics_at"]:
            row |= {"metrics": event.data, "metrics_at": event.time}
    elif event.sequence > row["last_event_sequence"]:
        row |= {
            "last_event_sequence": event.sequence,
            "last_event": event.id,
            "last_event_type": event.type,
            "last_event_at": event.time,
        }
    return row


def _unknown(site: str, robot: str, now: datetime.datetime) -> Row:
    """A robot of which no state has come yet."""
    return {
        **{"site": site, "robot": robot, "session": "", "online": False, "at": None, "mode": "unknown", "reason": ""},
        **{"ring": "", "target": "", "release": "", "model_version": "", "engine": "", "uptime_s": 0.0},
        **{"temperature_c": None, "disk_free_mb": None, "outbox_depth": 0, "seen_at": now, "last_sequence": 0},
        **{
            "last_event_sequence": 0,
            "last_event": "",
            "last_event_type": "",
            "last_event_at": None,
            "metrics": None,
            "metrics_at": None,
        },
    }
