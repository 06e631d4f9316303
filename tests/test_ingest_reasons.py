"""What `ingest` takes and what it leaves out: every reason, from zips and from folders."""

import io
import os
import zipfile
from pathlib import Path
from typing import Dict

import msgspec
import pytest
from PIL import Image

from pipelines import ingest_sources
from pipelines.ingest import RefusedError, ingest
from pipelines.ingest_report import IngestReport, text
from pipelines.sessions import SessionZip
from serving.errors import OperatorError, RejectedError
from tests.tiny_images import near, picture, session, zip_of

GOOD = {"blocked/good.jpg": picture(1), "free/good.jpg": picture(2)}


def take(tmp_path: Path, files: Dict[str, bytes], **options: object) -> IngestReport:
    path = zip_of(tmp_path / "dataset.zip", files)
    return ingest(path, tmp_path / "sessions", reports=tmp_path / "reports", **options)  # type: ignore[arg-type]


def reasons(report: IngestReport) -> Dict[str, str]:
    return {one.file: f"{one.reason} {one.detail}".strip() for one in report.left_out}


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("blocked/x.jpg", b"", "zero bytes"),
        ("blocked/x.jpg", b"I am text", "not an image"),
        ("blocked/x.jpg", truncated(picture(3)), "truncated"),
        ("blocked/x.jpg", picture(3)[:10], "truncated"),
        ("blocked/x.png", truncated(picture(3, form="PNG")), "truncated"),
        ("blocked/x.jpg", picture(3, size=(640, 480)), "wrong size 640x480, not 224x224"),
        ("blocked/x.jpg", picture(3, mode="L"), "not RGB mode L"),
        ("blocked/x.jpg", picture(3, mode="CMYK"), "not RGB mode CMYK"),
        ("blocked/x.png", picture(3, mode="RGBA", form="PNG"), "not RGB mode RGBA"),
        ("blocked/x.jpg", picture(1), "duplicate of blocked/good.jpg"),
        ("other/x.jpg", picture(3), "wrong folder not in blocked or free"),
        ("x.jpg", picture(3), "wrong folder not in blocked or free"),
        ("free/blocked/x.jpg", picture(3), "wrong folder in blocked and in free"),
        ("__MACOSX/blocked/._x.jpg", b"mac", "__MACOSX"),
        ("blocked/._x.jpg", b"mac", "__MACOSX"),
        ("blocked/.ipynb_checkpoints/x.jpg", picture(3), ".ipynb_checkpoints"),
        ("blocked/.DS_Store", b"mac", "system file"),
        ("../blocked/x.jpg", picture(3), "unsafe path"),
        ("/blocked/x.jpg", picture(3), "unsafe path"),
        ("C:\\blocked\\x.jpg", picture(3), "unsafe path"),
    ],
)
def test_every_file_that_is_left_out_is_named_with_the_reason(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    """The good images of the same zip are taken, the bad file is in the report and on the terminal."""
    report = take(tmp_path, {**GOOD, name: data})
    shown = name.replace("\\", "/")
    assert reasons(report)[shown].startswith(reason)
    assert report.images == {"blocked": 1, "free": 1}
    assert shown in text(report)
    saved = msgspec.json.decode((tmp_path / "reports" / "dataset.json").read_bytes(), type=IngestReport)
    assert saved == report


def test_a_link_in_a_zip_is_not_followed(tmp_path: Path) -> None:
    """A link out of the zip is named, not read."""
    path = zip_of(tmp_path / "dataset.zip", GOOD)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("blocked/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    report = ingest(path, tmp_path / "sessions", reports=tmp_path / "reports")
    assert reasons(report) == {"blocked/link.jpg": "a link"}


def test_links_and_pipes_in_a_folder_are_not_opened(tmp_path: Path) -> None:
    """Neither is a file of the person's; a pipe would block for ever."""
    for name, data in GOOD.items():
        target = tmp_path / "mine" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    os.mkfifo(tmp_path / "mine/blocked/pipe.jpg")
    (tmp_path / "mine/blocked/link.jpg").symlink_to("/etc/passwd")
    (tmp_path / "mine/elsewhere").symlink_to(tmp_path)
    report = ingest(tmp_path / "mine", tmp_path / "sessions", reports=tmp_path / "reports")
    assert report.session == "mine"
    assert reasons(report) == {
        "blocked/pipe.jpg": "not a file",
        "blocked/link.jpg": "a link",
        "elsewhere": "wrong folder not in blocked or free",
    }


def test_a_file_damaged_or_locked_inside_the_zip_is_named(tmp_path: Path) -> None:
    """A wrong checksum and a password each cost one file, not the whole zip."""
    path = zip_of(tmp_path / "dataset.zip", {**GOOD, "free/bad.jpg": picture(3), "free/locked.jpg": picture(4)})
    data = bytearray(path.read_bytes())
    at = data.index(picture(3)) + 500
    data[at] ^= 0xFF
    entry = data.rindex(b"free/locked.jpg") - 46  # its record in the central directory
    data[entry + 8] |= 1  # the flag of encryption
    path.write_bytes(data)
    found = reasons(ingest(path, tmp_path / "sessions", reports=tmp_path / "reports"))
    assert found["free/bad.jpg"].startswith("damaged in the zip")
    assert found["free/locked.jpg"] == "encrypted"


def test_a_bomb_costs_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that unpacks beyond the limit is left out after the limit's bytes."""
    path = zip_of(tmp_path / "dataset.zip", GOOD)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("free/bomb.jpg", b"\0" * 30_000_000)
    report = ingest(path, tmp_path / "sessions", reports=tmp_path / "reports")
    assert reasons(report) == {"free/bomb.jpg": "too large more than 20 MB"}
    monkeypatch.setattr(ingest_sources, "MAX_TOTAL_BYTES", 10_000)
    with pytest.raises(RejectedError, match="hand it in as several"):
        ingest(path, tmp_path / "others", reports=tmp_path / "reports")
    assert list((tmp_path / "others").iterdir()) == []
    monkeypatch.setattr(ingest_sources, "MAX_FILES", 2)
    with pytest.raises(RejectedError, match="more than 2"):
        ingest(path, tmp_path / "others", reports=tmp_path / "reports")


def test_folders_are_found_in_any_case_and_under_names_with_spaces(tmp_path: Path) -> None:
    """What other people's zips look like: a folder on top, capitals, backslashes, deeper folders."""
    files = {
        "Rob Object dataset/Blocked/a.jpg": picture(1),
        "Rob Object dataset/FREE/b.JPG": picture(2),
        "dataset\\free\\c.jpeg": picture(3),
        "blocked/monday/d.jpg": picture(4),
    }
    report = take(tmp_path, files)
    assert report.left_out == []
    assert {one.image for one in report.taken} == {
        "dataset/blocked/a.jpg",
        "dataset/blocked/d.jpg",
        "dataset/free/b.jpg",
        "dataset/free/c.jpg",
    }


def test_names_that_clash_or_are_not_plain_are_made_so(tmp_path: Path) -> None:
    """Nothing is lost where two folders use one name, and an id stays one line of plain letters."""
    report = take(
        tmp_path,
        {"a/free/x.jpg": picture(1), "b/free/X.jpg": picture(2), "blocked/täg 1\n.jpg": picture(3)},
    )
    assert [one.image for one in report.taken] == [
        "dataset/blocked/t_g_1_n.jpg",
        "dataset/free/X-2.jpg",
        "dataset/free/x.jpg",
    ]
    assert "\n" not in report.taken[0].file


def test_jpegs_are_stored_byte_for_byte_and_conversions_are_named(tmp_path: Path) -> None:
    """A JPEG that fits is not touched; a PNG becomes a JPEG and the report says so."""
    report = take(tmp_path, {"blocked/a.jpg": picture(1), "free/b.png": picture(2, form="PNG")})
    assert {one.file: one.changed for one in report.taken} == {
        "blocked/a.jpg": "",
        "free/b.png": "PNG to JPEG of quality 95",
    }
    assert "PNG to JPEG" in text(report)
    with SessionZip(tmp_path / "sessions/dataset.zip") as stored:
        first, second = stored.images
        assert stored.read(first) == picture(1)
        converted = Image.open(io.BytesIO(stored.read(second)))
        assert (converted.format, converted.mode, converted.size) == ("JPEG", "RGB", (224, 224))


def test_resize_takes_other_sizes_and_says_so(tmp_path: Path) -> None:
    """Only on request is an image changed in size."""
    report = take(tmp_path, {**GOOD, "free/big.jpg": picture(3, size=(640, 480))}, resize=True)
    assert [one.changed for one in report.taken if one.changed] == ["640x480 to 224x224"]


def test_an_image_in_both_classes_is_believed_in_neither(tmp_path: Path) -> None:
    """The same bytes with both labels: both files are left out and each names the other."""
    report = take(tmp_path, {**GOOD, "blocked/x.jpg": picture(3), "free/y.jpg": picture(3)})
    expected = "the same image in both classes blocked/x.jpg = free/y.jpg"
    assert reasons(report) == {"blocked/x.jpg": expected, "free/y.jpg": expected}


def test_what_other_sessions_hold_is_left_out(tmp_path: Path) -> None:
    """A growing dataset.zip adds only its new images; one that changed its class points to data/labels.csv."""
    session(tmp_path / "sessions", "first", blocked=1, free=1, seed=50)
    report = take(
        tmp_path,
        {**GOOD, "blocked/again.jpg": picture(50), "blocked/was-free.jpg": picture(1050), "free/near.jpg": near(1050)},
    )
    assert report.images == {"blocked": 1, "free": 2}
    found = reasons(report)
    assert found["blocked/again.jpg"] == "already ingested of first/blocked/b0.jpg"
    assert "where it is free: data/labels.csv" in found["blocked/was-free.jpg"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"free/a.jpg": picture(1)}, "no usable image of blocked"),
        ({"blocked/a.jpg": picture(1), "free/b.jpg": b""}, "no usable image of free .1 files left out"),
        ({"a.jpg": picture(1)}, "no usable image of blocked or free"),
        ({}, "no file was found"),
    ],
)
def test_what_would_leave_a_class_empty_is_refused(tmp_path: Path, files: Dict[str, bytes], says: str) -> None:
    """One class alone teaches nothing: nothing is written, and the report still names every file."""
    with pytest.raises(RefusedError, match=says) as caught:
        take(tmp_path, files)
    assert list((tmp_path / "sessions").iterdir()) == []
    assert caught.value.report.outcome == "refused"
    assert (tmp_path / "reports/dataset.refused.json").exists()


