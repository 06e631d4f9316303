"""The updater against signed repositories over HTTP: brings what is new, and what it does about what does not fit."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.releases import Channel, Passport, file_path
from serving.errors import OperatorError
from serving.fit import misfit
from serving.slots import Candidate, Slots
from tests.conftest import wait_for
from tests.test_link_parts import (
    TARGET,
    Server,
    channel_of,
    engine_bytes,
    files_of,
    passport_of,
    sha256,
)
from tests.updater_lab import Lab, made_lab


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here can see whether the disk synced; not waiting for it keeps them quick."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with made_lab(tmp_path) as made:
        yield made


def test_a_release_is_brought_activated_and_committed(lab: Lab) -> None:
    """The first check activates what the channel names; a restart boots with it; the next release follows."""
    assert not lab.updater.check()
    lab.publish(1, 1)
    assert lab.updater.check()
    assert not lab.updater.check()
    assert lab.running() == "1"
    lab.publish(2, 2)
    assert lab.updater.check()
    assert (lab.activated, lab.running(), lab.refusals) == (["1", "2"], "2", [])


def test_a_look_that_finds_nothing_new_is_one_small_request(lab: Lab) -> None:
    """Once settled, a poll asks for timestamp.json alone; so it does after a restart's first look."""
    lab.publish(1, 1)
    lab.updater.check()
    for _ in range(2):
        lab.server.asked.clear()
        assert not lab.updater.check()
        assert lab.server.asked == ["metadata/timestamp.json"]
        lab.robot()
        lab.updater.check()
    assert lab.activated == ["1"]


def test_a_move_back_to_an_older_release_is_followed(lab: Lab) -> None:
    """A newer channel file that names an older release is no rollback attack but a person's wish."""
    lab.publish(1, 1)
    lab.updater.check()
    lab.publish(2, 2)
    lab.updater.check()
    lab.repository.publish({}, [channel_of(1, 3)])
    assert lab.updater.check()
    assert lab.running() == "1"


def test_a_new_channel_file_for_what_runs_downloads_nothing(lab: Lab) -> None:
    """The same release under a higher sequence only renews what the pointer remembers."""
    lab.publish(1, 1)
    lab.updater.check()
    lab.server.asked.clear()
    lab.repository.publish({}, [channel_of(1, 7)])
    assert not lab.updater.check()
    current = Slots(lab.folder / "slots").current()
    assert current is not None
    assert current.channel.sequence == 7
    assert not [path for path in lab.server.asked if "engine" in path]


def test_an_engine_that_the_robot_refuses_is_not_tried_again(lab: Lab) -> None:
    """activate's refusal is remembered across reboots: told once, never downloaded again, and what ran stays."""
    lab.publish(1, 1)
    lab.updater.check()
    lab.publish(2, 2)
    lab.reject = "logits differ by 0.7 from the golden frames"
    assert not lab.updater.check()
    passport = passport_of(2)
    assert lab.refusals == [(passport.release_id, passport.engine.sha256, lab.reject)]
    lab.reject = ""
    lab.robot()
    lab.server.asked.clear()
    assert not lab.updater.check()
    assert not [path for path in lab.server.asked if "engine" in path]
    assert (lab.activated, lab.running(), len(lab.refusals)) == (["1"], "1", 1)


def test_an_activation_that_could_not_be_tried_is_tried_again(lab: Lab) -> None:
    """An OperatorError of activate (no memory, say) is no refusal: nothing is remembered against the engine."""
    lab.publish(1, 1)
    activate, lab.updater._activate = lab.updater._activate, broken_activate
    with pytest.raises(OperatorError, match="no memory"):
        lab.updater.check()
    lab.updater._activate = activate
    assert lab.updater.check()
    assert lab.running() == "1"


def broken_activate(_: Candidate) -> None:
    raise OperatorError("no memory for a second engine")


