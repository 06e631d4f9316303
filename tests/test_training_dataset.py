"""From split.csv and session zips to pixels."""

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from PIL import Image

from serving.errors import OperatorError, RejectedError
from training.dataset import Row, load, need_both_classes, read_split
from training.machine import in_order

HEADER = "image,label,session,source,group,part,simulated\n"


def jpeg(value: int, size: tuple[int, int] = (224, 224), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(file, "JPEG", quality=95)
    return file.getvalue()


def row(image: str, label: str = "blocked") -> Row:
    return Row(image, label, image.split("/")[0], "someone", "0", "train")


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    for session, value in (("one", 50), ("two", 150)):
        with zipfile.ZipFile(tmp_path / f"{session}.zip", "w") as archive:
            archive.writestr("blocked/a.jpg", jpeg(value))
            archive.writestr("free/b.jpg", jpeg(value + 50))
            archive.writestr("free/grey.jpg", jpeg(value, mode="L"))
            archive.writestr("free/small.jpg", jpeg(value, size=(100, 50)))
            archive.writestr("free/broken.jpg", jpeg(value)[:300])
    return tmp_path


def test_pixels_come_in_the_order_of_the_rows_with_the_split_s_labels(sessions: Path) -> None:
    """Sessions may alternate; a corrected label wins over the folder."""
    rows = [row("one/blocked/a.jpg"), row("two/free/b.jpg", "free"), row("one/free/b.jpg", "blocked")]
    images = load(rows, sessions)
    assert images.pixels.shape == (3, 224, 224, 3)
    assert images.pixels.dtype == np.uint8
    np.testing.assert_allclose(images.pixels.mean(axis=(1, 2, 3)), [50, 200, 100], atol=2)
    assert images.labels.tolist() == [0, 1, 0]


def test_a_grey_image_becomes_rgb(sessions: Path) -> None:
    """Three equal channels."""
    pixels = load([row("one/free/grey.jpg")], sessions).pixels[0]
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("one/free/small.jpg", "one/free/small.jpg is 100x50, not 224x224"),
        ("one/free/broken.jpg", "one/free/broken.jpg cannot be decoded"),
        ("one/free/missing.jpg", "one/free/missing.jpg cannot be decoded"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(sessions: Path, image: str, message: str) -> None:
    """It stops the training, instead of being left out in silence."""
    with pytest.raises(RejectedError, match=message):
        load([row(image)], sessions)


def test_a_missing_session_says_how_to_fetch_it(sessions: Path) -> None:
    """A clone without data is the usual cause."""
    with pytest.raises(OperatorError, match=r"three\.zip cannot be read .* `dvc pull`"):
        load([row("three/free/a.jpg")], sessions)


def test_the_split_is_read_by_part(tmp_path: Path) -> None:
    """Every part is there, also an empty one."""
    path = tmp_path / "split.csv"
    path.write_text(HEADER + "s/free/a.jpg,free,s,me,0,train,True\ns/blocked/b.jpg,blocked,s,me,1,test,False\n")
    parts = read_split(path)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 1, "validation": 0, "test": 1}
    assert parts["train"][0].simulated
    assert parts["test"][0] == Row("s/blocked/b.jpg", "blocked", "s", "me", "1", "test")


@pytest.mark.parametrize("line", ["a.jpg,free,s,me,0,exam,False", "a.jpg,maybe,s,me,0,train,False", "a.jpg,free"])
def test_a_broken_line_of_the_split_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    """No image is used under a label or part that nobody knows."""
    (tmp_path / "split.csv").write_text(HEADER + line + "\n")
    with pytest.raises(RejectedError, match=r"split\.csv:2"):
        read_split(tmp_path / "split.csv")


def test_a_part_with_one_class_is_refused() -> None:
    """The message says which class is short of how many images."""
    with pytest.raises(RejectedError, match="the train part has 0 images of `free` and needs 2 at least"):
        need_both_classes([row("s/blocked/a.jpg"), row("s/blocked/b.jpg")], "train")


def test_long_inputs_are_not_read_ahead() -> None:
    """Results come in order, and the input is taken as they are used: memory does not grow with its length."""
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, lambda item: item * item, items(), ahead=4)
        assert [next(results) for _ in range(10)] == [item * item for item in range(10)]
        assert len(taken) == 13
        assert list(results)[-1] == 99 * 99
