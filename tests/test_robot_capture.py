"""Images labelled on a robot: what is on the disk when it or the power fails, and what ingest takes."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from serving import capture as module
from serving.capture import Capture
from serving.config import CaptureSettings
from serving.contracts.sessions import Session
from serving.errors import OperatorError
from tests.conftest import ROOT
from tests.test_robot_parts import frame_of


@pytest.fixture
def capture(tmp_path: Path) -> Capture:
    return Capture(tmp_path / "captures", CaptureSettings(place="lab", min_free_mb=0), "r1")


def again(capture: Capture) -> Capture:
    """The same robot after a restart."""
    return Capture(capture.folder, capture._settings, "r1")


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.testzip() is None
        return archive.namelist()


def test_labels_become_a_session_zip(capture: Capture) -> None:
    """blocked/ and free/ with 224x224 JPEGs and a session.json, as the contract says; then the next one can begin."""
    capture.begin(place="kitchen", safety_distance_cm=20)
    for number in range(3):
        said = capture.label(frame_of(60 + number), "blocked")
    said = capture.label(frame_of(200), "free")
    assert "3 blocked and 1 free" in said
    path = capture.finish()
    assert path.parent == capture.folder
    found = names(path)
    assert found[0] == "session.json"
    assert sorted(name.split("/")[0] for name in found[1:]) == ["blocked"] * 3 + ["free"]
    with zipfile.ZipFile(path) as archive:
        session = msgspec.json.decode(archive.read("session.json"), type=Session)
    assert (session.id, session.robot, session.place) == (path.stem, "r1", "kitchen")
    assert (session.source, session.safety_distance_cm) == (session.id, 20)
    assert (capture.status().session, capture.status().waiting) == ("", [path.name])
    capture.label(frame_of(1), "free")
    assert capture.status().session != session.id


def test_ingest_takes_what_a_robot_captured(capture: Capture, tmp_path: Path) -> None:
    """The zip of a robot is handed in as it is."""
    from pipelines.sessions import SessionZip

    capture.label(frame_of(60), "blocked")
    capture.label(frame_of(200), "free")
    with SessionZip(capture.finish()) as archive:
        assert archive.session.robot == "r1"
        assert len(archive.images) == 2


@pytest.mark.parametrize("free", [0, 1])
def test_a_session_without_both_classes_is_not_finished(capture: Capture, free: int) -> None:
    """Ingest would refuse it; the person is told which class lacks, and may go on or discard."""
    with pytest.raises(OperatorError, match="no session is under way"):
        capture.finish()
    capture.label(frame_of(60), "free" if free else "blocked")
    with pytest.raises(OperatorError, match="no `blocked` image" if free else "no `free` image"):
        capture.finish()
    capture.discard()
    assert capture.status().session == ""
    assert not list(capture.folder.iterdir())


def test_a_second_begin_is_refused(capture: Capture) -> None:
    """What is under way is neither lost nor mixed."""
    first = capture.begin()
    with pytest.raises(OperatorError, match=first):
        capture.begin()


def test_it_goes_on_after_a_restart(capture: Capture) -> None:
    """Counts, session and finished zips are found again."""
    capture.label(frame_of(60), "blocked")
    capture.label(frame_of(200), "free")
    path = capture.finish()
    capture.label(frame_of(60), "blocked")
    before = capture.status()
    assert again(capture).status() == before
    assert again(capture).waiting() == [path]


KILLED = """
import os, sys
from pathlib import Path
from serving.capture import Capture
from serving.config import CaptureSettings
from tests.test_robot_parts import frame_of
capture = Capture(Path(sys.argv[1]), CaptureSettings(min_free_mb=0), "r1")
calls = 0
def dies_at(real):
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return real(*arguments, **named)
    return call
for name in ("open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir"):
    setattr(os, name, dies_at(getattr(os, name)))
for number in range(2):
    for label in ("blocked", "free"):
        capture.label(frame_of(number), label)
        print(label, flush=True)
print(capture.finish(), flush=True)
"""


def test_a_kill_at_any_write_loses_at_most_the_image_under_way(tmp_path: Path) -> None:
    """kill -9 before each call that writes: every image that was answered is there afterwards, in the session under way
    or in exactly one zip; and the session can be finished."""
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at) / "captures"
        if at > 6 and at % 6:  # they repeat themselves
            continue
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(at)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        answered = [line for line in done.stdout.split() if line in ("blocked", "free")]
        assert done.returncode in (0, -9), done.stderr
        found = Capture(folder, CaptureSettings(min_free_mb=0), "r1")
        status = found.status()
        zips = sum(len(names(path)) - 1 for path in found.waiting())
        kept = status.blocked + status.free + zips
        assert len(answered) <= kept <= len(answered) + 1
        assert zips in (0, 4)
        if done.returncode == 0:
            return


def test_a_power_failure_between_the_zip_and_what_it_was_made_of(capture: Capture) -> None:
    """A session that is closing is closed at the next start, once, with the same bytes."""
    capture.label(frame_of(60), "blocked")
    capture.label(frame_of(200), "free")
    session = capture.status().session
    closing = capture.folder / f"closing-{session}"
    os.replace(capture.folder / "open", closing)
    shutil.copytree(closing, closing.with_name("copy"))
    path = again(capture).waiting()[0]
    first = path.read_bytes()
    assert path.name == f"{session}.zip"
    assert not closing.exists()
    os.replace(closing.with_name("copy"), closing)
    path.unlink()  # uploaded and confirmed, before what it was made of was deleted
    assert again(capture).waiting() == [path]
    assert path.read_bytes() == first


def test_a_disk_that_fails_at_the_zip_leaves_the_session_open(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and nothing lost; the next attempt succeeds."""
    capture.label(frame_of(60), "blocked")
    capture.label(frame_of(200), "free")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_zip", full)
    with pytest.raises(OperatorError, match="No space left"):
        capture.finish()
    assert (capture.status().blocked, capture.status().waiting) == (1, [])
    monkeypatch.undo()
    assert len(names(capture.finish())) == 3


def test_it_is_bounded_and_says_so(tmp_path: Path) -> None:
    """Too much captured, or too little disk: the label is refused with the setting's name, what is there stays."""
    small = Capture(tmp_path / "captures", CaptureSettings(max_mb=0.005, min_free_mb=0), "r1")
    for _ in range(100):
        try:
            small.label(frame_of(60), "blocked")
        except OperatorError:
            break
    with pytest.raises(OperatorError, match=r"capture\.max_mb"):
        small.label(frame_of(60), "blocked")
    kept = small.status().blocked
    assert kept == len(list(small.folder.glob("open/blocked/*.jpg"))) > 0
    full = Capture(tmp_path / "captures", CaptureSettings(min_free_mb=900_000), "r1")
    with pytest.raises(OperatorError, match=r"capture\.min_free_mb"):
        full.label(frame_of(60), "blocked")
    assert full.status().blocked == kept


def test_a_lost_session_file_loses_no_image(capture: Capture) -> None:
    """Its images go into a new session."""
    capture.label(frame_of(60), "blocked")
    (capture.folder / "open/session.json").write_text("{")
    found = again(capture).status()
    assert (found.blocked, bool(found.session)) == (1, True)
