"""The newest frame for who looks at it, and nothing for the control thread to do while nobody does."""

import io
import threading
import time
from typing import Optional

import numpy as np
from PIL import Image

from serving import preprocess
from serving.hardware.base import Frame


class Glimpse:
    """Copies a frame only after somebody asked for one.

    Args:
        max_frames_per_s: of JPEGs, for all who look together.
        quality: of these JPEGs.
    """

    def __init__(self, max_frames_per_s: float, quality: int = 80) -> None:
        self._period_s = 1 / max_frames_per_s
        self._quality = quality
        # (224, 224, 3) uint8: written by the control thread while `_wanted` is set, read by another while it is not
        self._pixels = np.empty(preprocess.FRAME_SHAPE, np.uint8)
        self._wanted = threading.Event()
        self._there = threading.Event()
        self._looking = threading.Lock()  # one at a time; not the control thread's
        self._jpeg: Optional[bytes] = None
        self._jpeg_s = -self._period_s  # time.monotonic()

    def offer(self, frame: Frame) -> None:
        """A frame, after its decision. For the control thread: copies 150 kB or nothing, and never waits."""
        if self._wanted.is_set():
            np.copyto(self._pixels, frame.pixels)
            self._wanted.clear()
            self._there.set()

    def pixels(self, timeout_s: float) -> Optional[np.ndarray]:
        """The next frame, (224, 224, 3) uint8 RGB, the caller's own; None when none came in time."""
        with self._looking:
            self._there.clear()
            self._wanted.set()
            # After a timeout `_wanted` stays set: a late frame is written while nobody reads, and counts for nothing.
            return self._pixels.copy() if self._there.wait(timeout_s) else None

    def jpeg(self, timeout_s: float) -> Optional[bytes]:
        """A frame not older than one period; None when none came in time."""
        now_s = time.monotonic()
        if self._jpeg is None or now_s - self._jpeg_s >= self._period_s:
            self._jpeg_s = now_s
            pixels = self.pixels(timeout_s)
            self._jpeg = None if pixels is None else encode(pixels, self._quality)
        return self._jpeg


def encode(pixels: np.ndarray, quality: int) -> bytes:
    """(224, 224, 3) uint8 RGB as a JPEG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()
