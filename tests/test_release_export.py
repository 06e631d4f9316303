"""Releases on a stick: `jetloop release export`, and `jetloop-robot import` under the checks of the network."""

import datetime
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from pipelines.release.export import copy
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving import import_release
from serving.config import HardwareSettings, MqttSettings, RepositorySettings, RobotConfig, RobotSettings
from serving.errors import JetloopError, OperatorError, RejectedError
from tests.test_link_parts import TARGET, channel_of, files_of, passport_of
from tests.test_release_keys import command, done
from tests.updater_lab import Lab, made_lab


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here can see whether the disk synced; not waiting for it keeps them quick."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Offline(Lab):
    """A lab whose robot reaches no server, and a stick."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stick = folder / "my stick (1)" / "jetloop 100%"
        self.config = RobotConfig(
            robot=RobotSettings(name="r1", site="lab", state_dir=str(folder)),
            hardware=HardwareSettings(kind="none"),
            repository=RepositorySettings(url="http://127.0.0.1:9", root=str(self.metadata / "1.root.json")),
            mqtt=MqttSettings(host="nowhere"),
        )

    def robot(self, **changes: object) -> None:
        super().robot(url="http://127.0.0.1:9", **changes)

    def export(self, *channels: str) -> None:
        shutil.rmtree(self.stick, ignore_errors=True)
        copy(self.repository, self.stick, channels)

    def take(self) -> str:
        return import_release.take(self.stick, self.config)

    def refused(self) -> str:
        """Why the stick is not taken; what runs, and what the daemon would look at, stay as they are."""
        before = self.running()
        with pytest.raises(JetloopError) as caught:
            self.take()
        assert not (self.folder / "slots/tuf/imported").exists()
        assert not list((self.folder / "slots").glob(".import-*"))
        with pytest.raises(OperatorError, match="does not answer"):
            self.updater.check()
        assert self.running() == before
        return str(caught.value)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Offline]:
    made = Offline(tmp_path)
    yield made
    made.updater.stop()
    made.server.close()


def test_a_robot_without_a_network_takes_a_stick(lab: Offline) -> None:
    """Exported, imported, taken at the daemon's next look, with nothing but the stick; then the next release; the stick
    may be gone by then, and nothing is left over."""
    for version in (1, 2):
        lab.publish(version, version)
        lab.export()
        assert lab.take() == passport_of(version).release_id
        shutil.rmtree(lab.stick)
        assert lab.updater.check()
        assert lab.running() == str(version)
        assert not (lab.folder / "slots/tuf/imported").exists()
    assert lab.refusals == []


def test_a_robot_that_starts_later_takes_it_then(lab: Offline) -> None:
    """No daemon runs at the import: the next one that starts looks there first; then the network is asked again."""
    lab.publish(1, 1)
    lab.export()
    lab.take()
    Lab.robot(lab)
    assert lab.updater.check()
    lab.publish(2, 2)
    assert lab.updater.check()
    assert lab.running() == "2"


def test_the_stick_holds_what_runs_and_no_more(lab: Offline) -> None:
    """Of three releases the present one is copied, and of two channels the one that was asked for; all metadata is."""
    for version in (1, 2, 3):
        lab.publish(version, version)
    lab.repository.publish({}, [channel_of(2, 1, "canary")])
    lab.export("champion")
    names = [path.name.split(".", 1)[1] for path in (lab.stick / "targets").rglob("*") if path.is_file()]
    assert sorted(names) == ["champion.json", "engine.onnx", "golden.npz", "passport.json"]
    lab.export()
    assert sum(path.is_file() for path in (lab.stick / "targets").rglob("*")) == 8
    assert lab.take() == passport_of(3).release_id


def test_rotations_are_on_the_stick(tmp_path: Path) -> None:
    """A robot that was away for two rotations of root follows them from the stick."""
    done("init", "--folder", tmp_path / "release")
    lab = Offline(tmp_path / "lab")
    root = tmp_path / "first-root.json"
    shutil.copy(tmp_path / "release/metadata/root.json", root)
    lab.config = msgspec.structs.replace(
        lab.config, repository=msgspec.structs.replace(lab.config.repository, root=str(root))
    )
    lab.robot(root=str(root))
    for role in ("root", "releases", "root"):
        done("keys", "rotate", role, "--folder", tmp_path / "release")
    Repository.open(tmp_path / "release", Keys.load(tmp_path / "release/keys")).publish(files_of(1), [channel_of(1, 1)])
    said = done("export", "--folder", tmp_path / "release", "--to", lab.stick, "--channel", "champion")
    assert "4 files" in said
    assert "robots take it until" in said
    lab.take()
    assert lab.updater.check()
    assert lab.running() == "1"
    lab.server.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def larger(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(3_000_000_000)  # takes no room on the disk


HARMS: list[Callable[[Path], None]] = [flip, lambda path: path.write_bytes(b""), endless, pipe, larger, Path.unlink]


@pytest.mark.parametrize("how", range(len(HARMS)))
@pytest.mark.parametrize("what", ["timestamp", "snapshot", "releases", "champion", "passport", "engine", "golden"])
def test_an_altered_stick_is_refused(lab: Offline, what: str, how: int) -> None:
    """Any file of it flipped, emptied, endless, a pipe, far too large, or gone: refused at the import, in no time."""
    lab.publish(1, 1)
    lab.export()
    (path,) = [path for path in lab.stick.rglob(f"*{what}.*") if not path.name.startswith("1.releases")][:1]
    if what in ("snapshot", "releases"):
        path = max(lab.stick.rglob(f"*{what}.json"))
    HARMS[how](path)
    assert lab.refused()


def test_an_expired_stick_is_refused(lab: Offline) -> None:
    """A stick from a drawer: its timestamp has expired."""
    lab.publish(1, 1)
    lab.repository._commit(None, when=datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2))
    lab.export()
    assert "timestamp.json is expired" in lab.refused()


def test_an_older_stick_is_refused(lab: Offline) -> None:
    """What this robot has seen, over whatever way, is not gone back behind."""
    lab.publish(1, 1)
    lab.export()
    shutil.move(lab.stick, lab.folder / "older")
    lab.publish(2, 2)
    lab.export()
    lab.take()
    lab.updater.check()
    shutil.rmtree(lab.stick)
    shutil.move(lab.folder / "older", lab.stick)
    assert "BadVersionNumber" in lab.refused()
    assert lab.running() == "2"


def test_a_stick_of_another_house_is_refused(lab: Offline) -> None:
    """Signed by somebody else."""
    keys = Keys.generate()
    other = Repository.create(lab.folder / "other", keys)
    other.publish(files_of(1), [channel_of(1, 1)])
    copy(other, lab.stick)
    assert "does not verify" in lab.refused()


def test_a_stick_for_other_robots_is_refused(lab: Offline) -> None:
    """No engine for this robot's target, and nothing on this robot's ring."""
    passport = passport_of(1, target="jetson-nano-trt8.2-fp16")
    path = f"releases/{passport.release_id}/{passport.target}/passport.json"
    channel = msgspec.structs.replace(channel_of(1, 1), passports={passport.target: path})
    lab.repository.publish({path: msgspec.json.encode(passport)}, [channel])
    lab.export()
    assert f"not built for {TARGET}" in lab.refused()
    with made_lab(lab.folder / "second") as second:
        second.repository.publish(files_of(1), [channel_of(1, 1, "canary")])
        shutil.rmtree(lab.stick)
        copy(second.repository, lab.stick)
        config = msgspec.structs.replace(
            lab.config,
            repository=msgspec.structs.replace(lab.config.repository, root=str(second.metadata / "1.root.json")),
        )
        with pytest.raises(RejectedError, match="holds nothing for this robot"):
            import_release.take(lab.stick, config)


def test_what_was_imported_is_verified_again(lab: Offline) -> None:
    """Altered after the import, on the robot's own disk: refused by the daemon, removed, and the network is asked."""
    lab.publish(1, 1)
    lab.export()
    lab.take()
    (engine,) = (lab.folder / "slots/tuf/imported").rglob("*engine.onnx")
    flip(engine)
    assert not lab.updater.check()
    assert (lab.activated, len(lab.refusals)) == ([], 1)
    Lab.robot(lab)
    assert lab.updater.check()


