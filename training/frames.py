"""Frames out of session zips: what is in them, and one image of them as pixels. Keeping pixels is pack.py's part.

An image is named `<session>/<label folder>/<file>` everywhere; its bytes are in `<sessions>/<session>.zip`.
"""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import List, NamedTuple

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from serving.contracts.sessions import LABELS
from serving.errors import OperatorError, RejectedError
from serving.preprocess import FRAME_SHAPE, HEIGHT, WIDTH

# What a damaged image, or a zip entry that is not what the zip says, makes Pillow and zipfile raise.
_DECODE_ERRORS = (KeyError, OSError, ValueError, SyntaxError, UnidentifiedImageError, zipfile.BadZipFile)


_FOLDERS = tuple(f"{label}/" for label in LABELS)


class Listing(NamedTuple):
    """All images of a folder of sessions."""

    digest: str  # of their names, sizes and checksums: two folders with the same digest have the same pixels
    images: List[str]


def list_images(sessions: Path) -> Listing:
    """Reads the tables of contents of the zips; no image is read.

    Raises:
        OperatorError: a zip cannot be read.
    """
    digest = hashlib.sha256(f"Pillow {PIL.__version__}\n".encode())  # another decoder may round otherwise
    images = []
    for path in sorted(path for path in sessions.glob("*.zip") if not path.name.startswith(".")):
        with open_session(path) as archive:
            for entry in archive.infolist():
                if entry.filename.startswith(_FOLDERS) and not entry.filename.endswith("/"):
                    images.append(f"{path.stem}/{entry.filename}")
                    digest.update(f"{images[-1]}\0{entry.CRC}\0{entry.file_size}\n".encode("utf-8", "surrogateescape"))
    return Listing(digest.hexdigest(), images)


def open_session(path: Path) -> zipfile.ZipFile:
    """A session zip, which several threads may read.

    Raises:
        OperatorError: it is missing, or no zip.
    """
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc pull`, then `dvc repro`") from None


def decode(archive: zipfile.ZipFile, image: str) -> np.ndarray:
    """Pixels of one image, (224, 224, 3) uint8 RGB.

    Raises:
        RejectedError: it is missing, broken or of another size; the message names it.
    """
    try:
        with Image.open(io.BytesIO(archive.read(image.partition("/")[2]))) as opened:
            frame = np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"), dtype=np.uint8)
    except _DECODE_ERRORS as problem:
        raise RejectedError(
            f"{image} cannot be decoded ({problem}); run `dvc repro validate` to see them all"
        ) from None
    if frame.shape != FRAME_SHAPE:
        raise RejectedError(f"{image} is {frame.shape[1]}x{frame.shape[0]}, not {WIDTH}x{HEIGHT}; ingest it again")
    return frame
