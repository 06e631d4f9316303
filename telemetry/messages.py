"""From an MQTT message to an event or a robot's state, or to the reason why it is neither. Pure: no I/O here."""

import datetime
import re
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from serving.contracts.events import MAX_PAYLOAD_BYTES, ROOT, Event, RobotState
from serving.contracts.names import NAME_PATTERN
from serving.errors import RejectedError

MAX_SEQUENCE = 2**63 - 1  # of a BIGINT column
MAX_DEPTH = 16  # of `data`
MAX_TEXT = 500  # characters, as the columns
_STAMP_BYTES = 256  # robots measure a payload before they add `sentat`

COLLECTOR = "jetloop-collector"  # the collector's client id, if it is given no other
SUBSCRIPTIONS = (f"{ROOT}/+/+/event/+", f"{ROOT}/+/+/metrics", f"{ROOT}/+/+/state")

_NAME = re.compile(NAME_PATTERN)
_EARLIEST = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_LATEST = datetime.datetime(9000, 1, 1, tzinfo=datetime.UTC)
_events = msgspec.json.Decoder(Event)
_states = msgspec.json.Decoder(RobotState)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Forgotten:
    """An empty retained state: the operator took this robot off the broker."""

    site: str
    robot: str


def parse(topic: str, payload: bytes) -> Event | RobotState | Forgotten:
    """Reads one message.

    Args:
        topic: as published: `jetloop/v1/<site>/<robot>/event/<type>`, `.../metrics` or `.../state`.
        payload: JSON, at most `MAX_PAYLOAD_BYTES`.

    Raises:
        RejectedError: wrong topic, not JSON, not the contract, too large, or topic and envelope disagree.
    """
    site, robot, kind, event_type = _split(topic)
    if len(payload) > MAX_PAYLOAD_BYTES + _STAMP_BYTES:
        raise RejectedError(f"{len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are taken")
    if kind == "state":
        return _state(site, robot, payload) if payload else Forgotten(site, robot)
    event = _decode(_events, payload)
    _must_agree(site=(site, event.site), robot=(robot, event.robot), type=(event_type, event.type))
    _must_be_storable(event)
    return event


def printable(text: str) -> str:
    """What any database takes as text and any page shows in a line, at most `MAX_TEXT` characters."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text[:MAX_TEXT])


def _split(topic: str) -> tuple[str, str, str, str]:
    """Site, robot, kind (event or state) and, for an event, its type."""
    levels = topic.split("/")
    root, rest = levels[:2], levels[2:]
    if "/".join(root) != ROOT or len(rest) < 3 or not all(_NAME.match(level) for level in rest):
        raise RejectedError(f"the topic is not one of {', '.join(SUBSCRIPTIONS)}")
    site, robot, kind = rest[:3]
    if kind == "event" and len(rest) == 4 and rest[3] != "metrics":
        return site, robot, "event", rest[3]
    if kind == "metrics" and len(rest) == 3:
        return site, robot, "event", "metrics"
    if kind == "state" and len(rest) == 3:
        return site, robot, "state", ""
    raise RejectedError(f"the topic is not one of {', '.join(SUBSCRIPTIONS)}")


def _state(site: str, robot: str, payload: bytes) -> RobotState:
    state = _decode(_states, payload)
    _must_agree(site=(site, state.site), robot=(robot, state.robot))
    _must_be_time("at", state.at)
    _must_be_text(state.mode, state.ring, state.target, state.release, state.model_version, state.engine)
    if not 0 <= state.outbox_depth <= MAX_SEQUENCE:
        raise RejectedError("`outbox_depth` is not a count")
    return msgspec.structs.replace(state, reason=printable(state.reason))  # free text: not worth losing a state for


def _decode(decoder: "msgspec.json.Decoder[_T]", payload: bytes) -> _T:
    try:
        return decoder.decode(payload)
    except msgspec.MsgspecError as problem:  # also what is not UTF-8
        raise RejectedError(str(problem)) from None
    except UnicodeDecodeError:
        raise RejectedError("the payload is not UTF-8") from None
    except RecursionError:
        raise RejectedError("the payload is nested too deep") from None


def _must_agree(**pairs: tuple[str, str]) -> None:
    for name, (in_topic, in_envelope) in pairs.items():
        if in_topic != in_envelope:
            raise RejectedError(f"`{name}` is `{in_envelope[:100]}` in the payload but `{in_topic}` in the topic")


def _must_be_storable(event: Event) -> None:
    _must_be_time("time", event.time)
    if event.sentat is not None:
        _must_be_time("sentat", event.sentat)
    if event.sequence > MAX_SEQUENCE:
        raise RejectedError(f"`sequence` is over {MAX_SEQUENCE}")
    _must_be_text(event.session, event.release, event.engine)
    if not _no_deeper(event.data, MAX_DEPTH):
        raise RejectedError(f"`data` is nested deeper than {MAX_DEPTH}")


def _must_be_time(name: str, value: datetime.datetime) -> None:
    if not _EARLIEST < value < _LATEST:
        raise RejectedError(f"`{name}` is {value.isoformat()}: the sender's clock is wrong")


def _must_be_text(*values: str) -> None:
    if any(printable(value) != value for value in values):
        raise RejectedError(f"a text holds control characters, or is longer than {MAX_TEXT}")


def _no_deeper(value: Any, levels: int) -> bool:
    """Level by level, so that no nesting can exhaust the stack."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return True
    return False


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
