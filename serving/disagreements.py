"""Frames about which two engines disagree most, kept for a person to label: few, bounded, the best ones.

    <folder>/frames.jsonl            one line a frame: both releases, both probabilities, when
    <folder>/<unix ms>-<n>.jpg       the frame, 224×224

When there are too many, or too many bytes, the least disagreeing one goes. A disk that refuses costs frames, and says
so in the log.
"""

import io
import itertools
import logging
import os
from pathlib import Path
from typing import List

import msgspec
import numpy as np
from PIL import Image

from serving import files

log = logging.getLogger("shadow")

INDEX_FILE = "frames.jsonl"
_JPEG_QUALITY = 92
_MAX_INDEX_BYTES = 16 << 20


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """One frame, and what the two engines said to it."""

    file: str = ""  # name of the JPEG
    bytes: int = 0
    at: str  # RFC 3339, UTC: when the light fell on the sensor
    drives: str  # release that drove
    shadow: str  # release that watched
    drives_p_blocked: float
    shadow_p_blocked: float
    drives_blocked: bool
    shadow_blocked: bool

    @property
    def size(self) -> float:
        """How much they disagree, 0..1."""
        return abs(self.drives_p_blocked - self.shadow_p_blocked)


class Disagreements:
    """The kept frames of one robot. Used by one thread.

    Args:
        folder: made when the first frame comes.
        max_frames, max_bytes: of all JPEGs together.
    """

    def __init__(self, folder: Path, max_frames: int, max_bytes: int) -> None:
        self._folder = folder
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._number = itertools.count()
        self._failing = False
        self._kept: List[Disagreement] = []
        try:
            self._kept = self._read()
        except OSError as problem:
            log.error("%s: %s", folder, problem)

    def __len__(self) -> int:
        return len(self._kept)

    def consider(self, pixels: np.ndarray, found: Disagreement, unix_ms: int) -> bool:
        """Keeps a frame if it is among the most disagreeing ones; whether it was kept.

        Args:
            pixels: (224, 224, 3) uint8, RGB.
            found: without file and bytes.
            unix_ms: for the name of the file.
        """
        if len(self._kept) >= self._max_frames and found.size <= min((d.size for d in self._kept), default=1.0):
            return False
        jpeg = _jpeg(pixels)
        named = msgspec.structs.replace(found, file=f"{unix_ms}-{next(self._number)}.jpg", bytes=len(jpeg))
        kept = self._fitting([*self._kept, named])
        if named not in kept:
            return False
        try:
            self._write(named, jpeg, kept)
        except OSError as problem:
            if not self._failing:
                log.error("%s: %s; disagreements are not kept until it can be written", self._folder, problem.strerror)
            self._failing = True
            return False
        self._failing = False
        return True

    def _fitting(self, frames: List[Disagreement]) -> List[Disagreement]:
        """The most disagreeing ones that fit, the oldest first."""
        chosen: List[Disagreement] = []
        total = 0
        for frame in sorted(frames, key=lambda d: -d.size):
            if len(chosen) == self._max_frames or total + frame.bytes > self._max_bytes:
                break
            chosen.append(frame)
            total += frame.bytes
        return [frame for frame in frames if frame in chosen]

    def _write(self, new: Disagreement, jpeg: bytes, kept: List[Disagreement]) -> None:
        """The JPEG, then the index that names it, then away with what it does not name any more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = self._folder / ".frame.new"
        beside.write_bytes(jpeg)
        os.replace(beside, self._folder / new.file)
        lines = b"".join(msgspec.json.encode(frame) + b"\n" for frame in kept)
        files.write_atomic(self._folder / INDEX_FILE, lines)
        gone = [frame for frame in self._kept if frame not in kept]
        self._kept = kept
        for frame in gone:
            (self._folder / frame.file).unlink(missing_ok=True)

    def _read(self) -> List[Disagreement]:
        """What the index names and the folder holds; a JPEG that it does not name is left from a power failure."""
        there = {path.name for path in self._folder.glob("*.jpg")}
        named = [frame for frame in self._index() if frame.file in there]
        for name in there - {frame.file for frame in named}:
            (self._folder / name).unlink()
        return named

    def _index(self) -> List[Disagreement]:
        path = self._folder / INDEX_FILE
        try:
            raw = files.read_bounded(path, _MAX_INDEX_BYTES)
            return [msgspec.json.decode(line, type=Disagreement) for line in raw.splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
            log.error("%s is damaged, and begun anew: %s", path, problem)
            return []


def _jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()
