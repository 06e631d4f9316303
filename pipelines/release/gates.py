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
COLLISIONS_METRIC = "simulate/collisions_per_100m_high"  # upper end: what it could be, after so short a drive
DISTANCE_METRIC = "simulate/distance_m_per_min"
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


def driving_gates(metrics: Mapping[str, float], limits: GateParams) -> list[GateResult]:
    """Judges how the network drove in the stage `simulate`; nothing where params.yaml sets no limit for it.

    Collisions are judged by the upper end of their 95 % interval: a model has to show that it hits little, and not to
    have been lucky in a few rooms. The distance is asked for because what stands still hits nothing.

    Args:
        metrics: the metrics of the MLflow run.
        limits: the block `gates` of params.yaml.
    """
    found = []
    distance, collisions = metrics.get(DISTANCE_METRIC), metrics.get(COLLISIONS_METRIC)
    if limits.min_distance_m_per_min is not None:
        found.append(_driven(distance, limits.min_distance_m_per_min))
    if limits.max_collisions_per_100m is not None:
        if collisions is not None:
            found.append(at_most("collisions", collisions, limits.max_collisions_per_100m, "per 100 m, at 95 %"))
        else:
            why = _not_simulated(COLLISIONS_METRIC) if distance is None else "it hardly drove: nothing to judge them by"
            found.append(GateResult(name="collisions", passed=False, limit=limits.max_collisions_per_100m, detail=why))
    return found


def _driven(distance_m_per_min: float | None, limit: float) -> GateResult:
    if distance_m_per_min is None or not (math.isfinite(distance_m_per_min) and distance_m_per_min >= 0):
        return GateResult(name="distance", passed=False, limit=limit, detail=_not_simulated(DISTANCE_METRIC))
    passed = distance_m_per_min >= limit
    detail = f"{_number(distance_m_per_min)} {'≥' if passed else '<'} {_number(limit)} m a minute"
    return GateResult(name="distance", passed=passed, value=distance_m_per_min, limit=limit, detail=detail)


def _not_simulated(metric: str) -> str:
    return f"the run has no metric {metric}: run `dvc repro simulate`"


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
            f"max_collisions_per_100m={limits.max_collisions_per_100m}",
            f"min_distance_m_per_min={limits.min_distance_m_per_min}",
            *latencies,
        ]
    )


def _number(value: float) -> str:
    """Four digits: near a limit 0.7996 must not read as 0.80."""
    return f"{value:.4g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
