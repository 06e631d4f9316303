"""The contracts: what is written is read back, what does not fit is refused, names cannot escape their place."""

import datetime
import json
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts import events, releases, sessions
from serving.contracts.events import Event
from serving.errors import RejectedError


def an_event(**changes: object) -> Event:
    fields: dict[str, object] = {
        "id": events.uuid7(),
        "source": "/jetloop/lab/jetbot-1",
        "type": "collision",
        "time": events.utc_now(),
        "site": "lab",
        "robot": "jetbot-1",
        "session": "s1",
        "sequence": 1,
    }
    return Event(**{**fields, **changes})  # type: ignore[arg-type]


def test_an_event_reads_back_as_it_was_written() -> None:
    """Encoding and decoding an event loses nothing."""
    event = an_event(data={"count": 2}, release="r", engine="0" * 64)
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event


@given(st.dictionaries(st.text(max_size=12), st.none() | st.integers() | st.text(max_size=12), max_size=12))
def test_random_objects_are_no_events(raw: dict[str, object]) -> None:
    """What lacks the envelope is refused by msgspec's own error and nothing else."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(raw), type=Event)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "3f2b0d44-1111-4222-8333-444455556666"),  # version 4
        ("robot", "a/b"),
        ("robot", "+"),
        ("robot", "a\n"),
        ("time", "2026-01-01T00:00:00"),
        ("site", "#"),
        ("site", ""),
        ("sequence", 0),
        ("specversion", "0.3"),
        ("time", "yesterday"),
    ],
)
def test_a_field_out_of_its_bounds_is_refused(field: str, value: object) -> None:
    """Wildcards, slashes, other UUID versions and numbers below their limits do not pass."""
    raw = msgspec.to_builtins(an_event())
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**raw, field: value}, Event)


def test_uuids_are_unique_and_in_order_over_threads() -> None:
    """Each thread's identifiers rise, and none is given twice, also within one millisecond."""
    made: list[list[str]] = []

    def make() -> None:
        made.append([events.uuid7() for _ in range(5000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one == sorted(one) for one in made)
    assert len({identifier for one in made for identifier in one}) == 20_000


def test_a_uuid_holds_the_time_it_was_made() -> None:
    """The first 48 bits are milliseconds since 1970, as RFC 9562 says."""
    made_at_ms = int(events.uuid7().replace("-", "")[:12], 16)
    assert abs(made_at_ms / 1000 - datetime.datetime.now(datetime.timezone.utc).timestamp()) < 5


@pytest.mark.parametrize(
    "name", ["cpu-ort-fp32", "jetson-nano-trt8.2-fp16", "xavier-nx-trt8.5-int8", "rtx-sm86-trtrtx1.7-fp16"]
)
def test_target_names_of_the_design_are_read(name: str) -> None:
    """Every example in the design parses, and its parts make the name again."""
    target = releases.Target.parse(name)
    assert f"{target.board}-{target.runtime}{target.runtime_version}-{target.precision}" == name


@given(st.text(max_size=40))
def test_other_names_are_rejected_and_never_crash(name: str) -> None:
    """A target name either parses or is a RejectedError."""
    try:
        releases.Target.parse(name)
    except RejectedError:
        return
    assert "-" in name


def test_a_session_without_a_source_is_refused() -> None:
    """The source is what an honest evaluation leaves out: it cannot be missing."""
    with pytest.raises(msgspec.ValidationError, match="source"):
        msgspec.json.decode(b'{"id": "a"}', type=sessions.Session)


def test_a_release_is_named_by_version_and_digest() -> None:
    """A person sees MLflow's version in the release's name."""
    assert releases.release_id("3", "abcdef0123" + "0" * 54) == "collision-avoidance-v3-abcdef01"
