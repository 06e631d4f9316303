"""The stage `validate`: the table of images, near-duplicates, corrections, expectations."""

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pipelines import images_facts, images_table
from pipelines.images_facts import measure, near_duplicates
from pipelines.images_table import COLUMNS, build, read_images
from pipelines.params import DataParams
from pipelines.sessions import write_session
from pipelines.split import command as split_command
from pipelines.validate import command as validate_command
from pipelines.validate import describe, failed, validate
from serving.command_line import run
from serving.contracts.sessions import Session
from serving.errors import OperatorError, RejectedError
from tests.conftest import ROOT
from tests.tiny_images import jpeg, near, picture, session

PARAMS = DataParams(sessions="data/sessions", labels="data/labels.csv", schema="data/schema.yaml")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two sessions, the schema and no corrections; the working directory is in it."""
    monkeypatch.chdir(tmp_path)
    session(tmp_path / "data/sessions", "first", blocked=6, free=6, source="anna")
    session(tmp_path / "data/sessions", "007", blocked=6, free=6, seed=100)
    (tmp_path / "data/labels.csv").write_text("image,label,reason,by\n")
    (tmp_path / "data/schema.yaml").write_bytes((ROOT / "data/schema.yaml").read_bytes())
    return tmp_path / "data"


def add(data: Path, name: str, images: Dict[str, bytes]) -> None:
    write_session(data / f"sessions/{name}.zip", Session(id=name, source=name), images.items())


def test_the_table_tells_what_is_known_of_every_image(data: Path) -> None:
    """One row an image, in the order of their ids, and the file gives back what was measured."""
    validate(PARAMS)
    images = read_images()
    assert list(images.columns) == COLUMNS
    assert list(images["image"]) == sorted(images["image"])
    assert len(images) == 24
    first = images.set_index("image").loc["007/blocked/b0.jpg"]
    assert (first["session"], first["source"], first["label"]) == ("007", "007", "blocked")
    assert (first["width"], first["height"], first["mode"]) == (224, 224, "RGB")
    assert first["bytes"] == len(picture(100))
    assert 60 < first["brightness"] < 190
    assert len(first["dhash"]) == 64
    assert first["readable"]
    pd.testing.assert_frame_equal(images, build(PARAMS), check_dtype=False)


def test_measures_say_what_they_are_called() -> None:
    """Blur lowers the sharpness, black has no brightness, bytes that are no image are unreadable."""
    sharp = measure(picture(1))

    blurred = measure(jpeg(Image.open(io.BytesIO(picture(1))).filter(ImageFilter.GaussianBlur(6))))
    black = measure(jpeg(Image.new("RGB", (224, 224))))
    assert blurred.sharpness < sharp.sharpness / 4
    assert (black.brightness, black.sharpness, black.dhash) == (0.0, 0.0, "0" * 64)
    for data in (b"", b"text", picture(1)[:2000]):
        facts = measure(data)
        assert not facts.readable
        assert np.isnan(facts.brightness)


def test_other_processes_measure_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images are measured by several processes; the table is the same."""
    here = build(PARAMS)
    monkeypatch.setattr(images_table, "IN_PROCESSES", 1)
    monkeypatch.setattr(images_table, "_CHUNK", 5)
    pd.testing.assert_frame_equal(build(PARAMS), here)


def flip(digits: str, bits: int) -> str:
    """The hash with so many of its bits changed."""
    return f"{int(digits, 16) ^ ((1 << bits) - 1):064x}"


def test_groups_join_what_is_at_most_16_bits_apart() -> None:
    """16 bits join, 17 do not, a chain joins its ends, and more images than a block are compared with each other."""
    base = "0123456789abcdef" * 4
    assert list(near_duplicates([base, flip(base, 16)], ["free", "free"]).group) == [0, 0]
    assert list(near_duplicates([base, flip(base, 17)], ["free", "free"]).group) == [0, 1]
    chain = [flip(base, 26), base, flip(base, 13)]
    assert list(near_duplicates(chain, ["free"] * 3).group) == [0, 0, 0]
    generator = np.random.default_rng(0)
    many = [generator.bytes(32).hex() for _ in range(700)]
    group = near_duplicates([*many, flip(many[0], 3), many[1], "", ""], ["free"] * 704).group
    assert list(group[:700]) == list(range(700))
    assert list(group[700:]) == [0, 1, 700, 701]


