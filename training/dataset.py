"""From the split to pixels: reads `build/split/split.csv` and decodes its images out of the session zips, once.

An image is named `<session>/<label folder>/<file>` everywhere; its pixels are in `<sessions>/<session>.zip`. The label
is the one in split.csv, where corrections have been applied, and not the folder. Choosing the parts is not done here.
"""

import csv
import io
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from serving.contracts.sessions import LABELS
from serving.errors import OperatorError, RejectedError
from serving.preprocess import FRAME_SHAPE, HEIGHT, WIDTH
from training.progress import track

PARTS = ("train", "validation", "test")


class Row(NamedTuple):
    """One line of split.csv."""

    image: str  # <session>/<label folder>/<file>
    label: str
    session: str
    source: str
    group: str
    part: str


class Images(NamedTuple):
    """Decoded images of one part."""

    rows: List[Row]
    pixels: np.ndarray  # (N, 224, 224, 3) uint8, RGB
    labels: np.ndarray  # (N,) int64: 0 blocked, 1 free


def read_split(path: Path) -> Dict[str, List[Row]]:
    """Rows of split.csv by part; a part without rows is an empty list.

    Raises:
        OperatorError: the file is missing.
        RejectedError: a column is missing, or a label or part is unknown.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise OperatorError(f"{path} cannot be read ({problem.strerror}); run `dvc repro split` first") from None
    parts: Dict[str, List[Row]] = {part: [] for part in PARTS}
    for number, line in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        missing = [name for name in Row._fields if not line.get(name)]
        if missing:
            raise RejectedError(f"{path}:{number} has no `{missing[0]}`; run `dvc repro split` again")
        row = Row(*(line[name] for name in Row._fields))
        if row.part not in parts or row.label not in LABELS:
            raise RejectedError(
                f"{path}:{number}: part `{row.part}`, label `{row.label}`; a part is one of {', '.join(PARTS)}, "
                f"a label one of {', '.join(LABELS)}"
            )
        parts[row.part].append(row)
    return parts


def need_both_classes(rows: Sequence[Row], part: str, at_least: int = 2) -> None:
    """Refuses a part that nothing can be learned from or measured on.

    Raises:
        RejectedError: a class has fewer than `at_least` images.
    """
    for label in LABELS:
        count = sum(row.label == label for row in rows)
        if count < at_least:
            raise RejectedError(
                f"the {part} part has {count} images of `{label}` and needs {at_least} at least; "
                "collect more of them (`jetloop ingest`), or change the shares under `split` in params.yaml"
            )


def load(rows: Sequence[Row], sessions: Path, what: str = "reading images") -> Images:
    """Decodes the images of `rows` out of the zips in the folder `sessions`.

    Raises:
        OperatorError: a session zip is missing.
        RejectedError: an image is missing, broken, or not 224x224 RGB.
    """
    pixels = np.empty((len(rows), *FRAME_SHAPE), dtype=np.uint8)
    for index, frame in enumerate(track(_frames(rows, sessions), what, total=len(rows))):
        pixels[index] = frame
    labels = np.array([LABELS.index(row.label) for row in rows], dtype=np.int64)
    return Images(list(rows), pixels, labels)


def _frames(rows: Sequence[Row], sessions: Path) -> Iterator[np.ndarray]:
    """Frames in the order of `rows`; a zip stays open while the rows are of its session."""
    archive: Optional[zipfile.ZipFile] = None
    opened = ""
    try:
        for row in rows:
            session, _, member = row.image.partition("/")
            if archive is None or session != opened:
                if archive is not None:
                    archive.close()
                archive, opened = _open(sessions / f"{session}.zip"), session
            yield _decode(archive, member, row.image)
    finally:
        if archive is not None:
            archive.close()


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc pull`, then `dvc repro`") from None


def _decode(archive: zipfile.ZipFile, member: str, name: str) -> np.ndarray:
    try:
        with archive.open(member) as file, Image.open(io.BytesIO(file.read())) as image:
            frame = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (KeyError, OSError, ValueError, UnidentifiedImageError, zipfile.BadZipFile) as problem:
        raise RejectedError(f"{name} cannot be decoded ({problem}); run `dvc repro validate` to see them all") from None
    if frame.shape != FRAME_SHAPE:
        raise RejectedError(f"{name} is {frame.shape[1]}x{frame.shape[0]}, not {WIDTH}x{HEIGHT}; ingest it again")
    return frame
