"""The pack: decoded once, reused while the sessions do not change, and never believed when it is damaged."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import List

import numpy as np
import pytest

from serving.errors import OperatorError, RejectedError
from tests.conftest import ROOT, wait_for
from tests.tiny_images import picture, session, zip_of
from training import pack, pack_file
from training.dataset import Row, load
from training.frames import decode, list_images


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sessions of eight images, and a pack is worth it from the first image on."""
    monkeypatch.setattr(pack, "FEWEST", 1)
    session(tmp_path / "sessions", "one", blocked=4, free=4, seed=0)
    session(tmp_path / "sessions", "two", blocked=4, free=4, seed=50)
    return tmp_path / "sessions"


def rows(sessions: Path) -> List[Row]:
    return [Row(name, name.split("/")[1], name.split("/")[0], "x", "0", "train") for name in names(sessions)]


def names(sessions: Path) -> List[str]:
    return list_images(sessions).images


def pixels_of(name: str, sessions: Path) -> np.ndarray:
    with zipfile.ZipFile(sessions / f"{name.split('/')[0]}.zip") as archive:
        return decode(archive, name)


def packs(cache: Path) -> List[Path]:
    return sorted(cache.glob("pack-*.npy"))


def test_the_pack_holds_what_the_zips_hold(sessions: Path, tmp_path: Path) -> None:
    """In the order of the rows, whatever that is; NumPy alone can open the file too."""
    asked = rows(sessions)[::-3]
    images = load(asked, sessions, cache=tmp_path / "cache")
    for row, frame in zip(asked, images.pixels, strict=True):
        np.testing.assert_array_equal(frame, pixels_of(row.image, sessions))
    (path,) = packs(tmp_path / "cache")
    assert np.load(path, mmap_mode="r").shape == (16, 224, 224, 3)


