"""What the stage `validate` said of the data that a network was trained on, as tags of its model version.

The release service asks for them (`gates.require_data_checks`). They come from the report that the stage `train` logged
to the run, so that they are of the data of that very training.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from pipelines.release.gates import CHECKS_TAGS
from serving.errors import RejectedError

REPORT = "data/validate/report.json"  # artifact of the run


class _Expectation(msgspec.Struct):
    severity: str
    passed: bool


class _Report(msgspec.Struct):
    passed: bool
    expectations: list[_Expectation]


def tags_of(client: Any, run_id: str) -> dict[str, str]:
    """CHECKS_TAGS with their values; none where the run holds no report.

    Args:
        client: an `MlflowClient`.

    Raises:
        RejectedError: the report is malformed.
        MlflowException: MLflow cannot be asked.
    """
    if not any(artifact.path == REPORT for artifact in client.list_artifacts(run_id, "data/validate")):
        return {}
    with TemporaryDirectory(prefix="jetloop-checks-") as folder:
        content = Path(client.download_artifacts(run_id, REPORT, folder)).read_bytes()
    try:
        report = msgspec.json.decode(content, type=_Report)
    except msgspec.DecodeError as problem:
        raise RejectedError(f"{REPORT} of run {run_id} is malformed ({problem}); run `dvc repro -f validate`") from None
    failed = [one.severity for one in report.expectations if not one.passed]
    values = ("true" if report.passed else "false", str(failed.count("error")), str(failed.count("warning")))
    return dict(zip(CHECKS_TAGS, values, strict=True))


def add_missing(client: Any, version: Any) -> None:
    """Sets the tags on a version that was registered before there were any.

    Args:
        version: of MLflow's client.

    Raises:
        RejectedError: the report is malformed.
        MlflowException: MLflow cannot be asked or told.
    """
    if CHECKS_TAGS[0] not in version.tags:
        for key, value in tags_of(client, str(version.tags["lineage.run_id"])).items():
            client.set_model_version_tag(version.name, version.version, key, value)
