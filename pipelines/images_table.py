"""The table of all images, one row each: build/validate/images.csv, made by `validate` and read by later stages.

Also the corrections of labels in data/labels.csv, which are applied here and nowhere else.
"""

import contextlib
import csv
import io
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipelines.images_facts import ImageFacts, measure, near_duplicates
from pipelines.params import DataParams
from pipelines.sessions import ImageEntry, SessionZip, each_session
from serving.contracts.sessions import LABELS
from serving.errors import OperatorError, RejectedError
from training.machine import cores, in_order
from training.progress import track

IMAGES_CSV = Path("build/validate/images.csv")
LABELS_HEADER = ["image", "label", "reason", "by"]

COLUMNS = [
    *("image", "session", "source", "simulated", "label", "width", "height", "mode", "bytes", "brightness"),
    *("sharpness", "dhash", "group", "readable", "contradicts"),
]

# Read back as they were written: a session may be called 007 or nan, a hash may look like a number.
_TYPES = dict.fromkeys(("image", "session", "source", "label", "mode", "dhash"), str) | dict.fromkeys(
    ("readable", "simulated"), bool
)

IN_PROCESSES = 4_000  # images: fewer are measured before other processes have started
_CHUNK = 64  # images sent to another process at a time

_Identity = tuple[str, str, str, bool, str]  # image, session, source, simulated, label
_Measured = tuple[Any, ...]  # the same, then ImageFacts


class Correction(NamedTuple):
    """A line of data/labels.csv."""

    line: int
    image: str
    label: str


def build(params: DataParams) -> pd.DataFrame:
    """Reads and measures every image of every session, with its corrected label and its near-duplicates.

    Columns: COLUMNS, of which `group` numbers the near-duplicates, and `contradicts` tells whether a near-identical
    image has another label. Ordered by image.

    Raises:
        OperatorError: there is no session, or data/labels.csv cannot be read.
        RejectedError: a session is broken, or a correction names an unknown image or label.
    """
    columns = ["image", "session", "source", "simulated", "label", *ImageFacts._fields]
    images = pd.DataFrame(_rows(Path(params.sessions)), columns=columns).sort_values("image", ignore_index=True)
    corrections = read_corrections(Path(params.labels))
    known = set(images["image"])
    for one in corrections:
        if one.image not in known:
            raise RejectedError(
                f"{params.labels} line {one.line}: no image `{one.image}` in {params.sessions}; "
                "correct the name or take the line out"
            )
    images["label"] = images["image"].map({one.image: one.label for one in corrections}).fillna(images["label"])
    near = near_duplicates(images["dhash"].tolist(), images["label"].tolist())
    images["group"] = near.group
    images["contradicts"] = near.contradicts
    return images[COLUMNS]


def _rows(folder: Path) -> Iterator[_Measured]:
    """One image after the other; of their bytes, only those at work are in memory."""
    total = sum(len(session.images) for session in each_session(folder))
    with contextlib.ExitStack() as stack:
        if total < IN_PROCESSES:
            measured: Iterable[list[_Measured]] = map(_measure, _chunks(folder))
        else:  # processes, because most of it holds Python's lock; new ones, because a fork may copy a held lock
            spawn = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(cores(), mp_context=spawn))
            measured = in_order(pool, _measure, _chunks(folder), ahead=4 * cores())
        try:
            yield from track(itertools.chain.from_iterable(measured), "measuring images", total=total)
        except BrokenProcessPool:
            raise OperatorError(
                "a process that measures images was killed, perhaps for want of memory; free some, then `dvc repro`"
            ) from None


def _chunks(folder: Path) -> Iterator[list[tuple[_Identity, bytes]]]:
    for session in each_session(folder):
        about = session.session
        for start in range(0, len(session.images), _CHUNK):
            yield [
                ((image.image, about.id, about.source, about.simulated, image.label), _bytes(session, image))
                for image in session.images[start : start + _CHUNK]
            ]


def _measure(chunk: list[tuple[_Identity, bytes]]) -> list[_Measured]:
    return [(*identity, *measure(data)) for identity, data in chunk]


def _bytes(session: SessionZip, image: ImageEntry) -> bytes:
    try:
        return session.read(image)
    except RejectedError:
        return b""  # damaged in the zip: unreadable in the table, so that an expectation names it with all others


def read_corrections(path: Path) -> list[Correction]:
    """Reads data/labels.csv: `image,label,reason,by`, each image once.

    Raises:
        OperatorError: the file cannot be read.
        RejectedError: the header, a label or a line is not as it should be; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # a spreadsheet may add the mark
    except (OSError, UnicodeDecodeError) as problem:
        raise OperatorError(
            f"{path} cannot be read ({problem}); without corrections it holds the line {','.join(LABELS_HEADER)}"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as problem:
        raise RejectedError(f"{path} line {reader.line_num}: {problem}") from None
    if not lines or lines[0][1] != LABELS_HEADER:
        raise RejectedError(f"{path} must begin with the line {','.join(LABELS_HEADER)}")
    corrections: dict[str, Correction] = {}
    for number, row in lines[1:]:
        if len(row) != len(LABELS_HEADER):
            raise RejectedError(f"{path} line {number}: {len(row)} columns instead of {','.join(LABELS_HEADER)}")
        one = Correction(number, row[0], row[1])
        if one.label not in LABELS:
            raise RejectedError(f"{path} line {number}: label `{one.label}` is not one of {', '.join(LABELS)}")
        if one.image in corrections:
            raise RejectedError(f"{path} line {number}: `{one.image}` is already in line {corrections[one.image].line}")
        corrections[one.image] = one
    return list(corrections.values())


def read_images(path: Path = IMAGES_CSV) -> pd.DataFrame:
    """Reads the table that `validate` wrote.

    Raises:
        OperatorError: it is not there.
    """
    try:
        missing = {"brightness": [""], "sharpness": [""]}
        images = pd.read_csv(path, dtype=_TYPES, keep_default_na=False, na_values=missing)
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc repro validate` first") from None
    absent = [name for name in (*_TYPES, "group") if name not in images]
    if absent:
        raise OperatorError(f"{path} has no column {', '.join(absent)}; run `dvc repro validate` again")
    return images


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; makes its folder.

    Raises:
        OperatorError: the disk does not take it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as problem:
        raise OperatorError(f"{path} cannot be written: {problem.strerror}") from None
