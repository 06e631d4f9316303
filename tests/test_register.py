"""Registering against a real MLflow server: once per network, whatever happens in between."""

import hashlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

pytest.importorskip("mlflow.server")
onnx = pytest.importorskip("onnx")

from pipelines import register as stage  # noqa: E402
from pipelines.model_card import Evidence  # noqa: E402
from serving.contracts.releases import Decision, ExportReport  # noqa: E402
from serving.errors import OperatorError, RejectedError  # noqa: E402
from tests.simulators.cable import Cable  # noqa: E402
from training import tracking  # noqa: E402
from training.tracking import Run, connect  # noqa: E402

NOTHING = Evidence({}, [])


def exported(folder: Path, value: float) -> str:
    """model.onnx and export.json of a tiny network; returns the digest."""
    from onnx import TensorProto, helper

    shape = [1, 2]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("frame", "logits")]
    constant = helper.make_tensor("by", TensorProto.FLOAT, [1], [value])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["frame", "by"], ["logits"])], "g", ends[:1], ends[1:], [constant]
    )
    folder.mkdir(exist_ok=True)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    report = ExportReport(
        onnx_sha256=digest,
        onnx_bytes=len(content),
        opset=13,
        preprocessing="p",
        backbone="tiny",
        parity_max_abs=0.0,
        golden_sha256="0" * 64,
        golden_count=1,
        decision=Decision(),
    )
    (folder / "export.json").write_bytes(msgspec.json.encode(report))
    return digest


@pytest.fixture
def run(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test-register")
    return Run.start("a run", {"lineage.git_commit": "abc", "lineage.git_dirty": "false", "lineage.data": "{}"})


@pytest.fixture
def name() -> str:
    return f"test-register-{uuid4().hex[:8]}"


def versions(run: Run, name: str) -> list[Any]:
    return list(run.client.search_model_versions(f"name = '{name}'"))


def test_a_network_is_registered_once(run: Run, name: str, tmp_path: Path) -> None:
    """The second time the same version is found; another network gets the next number."""
    digest = exported(tmp_path, 1.0)
    first = stage.register(run, NOTHING, tmp_path, name)
    assert (first.version, first.created, first.onnx_sha256) == ("1", True, digest)
    again = stage.register(run, NOTHING, tmp_path, name)
    assert (again.version, again.created) == ("1", False)
    exported(tmp_path, 2.0)
    other = stage.register(run, NOTHING, tmp_path, name)
    assert (other.version, other.created) == ("2", True)
    assert len(versions(run, name)) == 2


def test_another_training_with_the_same_outcome_is_the_same_version(run: Run, name: str, tmp_path: Path) -> None:
    """The digest names the network, not the run."""
    exported(tmp_path, 3.0)
    first = stage.register(run, NOTHING, tmp_path, name)
    later = stage.register(Run.start("another run", {}), NOTHING, tmp_path, name)
    assert (later.version, later.created, later.run_id) == (first.version, False, run.id)


def test_the_version_carries_its_lineage_and_its_bytes(run: Run, name: str, tmp_path: Path) -> None:
    """All tags are there from the first moment, and the model that MLflow serves is the exported file."""
    from mlflow.artifacts import download_artifacts

    digest = exported(tmp_path / "export", 4.0)
    run.metrics({"test/balanced_accuracy": 0.9, "test/blocked_recall": 0.95, "test/images": 40})
    stage.register(run, NOTHING, tmp_path / "export", name)
    (version,) = versions(run, name)
    assert version.tags == {
        "lineage.git_commit": "abc",
        "lineage.git_dirty": "false",
        "lineage.data": "{}",
        "lineage.onnx_sha256": digest,
        "lineage.golden_sha256": "0" * 64,
        "lineage.run_id": run.id,
    }
    assert version.description.startswith("# collision-avoidance: tiny")
    assert "| test part: 40 images, ? views | 0.900 | 0.950 |" in version.description
    assert "git checkout abc" in version.description
    folder = Path(download_artifacts(f"models:/{name}/1", dst_path=str(tmp_path / "down")))
    assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == digest


def test_a_register_that_was_killed_goes_on(
    run: Run, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the model was logged and before its version was made: the model is not logged again."""

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    exported(tmp_path, 5.0)
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.register_model", kill)
        with pytest.raises(Killed):
            stage.register(run, NOTHING, tmp_path, name)
    assert versions(run, name) == []
    monkeypatch.setattr(stage, "_log_model", kill)
    assert stage.register(run, NOTHING, tmp_path, name).created
    assert len(versions(run, name)) == 1


def test_a_version_whose_register_was_killed_before_its_card_gets_it(
    run: Run, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person who promotes always has something to read; a card that a person has changed stays."""

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    exported(tmp_path, 7.0)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_card", kill)
        with pytest.raises(Killed):
            stage.register(run, NOTHING, tmp_path, name)
    assert [version.description or "" for version in versions(run, name)] == [""]
    assert not stage.register(run, NOTHING, tmp_path, name).created
    assert versions(run, name)[0].description.startswith("# collision-avoidance")
    run.client.update_model_version(name, "1", "mine")
    stage.register(run, NOTHING, tmp_path, name)
    assert versions(run, name)[0].description == "mine"


def test_a_server_that_dies_while_the_model_is_sent_leaves_no_version(
    run: Run, name: str, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the server; what was sent of the model is in no version, and the next try makes one."""
    exported(tmp_path, 8.0)
    with Cable(mlflow_server) as cable, monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", cable.uri)
        patch.setattr(tracking, "LAST_TRY_S", 0.0)
        later = Run(connect(), run.file)
        send = stage._log_model

        def cut_after_sending(*arguments: Any) -> str:
            uri = send(*arguments)
            cable.cut()
            return uri

        patch.setattr(stage, "_log_model", cut_after_sending)
        with pytest.raises(OperatorError, match=rf"MLflow at {cable.uri}: .*Start it"):
            stage.register(later, NOTHING, tmp_path, name)
    assert versions(run, name) == []
    connect()
    assert stage.register(run, NOTHING, tmp_path, name).version == "1"


def test_files_that_do_not_belong_together_are_refused(run: Run, name: str, tmp_path: Path) -> None:
    """A model.onnx that was changed after the export gets no version."""
    with pytest.raises(OperatorError, match="dvc repro export"):
        stage.register(run, NOTHING, tmp_path, name)
    exported(tmp_path, 6.0)
    (tmp_path / "model.onnx").write_bytes(b"another")
    with pytest.raises(RejectedError, match="is not the file that"):
        stage.register(run, NOTHING, tmp_path, name)
    assert versions(run, name) == []
