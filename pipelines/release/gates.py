"""What a model version must show before robots get it. Pure functions: numbers in, results out.

A gate that has no number to look at, or one that is not finite or cannot be, fails.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence

import msgspec

from pipelines.params import GateParams
from pipelines.quantize import MAX_LOGIT_ERROR
from serving.contracts.releases import GateResult, Measured, Override, Target

ACCURACY_METRIC = "test/balanced_accuracy"
RECALL_METRIC = "test/blocked_recall"
COLLISIONS_METRIC = "simulate/collisions_per_100m_high"  # upper end: what it could be, after so short a drive
DISTANCE_METRIC = "simulate/distance_m_per_min"
ROOMS_METRIC = "simulate/rooms"  # that were driven until the figures were sure, or until there were no more
INT8_TARGETS_TAG = "int8.targets"
CHECKS_TAGS = ("validate.passed", "validate.errors", "validate.warnings")  # set by `register`
MB = 1e6
# An engine that answers otherwise than the network that was judged is another network: nobody can decide that away. The
# same holds for files that are not the registered ones, which is no gate at all.
NEVER_OVERRIDDEN = ("parity.",)


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

    Collisions are judged by the upper end of their 95 % interval, the distance by the lower one: a model has to show
    that it hits little, and not to have been lucky in a few rooms. What is not decided by as many rooms as the stage
    may drive does not pass. The distance is asked for because what stands still hits nothing.

    Args:
        metrics: the metrics of the MLflow run.
        limits: the block `gates` of params.yaml.
    """
    found = []
    distance, collisions = metrics.get(DISTANCE_METRIC), metrics.get(COLLISIONS_METRIC)
    if limits.min_distance_m_per_min is not None:
        found.append(_driven(distance, limits.min_distance_m_per_min, metrics))
    if limits.max_collisions_per_100m is not None:
        if collisions is not None:
            judged = at_most("collisions", collisions, limits.max_collisions_per_100m, "per 100 m, at 95 %")
            found.append(_with_doubt(judged, COLLISIONS_METRIC.removesuffix("_high"), metrics))
        else:
            why = _not_simulated(COLLISIONS_METRIC) if distance is None else "it hardly drove: nothing to judge them by"
            found.append(GateResult(name="collisions", passed=False, limit=limits.max_collisions_per_100m, detail=why))
    return found


def _driven(distance_m_per_min: float | None, limit: float, metrics: Mapping[str, float]) -> GateResult:
    if distance_m_per_min is None or not (math.isfinite(distance_m_per_min) and distance_m_per_min >= 0):
        return GateResult(name="distance", passed=False, limit=limit, detail=_not_simulated(DISTANCE_METRIC))
    value = metrics.get(f"{DISTANCE_METRIC}_low", distance_m_per_min)  # no interval where all rooms gave the same
    passed = value >= limit
    detail = f"{_number(value)} {'≥' if passed else '<'} {_number(limit)} m a minute"
    judged = GateResult(name="distance", passed=passed, value=value, limit=limit, detail=detail)
    return _with_doubt(judged, DISTANCE_METRIC, metrics)


def _with_doubt(judged: GateResult, metric: str, metrics: Mapping[str, float]) -> GateResult:
    """A refusal whose interval holds the limit says that it is one for doubt, after so many rooms."""
    low, high, rooms = (metrics.get(name, math.nan) for name in (f"{metric}_low", f"{metric}_high", ROOMS_METRIC))
    if judged.passed or judged.limit is None or not (low <= judged.limit <= high and math.isfinite(rooms)):
        return judged
    why = f"not decided after {rooms:.0f} rooms ({_number(low)} to {_number(high)}), and in doubt no"
    return msgspec.structs.replace(judged, detail=f"{judged.detail}: {why}")


def _not_simulated(metric: str) -> str:
    return f"the run has no metric {metric}: run `dvc repro simulate`"


def origin_gates(tags: Mapping[str, str], limits: GateParams) -> list[GateResult]:
    """Judges what the version's tags say of its data and its code; nothing where params.yaml does not ask.

    Args:
        tags: of the model version, as `register` sets them.
        limits: the block `gates` of params.yaml.
    """
    found = []
    if limits.require_data_checks:
        found.append(_data_checks(tags))
    if limits.require_lineage:
        lacks = "; ".join(_lineage_lacks(tags))
        commit = tags.get("lineage.git_commit", "")[:12]
        found.append(GateResult(name="lineage", passed=not lacks, detail=lacks or f"commit {commit}, data by DVC"))
    return found