def test_session_json_is_kept_and_options_overrule_it(tmp_path: Path) -> None:
    """A session zip brings its own description; what the person says on the command line wins."""
    path = session(tmp_path / "from", "kitchen", source="anna")
    report = ingest(path, tmp_path / "sessions", reports=tmp_path / "reports", robot="jetbot-3", source=None)
    assert report.about.id == "kitchen"
    assert report.about.source == "anna"
    assert report.about.robot == "jetbot-3"


@pytest.mark.parametrize("content", [b"not json", b'{"id": "a"}', b'{"id": "../a", "source": "b"}', b"\xff\xfe"])
def test_a_wrong_session_json_is_refused(tmp_path: Path, content: bytes) -> None:
    """It is not guessed what was meant."""
    with pytest.raises(RejectedError, match=r"session\.json"):
        take(tmp_path, {**GOOD, "session.json": content})


@pytest.mark.parametrize("options", [{"id": "../up"}, {"id": ""}, {"safety_distance_cm": -1.0}])
def test_wrong_options_are_named(tmp_path: Path, options: Dict[str, object]) -> None:
    """An id that would leave the folder, and a distance below zero."""
    with pytest.raises(OperatorError, match=next(iter(options))):
        take(tmp_path, GOOD, **options)


def test_an_id_in_use_is_not_overwritten(tmp_path: Path) -> None:
    """The second dataset.zip with other images asks for a name of its own."""
    take(tmp_path, GOOD)
    before = (tmp_path / "sessions/dataset.zip").read_bytes()
    with pytest.raises(OperatorError, match="--id"):
        take(tmp_path, {"blocked/a.jpg": picture(8), "free/b.jpg": picture(9)})
    assert (tmp_path / "sessions/dataset.zip").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_broken_zip_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """One line that names the file."""
    (tmp_path / "dataset.zip").write_bytes(content)
    with pytest.raises(RejectedError, match=r"dataset\.zip is not a readable zip"):
        ingest(tmp_path / "dataset.zip", tmp_path / "sessions", reports=tmp_path / "reports")


def test_nothing_there_is_the_operators_error(tmp_path: Path) -> None:
    """A path that does not exist, and a folder of sessions that cannot be made."""
    with pytest.raises(OperatorError, match="does not exist"):
        ingest(tmp_path / "nowhere.zip", tmp_path / "sessions", reports=tmp_path / "reports")
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="cannot be written"):
        ingest(zip_of(tmp_path / "d.zip", GOOD), tmp_path / "file/sessions", reports=tmp_path / "reports")
