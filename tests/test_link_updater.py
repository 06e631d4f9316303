"""The updater against signed repositories over HTTP: brings what is new, and nothing that is not right."""

import datetime
import itertools
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.config import RepositorySettings
from serving.contracts.releases import Channel, Passport, file_path
from serving.errors import OperatorError, RejectedError
from serving.slots import Candidate, Slots
from serving.updater import Updater, misfit
from tests.conftest import wait_for
from tests.test_link_parts import (
    TARGET,
    Server,
    channel_of,
    engine_bytes,
    files_of,
    is_whole,
    passport_of,
    sha256,
)


class Lab:
    """A release repository, a web server in front of it, and one robot's updater."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = Keys.generate()
        self.repository = Repository.create(folder / "repository", self.keys)
        self.metadata = folder / "repository" / "metadata"
        self.server = Server(folder / "repository")
        self.activated: list[str] = []
        self.refusals: list[tuple[str, str, str]] = []
        self.reject = ""  # why the robot refuses what it is given
        self.robot()

    def robot(self, **changes: object) -> None:
        """The robot starts (again), on the same disk."""
        chosen = RepositorySettings(url=self.server.url, root=str(self.metadata / "1.root.json"), timeout_s=2)
        self.slots = Slots(self.folder / "slots")
        self.slots.current()
        self.updater = Updater(
            msgspec.structs.replace(chosen, **changes),
            TARGET,
            "champion",
            self.slots,
            self.activate,
            lambda *refusal: self.refusals.append(refusal),
        )

    def activate(self, candidate: Candidate) -> None:
        assert is_whole(candidate)
        if self.reject:
            raise RejectedError(self.reject)
        self.activated.append(candidate.passport.lineage.model_version)

    def publish(self, version: int, sequence: int) -> None:
        self.repository.publish(files_of(version), [channel_of(version, sequence)])

    def running(self) -> str | None:
        """What the robot would boot with."""
        current = Slots(self.folder / "slots").current()
        return current.passport.lineage.model_version if current else None


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here can see whether the disk synced; not waiting for it keeps them quick."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.updater.stop()
    made.server.close()


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


# A hostile server, or a hostile network before it


def altered(content: bytes) -> list[bytes]:
    """One bit flipped, cut short, emptied, zeroed, and with something appended."""
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return [bytes(flipped), content[: len(content) // 2], b"", bytes(len(content)), content + b"\n"]


@pytest.mark.parametrize("how", range(5))
@pytest.mark.parametrize("what", ["engine.onnx", "golden.npz", "passport.json", "champion.json"])
def test_an_altered_file_is_refused_and_taken_once_it_is_whole(lab: Lab, what: str, how: int) -> None:
    """No altered target is activated; what runs stays; once the server gives the right file it is taken."""
    lab.publish(1, 1)
    lab.updater.check()
    lab.publish(2, 2)

    def lie(path: str) -> bytes | None:
        return altered((lab.folder / "repository" / path).read_bytes())[how] if path.endswith(what) else None

    lab.server.lie = lie
    for _ in range(2):
        assert not lab.updater.check()
    assert (lab.activated, lab.running(), len(lab.refusals)) == (["1"], "1", 1)
    lab.server.lie = lambda _: None
    assert lab.updater.check()
    assert lab.running() == "2"


@pytest.mark.parametrize("how", range(4))  # JSON does not mind a newline at its end
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "releases"])
def test_altered_metadata_is_refused(lab: Lab, role: str, how: int) -> None:
    """Flipped, cut, emptied or zeroed metadata changes nothing on the robot."""
    lab.publish(1, 1)
    lab.updater.check()
    lab.publish(2, 2)

    def lie(path: str) -> bytes | None:
        return altered((lab.folder / "repository" / path).read_bytes())[how] if path.endswith(f"{role}.json") else None

    lab.server.lie = lie
    assert not lab.updater.check()
    assert (lab.activated, lab.running(), len(lab.refusals)) == (["1"], "1", 1)


def test_another_key_is_refused(lab: Lab) -> None:
    """A whole repository signed by somebody else is not followed."""
    lab.publish(1, 1)
    lab.updater.check()
    shutil.rmtree(lab.folder / "repository")
    lab.repository = Repository.create(lab.folder / "repository", Keys.generate())
    for version in (2, 3, 4):
        lab.publish(version, version)
    assert not lab.updater.check()
    assert "does not verify" in lab.refusals[0][2]
    assert lab.running() == "1"


def test_a_key_without_the_right_to_release_is_refused(lab: Lab) -> None:
    """The timestamp key, stolen, cannot sign a release."""
    thief = Keys({**lab.keys._signers, "releases": lab.keys.signer("timestamp")})
    stolen = Repository(lab.folder / "repository", thief, deepcopy(lab.repository._state))
    stolen.publish(files_of(1), [channel_of(1, 1)])
    assert not lab.updater.check()
    assert "does not verify" in lab.refusals[0][2]
    assert lab.activated == []


def test_expired_metadata_is_refused_and_the_clock_named(lab: Lab) -> None:
    """A server that holds back newer metadata is found out when the old expires; told once, and renewed metadata
    is followed again."""
    lab.publish(1, 1)
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)
    lab.repository._commit(None, now=yesterday)
    for _ in range(2):
        assert not lab.updater.check()
    ((_, _, reason),) = lab.refusals
    assert "timestamp.json is expired" in reason
    assert "clock" in reason
    lab.repository.renew()
    assert lab.updater.check()


def test_a_settled_robot_notices_that_its_metadata_expired(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short cut of a quiet poll ends where the metadata ends: the same timestamp.json is no longer enough."""
    lab.publish(1, 1)
    lab.updater.check()
    assert lab.updater._settled is not None
    lab.updater._settled = (lab.updater._settled[0], datetime.datetime.now(datetime.timezone.utc))
    lab.server.asked.clear()
    lab.updater.check()
    assert len(lab.server.asked) > 1


