"""From the split to pixels: reads `build/split/split.csv` and gives its images, decoded once (pack.py).

The label is the one in split.csv, where corrections have been applied, and not the folder in the zip. Choosing the
parts is not done here.
"""

import contextlib
import csv
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence

import numpy as np

from serving.contracts.sessions import LABELS
from serving.errors import OperatorError, RejectedError
from serving.preprocess import FRAME_SHAPE
from training import pack
from training.frames import decode, open_session
from training.machine import cores, in_order
from training.pack_file import Pixels
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
    simulated: bool = False


class Images(NamedTuple):
    """Decoded images of one part."""

    rows: List[Row]
    pixels: Pixels  # (N, 224, 224, 3) uint8, RGB: an array or, where that would be large, `PackedPixels`
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
        texts = {name: line[name] for name in Row._fields if name != "simulated"}
        row = Row(**texts, simulated=line["simulated"] == "True")
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


def load(rows: Sequence[Row], sessions: Path, what: str = "reading images", cache: Path = pack.CACHE) -> Images:
    """Images of `rows`, out of the pack in the folder `cache` (pack.py); a few, where there is none, out of the zips.

    Raises:
        OperatorError: a session zip is missing, or the disk has no room for the pack.
        RejectedError: an image is missing, broken, or not 224x224 RGB.
    """
    images = [row.image for row in rows]
    pixels = pack.read(images, sessions, what, cache)
    if pixels is None:
        pixels = np.empty((len(rows), *FRAME_SHAPE), dtype=np.uint8)
        for index, frame in enumerate(track(_decoded(images, sessions), what, total=len(rows))):
            pixels[index] = frame
    labels = np.array([LABELS.index(row.label) for row in rows], dtype=np.int64)
    return Images(list(rows), pixels, labels)


def _decoded(images: Sequence[str], sessions: Path) -> Iterator[np.ndarray]:
    """Frames in the order of `images`, decoded by all cores."""
    archives: Dict[str, zipfile.ZipFile] = {}
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(cores()) as pool:
        for session in dict.fromkeys(image.partition("/")[0] for image in images):
            archives[session] = opened.enter_context(open_session(sessions / f"{session}.zip"))
        yield from in_order(pool, lambda image: decode(archives[image.partition("/")[0]], image), images, ahead=64)
