"""`jetloop release keys`: rotation, revocation and renewal as commands, and the robots that follow them."""

import datetime
import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tuf.api.metadata import Metadata

from pipelines.release import durable, repository_state
from pipelines.release.cli import group
from pipelines.release.keys import ONLINE, ROLES, Keys
from pipelines.release.repository import Repository
from pipelines.release.repository_keys import Change, change
from serving.errors import OperatorError
from tests.test_link_parts import channel_of, files_of
from tests.test_release_repository import Killed
from tests.updater_lab import Lab, made_lab


def command(*arguments: object, answers: str | None = None) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments], input=answers)


def done(*arguments: object) -> str:
    result = command(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def publish(folder: Path, version: int) -> None:
    repository = Repository.open(folder, Keys.load(folder / "keys"))
    repository.publish(files_of(version), [channel_of(version, version)])


class Signed(Lab):
    """A lab whose repository was made by `jetloop release init`."""

    def __init__(self, folder: Path, *options: object) -> None:
        super().__init__(folder)
        shutil.rmtree(folder / "repository")
        done("init", "--folder", folder / "repository", *options)
        self.robot()

    @property
    def release(self) -> Path:
        return self.folder / "repository"

    def say(self, *arguments: object) -> str:
        """`jetloop release keys …`"""
        return done("keys", *arguments, "--folder", self.release)

    def follows(self, version: int) -> bool:
        """Publishes a version; whether the robot comes to run it."""
        publish(self.release, version)
        self.updater.check()
        return self.running() == str(version)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Signed]]:
    monkeypatch.setattr("os.fsync", lambda _: None)
    made: list[Signed] = []

    def one(*options: object) -> Signed:
        made.append(Signed(tmp_path, *options))
        return made[-1]

    yield one
    for lab in made:
        lab.updater.stop()
        lab.server.close()


@pytest.mark.parametrize("role", ROLES)
def test_a_robot_follows_a_rotation(make: Callable[..., Signed], role: str) -> None:
    """After `keys rotate` of any role a robot that ran before follows at its next look, and so does a new one that
    has the first root.json alone; the old key no longer counts, and its file is retired."""
    lab = make()
    assert lab.follows(1)
    before = repository_state.load(lab.release)
    said = lab.say("rotate", role)
    after = repository_state.load(lab.release)
    assert not set(before.role(role).keyids) & set(after.role(role).keyids)
    assert ".retired: destroy it" in said
    assert not lab.updater.check()
    assert lab.refusals == []
    assert lab.follows(2)
    shutil.rmtree(lab.folder / "slots")
    lab.robot()
    assert lab.follows(3)
    assert lab.refusals == []


def test_a_robot_that_was_away_follows_the_chain_of_roots(make: Callable[..., Signed]) -> None:
    """Ten rotations of root later, a robot that saw none of them verifies each and takes what is new."""
    lab = make()
    assert lab.follows(1)
    for _ in range(10):
        lab.say("rotate", "root")
    assert lab.follows(2)
    assert repository_state.load(lab.release).root.signed.version == 11


@pytest.mark.parametrize("role", ["releases", "snapshot", "timestamp", "targets"])
def test_what_a_revoked_key_alone_signs_is_refused(make: Callable[..., Signed], role: str) -> None:
    """An engine whose way down from root leads over one revoked key is refused, even where every other signature is of
    the right keys."""
    lab = make()
    assert lab.follows(1)
    stolen = Keys.load(lab.release / "keys", ROLES)
    keyid = repository_state.load(lab.release).role(role).keyids[0]
    assert keyid[:8] in lab.say("revoke", keyid[:8])
    lab.updater.check()
    right = Keys.load(lab.release / "keys")
    mixed = Keys({one: (stolen if one == role else right).signers(one) for one in ONLINE})
    repository = Repository(lab.release, mixed, repository_state.load(lab.release))
    if role == "targets":
        targets = deepcopy(repository.state.targets)
        targets.signed.version += 1
        repository_state.sign(targets, stolen.signers("targets"))
        repository.replace_keys(None, targets, mixed, mixed)
    repository.publish(files_of(2), [channel_of(2, 2)])
    assert not lab.updater.check()
    assert (lab.running(), lab.activated) == ("1", ["1"])
    assert "does not verify: UnsignedMetadataError" in lab.refusals[0][2]