def test_rolled_back_metadata_is_refused(lab: Lab) -> None:
    """Yesterday's repository, as it was signed then, is refused by a robot that saw today's, also after a restart."""
    lab.publish(1, 1)
    shutil.copytree(lab.metadata, lab.folder / "old")
    lab.publish(2, 2)
    lab.updater.check()
    lab.server.lie = lambda path: (lab.folder / "old" / Path(path).name).read_bytes() if "timestamp" in path else None
    for _ in range(2):
        lab.robot()
        assert not lab.updater.check()
    assert lab.running() == "2"
    assert "BadVersionNumber" in lab.refusals[0][2]


def test_a_replayed_channel_is_refused_although_it_is_signed(lab: Lab) -> None:
    """A channel file with a lower sequence, or another release under the same one, is refused even if the online key
    signed it anew."""
    lab.publish(1, 1)
    lab.publish(2, 5)
    lab.updater.check()
    for replayed in (channel_of(1, 4), channel_of(1, 5)):
        releases = deepcopy(lab.repository._state.releases)
        lab.repository._add(releases.signed, "channels/champion.json", msgspec.json.encode(replayed))
        lab.repository._commit(releases)
        assert not lab.updater.check()
    assert [reason for *_, reason in lab.refusals if "replay" not in reason] == []
    assert len(lab.refusals) == 2
    assert lab.running() == "2"


def test_a_channel_of_another_ring_is_refused(lab: Lab) -> None:
    """What was signed for the canary ring does not pass as the champion's."""
    lab.repository.publish(files_of(1))
    canary = msgspec.json.encode(channel_of(1, 1, "canary"))
    lab.repository.publish({"channels/champion.json": canary})
    assert not lab.updater.check()
    assert "about channel canary" in lab.refusals[0][2]


@pytest.mark.parametrize("what", ["timestamp.json", "snapshot.json", "engine.onnx"])
def test_an_endless_file_is_cut_off(lab: Lab, what: str) -> None:
    """A server that never stops sending is left at the signed or configured length, and reported."""
    lab.publish(1, 1)

    def lie(path: str) -> Iterator[bytes] | None:
        return itertools.repeat(b"x" * 65536) if path.endswith(what) else None

    lab.server.lie = lie
    assert not lab.updater.check()
    assert len(lab.refusals) == 1
    assert lab.activated == []
    used = sum(path.stat().st_size for path in (lab.folder / "slots").rglob("*") if path.is_file())
    assert used < 1_000_000


def test_a_dripping_server_is_left(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends a byte now and then cannot hold the updater for ever."""
    monkeypatch.setattr("serving.updater.MIN_BYTES_PER_S", 1e9)
    lab.publish(1, 1)
    lab.robot(timeout_s=0.5)
    over = threading.Event()

    def drip() -> Iterator[bytes]:
        while not over.wait(0.05):
            yield b"x"

    lab.server.lie = lambda path: drip() if path.endswith("timestamp.json") else None
    with pytest.raises(OperatorError, match="slower than"):
        lab.updater.check()
    over.set()


def test_a_connection_that_breaks_is_tried_again(lab: Lab) -> None:
    """A file that ends early without an altered byte is the network's fault, not a refusal."""
    lab.publish(1, 1)
    lab.server.close()
    with pytest.raises(OperatorError, match="does not answer"):
        lab.updater.check()
    lab.server = Server(lab.folder / "repository", lab.server.port)
    assert lab.updater.check()
    assert lab.refusals == []


def test_too_little_disk_is_said_before_the_download(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator reads how much is needed and how much is free; the slot that ran before is not touched."""
    lab.publish(1, 1)
    lab.updater.check()
    lab.publish(2, 2)
    lab.updater.check()
    lab.publish(3, 3)
    usage = shutil.disk_usage(lab.folder)._replace(free=1000)
    monkeypatch.setattr("serving.updater.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OperatorError, match=r"needs \d+ MB, 0 MB are free"):
        lab.updater.check()
    assert lab.running() == "2"
    assert lab.slots.rollback() is not None


def test_a_missing_root_is_the_operators(lab: Lab) -> None:
    """Without its root of trust the robot says where to get it."""
    with pytest.raises(OperatorError, match=r"root\.json of the release service"):
        lab.robot(root=str(lab.folder / "nowhere.json"))


def test_a_root_that_is_no_root_is_refused(lab: Lab) -> None:
    """A root.json that is something else ends in a refusal that names the problem."""
    (lab.folder / "root.json").write_text(json.dumps({"not": "a root"}))
    lab.robot(root=str(lab.folder / "root.json"))
    assert not lab.updater.check()
    assert "does not verify" in lab.refusals[0][2]


def test_garbage_in_the_copy_of_the_metadata_is_fetched_anew(lab: Lab) -> None:
    """What a failing disk made of the robot's copy does not stop it: trust starts from its root.json."""
    lab.publish(1, 1)
    lab.updater.check()
    for path in (lab.folder / "slots" / "tuf").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\x00garbage")
    lab.publish(2, 2)
    lab.robot()
    assert lab.updater.check()
    assert lab.running() == "2"


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
