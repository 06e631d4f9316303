"""The real stage commands train, evaluate, export and register, one after the other, on two dozen images.

They run as `dvc repro` runs them, in a workspace of their own, with the SQLite store that needs no server.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.contracts.releases import Decision, ExportReport
from serving.settings import convert
from simulator.sessions import make_session
from tests.conftest import free_port

pytest.importorskip("torch")
pytest.importorskip("dvc")  # the platform's extra

PARAMS = """
data: {sessions: data/sample, labels: data/labels.csv, schema: data/schema.yaml}
train: {backbone: mobilenet_v3_small, weights: none, resolution: 112, epochs: 2, batch: 8}
unseen: {folds: 2}
evaluate: {min_blocked_recall: 0.9}
export: {golden_frames: 4}
"""
PARTS = {"s-train": "train", "s-more": "train", "s-validation": "validation", "s-test": "test"}
SOURCES = {"s-train": "here", "s-more": "there", "s-validation": "here", "s-test": "there"}


def workspace(folder: Path) -> Path:
    """Four small sessions of two sources, and the split that says so and calls them real."""
    sessions = folder / "data" / "sample"
    sessions.mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS)
    lines = []
    for seed, (session, part) in enumerate(PARTS.items(), start=1):
        source = SOURCES[session]
        make_session(sessions / f"{session}.zip", session_id=session, source=source, seed=seed, images=8)
        images = images_of(sessions / f"{session}.zip")
        lines += [f"{name},{label},{session},{source},0,{part},False" for name, label in images]
    split = folder / "build" / "split"
    split.mkdir(parents=True)
    (split / "split.csv").write_text("\n".join(["image,label,session,source,group,part,simulated", *lines]) + "\n")
    (split / "report.json").write_text("{}")
    return folder


def images_of(path: Path) -> Iterator[tuple[str, str]]:
    import zipfile

    for name in sorted(zipfile.ZipFile(path).namelist()):
        if name.endswith(".jpg"):
            yield f"{path.stem}/{name}", name.split("/")[0]


def stage(module: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", module]
    return subprocess.run(command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after all five stages."""
    folder = workspace(tmp_path_factory.mktemp("stages"))
    for module in (
        "training.train",
        "pipelines.unseen",
        "pipelines.evaluate",
        "pipelines.export",
        "pipelines.register",
    ):
        finished = stage(module, folder)
        assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def client(done: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{done / 'build/mlflow/mlflow.db'}")


def run_id(folder: Path) -> str:
    return str(json.loads((folder / "build/train/run.json").read_text())["run_id"])


def test_training_leaves_a_model_a_history_and_a_run(done: Path) -> None:
    """What the contract of the stage names, and nothing half-written."""
    assert sorted(path.name for path in (done / "build/train").iterdir()) == ["history.csv", "model.pt", "run.json"]
    history = list(csv.DictReader((done / "build/train/history.csv").open()))
    assert [line["epoch"] for line in history] == ["1", "2"]
    assert set(history[0]) == {"epoch", "train_loss", "validation_loss", "validation_balanced_accuracy"}


def test_the_run_can_be_compared_in_mlflow(done: Path, client: Any) -> None:
    """Parameters, metrics per epoch and at the end, data, commit and figures are there, and the run is finished."""
    run = client.get_run(run_id(done))
    assert run.info.status == "FINISHED"
    assert run.data.params["backbone"] == "mobilenet_v3_small"
    assert run.data.params["images_train"] == "16"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "validation/loss")] == [1, 2]
    assert {"test/balanced_accuracy", "test/blocked_recall", "test/roc_auc"} <= set(run.data.metrics)
    contexts = {found.tags[0].value for found in run.inputs.dataset_inputs}
    assert contexts == {"train", "validation", "test"}
    assert run.data.tags["mlflow.source.git.commit"] == "unknown"  # the workspace is no git repository
    assert {file.path for file in client.list_artifacts(run.info.run_id, "plots")} == {
        f"plots/{name}.png"
        for name in (
            "by_session",
            "by_source",
            "calibration",
            "confusion",
            "curves",
            "mistakes",
            "precision_recall",
            "probabilities",
            "roc",
        )
    }
    packages = Path(client.download_artifacts(run.info.run_id, "environment/packages.txt")).read_text()
    assert "torch==" in packages


def test_every_source_is_judged_by_a_network_that_had_not_seen_it(done: Path, client: Any) -> None:
    """All images have an answer; the mean and each source are in the run, with intervals."""
    assert sorted(path.name for path in (done / "build/unseen").iterdir()) == [
        "by_source.png",
        "decision.json",
        "metrics.json",
        "predictions.csv",
    ]
    predictions = list(csv.DictReader((done / "build/unseen/predictions.csv").open()))
    assert len(predictions) == 32
    assert {line["source"] for line in predictions} == {"here", "there"}
    found = json.loads((done / "build/unseen/metrics.json").read_text())
    assert set(found) == {"mean", "here", "there"}
    logged = client.get_run(run_id(done)).data.metrics
    assert logged["unseen/balanced_accuracy"] == pytest.approx(found["mean"]["balanced_accuracy"], abs=1e-3)
    assert logged["unseen/here/blocked_recall"] == pytest.approx(found["here"]["blocked_recall"], abs=1e-3)
    mean = (found["here"]["balanced_accuracy"] + found["there"]["balanced_accuracy"]) / 2
    assert found["mean"]["balanced_accuracy"] == pytest.approx(mean, abs=1e-3)


