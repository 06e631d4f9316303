"""What MLflow says about the run and the version that a passport names."""

import os

import msgspec

from serving.contracts.releases import Lineage
from serving.errors import OperatorError, RejectedError, first_line


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The run as MLflow has it."""

    run_id: str
    experiment_id: str
    status: str  # FINISHED, RUNNING, FAILED, ...
    metrics: dict[str, float]


def verify(lineage: Lineage, tracking_uri: str) -> Run:
    """Looks the run and the version up, and that the version is of this run.

    Args:
        lineage: of the passport.
        tracking_uri: of MLflow.

    Raises:
        OperatorError: MLflow does not answer.
        RejectedError: MLflow has no such run or version, or the version belongs to another run.
    """
    # One attempt in seconds instead of seven in minutes: a person waits for this.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        run = client.get_run(lineage.run_id)
        version = client.get_model_version(lineage.model_name, lineage.model_version)
    except MlflowException as problem:
        why = first_line(problem)[:300]
        if problem.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise RejectedError(f"MLflow at {tracking_uri} does not have it: {why}") from None
        raise OperatorError(f"MLflow at {tracking_uri} does not answer as it should: {why}") from None
    if version.run_id and version.run_id != lineage.run_id:
        raise RejectedError(
            f"version {lineage.model_version} in MLflow is of run {version.run_id}, not of {lineage.run_id} as the "
            "passport says: this is not the MLflow that the model came from"
        )
    return Run(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        metrics=dict(sorted(run.data.metrics.items())),
    )
