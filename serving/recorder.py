"""The flight recorder: one line of CSV a decision, bounded on disk, written by a thread of its own.

The control thread only appends to memory. Two files, the older one with `.1` before its suffix, hold at most `max_mb`
together. A disk that is full or gone costs lines, and says so in the log; it never costs a decision.
"""

import collections
import logging
import os
import threading
from pathlib import Path
from typing import Deque, NamedTuple, Optional

log = logging.getLogger("recorder")

HEADER = "captured_unix_s,sequence,engine,p_blocked,action,age_ms,latency_ms,left,right\n"
_FLUSH_EVERY_S = 1.0
_MAX_WAITING = 10_000  # lines; minutes of driving


class Line(NamedTuple):
    captured_unix_s: float  # when the light fell on the sensor
    sequence: int  # of the decision, from 1, since the start of the daemon
    engine: str  # sha256
    p_blocked: float
    action: str
    age_ms: float  # of the frame when the motors were set
    latency_ms: float  # from having the frame to having set the motors
    left: float
    right: float

    def csv(self) -> str:
        return (
            f"{self.captured_unix_s:.4f},{self.sequence},{self.engine[:8]},{self.p_blocked:.4f},{self.action},"
            f"{self.age_ms:.2f},{self.latency_ms:.3f},{self.left:.2f},{self.right:.2f}\n"
        )


class Recorder:
    """Writes lines behind the caller's back."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Starts the writing thread; goes on after what is in the file."""
        self._path = path
        self._max_bytes = max_bytes // 2  # of each of the two files
        self._waiting: Deque[Line] = collections.deque(maxlen=_MAX_WAITING)
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def record(self, line: Line) -> None:
        """Takes a line; never waits."""
        self._waiting.append(line)

    def close(self) -> None:
        """Writes what waits, and ends."""
        self._closing.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._closing.wait(_FLUSH_EVERY_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not lines:
            return
        try:
            self._write("".join(line.csv() for line in lines))
            self._failing = False
        except OSError as problem:
            if not self._failing:
                log.error("%s: %s; decisions are not recorded until it can be written", self._path, problem.strerror)
            self._failing = True

    def _write(self, text: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        size = self._size()
        if size is not None and size + len(text) > self._max_bytes:
            os.replace(self._path, previous(self._path))
            size = None
        with self._path.open("a", encoding="ascii") as file:
            file.write(text if size else HEADER + text)

    def _size(self) -> Optional[int]:
        """Bytes in the file; None where there is none."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return None


def previous(path: Path) -> Path:
    """The older of the two files: decisions.csv -> decisions.1.csv."""
    return path.with_name(f"{path.stem}.1{path.suffix}")
