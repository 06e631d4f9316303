"""Stage `register`: the exported network as a version of the registered model `collision-avoidance` in MLflow.

    reads   build/train/run.json, build/export/model.onnx and export.json, build/split/split.csv and the session zips
            (params.yaml: data.sessions), and for the model card build/evaluate/sources.csv
    writes  build/register/version.json, and to MLflow: the ONNX model with its signature, a model version with the tags
            lineage.git_commit, git_dirty, data, onnx_sha256, golden_sha256, run_id and validate.passed, errors,
            warnings, and as its description the model card; and to the run nearest/nearest.npz, in which
            `jetloop trace --frame` finds training images

It may be run again at any time, and may be killed at any time: the version is looked up by the digest of its ONNX file
before one is added, and a version gets its tags in the call that creates it. Giving it an alias is left to a person.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import click
import msgspec

from pipelines import data_checks
from pipelines.images_table import write_text
from pipelines.int8 import Int8Report
from pipelines.model_card import Evidence, read_evidence, write_card
from pipelines.nearest import add_index
from pipelines.params import DataParams, block
from pipelines.release.gates import INT8_TARGETS_TAG
from serving import preprocess
from serving.command_line import run
from serving.contracts.releases import MODEL_NAME, ExportReport
from serving.errors import OperatorError, RejectedError
from serving.settings import convert
from training.tracking import Run, reaching, tracking_uri

EXPORT = Path("build/export")
OUT = Path("build/register")
DESCRIPTION = (
    "Tells from a Jetbot's camera image whether its way is blocked. Set the alias `champion` on a version and the "
    "release service checks, compiles, signs and publishes it for the fleet; `canary` is for the canary ring."
)
MODEL_TAG = "logged_model"  # on the run, with the digest: what a register that was killed in between need not log again


class VersionFile(msgspec.Struct, frozen=True, kw_only=True):
    """build/register/version.json."""

    name: str
    version: str
    run_id: str
    onnx_sha256: str
    created: bool  # false: it was there before


def register(tracked: Run, evidence: Evidence, folder: Path = EXPORT, name: str = MODEL_NAME) -> VersionFile:
    """Finds or adds the model version of the exported network.

    Args:
        tracked: the run that trained it.
        evidence: for the model card.
        folder: with model.onnx and export.json.
        name: of the registered model.

    Raises:
        OperatorError: a file is missing, or MLflow does not answer.
        RejectedError: the files do not belong together.
    """
    report = read_report(folder)
    with reaching(tracking_uri()):
        found = find_version(tracked.client, name, report.onnx_sha256)
        version = found or _add_version(tracked, name, report, folder)
        data_checks.add_missing(tracked.client, version)
        if not version.description:  # new, or its register was killed in between
            card = write_card(tracked.client.get_run(version.tags["lineage.run_id"]), report, evidence)
            tracked.client.update_model_version(name, version.version, card)
    return VersionFile(
        name=name,
        version=str(version.version),
        run_id=str(version.run_id),
        onnx_sha256=report.onnx_sha256,
        created=found is None,
    )


def read_report(folder: Path) -> ExportReport:
    """export.json, after comparing its digest with model.onnx beside it.

    Raises:
        OperatorError: a file cannot be read, or is not by contract.
        RejectedError: the digest is another.
    """
    path = folder / "export.json"
    try:
        report = convert(json.loads(path.read_text(encoding="utf-8")), ExportReport, str(path))
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc repro export` first") from None
    if digest != report.onnx_sha256:
        raise RejectedError(f"{folder / 'model.onnx'} is not the file that {path} names; run `dvc repro -f export`")
    return report


def read_int8(folder: Path) -> Int8Report:
    """int8/report.json, after comparing its digest with the file beside it; without one, there is no int8.

    Raises:
        OperatorError: a file cannot be read, or is not by contract.
        RejectedError: the digest is another.
    """
    path = folder / "int8/report.json"
    if not path.exists():
        return Int8Report(asked="no")
    try:
        report = convert(json.loads(path.read_text(encoding="utf-8")), Int8Report, str(path))
        model = (folder / "int8/model.int8.onnx").read_bytes() if report.kept else b""
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be read ({problem}); run `dvc repro export` first") from None
    if report.kept and hashlib.sha256(model).hexdigest() != report.onnx_sha256:
        raise RejectedError(f"model.int8.onnx is not the file that {path} names; run `dvc repro -f export`")
    return report


def find_version(client: Any, name: str, onnx_sha256: str) -> Any:
    """The newest version of the model with this ONNX digest, or None."""
    query = f"name = '{name}' and tags.`lineage.onnx_sha256` = '{onnx_sha256}'"
    found = client.search_model_versions(query, order_by=["version_number DESC"], max_results=1)
    return found[0] if found else None


def _add_version(tracked: Run, name: str, report: ExportReport, folder: Path) -> Any:
    client = tracked.client
    _ensure_registered(client, name)
    trained = client.get_run(tracked.id).data
    logged = f"{MODEL_TAG}.{report.onnx_sha256[:16]}"
    uri = trained.tags.get(logged)
    if uri is None:
        uri = _log_model(tracked, folder / "model.onnx", report)
        tracked.tags({logged: uri})
    tags = {key: value for key, value in trained.tags.items() if key.startswith("lineage.")}
    tags["lineage.onnx_sha256"] = report.onnx_sha256
    tags["lineage.golden_sha256"] = report.golden_sha256
    int8 = read_int8(folder)
    if int8.kept:
        tags |= {"lineage.int8_sha256": int8.onnx_sha256, INT8_TARGETS_TAG: " ".join(int8.targets)}
    tags["lineage.run_id"] = tracked.id
    tags |= data_checks.tags_of(client, tracked.id)
    from mlflow import register_model

    return register_model(uri, name, tags=tags)


def _ensure_registered(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=DESCRIPTION)
    except MlflowException as problem:
        if problem.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_model(tracked: Run, path: Path, report: ExportReport) -> str:
    """Logs the ONNX file as an MLflow model, byte for byte, and returns its URI."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    float32 = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, preprocess.INPUT_SHAPE, preprocess.INPUT_NAME)]),
        outputs=Schema([TensorSpec(float32, preprocess.OUTPUT_SHAPE, preprocess.OUTPUT_NAME)]),
    )
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns about its own defaults
    with mlflow.start_run(run_id=tracked.id):
        logged = mlflow.onnx.log_model(
            onnx.load(str(path)),
            name="model",
            signature=signature,
            pip_requirements=["numpy", "onnx", "onnxruntime"],  # named, or MLflow loads the model to find out
            save_as_external_data=False,
            metadata={"preprocessing": report.preprocessing, "onnx_sha256": report.onnx_sha256},
        )
    return str(logged.model_uri)


@click.command()
def command() -> None:
    """Stage `register`: add the exported network to MLflow's registry as a version of `collision-avoidance`.

    Safe to run again: a network that is registered keeps its version. Promote it by setting the alias `champion` in
    MLflow (`jetloop mlflow`).

    \b
    Examples:
      dvc repro
      python -m pipelines.register
    """
    with Run.resume() as tracked:
        version = register(tracked, read_evidence())
        add_index(tracked, EXPORT / "model.onnx", Path(block(DataParams).sessions))
    write_text(OUT / "version.json", json.dumps(msgspec.to_builtins(version), indent=2) + "\n")
    click.echo(f"{version.name} version {version.version}" + ("" if version.created else ", which was there before"))


if __name__ == "__main__":
    run(command)
