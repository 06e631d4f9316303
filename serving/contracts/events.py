"""What robots tell: CloudEvents 1.0 in JSON over MQTT 3.1.1, QoS 1, at least once on the wire.

jetloop/v1/<site>/<robot>/event/<type>   events
jetloop/v1/<site>/<robot>/metrics        the same envelope, type `metrics`
jetloop/v1/<site>/<robot>/state          retained, with last will: `RobotState`
jetloop/v1/releases/<channel>            retained wake-up: `releases.Wakeup`
"""

import datetime
import os
import threading
import time
from typing import Any, Dict, Optional

import msgspec
from typing_extensions import Annotated

from serving.contracts.names import Name

ROOT = "jetloop/v1"
EVENT_TYPES = (
    "robot.started",
    "avoidance.started",
    "avoidance.ended",
    "collision",
    "intervention",
    "model.activated",
    "model.refused",
    "model.rolled-back",
    "engine.failed",
    "motors.guard-restarted",
    "slots.damaged",
    "frame.stale",
    "outbox.dropped",
    "metrics",
)
Instant = Annotated[datetime.datetime, msgspec.Meta(tz=True)]  # RFC 3339, with its offset; jetloop writes UTC
MAX_PAYLOAD_BYTES = 64 * 1024


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A CloudEvent with jetloop's extension attributes (lower case and digits only, as CloudEvents asks)."""

    specversion: Annotated[str, msgspec.Meta(pattern=r"^1\.0\Z")] = "1.0"
    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")]
    source: Annotated[str, msgspec.Meta(max_length=300)]  # /jetloop/<site>/<robot>
    type: Name
    time: Instant  # captured_at: when it happened
    datacontenttype: str = "application/json"
    site: Name
    robot: Name
    session: Name  # one start of the daemon
    sequence: Annotated[int, msgspec.Meta(ge=1)]  # per robot, never reused, across restarts
    release: Annotated[str, msgspec.Meta(max_length=200)] = ""  # release_id; empty while there is no model
    engine: Annotated[str, msgspec.Meta(max_length=64)] = ""  # sha256 of the engine
    sentat: Optional[Instant] = None  # when it was handed to the broker
    data: Dict[str, Any] = {}


class RobotState(msgspec.Struct, frozen=True, kw_only=True):
    """What a robot is doing now. As last will only `online=False` and the identity are known."""

    site: Name
    robot: Name
    session: Name
    online: bool
    at: Instant
    mode: str = "offline"  # no-model, driving, standing, loading, stopped, offline
    reason: str = ""
    ring: str = ""
    target: str = ""
    release: str = ""
    model_version: str = ""
    engine: str = ""  # sha256
    uptime_s: float = 0.0
    temperature_c: Optional[float] = None
    disk_free_mb: Optional[float] = None
    outbox_depth: int = 0


def event_topic(site: str, robot: str, event_type: str) -> str:
    if event_type == "metrics":
        return f"{ROOT}/{site}/{robot}/metrics"
    return f"{ROOT}/{site}/{robot}/event/{event_type}"


def state_topic(site: str, robot: str) -> str:
    return f"{ROOT}/{site}/{robot}/state"


def wakeup_topic(channel: str) -> str:
    return f"{ROOT}/releases/{channel}"


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


_uuid_lock = threading.Lock()
_uuid_last_ms = 0
_uuid_counter = 0


def uuid7() -> str:
    """A UUID version 7 (RFC 9562, 5.7, method 1 of 6.2): sorts by time, and within a millisecond by a counter."""
    global _uuid_last_ms, _uuid_counter
    with _uuid_lock:
        now_ms = time.time_ns() // 1_000_000
        if now_ms > _uuid_last_ms:
            _uuid_last_ms, _uuid_counter = now_ms, 0
        else:
            _uuid_counter += 1
            if _uuid_counter > 0xFFF:
                _uuid_last_ms, _uuid_counter = _uuid_last_ms + 1, 0
        high = (_uuid_last_ms & (1 << 48) - 1) << 16 | 0x7000 | _uuid_counter
    low = int.from_bytes(os.urandom(8), "big") & (1 << 62) - 1 | 0b10 << 62
    digits = f"{high << 64 | low:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
