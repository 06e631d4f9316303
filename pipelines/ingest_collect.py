"""From the files that were handed in to the images that are new: checked, named, without duplicates.

Reads and compares; writes nothing.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipelines.ingest_check import Prepared, file_name, label_of, prepare
from pipelines.ingest_sources import LeaveOut, Source, SourceFile
from pipelines.sessions import ImageEntry, SessionZip, session_files
from serving.contracts.sessions import SESSION_FILE


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is not taken."""

    file: str
    reason: str
    detail: str = ""


class Image(NamedTuple):
    """An image that passed; its bytes are read again when the session is written, so that memory stays small."""

    file: SourceFile
    label: str
    sha256: str  # of the JPEG as it will be stored
    bytes: int  # of the same
    changed: str


class Collected(NamedTuple):
    images: list[Image]
    left_out: list[LeftOut]


def check(source: Source, files: Iterable[SourceFile], resize: bool) -> Collected:
    """Checks files of the source, one by one; session.json is not an image and is passed over.

    Raises:
        RejectedError: the source as a whole cannot be taken.
    """
    images, left_out = [], []
    for file in files:
        if file.path == SESSION_FILE and not file.problem:
            continue
        try:
            images.append(_check(source, file, resize))
        except LeaveOut as why:
            left_out.append(LeftOut(file=file.path, reason=why.reason, detail=why.detail))
    return Collected(images, left_out)


def load(source: Source, image: Image, resize: bool) -> Prepared:
    """The image as it will be stored.

    Raises:
        LeaveOut: it can no longer be read.
    """
    return prepare(source.read(image.file), resize)


def _check(source: Source, file: SourceFile, resize: bool) -> Image:
    label = label_of(file.path)
    if file.problem:
        raise LeaveOut(file.problem)
    prepared = prepare(source.read(file), resize)
    digest = hashlib.sha256(prepared.data).hexdigest()
    return Image(file, label, digest, len(prepared.data), prepared.changed)


def without_duplicates(images: list[Image]) -> Collected:
    """Keeps the first of images with the same bytes, and none where they are in both classes."""
    same: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        same[image.sha256].append(image)
    kept: list[Image] = []
    left_out: list[LeftOut] = []
    for first, *others in same.values():
        contrary = next((image for image in others if image.label != first.label), None)
        if contrary:
            # Neither label can be believed.
            detail = f"{first.file.path} = {contrary.file.path}"
            reason, members = "the same image in both classes", (first, *others)
        else:
            kept.append(first)
            reason, detail, members = "duplicate", f"of {first.file.path}", tuple(others)
        left_out += [LeftOut(file=image.file.path, reason=reason, detail=detail) for image in members]
    return Collected(kept, left_out)


def without_known(images: list[Image], into: Path) -> Collected:
    """Leaves out what the sessions in `into` already hold, byte for byte.

    Raises:
        RejectedError: a session in `into` is broken.
    """
    # The zips' directories tell size and checksum; only where the size fits are the bytes read and compared.
    sizes = {image.bytes for image in images}
    known: dict[str, ImageEntry] = {}
    for path in session_files(into):
        with SessionZip(path) as session:
            for entry in session.images:
                if entry.bytes in sizes:
                    known.setdefault(hashlib.sha256(session.read(entry)).hexdigest(), entry)
    left_out = [_already_there(image, known[image.sha256]) for image in images if image.sha256 in known]
    return Collected([image for image in images if image.sha256 not in known], left_out)


def _already_there(image: Image, entry: ImageEntry) -> LeftOut:
    detail = f"of {entry.image}"
    if image.label != entry.label:
        detail += f", where it is {entry.label}: data/labels.csv is the place to correct a label"
    return LeftOut(file=image.file.path, reason="already ingested", detail=detail)


def named(images: list[Image]) -> list[tuple[str, Image]]:
    """The images with their names in the session, in the order in which they are stored."""
    taken: set[str] = set()
    return sorted((file_name(image.file.path, taken, image.label), image) for image in images)
