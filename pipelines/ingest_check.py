"""Decides of one file that was handed in: which class it shows, whether it can be taken, and why not.

Images are 224x224 RGB JPEG (the contract of a session). Such a file is taken byte for byte; nothing is changed in
silence: what is converted is named in the report.
"""

import io
import re
import warnings
from typing import NamedTuple

from PIL import Image, ImageOps

from pipelines.images_facts import DECODE_ERRORS, MAX_PIXELS
from pipelines.ingest_sources import LeaveOut
from serving.contracts.sessions import LABELS
from serving.preprocess import HEIGHT, WIDTH

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
JPEG_QUALITY = 95
_SYSTEM_FILES = {".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".gitignore"}
_EXIF_ORIENTATION = 0x0112


class Prepared(NamedTuple):
    """A JPEG as it goes into the session."""

    data: bytes
    changed: str  # what was done to it; empty if nothing


def label_of(path: str) -> str:
    """The class that a file belongs to, by the one folder above it that is called blocked or free, in any case.

    Raises:
        LeaveOut: it is the rubbish of an operating system or a notebook, or lies in no such folder, or in both.
    """
    parts = [part.strip().lower() for part in path.split("/")]
    if "__macosx" in parts[:-1] or parts[-1].startswith("._"):
        raise LeaveOut("__MACOSX")
    if ".ipynb_checkpoints" in parts[:-1]:
        raise LeaveOut(".ipynb_checkpoints")
    if parts[-1] in _SYSTEM_FILES:
        raise LeaveOut("system file")
    found = {part for part in parts[:-1] if part in LABELS}
    if not found:
        raise LeaveOut("wrong folder", f"not in {' or '.join(LABELS)}")
    if len(found) > 1:
        raise LeaveOut("wrong folder", f"in {' and in '.join(LABELS)}")
    return found.pop()


def prepare(data: bytes, resize: bool) -> Prepared:
    """Checks the bytes of a file and makes the session's JPEG of them.

    Args:
        resize: bring an image of another size to 224x224 (both sides on their own, as the Jetbot's camera does).

    Raises:
        LeaveOut: it is not an image that can be taken.
    """
    if not data:
        raise LeaveOut("zero bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and odd metadata; sizes are checked here
        image = _open(data)
        size = f"{image.width}x{image.height}"
        if (image.width, image.height) != (WIDTH, HEIGHT) and not resize:
            raise LeaveOut("wrong size", f"{size}, not {WIDTH}x{HEIGHT}")
        if image.width * image.height > MAX_PIXELS:
            raise LeaveOut("too large", f"{size} pixels")
        turned = _load(image)
    if image.mode != "RGB":
        raise LeaveOut("not RGB", f"mode {image.mode}")
    changes = []
    if image.format != "JPEG":
        changes.append(f"{image.format} to JPEG of quality {JPEG_QUALITY}")
    if turned is not image:
        changes.append("turned upright")
    if turned.size != (WIDTH, HEIGHT):
        changes.append(f"{size} to {WIDTH}x{HEIGHT}")
        turned = turned.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    if not changes:
        return Prepared(data, "")
    written = io.BytesIO()
    Image.frombytes("RGB", turned.size, turned.tobytes()).save(written, "JPEG", quality=JPEG_QUALITY)  # no metadata
    return Prepared(written.getvalue(), ", ".join(changes))


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except DECODE_ERRORS:
        if data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
            raise LeaveOut("truncated") from None
        raise LeaveOut("not an image", f"none of {', '.join(FORMATS)}") from None


def _load(image: Image.Image) -> Image.Image:
    """Decodes all of the image, and turns it if its EXIF data says that it lies on its side."""
    try:
        image.load()
        if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS as problem:
        text = str(problem)
        raise LeaveOut("truncated" if "truncated" in text else "damaged", text) from None


def file_name(path: str, taken: set[str], label: str) -> str:
    """`<label>/<name>.jpg` for the session: the file's own name where it is plain, else what is left of it.

    Args:
        taken: names given so far, in lower case; the new one is added.
    """
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._")[:100] or "image"
    number = 1
    name = f"{label}/{plain}.jpg"
    while name.lower() in taken:
        number += 1
        name = f"{label}/{plain}-{number}.jpg"
    taken.add(name.lower())
    return name
