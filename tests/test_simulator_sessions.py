"""Sessions out of the arena: the contract, the labels, the same bytes again, and the command that writes them."""

import io
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from serving.contracts.sessions import LABELS, SESSION_FILE, Session
from serving.errors import OperatorError
from simulator import labels
from simulator.arena import Arena
from simulator.cli import group
from simulator.sessions import frames, make_session
from tests.conftest import ROOT


def _make(path: Path, seed: int = 7, images: int = 12, **options: float) -> Path:
    make_session(path, session_id=path.stem, source="lab", seed=seed, images=images, **options)  # type: ignore[arg-type]
    return path


def test_a_session_keeps_the_contract(tmp_path: Path) -> None:
    """The zip opens as the contract says: session.json, half the images blocked, 224x224 RGB JPEG, stored."""
    path = _make(tmp_path / "s-7.zip", images=13)
    with zipfile.ZipFile(path) as archive:
        about = msgspec.json.decode(archive.read(SESSION_FILE), type=Session)
        names = [name for name in archive.namelist() if name != SESSION_FILE]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist() == sorted(archive.namelist())
        images = [Image.open(io.BytesIO(archive.read(name))) for name in names]
    assert (about.id, about.source, about.seed, about.simulated) == ("s-7", "lab", 7, True)
    assert about.safety_distance_cm == 35.0
    assert {label: sum(name.startswith(f"{label}/") for name in names) for label in LABELS} == {"blocked": 6, "free": 7}
    assert {(image.format, image.size, image.mode) for image in images} == {("JPEG", (224, 224), "RGB")}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Same arguments, same file to the byte; another seed, another file."""
    (tmp_path / "again").mkdir()
    first, again, other = _make(tmp_path / "s.zip"), _make(tmp_path / "again" / "s.zip"), tmp_path / "o.zip"
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != _make(other, seed=8).read_bytes()


def test_every_label_in_a_session_agrees_with_geometry() -> None:
    """Each frame's place has the clearance that its label claims, with the borderline left out, and fits the robot."""
    arena = Arena(11)
    for label, _ in frames(arena, 30, 0.35):
        clearance = labels.clearance_m(arena.room, arena.pose)
        assert clearance <= 0.28 if label == "blocked" else clearance >= 0.42
        assert arena.room.gap_m(*arena.pose[:2]) >= 0.08


def test_a_session_holds_no_near_duplicates() -> None:
    """No two frames of a session are nearly the same picture."""
    pictures = np.array([pixels for _, pixels in frames(Arena(12), 24, 0.35)])
    coarse = pictures.reshape(24, 14, 16, 14, 16, 3).mean((2, 4, 5))
    difference = np.abs(coarse[:, None] - coarse[None]).mean((2, 3)) + 255 * np.eye(24)
    assert difference.min() > 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 1}, "2 images or more"),
        ({"safety_distance_m": 3.0}, "0.1 to 1.0 m"),
        ({"images": 8, "borderline": 20.0}, "not enough different places"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path: Path, options: dict[str, float], message: str) -> None:
    """An argument that is not allowed, or a room too small, ends in one line, and leaves no file behind."""
    with pytest.raises(OperatorError, match=message):
        _make(tmp_path / "s.zip", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_name_is_refused(tmp_path: Path) -> None:
    """A session's name cannot lead out of its folder."""
    with pytest.raises(OperatorError, match="session"):
        make_session(tmp_path / "s.zip", session_id="../s", source="lab", seed=1, images=4)


def test_an_unwritable_place_is_said_and_the_old_file_stays(tmp_path: Path) -> None:
    """Where nothing can be written the error names the path."""
    with pytest.raises(OperatorError, match="cannot write"):
        _make(tmp_path / "missing" / "s.zip", images=4)


def test_the_command_writes_sessions_and_does_not_overwrite(tmp_path: Path) -> None:
    """`jetloop simulate sessions` makes the folder and the zips; a second time it refuses, with --force it replaces."""
    out = tmp_path / "new" / "sessions"
    command = ["sessions", "--out", str(out), "--sessions", "2", "--images", "4", "--seed", "3", "--source", "lab"]
    assert CliRunner().invoke(group, command, catch_exceptions=False).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["lab-3.zip", "lab-4.zip"]
    before = (out / "lab-3.zip").stat().st_ino
    with pytest.raises(OperatorError, match=r"already holds lab-3\.zip, lab-4\.zip; give --force"):
        CliRunner().invoke(group, command, catch_exceptions=False)
    assert (out / "lab-3.zip").stat().st_ino == before
    assert CliRunner().invoke(group, [*command, "--force"], catch_exceptions=False).exit_code == 0
    assert (out / "lab-3.zip").stat().st_ino != before


def test_the_command_says_what_to_do_about_a_folder_that_is_none(tmp_path: Path) -> None:
    """A file where the folder should be made: one line that names it and the option."""
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="choose another folder with --out"):
        CliRunner().invoke(group, ["sessions", "--out", str(tmp_path / "file" / "x")], catch_exceptions=False)


def test_frame_shows_the_robots_view_beside_the_room(tmp_path: Path) -> None:
    """`jetloop simulate frame` writes a PNG twice as wide as high, and says what the label is."""
    out = tmp_path / "build" / "frame.png"
    result = CliRunner().invoke(group, ["frame", "--seed", "3", "--out", str(out)], catch_exceptions=False)
    with Image.open(out) as picture:
        assert picture.size == (896, 448)
    assert "arena 3, free" in result.output or "arena 3, blocked" in result.output


def test_the_shipped_sample_is_small_and_keeps_the_contract() -> None:
    """The sample in the repository: both classes, two sources, distinct rooms, under 2 MB."""
    paths = sorted((ROOT / "data" / "sample").glob("*.zip"))
    about = []
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            about.append(msgspec.json.decode(archive.read(SESSION_FILE), type=Session))
            assert {name.split("/")[0] for name in archive.namelist()} == {*LABELS, SESSION_FILE}
    assert [session.id for session in about] == [path.stem for path in paths]
    assert len({session.source for session in about}) >= 2
    assert len({session.seed for session in about}) == len(paths) >= 3
    assert sum(path.stat().st_size for path in paths) < 2_000_000
