"""What a passport promises of how a robot drives: from the stage `simulate` and the builder's measurements. Pure."""

from collections.abc import Mapping

import msgspec

from serving.contracts.releases import Expected, Measured

EXPECTED_METRICS = "simulate/expected/"  # as pipelines/simulate.py names them


def promised(metrics: Mapping[str, float], measured: Measured) -> Expected | msgspec.UnsetType:
    """The promise, or none where the run was not driven in enough rooms, or says what no robot can do.

    Args:
        metrics: of the MLflow run.
        measured: of the engine.
    """
    own = {name.removeprefix(EXPECTED_METRICS): v for name, v in metrics.items() if name.startswith(EXPECTED_METRICS)}
    try:
        return msgspec.convert({**own, "latency_p99_ms": measured.latency_p99_ms}, Expected)
    except msgspec.ValidationError:
        return msgspec.UNSET