def test_a_commit_that_the_disk_refused_is_made_up_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine drives, the pointer could not be written: the next look commits it and activates nothing twice."""
    lab.publish(1, 1)

    def full(*_: object) -> None:
        raise OperatorError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(lab.slots, "commit", full)
        with pytest.raises(OperatorError, match="disk full"):
            lab.updater.check()
    assert lab.running() is None
    assert not lab.updater.check()
    assert (lab.activated, lab.running()) == (["1"], "1")


def test_a_release_for_other_machines_is_refused_once(lab: Lab) -> None:
    """No passport for this robot's target: refused with the reason, told once however often it is seen."""
    passport = passport_of(1, target="jetson-nano-trt8.2-fp16")
    path = file_path(passport.release_id, passport.target, "passport.json")
    other = msgspec.structs.replace(channel_of(1, 1), passports={passport.target: path})
    lab.repository.publish({path: msgspec.json.encode(passport)}, [other])
    for _ in range(3):
        assert not lab.updater.check()
    ((release, _, reason),) = lab.refusals
    assert lab.server.asked[-2:] == ["metadata/timestamp.json"] * 2  # it is settled: no more is asked for
    assert release == passport.release_id
    assert "not built for cpu-ort-fp32, only for jetson-nano-trt8.2-fp16" in reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": "jetson-nano-trt8.2-fp16"}, "for jetson-nano-trt8.2-fp16"),
        ({"preprocessing": "bgr-u8-v1"}, "bgr-u8-v1"),
        ({"release_id": "another"}, "another"),
        ({"engine": passport_of(2).engine}, "is not releases/"),
        ({"engine": msgspec.structs.replace(passport_of(1).engine, bytes=5)}, "not signed as the passport describes"),
        ({"golden": msgspec.structs.replace(passport_of(1).golden, sha256="0" * 64)}, "not signed as the passport"),
        ({"golden": msgspec.structs.replace(passport_of(1).golden, bytes=1 << 40)}, "are allowed"),
    ],
)
def test_a_passport_that_does_not_fit_is_refused(lab: Lab, changes: dict[str, object], reason: str) -> None:
    """However well it is signed: wrong target, preprocessing, release, path, size or digest is not activated."""
    files = files_of(1)
    files[channel_of(1, 1).passports[TARGET]] = msgspec.json.encode(passport_of(1, **changes))
    lab.repository.publish(files, [channel_of(1, 1)])
    assert not lab.updater.check()
    assert reason in lab.refusals[0][2]
    assert lab.activated == []


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[" * 50_000, b'{"schema":2}'])
def test_a_channel_that_cannot_be_read_is_refused(lab: Lab, content: bytes) -> None:
    """A signed channel file that is no channel file is a refusal, not a traceback."""
    lab.repository.publish({"channels/champion.json": content or b" "})
    assert not lab.updater.check()
    assert "cannot be read" in lab.refusals[0][2]


# The thread


def test_the_thread_looks_at_start_and_at_each_wake_up(lab: Lab) -> None:
    """With a poll of an hour, a wake-up brings a release at once; stop() ends the thread at once."""
    lab.robot(poll_s=3600)
    lab.publish(1, 1)
    lab.updater.start()
    wait_for(lambda: lab.activated == ["1"], what="the first release")
    lab.publish(2, 2)
    lab.updater.wake()
    wait_for(lambda: lab.activated == ["1", "2"], what="the second release")
    lab.updater.stop()
    assert not lab.updater._thread.is_alive()


def test_a_server_that_is_down_is_one_line_and_then_waited_for(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried, a server that is down is said once; when it is up again, that is said too."""
    caplog.set_level(logging.INFO, "serving.updater")
    lab.publish(1, 1)
    port = lab.server.port
    lab.server.close()
    lab.robot(poll_s=0.05)
    lab.updater.start()
    wait_for(lambda: "does not answer" in caplog.text, what="the line in the log")
    for _ in range(3):
        lab.updater.wake()
        wait_for(lambda: not lab.updater._wake.is_set(), what="another try")
    lab.server = Server(lab.folder / "repository", port)
    wait_for(lambda: lab.running() == "1", what="the release")
    wait_for(lambda: f"{lab.server.url} answers" in caplog.text, what="the good news")
    lab.updater.stop()
    lines = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert len(lines) == 1, lines


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_change_of_a_passport_fits_unseen(data: st.DataObject) -> None:
    """Whatever is changed in what binds an engine to this robot and release, `misfit` says so."""
    passport = passport_of(1)
    assert misfit(passport, passport.release_id, TARGET) == ""
    raw = msgspec.to_builtins(passport)
    where = data.draw(st.sampled_from([("target",), ("preprocessing",), ("release_id",), ("engine", "path")]))
    value = data.draw(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,50}\Z"))
    node = raw
    for key in where[:-1]:
        node = node[key]
    if node[where[-1]] != value:
        node[where[-1]] = value
        assert misfit(msgspec.convert(raw, Passport), passport.release_id, TARGET) != ""


def test_the_parts_of_these_tests_agree() -> None:
    """What the tests publish is what the contracts describe."""
    channel = msgspec.json.decode(msgspec.json.encode(channel_of(1, 1)), type=Channel)
    assert set(channel.passports.values()) <= set(files_of(1))
    assert passport_of(1).engine.sha256 == sha256(engine_bytes(1))