def test_robots_recover_from_a_machine_that_was_broken_into(make: Callable[..., Signed]) -> None:
    """A thief with all online keys pushes every version far ahead, so that nothing of ours is new any more. Once the
    three keys are revoked in one command, robots forget those versions, refuse the thief and follow us."""
    lab = make()
    assert lab.follows(1)
    shutil.copytree(lab.release, lab.folder / "real")
    thief = Repository.open(lab.release, Keys.load(lab.release / "keys"))
    for _ in range(20):
        thief.publish({})
    lab.updater.check()
    shutil.move(lab.release, lab.folder / "stolen")
    shutil.move(lab.folder / "real", lab.release)
    lab.updater.check()
    assert "BadVersionNumber" in lab.refusals[-1][2]
    state = repository_state.load(lab.release)
    lab.say("revoke", *(state.role(role).keyids[0] for role in ONLINE))
    assert lab.follows(2)
    told = len(lab.refusals)
    for path in (lab.release / "metadata").glob("*.root.json"):  # or a robot would not even ask him
        shutil.copy(path, lab.folder / "stolen" / "metadata")
    thief = Repository(lab.folder / "stolen", thief._keys, thief.state)
    thief.publish(files_of(3), [channel_of(3, 3)])
    shutil.move(lab.release, lab.folder / "real")
    shutil.move(lab.folder / "stolen", lab.release)
    assert not lab.updater.check()
    assert "UnsignedMetadataError" in lab.refusals[told][2]
    assert lab.running() == "2"


def test_two_of_three_people(make: Callable[..., Signed], tmp_path: Path) -> None:
    """Root by two of three people: one alone changes nothing, two do; a lost key is revoked by the two others, and the
    robot follows all of it."""
    sticks = [tmp_path / name for name in ("anna", "ben", "carla")]
    offline = [part for stick in sticks for part in ("--offline", stick)]
    lab = make("--root-keys", 3, "--root-threshold", 2, *offline)
    assert all((stick / "root.pem").exists() for stick in sticks)
    assert lab.follows(1)
    alone = command("keys", "rotate", "timestamp", "--folder", lab.release, "--offline", sticks[0])
    assert isinstance(alone.exception, OperatorError)
    assert "2 of its 3 keys, 1 are here" in str(alone.exception)
    assert len(list((lab.release / "keys" / "online").iterdir())) == 3  # and no key was made for nothing
    lab.say("rotate", "timestamp", "--offline", sticks[0], "--offline", sticks[2])
    assert lab.follows(2)
    lost = Keys.load_offline([sticks[1]]).signers("root")[0].public_key.keyid
    lab.say("revoke", lost, "--offline", sticks[0], "--offline", sticks[2])
    trusted = repository_state.load(lab.release).role("root")
    assert (lost in trusted.keyids, len(trusted.keyids), trusted.threshold) == (False, 3, 2)
    assert lab.follows(3)
    with_lost = command("keys", "renew", "root", "--folder", lab.release, "--offline", sticks[1])
    assert "0 are here" in str(with_lost.exception)


@pytest.mark.parametrize("role", ["targets", *ONLINE])
def test_a_lost_key_is_replaced(make: Callable[..., Signed], role: str) -> None:
    """The only key of a role is gone: the keys above it put a new one in its place, and robots follow."""
    lab = make()
    assert lab.follows(1)
    (path,) = (lab.release / "keys").rglob(f"{role}.pem")
    path.unlink()
    said = lab.say("revoke", repository_state.load(lab.release).role(role).keyids[0])
    assert "it is not here" in said
    assert lab.follows(2)
    assert lab.refusals == []


