"""A hostile release server, or a hostile network before it: it delays an update, and nothing else."""

import datetime
import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import msgspec
import pytest

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.errors import OperatorError
from tests.test_link_parts import (
    Server,
    channel_of,
    files_of,
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
    thief = Keys({**lab.keys._signers, "releases": lab.keys.signers("timestamp")})
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
    lab.repository._commit(None, when=yesterday)
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
    assert lab.updater._repository._settled is not None
    lab.updater._repository._settled = (
        lab.updater._repository._settled[0],
        datetime.datetime.now(datetime.timezone.utc),
    )
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
    monkeypatch.setattr("serving.fetcher.MIN_BYTES_PER_S", 1e9)
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