HASH = st.tuples(st.integers(0, 2), st.sets(st.integers(0, 255), max_size=12))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(HASH, st.sampled_from(["blocked", "free"])), max_size=40), st.integers(1, 50))
def test_near_duplicates_are_those_of_comparing_each_with_each(
    drawn: List[Tuple[Tuple[int, Set[int]], str]], most_pending: int
) -> None:
    """Whatever the bits, and however often the pairs are folded into the groups."""
    views = [int.from_bytes(np.random.default_rng(view).bytes(32), "big") for view in range(3)]
    values = [views[view] ^ sum(1 << bit for bit in flipped) for (view, flipped), _ in drawn]
    labels = [label for _, label in drawn]
    near = [[(a ^ b).bit_count() <= 16 for b in values] for a in values]
    group = list(range(len(values)))
    for one, other in itertools.combinations(range(len(values)), 2):
        if near[one][other]:
            group = [group[one] if number == group[other] else number for number in group]
    with mock.patch.object(images_facts, "_MOST_PENDING", most_pending):
        found = near_duplicates([f"{value:064x}" for value in values], labels)
    assert list(found.group) == [list(dict.fromkeys(group)).index(number) for number in group]
    assert list(found.contradicts) == [
        any(near[i][j] and labels[i] != labels[j] for j in range(len(values))) for i in range(len(values))
    ]