def test_a_pack_is_made_once(sessions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second reader, of other rows, decodes nothing; and another folder with the same zips has the same pack."""
    load(rows(sessions)[:5], sessions, cache=tmp_path / "cache")
    shutil.copytree(sessions, tmp_path / "copy")
    monkeypatch.setattr(pack_file, "decode", None)
    assert len(load(rows(sessions)[5:], sessions, cache=tmp_path / "cache").pixels) == 11
    assert len(load(rows(sessions)[5:], tmp_path / "copy", cache=tmp_path / "cache").pixels) == 11


def test_changed_sessions_get_another_pack_and_two_are_kept(sessions: Path, tmp_path: Path) -> None:
    """An image replaced under its old name is seen; packs of long ago are removed."""
    cache = tmp_path / "cache"
    made = []
    for seed in (100, 200, 300):
        session(sessions, "two", blocked=4, free=4, seed=seed)
        frame = load(rows(sessions), sessions, cache=cache).pixels[8]
        np.testing.assert_array_equal(frame, pixels_of("two/blocked/b0.jpg", sessions))
        made += [path for path in packs(cache) if path not in made]
    assert len(made) == 3
    assert packs(cache) == sorted(made[1:])


def test_few_images_without_a_pack_come_straight_from_the_zips(
    sessions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They make none, because that would be slower."""
    monkeypatch.setattr(pack, "FEWEST", 100)
    images = load(rows(sessions), sessions, cache=tmp_path / "cache")
    assert images.pixels.shape == (16, 224, 224, 3)
    assert not (tmp_path / "cache").exists()


def test_many_images_stay_on_disk(sessions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, slices and arrays of numbers give the same as from an array in memory."""
    held = load(rows(sessions), sessions, cache=tmp_path / "cache").pixels
    monkeypatch.setattr(pack, "IN_MEMORY", 3)
    mapped = load(rows(sessions), sessions, cache=tmp_path / "cache").pixels
    assert isinstance(mapped, pack_file.PackedPixels)
    assert (mapped.shape, mapped.dtype, len(mapped)) == (held.shape, held.dtype, 16)
    for key in (3, -1, slice(2, 7), slice(None, None, -2), np.array([5, 1, 5]), np.arange(16) % 3 == 0):
        np.testing.assert_array_equal(mapped[key], held[key])
    np.testing.assert_array_equal(np.asarray(mapped), held)
    packs(tmp_path / "cache")[0].unlink()  # a newer one may take its place meanwhile
    np.testing.assert_array_equal(mapped[9], held[9])


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "a pixel":
        data[5_000] ^= 1
    elif kind == "the index":
        data[-100] ^= 1
    elif kind == "the footer":
        data[-1] ^= 1
    elif kind == "cut off":
        del data[-200_000:]
    elif kind == "empty":
        data.clear()
    elif kind == "all zero":  # what some file systems leave after a power cut
        data[:] = bytes(len(data))
    path.write_bytes(data)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("kind", ["a pixel", "the index", "the footer", "cut off", "empty", "all zero"])
def test_a_damaged_pack_is_made_anew(
    sessions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    held: bool,
) -> None:
    """With one line that says so, and with the right pixels, in memory or mapped."""
    monkeypatch.setattr(pack, "IN_MEMORY", 100 if held else 0)
    cache = tmp_path / "cache"
    load(rows(sessions), sessions, cache=cache)
    damage(packs(cache)[0], kind)
    with caplog.at_level(logging.WARNING):
        images = load(rows(sessions), sessions, cache=cache)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "is damaged" in line
    assert "made anew" in line
    for row, frame in zip(images.rows, images.pixels, strict=True):
        np.testing.assert_array_equal(frame, pixels_of(row.image, sessions))


def test_a_pack_under_a_wrong_digest_is_not_believed(
    sessions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole pack of other images, moved to the name of these."""
    cache = tmp_path / "cache"
    load(rows(sessions), sessions, cache=cache)
    (old,) = packs(cache)
    session(sessions, "two", blocked=4, free=4, seed=700)
    old.rename(cache / f"pack-{list_images(sessions).digest[:16]}.npy")
    frame = load(rows(sessions), sessions, cache=cache).pixels[8]
    np.testing.assert_array_equal(frame, pixels_of("two/blocked/b0.jpg", sessions))
    assert "was made of other sessions" in caplog.text


def test_a_disk_that_always_damages_is_said(sessions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with an error, and not in a loop."""
    write = pack_file.write

    def badly(path: Path, *arguments: object) -> None:
        write(path, *arguments)  # type: ignore[arg-type]
        damage(path, "a pixel")

    monkeypatch.setattr(pack, "write", badly)
    with pytest.raises(OperatorError, match="damaged again as soon as it is written; check the disk"):
        load(rows(sessions), sessions, cache=tmp_path / "cache")


def test_a_full_disk_says_how_much_is_needed_and_where(
    sessions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written; and when it fills up meanwhile, nothing is left."""
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(pack.shutil, "disk_usage", lambda _: usage(10, 9, 1_000_000))
        with pytest.raises(OperatorError, match=r"takes 0\.00 GB in .*cache, and 0\.00 GB are free"):
            load(rows(sessions), sessions, cache=tmp_path / "cache")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OperatorError, match=r"No space left on device.*16 images need"):
        load(rows(sessions), sessions, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["pack.lock"]


def test_an_image_that_cannot_be_used_harms_nobody_but_who_asks_for_it(sessions: Path, tmp_path: Path) -> None:
    """It is named as without a pack, from a new pack and from one that was there."""
    bad = {"free/broken.jpg": picture(1)[:900], "free/small.jpg": picture(1, (100, 50)), "blocked/a.jpg": picture(2)}
    zip_of(sessions / "bad.zip", bad)
    good = Row("bad/blocked/a.jpg", "blocked", "bad", "x", "0", "train")
    assert len(load([good], sessions, cache=tmp_path / "cache").pixels) == 1
    for name, says in (("broken.jpg", "cannot be decoded"), ("small.jpg", "is 100x50"), ("none.jpg", "no item named")):
        with pytest.raises(RejectedError, match=says):
            load([good, good._replace(image=f"bad/free/{name}")], sessions, cache=tmp_path / "cache")
    with pytest.raises(OperatorError, match=r"gone\.zip cannot be read .* `dvc pull`"):
        load([good._replace(image="gone/free/a.jpg")], sessions, cache=tmp_path / "cache")


SLOW = """
import sys, time
from pathlib import Path
from training import pack, pack_file
decode = pack_file.decode
def slowly(*arguments):
    sys.stdout.write("decoding\\n")  # in one piece, whatever the other threads write
    sys.stdout.flush()
    time.sleep(0.2)
    return decode(*arguments)
pack_file.decode, pack.FEWEST = slowly, 1
print(len(pack.read([sys.argv[3]], Path(sys.argv[1]), "reading", Path(sys.argv[2]))))
"""


def start(sessions: Path, cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SLOW, str(sessions), str(cache), "one/free/f0.jpg"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_nothing_that_is_used(sessions: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: no pack; the next process makes a whole one and clears away what was left."""
    cache = tmp_path / "cache"
    process = start(sessions, cache)
    assert process.stdout is not None
    assert process.stdout.readline() == "decoding\n"
    wait_for(lambda: list(cache.glob("*.partial")), what="the pack being written")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert packs(cache) == []
    assert len(list(cache.glob("*.partial"))) == 1
    session(sessions, "three", seed=500)  # other contents, another name
    assert len(load(rows(sessions), sessions, cache=cache).pixels) == 22
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".npy"]


def test_of_two_processes_one_decodes(sessions: Path, tmp_path: Path) -> None:
    """The other waits for the pack, as the processes of torchrun do."""
    processes = [start(sessions, tmp_path / "cache") for _ in range(2)]
    said = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert said.count("decoding\n") == 16
    assert said.count("1\n") == 2
