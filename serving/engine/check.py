"""Is an engine fit to drive? Its own golden frames say: the trained network's logits, in time.

What it needs to know is in the passport and beside the engine; nothing here touches the network or the motors.
"""

import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from serving import preprocess
from serving.config import EngineSettings
from serving.contracts.releases import Passport
from serving.engine.client import EngineFailed
from serving.errors import RejectedError

# Enough for a median that one busy moment of the machine does not move.
_MIN_INFERENCES = 24
# Below this the ratio to the passport's latency says more about messages and clocks than about the engine.
_LATENCY_FLOOR_MS = 10.0


class Infers(Protocol):
    def infer(self, pixels: np.ndarray, timeout_s: float) -> np.ndarray: ...


class TooSlow(RejectedError):
    """Its decisions took longer than they may; on a busy machine that may have been a moment's."""


@dataclass(frozen=True)
class Checked:
    """What the golden check measured, through the worker, on this machine."""

    parity_max_abs: float  # of a logit
    latency_p50_ms: float
    latency_p99_ms: float
    inferences: int


def read_golden(path: Path) -> "tuple[np.ndarray, np.ndarray]":
    """Reads golden.npz.

    Returns:
        frames (N, 224, 224, 3) uint8 and logits (N, 2) float32, N at least 1.

    Raises:
        RejectedError: the file is not that.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            frames, logits = arrays["frames"], arrays["logits"]
    except (OSError, KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as problem:
        raise RejectedError(f"{path.name} holds no golden frames: {' '.join(str(problem).split())}") from None
    fits = frames.ndim == 4 and frames.shape[1:] == preprocess.FRAME_SHAPE and frames.dtype == np.uint8
    if not fits or len(frames) == 0 or logits.shape != (len(frames), 2) or logits.dtype != np.float32:
        raise RejectedError(
            f"{path.name} holds frames {frames.shape} {frames.dtype} and logits {logits.shape} {logits.dtype}; "
            f"golden frames are (N, 224, 224, 3) uint8 and (N, 2) float32"
        )
    if not np.isfinite(logits).all():
        raise RejectedError(f"{path.name} holds logits that are not finite")
    return frames, logits


def check(engine: Infers, passport: Passport, golden: Path, settings: EngineSettings) -> Checked:
    """Runs the golden frames through a new engine and compares with its passport.

    Raises:
        RejectedError: its logits or its latency are not what the passport and robot.toml allow; with the numbers.
        EngineFailed: it crashed or hung.
    """
    frames, expected = read_golden(golden)
    if len(frames) != passport.golden.count:
        raise RejectedError(f"{golden.name} holds {len(frames)} frames, the passport says {passport.golden.count}")
    checked = measure(engine, frames, expected, settings, _MIN_INFERENCES)
    _judge(checked, passport, settings)
    return checked


def measure(
    engine: Infers, frames: np.ndarray, expected: np.ndarray, settings: EngineSettings, inferences: int
) -> Checked:
    """Runs the golden frames through an engine, in whole rounds, and compares with the trained network's logits.

    Args:
        frames: (N, 224, 224, 3) uint8.
        expected: (N, 2) float32 logits.
        inferences: at least so many.

    Raises:
        RejectedError: it gave a useless answer; with the frame.
        EngineFailed: it crashed or hung.
    """
    latency_ms = np.empty(len(frames) * -(-inferences // len(frames)))
    parity_max_abs = 0.0
    for number in range(len(latency_ms)):
        which = number % len(frames)
        started = time.perf_counter()
        try:
            logits = engine.infer(frames[which], settings.start_timeout_s)
        except EngineFailed as problem:
            if problem.cause == "bad-output":
                raise RejectedError(f"golden frame {which + 1}: {problem}") from None
            raise
        latency_ms[number] = (time.perf_counter() - started) * 1e3
        parity_max_abs = max(parity_max_abs, float(np.abs(logits - expected[which]).max()))
    p50, p99 = (float(value) for value in np.percentile(latency_ms, (50, 99)))
    return Checked(parity_max_abs, p50, p99, len(latency_ms))


def _judge(checked: Checked, passport: Passport, settings: EngineSettings) -> None:
    tolerance = passport.golden.tolerance
    if checked.parity_max_abs > tolerance:
        raise RejectedError(
            f"golden frames: a logit is off by {checked.parity_max_abs:.4g}; the passport allows {tolerance:.4g}"
        )
    built_ms = passport.measured.latency_p50_ms
    limit_ms = min(settings.max_latency_ms, max(built_ms * settings.max_latency_ratio, _LATENCY_FLOOR_MS))
    if checked.latency_p50_ms > limit_ms:
        raise TooSlow(
            f"golden frames: a decision takes {checked.latency_p50_ms:.1f} ms (median of {checked.inferences}); "
            f"allowed here are {limit_ms:.1f} ms, the passport says {built_ms:.1f} ms"
        )
