"""What the robot did, read from outside: its flight recorder and the slot it runs from."""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Recorded:
    """One decision of the flight recorder."""

    captured_unix_s: float
    sequence: int
    engine: str  # first 8 digits of its sha256
    action: str
    age_ms: float  # of the frame, when the motors were told
    latency_ms: float

    @property
    def decided_unix_s(self) -> float:
        return self.captured_unix_s + self.age_ms / 1000


def decisions(recorder: Path) -> list[Recorded]:
    """All decisions in the recorder's files, oldest first; a line that is still being written is left out."""
    rotated = sorted(recorder.parent.glob(f"{recorder.stem}.*{recorder.suffix}"))
    return [one for path in (*rotated, recorder) if path.exists() for one in _read(path)]


def _read(path: Path) -> Iterator[Recorded]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                yield Recorded(
                    float(row["captured_unix_s"]),
                    int(row["sequence"]),
                    row["engine"],
                    row["action"],
                    float(row["age_ms"]),
                    float(row["latency_ms"]),
                )
            except (TypeError, ValueError, KeyError):  # the last line, cut where the buffer ended
                continue


@dataclass(frozen=True)
class Takeover:
    """How an engine took over, as the flight recorder saw it."""

    first_decision_unix_s: float
    gap_ms: float | None  # between the last decision of the old engine and the first of the new; None at the first
    all_by_new: bool  # every later decision is by the new engine
    decisions: int


def takeover(recorded: list[Recorded], engine_sha256: str) -> Takeover | None:
    """The takeover of the engine with this digest, or None when it has not decided yet."""
    first = next((i for i, one in enumerate(recorded) if one.engine == engine_sha256[:8]), None)
    if first is None:
        return None
    after = recorded[first:]
    gap_ms = None
    if first:
        gap_ms = (after[0].decided_unix_s - recorded[first - 1].decided_unix_s) * 1000
    return Takeover(
        first_decision_unix_s=after[0].decided_unix_s,
        gap_ms=gap_ms,
        all_by_new=all(one.engine == engine_sha256[:8] for one in after),
        decisions=len(after),
    )


def latency_ms(recorded: list[Recorded]) -> dict[str, float]:
    """Percentiles from frame in hand to motors told, and the longest pause between two decisions."""
    if not recorded:
        return {}
    took = np.array([one.latency_ms for one in recorded])
    pauses = [(b.decided_unix_s - a.decided_unix_s) * 1000 for a, b in pairwise(recorded)]
    return {
        "p50": round(float(np.percentile(took, 50)), 2),
        "p99": round(float(np.percentile(took, 99)), 2),
        "longest_pause": round(max(pauses, default=0.0), 1),
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
