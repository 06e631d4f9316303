"""What building gives: an engine with what was measured; and the golden frames that it is measured with."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving import preprocess
from serving.contracts.releases import EngineKey, Measured
from serving.errors import RejectedError


@dataclass(frozen=True)
class Golden:
    """Frames and the logits that the trained network gave for them."""

    frames: np.ndarray  # (N, 224, 224, 3) uint8, RGB
    logits: np.ndarray  # (N, 2) float32
    npz: bytes = b""  # the file they were read from

    @classmethod
    def read(cls, path: Path) -> "Golden":
        """Reads golden.npz.

        Raises:
            RejectedError: it is no such file, or its arrays have other shapes or types.
        """
        try:
            npz = path.read_bytes()
            with np.load(io.BytesIO(npz), allow_pickle=False) as arrays:
                golden = cls(arrays["frames"], arrays["logits"], npz)
        except (OSError, ValueError, KeyError, EOFError) as problem:
            raise RejectedError(f"golden.npz cannot be read ({problem}): run `dvc repro` again") from None
        count = len(golden.frames)
        if (
            count == 0
            or golden.frames.shape[1:] != preprocess.FRAME_SHAPE
            or golden.frames.dtype != np.uint8
            or golden.logits.shape != (count, preprocess.OUTPUT_SHAPE[1])
            or not np.isfinite(golden.logits).all()
        ):
            raise RejectedError(
                f"golden.npz holds frames {golden.frames.shape} {golden.frames.dtype}, logits {golden.logits.shape}; "
                "wanted (N, 224, 224, 3) uint8 and finite (N, 2): run `dvc repro` again"
            )
        return golden


@dataclass(frozen=True)
class Built:
    """An engine and what was measured with it on the machine that runs it."""

    engine: bytes
    measured: Measured
    key: EngineKey | None = None  # the machines that it is for; None: any of its target