def _data_checks(tags: Mapping[str, str]) -> GateResult:
    passed, errors, warnings = (tags.get(tag, "") for tag in CHECKS_TAGS)
    if not (passed and errors.isdigit()):
        why = "nothing is known of the checks of its data: run `dvc repro`, whose last stage sets validate.passed"
        return GateResult(name="data_checks", passed=False, detail=why)
    good = passed == "true" and errors == "0"
    detail = f"{errors} errors, {warnings or '?'} warnings in the stage validate"
    return GateResult(name="data_checks", passed=good, value=float(errors), limit=0.0, detail=detail)


def _lineage_lacks(tags: Mapping[str, str]) -> list[str]:
    lacks = []
    if not re.fullmatch("[0-9a-f]{40}([0-9a-f]{24})?", tags.get("lineage.git_commit", "")):
        lacks.append("it was trained outside of a git commit")
    elif tags.get("lineage.git_dirty") != "false":
        lacks.append("it was trained with changes that are in no commit: commit them and run `dvc repro`")
    try:
        data = json.loads(tags.get("lineage.data", "{}"))
    except ValueError:
        data = {}
    if not (isinstance(data, dict) and data and all(isinstance(hashed, str) and hashed for hashed in data.values())):
        lacks.append("its data has no DVC hash: train with `dvc repro`")
    return lacks


def engine_gates(
    measured: Measured, target: str, limits: GateParams, engine_bytes: int = 0, memory_mb: float | None = None
) -> list[GateResult]:
    """Judges what the builder measured with the engine of one target.

    Args:
        measured: parity in logits over the golden frames, latency in ms.
        limits: must hold `max_latency_ms` of this target.
        engine_bytes: size of the engine's file.
        memory_mb: peak of a process that runs it; None where it was not measured.
    """
    found = [
        at_most(f"parity.{target}", measured.parity_max_abs, max_parity_error(target, limits), "of a logit"),
        at_most(f"latency.{target}", measured.latency_p99_ms, limits.max_latency_ms.get(target), "ms, p99"),
    ]
    if (most_mb := limits.max_engine_mb.get(target)) is not None:
        found.append(at_most(f"size.{target}", engine_bytes / MB, most_mb, "MB"))
    if (most_mb := limits.max_memory_mb.get(target)) is not None:
        if memory_mb is not None:
            found.append(at_most(f"memory.{target}", memory_mb, most_mb, "MB at the peak"))
        else:
            why = "it was not measured: leave the limit out for this target"
            found.append(GateResult(name=f"memory.{target}", passed=False, limit=most_mb, detail=why))
    return found


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


def overridable(gate: str) -> bool:
    """Whether a person may decide to release although this gate fails."""
    return not gate.startswith(NEVER_OVERRIDDEN)


def used(gates: Sequence[GateResult], overrides: Sequence[Override]) -> list[Override]:
    """Those of the overrides without which a gate would refuse."""
    failed = {gate.name for gate in gates if not gate.passed}
    return [one for one in overrides if one.gate in failed and overridable(one.gate)]


def as_tags(gates: Sequence[GateResult], overrides: Sequence[Override] = ()) -> dict[str, str]:
    """Tags of the model version, such as `gate.blocked_recall` = `pass 0.93 ≥ 0.85`."""
    decided = {one.gate: one for one in used(gates, overrides)}
    tags = {}
    for gate in gates:
        by = decided.get(gate.name)
        result = "pass" if gate.passed else f"overridden by {by.by} ({by.reason}):" if by else "fail"
        tags[f"gate.{gate.name}"] = f"{result} {gate.detail}"
    return tags


def failures(gates: Sequence[GateResult], overrides: Sequence[Override] = ()) -> str:
    """The gates that failed and that nobody overrode, in one line; empty when there is none."""
    decided = {one.gate for one in used(gates, overrides)}
    return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates if not gate.passed and gate.name not in decided)


def as_text(limits: GateParams, targets: Collection[str], overrides: Sequence[Override] = ()) -> str:
    """The limits in force for some targets, and what people decided, as text that is the same for the same.

    An attempt remembers under which it was refused, so that changing them has the version looked at again.
    """
    values = msgspec.to_builtins(limits)
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = {target: value[target] for target in sorted(value) if target in targets}
    return json.dumps({**values, "overrides": sorted(one.signature for one in overrides)}, sort_keys=True)


def _number(value: float) -> str:
    """Four digits: near a limit 0.7996 must not read as 0.80."""
    return f"{value:.4g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