def test_an_engine_that_the_robot_refuses_is_not_tried_again(lab: Offline) -> None:
    """The daemon's own checks hold for a stick too: refused once, the import says so the next time."""
    lab.publish(1, 1)
    lab.export()
    lab.take()
    lab.reject = "logits differ"
    assert not lab.updater.check()
    assert lab.refusals[0][2] == "logits differ"
    assert "refused before" in lab.refused()


def test_the_commands_say_what_is_missing(lab: Offline, tmp_path: Path) -> None:
    """Nothing released, a channel of another name, a folder without a repository, a disk that is full."""
    empty = command("export", "--folder", lab.folder / "repository", "--to", lab.stick)
    assert "nothing was released on any channel" in str(empty.exception)
    lab.publish(1, 1)
    other = command("export", "--folder", lab.folder / "repository", "--to", lab.stick, "--channel", "canary")
    assert "nothing was released on canary" in str(other.exception)
    full = command("export", "--folder", lab.folder / "repository", "--to", "/dev/full/x")
    assert "cannot be written" in str(full.exception)
    lab.stick.mkdir(parents=True)
    assert "timestamp.json is not there" in lab.refused()


def test_the_import_command(lab: Offline) -> None:
    """`jetloop-robot import FOLDER --config robot.toml`, as a person types it."""
    lab.publish(1, 1)
    lab.export()
    settings = (
        f'[robot]\nname = "r1"\nsite = "lab"\nstate_dir = "{lab.folder}"\n[hardware]\nkind = "none"\n'
        f'[repository]\nurl = "http://127.0.0.1:9"\nroot = "{lab.metadata}/1.root.json"\n[mqtt]\nhost = "nowhere"\n'
    )
    (lab.folder / "robot.toml").write_text(settings)
    arguments = [str(lab.stick), "--config", str(lab.folder / "robot.toml")]
    result = CliRunner().invoke(import_release.command, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert passport_of(1).release_id in result.output
    assert lab.updater.check()
