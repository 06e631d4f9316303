"""Is int8 worth it? Quantises the exported network in a few ways and measures the one to keep against the original.

Accuracy is compared on the validation part at the robot's own threshold, in both forms: as it is (S8, for TensorRT)
and as a CPU runs it. Latency is that of this machine's CPU, the two networks in turns. How to quantise is in
quantize.py; the stage `export` writes what this decides.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from pipelines import quantize
from pipelines.onnx_run import latencies_ms, logits_of_onnx
from serving.contracts.releases import Decision
from serving.errors import RejectedError
from training import metrics
from training.dataset import Images, Row

# How many of the first convolutions stay in float, in the order of trial: MobileNetV2's first two blocks have ranges
# so uneven that they alone cost most of the accuracy.
FLOAT_CONVOLUTIONS = (0, 6)
MAX_LOST = 0.01  # of balanced accuracy, and of blocked recall
WORTH_IT = 0.9  # of the latency of the original: less of a gain is none
CALIBRATION_IMAGES = 64
VALIDATION_IMAGES = 400

CPU_TARGET = "cpu-ort-int8"

Asked = Literal["auto", "yes", "no"]


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """One form of the network."""

    balanced_accuracy: float
    blocked_recall: float
    logit_error: float  # largest over the golden frames, against torch

    def lost(self, original: "Scores") -> str:
        """What is too much worse than in the original; empty if nothing is."""
        for name in ("balanced_accuracy", "blocked_recall"):
            before, now = getattr(original, name), getattr(self, name)
            if not before - now <= MAX_LOST + 1e-9:
                return f"{name.replace('_', ' ')} falls from {before:.3f} to {now:.3f}"
        if not self.logit_error <= quantize.MAX_LOGIT_ERROR:
            return f"a logit is off by {self.logit_error:.2f}, more than {quantize.MAX_LOGIT_ERROR}"
        return ""


class Int8Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`int8/report.json`. Beside it lies model.int8.onnx, where `kept`."""

    schema: int = 1
    asked: Asked
    kept: bool = False  # as accurate as the original
    targets: list[str] = []  # where it is quicker too, of those that this machine can tell: cpu-ort-int8
    reason: str = ""  # in words, for both
    onnx_sha256: str = ""
    onnx_bytes: int = 0
    original_bytes: int = 0
    float_convolutions: int = 0
    calibration_images: int = 0
    validation_images: int = 0
    scores: dict[str, Scores] = {}  # fp32, s8 (TensorRT), u8 (CPU)
    latency_p50_ms: dict[str, float] = {}  # fp32, u8; 1 thread of this machine's CPU


class Material(NamedTuple):
    """What int8 is made from and measured with."""

    calibration: np.ndarray  # (N, 224, 224, 3) uint8, of the training part
    validation: Images
    golden: np.ndarray  # (N, 224, 224, 3) uint8
    golden_logits: np.ndarray  # (N, 2) float32, by torch
    decision: Decision


def make(model: bytes, read: Callable[[], Material], asked: Asked) -> tuple[bytes | None, Int8Report]:
    """The network in int8, or None where it is not asked for or, with `auto`, not as accurate.

    Args:
        model: ONNX file of the stage `export`.
        read: gives the material, where it is needed.

    Raises:
        RejectedError: `yes` is asked for and it is not as accurate.
    """
    if asked == "no":
        return None, Int8Report(asked=asked, reason="export.int8 is `no`", original_bytes=len(model))
    material = read()
    original = _scores(model, material)
    tried = []
    candidates = quantize.quantise(model, material.calibration, FLOAT_CONVOLUTIONS)
    for count, candidate in zip(FLOAT_CONVOLUTIONS, candidates, strict=True):
        scores = {"fp32": original}
        scores |= {"s8": _scores(candidate, material), "u8": _scores(quantize.for_cpu(candidate), material)}
        lost = scores["s8"].lost(original) or scores["u8"].lost(original)
        tried.append((lost, count, candidate, scores))
        if not lost:
            break
    lost, count, chosen, scores = tried[-1]
    if lost and asked == "yes":
        raise RejectedError(f"int8 is not as accurate: {lost}; set export.int8 to auto or no, or train another network")
    medians_ms = np.median(latencies_ms([model, quantize.for_cpu(chosen)]), axis=1)
    p50_ms = {"fp32": float(medians_ms[0]), "u8": float(medians_ms[1])}
    quicker = p50_ms["u8"] <= WORTH_IT * p50_ms["fp32"]
    speed = f"{p50_ms['u8']:.2f} ms on a CPU, fp32 {p50_ms['fp32']:.2f} ms"
    report = Int8Report(
        asked=asked,
        kept=not lost,
        targets=[CPU_TARGET] if quicker and not lost else [],
        reason=lost or (speed if quicker else f"{speed}: not worth it there"),
        onnx_sha256="" if lost else hashlib.sha256(chosen).hexdigest(),
        onnx_bytes=len(chosen),
        original_bytes=len(model),
        float_convolutions=count,
        calibration_images=len(material.calibration),
        validation_images=len(material.validation.labels),
        scores=scores,
        latency_p50_ms=p50_ms,
    )
    return (None if lost else chosen), report


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly from the sorted ones, and so from all sessions and both labels."""
    having = sorted(rows)
    return [
        having[at] for at in np.unique(np.linspace(0, len(having) - 1, min(count, len(having))).round().astype(int))
    ]


def _scores(model: bytes, material: Material) -> Scores:
    labels, decision = material.validation.labels, material.decision
    logits = logits_of_onnx(model, material.validation.pixels)
    said = metrics.decided(metrics.probabilities(logits, decision.temperature), decision.blocked_threshold)
    return Scores(
        balanced_accuracy=metrics.balanced_accuracy(labels, said),
        blocked_recall=metrics.recall(labels, said, metrics.BLOCKED),
        logit_error=float(np.abs(logits_of_onnx(model, material.golden) - material.golden_logits).max()),
    )