def test_a_robot_that_stood_still_is_compared_in_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of frames of one view: not every pair of them is looked at."""
    compared = 0
    join = images_facts._Known.join

    def counted(known: Any, left: np.ndarray, right: np.ndarray) -> bool:
        nonlocal compared
        compared += len(left)
        return join(known, left, right)

    monkeypatch.setattr(images_facts._Known, "join", counted)
    monkeypatch.setattr(images_facts, "_MOST_PENDING", 20_000)
    bits = np.random.default_rng(0).random((4000, 256)) < 2 / 256
    hashes = [row.tobytes().hex() for row in np.packbits(bits, axis=1)]
    found = near_duplicates(hashes, ["free", "blocked"] * 2000)
    assert set(found.group) == {0}
    assert found.contradicts.all()
    assert compared < 1_000_000  # of 8 million pairs, each in up to 17 bands


def test_contradictions_are_between_near_images_of_different_labels() -> None:
    """Only direct neighbours contradict each other, the same bytes too."""
    base = "0123456789abcdef" * 4
    hashes = [base, flip(base, 5), flip(base, 30), base, "f" * 64]
    found = near_duplicates(hashes, ["free", "free", "blocked", "blocked", "blocked"])
    assert list(found.contradicts) == [True, True, False, True, False]


def test_corrections_change_the_label_and_nothing_else(data: Path) -> None:
    """data/labels.csv wins over the folder; the id of the image stays."""
    (data / "labels.csv").write_text('image,label,reason,by\nfirst/free/f0.jpg,blocked,"a wall, close up",anna\n')
    images = build(PARAMS).set_index("image")
    assert images.loc["first/free/f0.jpg", "label"] == "blocked"
    assert (images["label"] == "blocked").sum() == 13


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must begin with the line image,label,reason,by"),
        ("image;label\n", "must begin with the line"),
        ("image,label,reason,by\nfirst/free/nope.jpg,blocked,,\n", "line 2: no image `first/free/nope.jpg`"),
        ("image,label,reason,by\n\nfirst/free/f0.jpg,wall,,\n", "line 3: label `wall` is not one of blocked, free"),
        ("image,label,reason,by\nfirst/free/f0.jpg,blocked\n", "line 2: 2 columns"),
        ("image,label,reason,by\n" + "first/free/f0.jpg,blocked,,\n" * 2, "line 3: `first/free/f0.jpg` is already"),
        ("image,label,reason,by\n" + "a" * 200_000 + ",free,,\n", "line 2: field larger than"),
    ],
)
def test_a_wrong_correction_is_named_by_line(data: Path, text: str, says: str) -> None:
    """Nothing is guessed and nothing passed over."""
    (data / "labels.csv").write_text(text)
    with pytest.raises(RejectedError) as caught:
        build(PARAMS)
    assert says in str(caught.value)


def test_good_images_hold(data: Path) -> None:
    """24 fair images in two sessions: no error, and the report keeps the warnings."""
    results = validate(PARAMS)
    assert failed(results, "error") == []
    assert {one.says.split(",")[0] for one in failed(results, "warning")} == {
        "there are at least 200 images",
        "there are at least 3 sessions",
    }
    report = json.loads(Path("build/validate/report.json").read_text())
    assert report["passed"] is True
    assert report["classes"] == {"blocked": 12, "free": 12}
    assert len(report["expectations"]) == len(results)


@pytest.mark.parametrize(
    ("images", "says", "names"),
    [
        ({"blocked/x.jpg": b"broken"}, "every image can be decoded", ["bad/blocked/x.jpg"]),
        ({"blocked/x.jpg": picture(9, (100, 224))}, "every image is 224 pixels wide", ["bad/blocked/x.jpg"]),
        ({"blocked/x.jpg": picture(9, (224, 100))}, "every image is 224 pixels high", ["bad/blocked/x.jpg"]),
        ({"blocked/x.jpg": picture(9, mode="L")}, "every image is RGB", ["bad/blocked/x.jpg"]),
        (
            {f"free/{i}.jpg": near(i) for i in range(6)},
            "at most 15 % of the images have a near-identical one with the other label",
            [f"bad/free/{i}.jpg" for i in range(6)] + [f"first/blocked/b{i}.jpg" for i in range(6)],
        ),
        (
            {f"free/{i}.jpg": picture(500 + i) for i in range(200)},
            "at least a tenth of the images is of either class",
            None,
        ),
    ],
)
def test_errors_name_the_failing_images(data: Path, images: Dict[str, bytes], says: str, names: Any) -> None:
    """Each expectation of data/schema.yaml can fail, and tells of which images."""
    add(data, "bad", images)
    errors = {one.says: one for one in failed(validate(PARAMS), "error")}
    assert says in errors
    if names is not None:
        assert sorted(errors[says].failing) == names
        assert names[0] in describe(errors[says])


def test_many_failing_images_are_counted(data: Path) -> None:
    """The terminal names the first ten, the report all."""
    add(data, "bad", {f"blocked/{i:02}.jpg": b"" for i in range(25)})
    error = failed(validate(PARAMS), "error")[0]
    assert len(error.failing) == 25
    assert describe(error).splitlines()[-1].strip() == "and 15 more"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("images: [", "is not valid YAML"),
        ("images: []\nimage: []\n", "`image` is not a known setting; allowed there: images, sessions, dataset"),
        ("images: [{says: a, expect: expect_x, severity: fatal}]", "`images[0].severity`"),
        ("images: [{says: a, expect: expect_x, severity: error}]", "`a`: expect_x not found"),
        (
            "images: [{says: a, expect: expect_column_values_to_be_between, with: {colum: x}, severity: error}]",
            "colum extra fields not permitted",
        ),
        (
            "images: [{says: a, expect: expect_column_values_to_be_between, "
            "with: {column: nope, min_value: 1}, severity: error}]",
            '`a` cannot be asked: Error: The column "nope"',
        ),
    ],
)
def test_a_wrong_schema_is_named(data: Path, schema: str, says: str) -> None:
    """A key, an expectation, an argument or a column that does not exist."""
    (data / "schema.yaml").write_text(schema)
    with pytest.raises(OperatorError) as caught:
        validate(PARAMS)
    assert says in str(caught.value)


def stage(folder: Path, name: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"pipelines.{name}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_the_stages_run_as_dvc_runs_them(data: Path) -> None:
    """`validate` then `split` as processes: tables, report and pages are there."""
    (data.parent / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace("data/sample ", "data/sessions ")
    )
    for name in ("validate", "split"):
        done = stage(data.parent, name)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert "split by group: not by session, because part" in done.stdout
    pages = list((data.parent / "build/validate/docs").rglob("*.html"))
    assert any(page.name == "index.html" for page in pages)
    assert any("every image can be decoded" in page.read_text() for page in pages if "validations" in page.parts)
    table = pd.read_csv(data.parent / "build/split/split.csv")
    assert list(table.columns) == ["image", "label", "session", "source", "group", "part", "simulated"]
    assert set(table["part"]) == {"train", "validation", "test"}


def test_errors_stop_the_pipeline(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One class alone, through corrections: exit code 1, what is wrong, and where all of it can be read."""
    (data.parent / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace("data/sample ", "data/sessions ")
    )
    lines = [f"{image},blocked,," for image in build(PARAMS)["image"] if "/free/" in image]
    (data / "labels.csv").write_text("\n".join(["image,label,reason,by", *lines]) + "\n")
    for command in (validate_command, split_command):
        with pytest.raises(SystemExit) as caught:
            run(lambda command=command, **options: command.main([], **options))  # type: ignore[misc]
        assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "error: not so: both classes are there (classes: " in said
    assert "error: 2 of " in said
    assert "build/validate/report.json" in said
    assert "part `train` would have no `free` image" in said


def test_no_session_says_how_to_add_one(data: Path) -> None:
    """An empty folder ends in the command that fills it."""
    for path in (data / "sessions").iterdir():
        path.unlink()
    with pytest.raises(OperatorError, match="jetloop ingest PATH"):
        validate(PARAMS)
