"""Parsing what comes from the broker."""

import contextlib
import datetime
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.events import MAX_PAYLOAD_BYTES, Event, RobotState
from serving.errors import RejectedError
from telemetry.messages import Forgotten, parse
from tests.test_telemetry_samples import event, published, state

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_valid = msgspec.to_builtins(event())
_topics = st.sampled_from([published(event())[0], published(event(kind="metrics"))[0], published(state())[0]])


@settings(max_examples=150, deadline=None)
@given(topic=_topics | st.text(max_size=60), payload=st.binary(max_size=300))
def test_any_bytes_are_parsed_or_rejected(topic: str, payload: bytes) -> None:
    """No topic and no payload raise anything but RejectedError."""
    with contextlib.suppress(RejectedError):
        assert isinstance(parse(topic, payload), Event | RobotState | Forgotten)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(_valid)), _json, max_size=3),
    st.sets(st.sampled_from(sorted(_valid)), max_size=1),
)
def test_any_change_of_a_valid_event_is_parsed_or_rejected(changes: dict[str, object], gone: set[str]) -> None:
    """Whatever a field is replaced with, the result is an event that the store takes, or RejectedError."""
    raw = {name: value for name, value in {**_valid, **changes}.items() if name not in gone}
    try:
        parsed = parse(published(event())[0], json.dumps(raw).encode())
    except RejectedError:
        return
    assert isinstance(parsed, Event)
    assert 1 <= parsed.sequence < 2**63
    assert parsed.time.tzinfo is not None
    assert parsed.time.astimezone(datetime.UTC).year >= 1999


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"robot": "jetbot-2"}, "`robot` is `jetbot-2` in the payload but `jetbot-1` in the topic"),
        ({"site": "hall"}, "`site` is `hall`"),
        ({"type": "intervention"}, "`type` is `intervention`"),
        ({"sequence": 0}, "sequence"),
        ({"sequence": 2**63}, "`sequence` is over"),
        ({"time": "2026-11-23T12:00:00"}, "with a timezone component - at `$.time`"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "clock is wrong"),
        ({"id": "42"}, "$.id"),
        ({"engine": "a\0b"}, "control characters"),
        ({"data": {"a": [[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]}}, "nested deeper"),
        ({"data": {"a": "x" * MAX_PAYLOAD_BYTES}}, "at most"),
        ({"specversion": "2.0"}, "$.specversion"),
    ],
)
def test_the_reason_names_what_is_wrong(changes: dict[str, object], reason: str) -> None:
    """Each kind of bad event is refused with a reason that its author can act on."""
    payload = json.dumps({**msgspec.to_builtins(event()), **changes}).encode()
    with pytest.raises(RejectedError) as found:
        parse(published(event())[0], payload)
    assert reason in str(found.value)


@pytest.mark.parametrize(
    "topic",
    [
        "jetloop/v1/lab/jetbot-1",
        "jetloop/v1/lab/jetbot-1/event/metrics",
        "jetloop/v1/lab/jetbot-1/metrics/x",
        "jetloop/v2/lab/jetbot-1/metrics",
        "jetloop/v1/lab/../event/collision",
        "jetloop/v1/lab/jetbot-1/event/collision\n",
        "jetloop/v1/releases/champion",
        "",
    ],
)
def test_other_topics_are_rejected(topic: str) -> None:
    """Only the topics of the contract are taken, each with its own kind of message."""
    with pytest.raises(RejectedError, match="the topic is not one of"):
        parse(topic, published(event())[1])


def test_deeply_nested_payload_is_rejected() -> None:
    """A payload that would exhaust the stack is refused like any other."""
    with pytest.raises(RejectedError, match="nested too deep"):
        parse(published(event())[0], b'{"data":{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}}")


def test_the_reason_of_a_state_is_free_text() -> None:
    """Whatever a robot gives as its reason, its state is taken, and the reason is one printable line."""
    parsed = parse(*published(state(reason="camera\nlost \0" + "x" * 900)))
    assert isinstance(parsed, RobotState)
    assert parsed.reason.startswith("camera\ufffdlost")
    assert len(parsed.reason) == 500


def test_an_empty_state_forgets_the_robot() -> None:
    """Clearing the retained state is how an operator takes a robot off the list."""
    assert parse(published(state())[0], b"") == Forgotten("lab", "jetbot-1")
