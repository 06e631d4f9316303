"""Whether a camera's frames can be true: frozen, black and slow ones are told. What they show is not here."""

import collections
import itertools
import statistics
from typing import Deque, Optional

import numpy as np

_FROZEN_S = 1.0  # no sensor gives the same picture for so long: its noise changes
_BLACK_LEVEL = 16  # 0..255: brightest sample of a frame that shows nothing
_BLACK_S = 1.0
_RATE_FRAMES = 10  # that the rate is judged by
_SAMPLE_STEP = 16  # bytes; odd to the 3 colours, so that all three are looked at


class Judge:
    """Says what is wrong with the frames that come: frozen, black, or too few."""

    def __init__(self, min_fps: float) -> None:
        self._min_fps = min_fps
        self.begin()

    def begin(self) -> None:
        """Forgets what was before: the camera is opened."""
        self._last: Optional[np.ndarray] = None
        self._same_since_s: Optional[float] = None
        self._black_since_s: Optional[float] = None
        self._arrived_s: Deque[float] = collections.deque(maxlen=_RATE_FRAMES + 1)

    def look(self, frame: np.ndarray, arrived_s: float) -> "tuple[str, bool]":
        """Judges one frame.

        Args:
            frame: flat uint8.
            arrived_s: time.monotonic().

        Returns:
            What is wrong, "" for nothing; and whether only opening the camera again may mend it.
        """
        sample = frame[::_SAMPLE_STEP]
        same = self._last is not None and np.array_equal(sample, self._last)
        if self._last is None:
            self._last = sample.copy()
        else:
            np.copyto(self._last, sample)
        self._same_since_s = (self._same_since_s or arrived_s) if same else None
        self._black_since_s = (self._black_since_s or arrived_s) if sample.max() < _BLACK_LEVEL else None
        self._arrived_s.append(arrived_s)
        if self._black_since_s is not None:
            if arrived_s - self._black_since_s >= _BLACK_S:
                return "the picture is black: take the cap off the lens, or light the room", False
        elif self._same_since_s is not None and arrived_s - self._same_since_s >= _FROZEN_S:
            return "the picture is frozen, every frame is the same", True
        fps = self._fps()
        if fps is not None and fps < self._min_fps:
            return f"{fps:.0f} frames a second, fewer than {self._min_fps:g}: more light, another port or mode", False
        return "", False

    def _fps(self) -> Optional[float]:
        """Frames a second, from the median pause: a single late frame is none of our business here."""
        if len(self._arrived_s) <= _RATE_FRAMES:
            return None
        times = list(self._arrived_s)
        pause_s = statistics.median(after - before for before, after in itertools.pairwise(times))
        return 1 / pause_s if pause_s > 0 else None
