"""The signed repository, seen through a real TUF client over real HTTP, and killed at every write."""

import datetime
import http.server
import json
import os
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater

from pipelines.release import durable
from pipelines.release.keys import ONLINE, Keys
from pipelines.release.repository import LIFETIME, Repository
from serving.contracts.releases import Channel
from serving.errors import OperatorError

ENGINE = "releases/r1/cpu-ort-fp32/engine.onnx"


def channel(sequence: int = 1, release: str = "r1", name: str = "champion") -> Channel:
    return Channel(
        channel=name, sequence=sequence, release_id=release, model_version="1", passports={}, issued_at="2026-11-23"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    keys = Keys.generate()
    keys.save(folder / "keys")
    Repository.create(folder, keys)
    return folder


@pytest.fixture
def repository(folder: Path) -> Repository:
    return Repository.open(folder, Keys.load(folder / "keys"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Tests have nothing to say."""


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def pull(url: str, folder: Path, client: Path, path: str) -> bytes:
    """What a robot does: a TUF client that starts from root.json alone."""
    client.mkdir(exist_ok=True)
    updater = Updater(
        str(client),
        f"{url}/metadata/",
        str(client),
        f"{url}/targets/",
        bootstrap=(folder / "metadata" / "root.json").read_bytes(),
    )
    found = updater.get_targetinfo(path)
    if found is None:
        raise RepositoryError(f"{path} is not signed")
    return Path(updater.download_target(found, str(client / "file"))).read_bytes()


def test_a_robot_pulls_what_was_published(repository: Repository, folder: Path, url: str, tmp_path: Path) -> None:
    """A TUF client that has root.json alone gets the channel and the engine, byte for byte."""
    source = tmp_path / "engine"
    source.write_bytes(b"engine from a file")
    repository.publish({ENGINE: source}, [channel()])
    assert pull(url, folder, tmp_path / "client", ENGINE) == b"engine from a file"
    assert json.loads(pull(url, folder, tmp_path / "client", "channels/champion.json"))["release_id"] == "r1"
    assert Repository.open(folder, Keys.load(folder / "keys")).channel("champion") == channel()


def test_an_altered_engine_is_refused(repository: Repository, folder: Path, url: str, tmp_path: Path) -> None:
    """One changed byte of an engine of the same length, or a shorter one: the client takes neither; nor do we."""
    repository.publish({ENGINE: b"engine"}, [channel()])
    for altered in (b"enginE", b"eng"):
        repository.path_of(ENGINE).write_bytes(altered)
        with pytest.raises((RepositoryError, DownloadError)):
            pull(url, folder, tmp_path / "client", ENGINE)
        with pytest.raises(OperatorError, match="missing or altered"):
            repository.read(ENGINE)


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "releases", "targets"])
@pytest.mark.parametrize("harm", ["altered", "truncated"])
def test_altered_metadata_is_refused(
    name: str, harm: str, repository: Repository, folder: Path, url: str, tmp_path: Path
) -> None:
    """Changing or cutting any metadata file stops the client, and stops us from signing on top of it."""
    repository.publish({ENGINE: b"engine"}, [channel()])
    file = max((folder / "metadata").glob(f"*{name}.json"), key=lambda path: path.name)
    content = file.read_bytes()
    assert b'"expires": "20' in content
    file.write_bytes(content.replace(b'"expires": "20', b'"expires": "21') if harm == "altered" else content[:-40])
    with pytest.raises((RepositoryError, DownloadError)):
        pull(url, folder, tmp_path / "client", ENGINE)
    with pytest.raises(OperatorError, match="damaged or altered"):
        Repository.open(folder, Keys.load(folder / "keys"))


def test_an_older_repository_is_refused(repository: Repository, folder: Path, url: str, tmp_path: Path) -> None:
    """A client that has seen a publication does not go back to the timestamp before it."""
    repository.publish({ENGINE: b"engine"}, [channel()])
    before = (folder / "metadata" / "timestamp.json").read_bytes()
    repository.publish({}, [channel(2)])
    pull(url, folder, tmp_path / "client", ENGINE)
    (folder / "metadata" / "timestamp.json").write_bytes(before)
    with pytest.raises(RepositoryError):
        pull(url, folder, tmp_path / "client", ENGINE)


def test_foreign_keys_sign_nothing(repository: Repository, folder: Path) -> None:
    """Keys that the repository does not trust are refused when it is opened."""
    with pytest.raises(OperatorError, match="not the one that this repository trusts"):
        Repository.open(folder, Keys.generate())


def test_what_is_released_never_changes(repository: Repository) -> None:
    """The same path with another content, a sequence that does not rise, a path robots never look at: all refused."""
    repository.publish({ENGINE: b"engine"}, [channel(3)])
    repository.publish({ENGINE: b"engine"})
    with pytest.raises(ValueError, match="never changes"):
        repository.publish({ENGINE: b"another"})
    with pytest.raises(ValueError, match="not above 3"):
        repository.publish({}, [channel(3)])
    with pytest.raises(ValueError, match="robots would not look"):
        repository.publish({"elsewhere/engine.onnx": b"engine"})
    assert repository.channel("champion") == channel(3)


def test_metadata_is_renewed_after_half_its_time(
    repository: Repository, folder: Path, url: str, tmp_path: Path
) -> None:
    """Nothing is signed while fresh; each role is once half its time is over; the client follows."""
    repository.publish({ENGINE: b"engine"}, [channel()])
    now = datetime.datetime.now(datetime.timezone.utc)
    assert repository.renew(now + datetime.timedelta(hours=11)) == []
    assert repository.renew(now + datetime.timedelta(hours=13)) == ["timestamp"]
    assert repository.renew(now + datetime.timedelta(days=4)) == ["snapshot", "timestamp"]
    late = now + datetime.timedelta(days=20)
    assert repository.renew(late) == ["releases", "snapshot", "timestamp"]
    assert all(repository.expires()[role] >= late for role in ONLINE)
    assert abs(repository.expires()["timestamp"] - late - LIFETIME["timestamp"]) < datetime.timedelta(seconds=2)
    assert pull(url, folder, tmp_path / "client", ENGINE) == b"engine"
    reopened = Repository.open(folder, Keys.load(folder / "keys"))
    assert reopened.expires() == repository.expires()


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize("writes_before", range(6))
def test_killed_at_any_write(
    writes_before: int, repository: Repository, folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any write of a publication, clients see all of the old state; the next one publishes all of it."""
    repository.publish({ENGINE: b"engine"}, [channel()])
    real, written = os.replace, []

    def replace(source: str, target: Path) -> None:
        if len(written) == writes_before:
            raise Killed
        written.append(target)
        real(source, target)

    second = {
        "releases/r2/cpu-ort-fp32/engine.onnx": b"second"
    }  # writes: engine, channel, releases, snapshot, timestamp
    monkeypatch.setattr(os, "replace", replace)
    if writes_before == 5:
        repository.publish(second, [channel(2, "r2")])
    else:
        with pytest.raises(Killed):
            repository.publish(second, [channel(2, "r2")])
    monkeypatch.undo()

    seen = json.loads(pull(url, folder, tmp_path / "client", "channels/champion.json"))
    assert seen["sequence"] == (2 if writes_before == 5 else 1)
    restarted = Repository.open(folder, Keys.load(folder / "keys"))
    restarted.sweep()
    if writes_before < 5:
        versions = {path.name for path in (folder / "metadata").iterdir()}
        restarted.publish(second, [channel(2, "r2")])
        rewritten = versions & {path.name for path in written if path.name != "timestamp.json"} - versions
        assert not rewritten
    assert json.loads(pull(url, folder, tmp_path / "client", "channels/champion.json"))["sequence"] == 2
    assert pull(url, folder, tmp_path / "client", "releases/r2/cpu-ort-fp32/engine.onnx") == b"second"
    assert not list(folder.rglob(".writing-*"))


def test_no_version_number_is_signed_twice(
    repository: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata that a killed publication left is never written over: a mirror may have it already."""
    real = os.replace

    def replace(source: str, target: Path) -> None:
        if target.name == "timestamp.json":
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        repository.publish({ENGINE: b"engine"}, [channel()])
    monkeypatch.undo()
    left = {path.name: path.read_bytes() for path in (folder / "metadata").glob("2.*.json")}
    assert set(left) == {"2.releases.json", "2.snapshot.json"}
    Repository.open(folder, Keys.load(folder / "keys")).publish({ENGINE: b"another build"}, [channel()])
    assert {name: (folder / "metadata" / name).read_bytes() for name in left} == left


def test_a_full_disk_keeps_what_was_published(
    repository: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError while writing leaves the repository usable, in memory too, and no part of a file."""
    repository.publish({ENGINE: b"engine"}, [channel()])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        repository.publish({}, [channel(2)])
    monkeypatch.undo()
    assert repository.channel("champion") == channel()
    assert not list(folder.rglob(".writing-*"))
    repository.publish({}, [channel(2)])
    assert repository.channel("champion") == channel(2)


def test_keys_are_private_and_kept(folder: Path) -> None:
    """Key files have mode 0600; a key others can read is refused; keys are not overwritten; offline ones may leave."""
    for path in (folder / "keys").rglob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OperatorError, match="exists already"):
        Keys.generate().save(folder / "keys")
    for offline in ("root", "targets"):
        (folder / "keys" / "offline" / f"{offline}.pem").unlink()
    Repository.open(folder, Keys.load(folder / "keys")).publish({ENGINE: b"engine"}, [channel()])
    (folder / "keys" / "online" / "snapshot.pem").chmod(0o644)
    with pytest.raises(OperatorError, match="chmod 600"):
        Keys.load(folder / "keys")
    (folder / "keys" / "online" / "snapshot.pem").unlink()
    with pytest.raises(OperatorError, match="there is no key"):
        Keys.load(folder / "keys")


def test_a_second_process_cannot_hold_the_lock(tmp_path: Path) -> None:
    """The lock names its holder and is free again afterwards."""

    def lock_again() -> None:
        with durable.locked(tmp_path / "lock"):
            pass

    with (
        durable.locked(tmp_path / "lock"),
        pytest.raises(OperatorError, match=f"already served by process {os.getpid()}"),
    ):
        lock_again()
    lock_again()
