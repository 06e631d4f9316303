"""What the data's checks said, as tags of a model version."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import data_checks
from pipelines.release import gates
from serving.errors import RejectedError
from tests.release_desk import limits


class Client:
    """The two calls of `MlflowClient` on a run with one artifact, or none."""

    def __init__(self, report: bytes | None) -> None:
        self._report = report
        self.tags: dict[str, str] = {}

    def list_artifacts(self, _run: str, folder: str) -> list[Any]:
        return [SimpleNamespace(path=f"{folder}/report.json")] if self._report is not None else []

    def download_artifacts(self, _run: str, path: str, folder: str) -> str:
        assert self._report is not None
        file = Path(folder) / Path(path).name
        file.write_bytes(self._report)
        return str(file)

    def set_model_version_tag(self, _name: str, _version: str, key: str, value: str) -> None:
        self.tags[key] = value


def report(*failing: str) -> bytes:
    """A report with one expectation that holds, and one of each severity that does not."""
    told = [{"severity": "error", "passed": True, "says": "x"}]
    told += [{"severity": severity, "passed": False, "says": "y"} for severity in failing]
    return json.dumps({"passed": "error" not in failing, "images": 9, "expectations": told}).encode()


@pytest.mark.parametrize(
    ("failing", "passes"), [((), True), (("warning", "warning"), True), (("error", "warning"), False)]
)
def test_the_gate_reads_what_register_writes(failing: tuple[str, ...], passes: bool) -> None:
    """Warnings pass, errors do not."""
    tags = data_checks.tags_of(Client(report(*failing)), "run")
    assert tags["validate.warnings"] == str(failing.count("warning"))
    (gate,) = gates.origin_gates(tags, limits(require_data_checks=True))
    assert gate.passed == passes


def test_a_run_without_report_has_no_tags_and_a_broken_one_is_rejected() -> None:
    """Nothing is made up where nothing is known."""
    assert data_checks.tags_of(Client(None), "run") == {}
    with pytest.raises(RejectedError, match="dvc repro -f validate"):
        data_checks.tags_of(Client(b'{"passed": "maybe"}'), "run")


def test_a_version_from_before_gets_its_tags_once() -> None:
    """Registering again adds them; what is there stays."""
    client = Client(report())
    version = SimpleNamespace(name="m", version="1", tags={"lineage.run_id": "run"})
    data_checks.add_missing(client, version)
    assert client.tags == {"validate.passed": "true", "validate.errors": "0", "validate.warnings": "0"}
    client.tags.clear()
    version.tags["validate.passed"] = "false"
    data_checks.add_missing(client, version)
    assert client.tags == {}