def test_the_metrics_are_those_of_the_decision(done: Path) -> None:
    """decision.json is by contract, and confusion.csv gives the recall that metrics.json tells."""
    decision = convert(json.loads((done / "build/evaluate/decision.json").read_text()), Decision, "decision.json")
    assert decision == convert(json.loads((done / "build/unseen/decision.json").read_text()), Decision, "unseen")
    measured = json.loads((done / "build/evaluate/metrics.json").read_text())
    assert set(measured) == {"test", "validation"}
    pairs = [
        (line["actual"], line["predicted"]) for line in csv.DictReader((done / "build/evaluate/confusion.csv").open())
    ]
    assert len(pairs) == measured["test"]["images"] == 8
    recall = sum(pair == ("blocked", "blocked") for pair in pairs) / sum(actual == "blocked" for actual, _ in pairs)
    assert measured["test"]["blocked_recall"] == pytest.approx(recall)
    curve = list(csv.DictReader((done / "build/evaluate/roc.csv").open()))
    assert (float(curve[0]["fpr"]), float(curve[-1]["tpr"])) == (0.0, 1.0)


def test_the_export_is_by_contract(done: Path) -> None:
    """Digests fit the files, names and shapes are the robot's, ONNX Runtime answers as torch did."""
    import onnx

    folder = done / "build/export"
    report = convert(json.loads((folder / "export.json").read_text()), ExportReport, "export.json")
    assert report.onnx_sha256 == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert report.golden_sha256 == hashlib.sha256((folder / "golden.npz").read_bytes()).hexdigest()
    assert report.parity_max_abs < 1e-4
    graph = onnx.load(str(folder / "model.onnx"))
    assert graph.opset_import[0].version == 13
    ends = (*graph.graph.input, *graph.graph.output)
    shapes = [(end.name, [axis.dim_value for axis in end.type.tensor_type.shape.dim]) for end in ends]
    assert shapes == [("frame", [1, 224, 224, 3]), ("logits", [1, 2])]
    golden = np.load(folder / "golden.npz")
    assert (golden["frames"].shape, golden["frames"].dtype) == ((4, 224, 224, 3), np.uint8)
    assert (golden["logits"].shape, golden["logits"].dtype) == ((4, 2), np.float32)


def test_the_version_in_the_registry_leads_back(done: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tags name run, commit and digests; its model.onnx is the exported one, byte for byte, with a signature."""
    from mlflow import set_tracking_uri
    from mlflow.artifacts import download_artifacts
    from mlflow.models import get_model_info

    report = json.loads((done / "build/export/export.json").read_text())
    (version,) = client.search_model_versions("name = 'collision-avoidance'")
    assert version.tags["lineage.onnx_sha256"] == report["onnx_sha256"]
    assert version.tags["lineage.golden_sha256"] == report["golden_sha256"]
    assert version.tags["lineage.run_id"] == version.run_id == run_id(done)
    assert version.tags["lineage.git_dirty"] == "true"
    assert json.loads(version.tags["lineage.data"]) == {}  # no dvc.lock here
    store = f"sqlite:///{done / 'build/mlflow/mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    set_tracking_uri(store)  # a test before in this process may have set its own, which goes before the variable
    folder = Path(download_artifacts(version.source))
    assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == report["onnx_sha256"]
    assert "frame" in str(get_model_info(str(folder)).signature)


def test_registering_again_adds_nothing(done: Path, client: Any) -> None:
    """The version is found by the digest of its ONNX file."""
    again = stage("pipelines.register", done)
    assert again.returncode == 0, again.stderr
    assert "which was there before" in again.stdout
    assert len(client.search_model_versions("name = 'collision-avoidance'")) == 1
    assert json.loads((done / "build/register/version.json").read_text())["created"] is False


def test_without_a_server_nothing_is_trained_and_the_remedy_is_named(done: Path) -> None:
    """One line within seconds, not a traceback after minutes of training."""
    failed = stage("pipelines.evaluate", done, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "Start it (`jetloop mlflow`)" in failed.stderr.splitlines()[-1]


def test_a_run_of_another_store_is_told(done: Path, tmp_path: Path) -> None:
    """The later stages do not go on with a run that the store does not know."""
    failed = stage("pipelines.register", done, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'other.db'}")
    assert failed.returncode == 1
    assert "dvc repro --force train" in failed.stderr.splitlines()[-1]


def test_a_failed_training_leaves_no_model_and_a_failed_run(tmp_path: Path) -> None:
    """Weights that make the loss explode end with one line; MLflow keeps the reason."""
    from mlflow import MlflowClient

    folder = workspace(tmp_path)
    (folder / "params.yaml").write_text(PARAMS.replace("weights: none", "weights: weights.pth"))
    weights_of_infinity(folder / "weights.pth")
    failed = stage("training.train", folder)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("error: the loss of the last layer became nan in epoch 1")
    assert not (folder / "build/train/model.pt").exists()
    client = MlflowClient(f"sqlite:///{folder / 'build/mlflow/mlflow.db'}")
    experiment = client.get_experiment_by_name("collision-avoidance")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert "last layer became nan" in run.data.tags["failed"]


def weights_of_infinity(path: Path) -> None:
    import torch

    from training.model import build_backbone

    state = build_backbone("mobilenet_v3_small").state_dict()
    state["features.0.0.weight"] = torch.full_like(state["features.0.0.weight"], float("inf"))
    torch.save(state, path)
