"""`ingest` of anything: one clear error or a whole session, never a traceback, never half a session."""

import tempfile
import zipfile
from pathlib import Path
from typing import List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingest import ingest
from pipelines.sessions import SessionZip, session_files
from serving.errors import JetloopError
from tests.tiny_images import picture

PARTS = ["blocked", "free", "Free", "dataset", "__MACOSX", ".ipynb_checkpoints", "..", "", "a b", "\\", "C:", "\x1b["]
NAMES = ["a.jpg", "b.jpg", "A.JPG", ".jpg", "._a.jpg", "session.json", "c.png", "no-ending", "é\n.jpg"]
PICTURES = [picture(i) for i in range(6)]
OTHERS = [b"", b"{}", picture(0)[:3000], picture(0, form="PNG"), picture(0, (32, 32)), picture(0, mode="L")]


def joined(folders: List[str], name: str) -> str:
    return "/".join([*folders, name])


def spoiled(at: int, value: int) -> bytes:
    """A JPEG with one byte changed."""
    return picture(7)[:at] + bytes([value]) + picture(7)[at + 1 :]


names = st.builds(joined, st.lists(st.sampled_from(PARTS), max_size=3), st.sampled_from(NAMES))
contents = st.one_of(
    st.sampled_from(PICTURES),
    st.sampled_from(OTHERS),
    st.binary(max_size=200),
    st.builds(spoiled, st.integers(0, 4000), st.integers(0, 255)),
)
good = st.sampled_from([[], [("blocked/good.jpg", picture(8)), ("x/free/good.jpg", picture(9))]])


def check(path: Path, folder: Path) -> None:
    """Ingests twice and looks at what is there."""
    for attempt in (1, 2):
        try:
            report = ingest(path, folder / "sessions", reports=folder / "reports")
        except JetloopError as problem:
            message = str(problem)
        else:
            message = ""
        if message:
            assert "\n" not in message
            assert not session_files(folder / "sessions")
            continue
        assert report.outcome == ("written" if attempt == 1 else "nothing-new")
        (written,) = (folder / "sessions").iterdir()  # and no leftover of writing it
        with SessionZip(written) as session:
            assert {image.label for image in session.images} == {"blocked", "free"}
            if attempt == 1:
                assert sorted(image.image for image in session.images) == [one.image for one in report.taken]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(names, contents), max_size=8), good)
def test_any_files_in_a_zip(files: List[Tuple[str, bytes]], more: List[Tuple[str, bytes]]) -> None:
    """Every file of the zip is taken or left out, each once, and a second ingest adds nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(folder / "any.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in files + more:
                archive.writestr(zipfile.ZipInfo(path or "x"), data)
        check(folder / "any.zip", folder)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_zip_with_bytes_changed_or_cut(data: st.DataObject) -> None:
    """Damage anywhere in the zip, its directory included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(folder / "any.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(3):
                archive.writestr(f"blocked/{i}.jpg", picture(i, (64, 64)))
                archive.writestr(f"free/{i}.jpg", picture(10 + i))
                archive.writestr(f"blocked/good{i}.jpg", picture(20 + i))
        whole = bytearray((folder / "any.zip").read_bytes())
        tail = st.integers(max(0, len(whole) - 900), len(whole) - 1)  # the directory, where damage hurts most
        for at in data.draw(st.lists(st.one_of(tail, st.integers(0, len(whole) - 1)), max_size=6)):
            whole[at] = data.draw(st.integers(0, 255))
        (folder / "any.zip").write_bytes(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])
        check(folder / "any.zip", folder)


def test_an_entry_without_a_name() -> None:
    """A damaged directory may hold one; the others are taken all the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(folder / "any.zip", "w") as archive:
            archive.writestr("blocked/1.jpg", picture(1))
            archive.writestr("free/2.jpg", picture(2))
            entry = zipfile.ZipInfo("x")
            entry.filename = ""
            archive.writestr(entry, b"lost")
        check(folder / "any.zip", folder)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_as_session_json_or_as_the_zip(data: bytes) -> None:
    """No input reaches the person as a traceback."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "any.zip").write_bytes(data)
        check(folder / "any.zip", folder)
        with zipfile.ZipFile(folder / "other.zip", "w") as archive:
            archive.writestr("session.json", data)
        check(folder / "other.zip", folder)
