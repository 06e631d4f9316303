"""A hostile repository, role by role: unsigned, expired, mixed, rolled back, put in another's place; and all of it once
more after the keys were rotated."""

import datetime
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata

from pipelines.release import repository_state
from pipelines.release.keys import ONLINE, ROLES, Keys, new_signer
from pipelines.release.repository import Repository
from pipelines.release.repository_keys import Change, change
from tests.test_link_parts import TARGET, channel_of, files_of, passport_of
from tests.updater_lab import Lab, made_lab

Lie = Callable[[str], bytes | None]


def rotate(lab: Lab) -> None:
    """All keys but root's are new; the robot has looked since."""
    changes = {}
    for role in ROLES[1:]:
        old = [signer.public_key.keyid for signer in lab.keys.signers(role)]
        changes[role] = Change(old, [new_signer()])
    change(lab.repository, changes, lab.keys, Keys({role: lab.keys.signers(role) for role in ONLINE}))
    new = {role: one.added for role, one in changes.items()}
    lab.keys = Keys({"root": lab.keys.signers("root"), **new})
    lab.updater.check()


@pytest.fixture(params=["first-keys", "rotated"])
def lab(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A robot that runs release 1, and release 2 published; in half of the tests after a rotation of the keys."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with made_lab(tmp_path) as made:
        made.publish(1, 1)
        made.updater.check()
        if request.param == "rotated":
            rotate(made)
        shutil.copytree(made.folder / "repository", made.folder / "before")
        made.publish(2, 2)
        yield made


def current(lab: Lab, role: str) -> str:
    """Name of the metadata file of a role that the robot will ask for."""
    state = repository_state.load(lab.folder / "repository")
    return "timestamp.json" if role == "timestamp" else f"{getattr(state, role).signed.version}.{role}.json"


def serve_instead(lab: Lab, name: str, content: bytes) -> None:
    lab.server.lie = lambda path: content if path == f"metadata/{name}" else None


def refuses(lab: Lab, reason: str = "does not verify") -> None:
    """Release 2 is not taken, once and for all; what runs stays; the honest repository is followed again."""
    told = len(lab.refusals)
    for _ in range(2):
        assert not lab.updater.check()
    assert (lab.activated, lab.running()) == (["1"], "1")
    (refusal,) = lab.refusals[told:]
    assert reason in refusal[2], refusal
    lab.server.lie = lambda _: None
    assert lab.updater.check()
    assert lab.running() == "2"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "releases"])
def test_unsigned_metadata_is_refused(lab: Lab, role: str) -> None:
    """The right content with its signatures taken away."""
    name = current(lab, role)
    content = json.loads((lab.metadata / name).read_bytes())
    content["signatures"] = []
    serve_instead(lab, name, json.dumps(content).encode())
    refuses(lab)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "releases"])
def test_metadata_signed_by_a_stranger_is_refused(lab: Lab, role: str) -> None:
    """The right content, signed well, by a key that nobody trusts: also under the id of the right key."""
    name = current(lab, role)
    metadata = Metadata.from_file(str(lab.metadata / name))
    keyids = list(metadata.signatures)
    metadata.sign(new_signer(), append=False)
    stranger = next(iter(metadata.signatures.values()))
    for keyid in keyids:
        signature = deepcopy(stranger)
        signature.keyid = keyid
        metadata.signatures[keyid] = signature
    serve_instead(lab, name, repository_state.encode(metadata))
    refuses(lab)


@pytest.mark.parametrize("cut", [0.2, 0.9, 0.999])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "releases"])
def test_truncated_metadata_is_refused(lab: Lab, role: str, cut: float) -> None:
    """Cut after a part of it, or one byte before the end."""
    name = current(lab, role)
    content = (lab.metadata / name).read_bytes()
    serve_instead(lab, name, content[: int(len(content) * cut)])
    refuses(lab)


@pytest.mark.parametrize(("role", "instead"), itertools.permutations(["timestamp", "snapshot", "releases"], 2))
def test_one_role_in_the_place_of_another_is_refused(lab: Lab, role: str, instead: str) -> None:
    """A file that is signed well, for another role."""
    serve_instead(lab, current(lab, role), (lab.metadata / current(lab, instead)).read_bytes())
    refuses(lab)


@pytest.mark.parametrize("role", ["snapshot", "releases"])
def test_a_mixed_repository_is_refused(lab: Lab, role: str) -> None:
    """Today's timestamp over yesterday's snapshot, today's snapshot over yesterday's list of releases: each file was
    signed well once, but not together."""
    name = current(lab, role)
    older = max((lab.folder / "before/metadata").glob(f"*.{role}.json"), key=lambda path: int(path.name.split(".")[0]))
    serve_instead(lab, name, older.read_bytes())
    refuses(lab)


