"""No worse than what the fleet runs: a new version against the champion, with the intervals that `evaluate` measured.

A difference of a few images is chance, so the upper end of the new version's 95 % interval counts: it is refused where
even that lies below the champion's value, less a margin. Blocked recall comes first: what it misses, the robot hits.
The figures of sources left out (`unseen/…`) are compared too where both have them. The two may have been measured on
other images, since data grows: then this says less, and the drives of the stage `simulate` say more.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from pipelines.params import GateParams
from serving.contracts.releases import GateResult

_WHERE = {"": "test", "unseen_": "unseen"}  # prefix of the gate -> of the metric


class Champion(NamedTuple):
    """What the fleet runs; `metrics` is None where MLflow does not know its run any more."""

    version: str
    metrics: Mapping[str, float] | None


def champion_gates(metrics: Mapping[str, float], champion: Champion | None, limits: GateParams) -> list[GateResult]:
    """Judges a version against the champion; nothing where there is none yet, or params.yaml does not ask.

    Args:
        metrics: of the MLflow run of the new version.
        champion: what the fleet runs; None before the first release, and for that version itself.
        limits: the block `gates` of params.yaml.
    """
    if champion is None:
        return []
    found = []
    margins = (("blocked_recall", limits.max_recall_loss), ("balanced_accuracy", limits.max_accuracy_loss))
    for name, margin in margins:
        if margin is not None:
            found += [
                _no_worse(prefix + name, f"{folder}/{name}", metrics, champion, margin)
                for prefix, folder in _WHERE.items()
                if not prefix or _comparable(f"{folder}/{name}", metrics, champion)
            ]
    return found


def _comparable(metric: str, metrics: Mapping[str, float], champion: Champion) -> bool:
    return f"{metric}_high" in metrics and metric in (champion.metrics or {})


def _no_worse(name: str, metric: str, metrics: Mapping[str, float], champion: Champion, margin: float) -> GateResult:
    gate = f"{name}_against_champion"
    who = f"the champion, version {champion.version},"
    if champion.metrics is None:
        return GateResult(name=gate, passed=False, detail=f"the run of {who} is not in MLflow: nothing to compare with")
    value, high, before = metrics.get(metric), metrics.get(f"{metric}_high"), champion.metrics.get(metric)
    if value is None or high is None:
        lacking = metric if value is None else f"{metric}_high"
        return GateResult(name=gate, passed=False, detail=f"the run has no metric {lacking}: run `dvc repro evaluate`")
    if before is None or not all(math.isfinite(x) and 0 <= x <= 1 for x in (value, high, before)):
        return GateResult(name=gate, passed=False, detail=f"{who} has {before}, this one {value} up to {high}")
    limit = max(0.0, before - margin)
    passed = high >= limit
    how = "not shown to be worse than" if passed else "worse than"
    less = f", less {margin:.4g}" if margin else ""
    detail = f"{value:.4g} (at 95 % up to {high:.4g}) is {how} {who} with {before:.4g}{less}"
    return GateResult(name=gate, passed=passed, value=high, limit=limit, detail=detail)