@pytest.mark.parametrize("role", ["root", "targets"])
def test_root_and_targets_are_signed_anew(
    make: Callable[..., Signed], role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`keys renew` gives another year, also after the old one is over; the robot follows."""
    past = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) - datetime.timedelta(days=400)
    with monkeypatch.context() as patched:
        patched.setattr(repository_state, "now", lambda: past)
        lab = make()
    assert not lab.follows(1)
    assert "expired" in lab.refusals[0][2]
    assert "signed until" in lab.say("renew", "root")
    assert "signed until" in lab.say("renew", "targets")
    left = repository_state.load(lab.release).expires()[role] - datetime.datetime.now(datetime.timezone.utc)
    assert left > datetime.timedelta(days=364)
    lab.updater.check()
    assert lab.running() == "1"


def test_keys_are_encrypted_by_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked at `init`, or in the environment; without it, or with another one, the key is of no use; a new key in such
    a folder is encrypted too."""
    folder = tmp_path / "release"
    monkeypatch.setenv("JETLOOP_ONLINE_PASSPHRASE", "service word")
    made = command("init", "--folder", folder, "--passphrase", answers="safe word\nsafe word\n")
    assert made.exit_code == 0, made.output
    assert all(b"ENCRYPTED" in path.read_bytes() for path in (folder / "keys").rglob("*.pem"))
    Repository.open(folder, Keys.load(folder / "keys"))
    for word, message in (("", "set JETLOOP_OFFLINE_PASSPHRASE"), ("wrong", "cannot be used as a key")):
        monkeypatch.setenv("JETLOOP_OFFLINE_PASSPHRASE", word)
        with pytest.raises(OperatorError, match=message):
            Keys.load_offline([folder / "keys" / "offline"])
    monkeypatch.setenv("JETLOOP_OFFLINE_PASSPHRASE", "safe word")
    done("keys", "rotate", "root", "--folder", folder)
    (new,) = (folder / "keys" / "offline").glob("root-*.pem")
    assert b"ENCRYPTED" in new.read_bytes()
    done("keys", "rotate", "root", "--folder", folder)


def test_the_list_names_roles_keys_and_ends(make: Callable[..., Signed]) -> None:
    """`keys list` needs no key: ids, how many must sign, until when."""
    lab = make("--targets-keys", 2, "--targets-threshold", 2)
    shutil.rmtree(lab.release / "keys")
    said = lab.say("list")
    state = repository_state.load(lab.release)
    for role in ROLES:
        assert all(keyid in said for keyid in state.role(role).keyids), said
    assert "2 of 2" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["revoke", "abcdef01"], "is no key's id"),
        (["revoke", "ab"], "first 8 digits"),
        (["rotate", "root", "--offline", "nowhere"], r"holds no root\*.pem"),
    ],
)
def test_what_cannot_be_done_is_said(make: Callable[..., Signed], arguments: list[str], message: str) -> None:
    """One line that says what to do, and nothing is changed."""
    lab = make()
    before = {path: path.read_bytes() for path in lab.release.rglob("*") if path.is_file()}
    with pytest.raises(OperatorError, match=message):
        raise command("keys", *arguments, "--folder", lab.release).exception or AssertionError
    with durable.locked(lab.release / "lock"):
        busy = command("keys", "renew", "root", "--folder", lab.release)
    assert "already served by process" in str(busy.exception)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("role", ROLES)
def test_killed_at_any_write_of_a_rotation(tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before any write, robots and the next start go on with the old keys or the new ones; nobody is ever
    refused, and the same rotation made again succeeds."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    real = os.replace
    with made_lab(tmp_path) as lab:
        keys = lab.keys
        lab.publish(1, 1)
        lab.updater.check()
        version = 1
        for kill_at in range(7):
            repository = Repository.open(lab.folder / "repository", keys)
            added = Keys.generate()
            writes: list[Path] = []

            def replace(source: str, target: Path, kill_at: int = kill_at, writes: list[Path] = writes) -> None:
                if Path(target).parent.name == "metadata" and "repository" in str(target):
                    if len(writes) == kill_at:
                        raise Killed
                    writes.append(Path(target))
                real(source, target)

            one = Change([s.public_key.keyid for s in _current(repository, keys, role)], added.signers(role))
            monkeypatch.setattr(os, "replace", replace)
            try:
                change(repository, {role: one}, keys, keys)
            except Killed:
                pass
            finally:
                monkeypatch.setattr(os, "replace", real)
            keys |= Keys({role: added.signers(role)})
            lab.updater.check()
            assert lab.refusals == [], (kill_at, writes)
            version += 1
            Repository.open(lab.folder / "repository", keys).publish(files_of(version), [channel_of(version, version)])
            lab.updater.check()
            assert (lab.running(), lab.refusals) == (str(version), []), kill_at
        assert Metadata.from_file(str(lab.folder / "repository/metadata/timestamp.json"))


def _current(repository: Repository, keys: Keys, role: str) -> list:  # type: ignore[type-arg]
    trusted = repository.state.role(role).keyids
    return [signer for signer in keys.signers(role) if signer.public_key.keyid in trusted]
