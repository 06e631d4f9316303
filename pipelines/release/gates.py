"""What a model version must show before robots get it. Pure functions: numbers in, results out.

A gate that has no number to look at, or one that is not finite or cannot be, fails.
"""

import math
from collections.abc import Mapping, Sequence

from pipelines.params import GateParams
from pipelines.quantize import MAX_LOGIT_ERROR
from serving.contracts.releases import GateResult, Measured, Target

ACCURACY_METRIC = "test/balanced_accuracy"
RECALL_METRIC = "test/blocked_recall"
INT8_TARGETS_TAG = "int8.targets"


def accuracy_gates(metrics: Mapping[str, float], limits: GateParams) -> list[GateResult]:
    """Judges what `evaluate` measured on images that training never saw.

    Args:
        metrics: the metrics of the MLflow run.
        limits: the block `gates` of params.yaml.
    """
    return [
        at_least("balanced_accuracy", metrics.get(ACCURACY_METRIC), limits.min_balanced_accuracy, ACCURACY_METRIC),
        at_least("blocked_recall", metrics.get(RECALL_METRIC), limits.min_blocked_recall, RECALL_METRIC),
    ]


def engine_gates(measured: Measured, target: str, limits: GateParams) -> list[GateResult]:
    """Judges what the builder measured with the engine of one target.

    Args:
        measured: parity in logits over the golden frames, latency in ms.
        limits: must hold `max_latency_ms` of this target.
    """
    return [
        at_most(f"parity.{target}", measured.parity_max_abs, max_parity_error(target, limits), "of a logit"),
        at_most(f"latency.{target}", measured.latency_p99_ms, limits.max_latency_ms.get(target), "ms, p99"),
    ]


def max_parity_error(target: str, limits: GateParams) -> float:
    """How far a logit of a target's engine may be from the trained network's.

    int8 rounds every tensor; what that costs was judged by the accuracy on the validation part when it was exported
    (pipelines/int8.py), and the limit of there is the one of here.
    """
    if Target.parse(target).precision == "int8":
        return max(MAX_LOGIT_ERROR, limits.max_parity_error)
    return limits.max_parity_error


def targets_for(targets: Sequence[str], tags: Mapping[str, str]) -> list[str]:
    """Those of the wanted targets that a model version is released for: int8 is left out where it would not pay.

    Args:
        tags: of the model version; `int8.targets` names the int8 targets that the stage `export` found better.
    """
    better = tags.get(INT8_TARGETS_TAG, "").split()
    return [target for target in targets if Target.parse(target).precision != "int8" or target in better]


def at_least(name: str, value: float | None, limit: float, what: str) -> GateResult:
    """A share in 0..1 that must reach a limit."""
    if value is None:
        return GateResult(name=name, passed=False, limit=limit, detail=f"the run has no metric {what}")
    if not (math.isfinite(value) and 0 <= value <= 1):
        return GateResult(name=name, passed=False, limit=limit, detail=f"{value} is not a share of 0 to 1")
    passed = value >= limit
    detail = f"{_number(value)} {'≥' if passed else '<'} {_number(limit)}"
    return GateResult(name=name, passed=passed, value=value, limit=limit, detail=detail)


def at_most(name: str, value: float, limit: float | None, what: str) -> GateResult:
    """A measured size, never negative, that must stay within a limit."""
    if limit is None:
        return GateResult(name=name, passed=False, value=_finite(value), detail="params.yaml sets no limit for it")
    if not (math.isfinite(value) and value >= 0):
        return GateResult(name=name, passed=False, limit=limit, detail=f"{value} is not a measurement")
    passed = value <= limit
    detail = f"{_number(value)} {'≤' if passed else '>'} {_number(limit)} {what}"
    return GateResult(name=name, passed=passed, value=value, limit=limit, detail=detail)


def as_tags(gates: Sequence[GateResult]) -> dict[str, str]:
    """Tags of the model version, such as `gate.blocked_recall` = `pass 0.93 ≥ 0.85`."""
    return {f"gate.{gate.name}": f"{'pass' if gate.passed else 'fail'} {gate.detail}" for gate in gates}


def failures(gates: Sequence[GateResult]) -> str:
    """The gates that failed, in one line; empty when all passed."""
    return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates if not gate.passed)


def as_text(limits: GateParams, targets: Sequence[str]) -> str:
    """The limits in force for some targets, in one line that is the same for the same limits.

    A version remembers under which limits it was refused, so that changing them has it looked at again.
    """
    latencies = [f"max_latency_ms.{target}={limits.max_latency_ms.get(target)}" for target in sorted(targets)]
    return " ".join(
        [
            f"min_balanced_accuracy={limits.min_balanced_accuracy}",
            f"min_blocked_recall={limits.min_blocked_recall}",
            f"max_parity_error={limits.max_parity_error}",
            *latencies,
        ]
    )


def _number(value: float) -> str:
    """Four digits: near a limit 0.7996 must not read as 0.80."""
    return f"{value:.4g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