@pytest.mark.parametrize("role", ["snapshot", "releases"])
def test_a_version_that_falls_is_refused_although_it_is_signed(lab: Lab, role: str) -> None:
    """Who has the timestamp key alone leads back to an older snapshot; with the snapshot's key too, to an older list
    of releases: a robot that saw the newer one refuses both."""
    lab.updater.check()
    assert lab.running() == "2"
    before = repository_state.load(lab.folder / "before")
    state = repository_state.load(lab.folder / "repository")
    thief = Keys({one: lab.keys.signers(one) for one in ("snapshot", "timestamp")})
    repository = Repository(lab.folder / "repository", thief, state)
    if role == "snapshot":
        state.timestamp.signed.snapshot_meta = before.timestamp.signed.snapshot_meta
    else:
        state.snapshot.signed.meta["releases.json"] = before.snapshot.signed.meta["releases.json"]
    repository._commit(None, with_snapshot=role == "releases")
    assert not lab.updater.check()
    assert lab.running() == "2"
    assert "BadVersionNumber" in lab.refusals[-1][2]


@pytest.mark.parametrize("role", ["snapshot", "releases", "targets"])
def test_expired_metadata_of_any_role_is_refused(lab: Lab, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh timestamp does not help where what it leads to has expired."""
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    expired = {**repository_state.LIFETIME, role: datetime.timedelta(days=-1)}
    monkeypatch.setattr("pipelines.release.repository.LIFETIME", expired)
    targets = None
    if role == "targets":
        targets = deepcopy(lab.repository.state.targets)
        targets.signed.version = lab.repository.next_version("targets")
        targets.signed.expires = past.replace(microsecond=0)
        repository_state.sign(targets, lab.keys.signers("targets"))
    online = Keys({one: lab.keys.signers(one) for one in ONLINE})
    lab.repository.replace_keys(None, targets, online, online)
    assert not lab.updater.check()
    assert "is expired" in lab.refusals[-1][2]
    assert lab.running() == "1"


@pytest.mark.parametrize("what", ["engine.onnx", "golden.npz", "passport.json"])
def test_a_signed_file_of_another_release_is_refused(lab: Lab, what: str) -> None:
    """Release 1's file, signed well, served in the place of release 2's: the digest tells."""
    (other,) = (lab.folder / "repository/targets" / "releases").glob(f"{passport_of(1).release_id}/{TARGET}/*.{what}")
    content = other.read_bytes() + (b"x" if what == "golden.npz" else b"")
    lab.server.lie = lambda path: content if path.endswith(what) and passport_of(2).release_id in path else None
    refuses(lab, "")


@pytest.mark.parametrize("wrong", ["target", "path", "release"])
def test_an_engine_for_another_kind_of_robot_is_refused(lab: Lab, wrong: str) -> None:
    """Signed by the right key, named by the channel under this robot's target: the passport of another target, another
    target's path, or another release's."""
    nano = passport_of(2, target="jetson-nano-trt8.2-fp16")
    own = f"releases/{nano.release_id}/{TARGET}/passport.json"
    theirs = own.replace(TARGET, nano.target)
    files = {theirs: msgspec.json.encode(nano)}
    channel = channel_of(3, 3)
    if wrong == "target":
        own = own.replace(nano.release_id, channel.release_id)
        files = {own: msgspec.json.encode(msgspec.structs.replace(nano, release_id=channel.release_id))}
        named = own
    else:
        named = theirs if wrong == "path" else own
    lab.repository.publish(files, [msgspec.structs.replace(channel, passports={TARGET: named})])
    assert not lab.updater.check()
    assert lab.running() == "1"
    assert lab.refusals[-1][0] == channel.release_id


def test_a_root_that_is_not_signed_by_the_one_before_is_refused(lab: Lab) -> None:
    """A thief with all online keys cannot add a root: not an unsigned one, not one of his own, not one that skips."""
    name = f"{lab.repository.state.root.signed.version + 1}.root.json"
    root = deepcopy(lab.repository.state.root)
    root.signed.version += 1
    stranger = new_signer()
    root.signed.add_key(stranger.public_key, "root")
    for signers in ([], [stranger], lab.keys.signers("timestamp")):
        repository_state.sign(root, signers)
        serve_instead(lab, name, repository_state.encode(root))
        assert not lab.updater.check()
    root.signed.version += 1
    repository_state.sign(root, lab.keys.signers("root"))
    serve_instead(lab, name, repository_state.encode(root))
    assert not lab.updater.check()
    assert lab.running() == "1"
    lab.server.lie = lambda _: None
    assert lab.updater.check()


def test_files_of_releases_are_what_the_passport_says(lab: Lab) -> None:
    """The honest release passes every check that the tests above rely on."""
    assert lab.updater.check()
    assert lab.running() == "2"
    assert set(files_of(2)) <= set(lab.repository.state.files())
