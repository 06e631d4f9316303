"""Model versions as `dvc repro` leaves them in MLflow, made in a second: a real ONNX network of six weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from mlflow import MlflowClient
from onnx import TensorProto, helper

from serving import preprocess
from serving.contracts.releases import Decision, ExportReport

GOOD_METRICS = {"test/balanced_accuracy": 0.93, "test/blocked_recall": 0.97}
GOLDEN_FRAMES = 8  # of a network that is given


def tiny_onnx(seed: int = 0, input_name: str = preprocess.INPUT_NAME) -> bytes:
    """A network with the right ends: the mean of each colour, times a (3, 2) matrix."""
    weights = np.random.default_rng(seed).normal(0, 0.01, (3, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", [input_name], ["mean"], axes=[1, 2], keepdims=0),  # (1, 3)
            helper.make_node("MatMul", ["mean", "weights"], [preprocess.OUTPUT_NAME]),
        ],
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, preprocess.INPUT_SHAPE)],
        [helper.make_tensor_value_info(preprocess.OUTPUT_NAME, TensorProto.FLOAT, preprocess.OUTPUT_SHAPE)],
        [helper.make_tensor("weights", TensorProto.FLOAT, (3, 2), weights.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tiny_golden(path: Path, seed: int = 0, off_by: float = 0.0) -> None:
    """golden.npz for `tiny_onnx(seed)`, its logits computed by hand and off by so much."""
    weights = np.random.default_rng(seed).normal(0, 0.01, (3, 2)).astype(np.float32)
    frames = np.random.default_rng(1).integers(0, 256, (3, *preprocess.FRAME_SHAPE), dtype=np.uint8)
    logits = frames.astype(np.float64).mean(axis=(1, 2)) @ weights + off_by
    np.savez(path, frames=frames, logits=logits.astype(np.float32))


def register(
    uri: str,
    model: str,
    folder: Path,
    seed: int = 0,
    metrics: dict[str, float] | None = None,
    off_by: float = 0.0,
    description: str = "",
    network: bytes | None = None,
    more_tags: Mapping[str, str] | None = None,
) -> str:
    """Logs a run with its export and registers it as a version of `model`.

    Args:
        folder: for temporary files.
        off_by: error of the golden logits: above the parity gate's limit, the version must be refused.
        network: an ONNX file in the place of the tiny one.

    Returns:
        The version's number.
    """
    report = export(folder / f"export-{seed}", seed, off_by, network)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(model)
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment(model))
    run_id = run.info.run_id
    for name, value in (GOOD_METRICS if metrics is None else metrics).items():
        client.log_metric(run_id, name, value)
    client.log_artifacts(run_id, str(folder / f"export-{seed}"), "export")
    client.set_terminated(run_id)
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model)
    tags = {**lineage_tags(report, run_id), **(more_tags or {})}
    source = f"{run.info.artifact_uri}/export"
    version = client.create_model_version(model, source, run_id, tags=tags, description=description or None)
    return str(version.version)


def export(folder: Path, seed: int = 0, off_by: float = 0.0, network: bytes | None = None) -> ExportReport:
    """Writes what the stage `export` leaves for `network` or `tiny_onnx(seed)`: model.onnx, golden.npz, export.json."""
    folder.mkdir(parents=True)
    if network is None:
        (folder / "model.onnx").write_bytes(tiny_onnx(seed))
        tiny_golden(folder / "golden.npz", seed, off_by)
    else:
        (folder / "model.onnx").write_bytes(network)
        _golden(folder / "golden.npz", network)
    report = ExportReport(
        onnx_sha256=_sha256(folder / "model.onnx"),
        onnx_bytes=(folder / "model.onnx").stat().st_size,
        opset=13,
        preprocessing=preprocess.PREPROCESSING,
        backbone="tiny" if network is None else "untrained",
        parity_max_abs=0.0,
        golden_sha256=_sha256(folder / "golden.npz"),
        golden_count=3 if network is None else GOLDEN_FRAMES,
        decision=Decision(blocked_threshold=0.4, temperature=1.5),
    )
    (folder / "export.json").write_bytes(msgspec.json.encode(report))
    return report


def _golden(path: Path, network: bytes) -> None:
    """golden.npz for any network, of as many frames as params.yaml asks for."""
    from pipelines.onnx_run import logits_of_onnx

    frames = np.random.default_rng(1).integers(0, 256, (GOLDEN_FRAMES, *preprocess.FRAME_SHAPE), dtype=np.uint8)
    np.savez(path, frames=frames, logits=logits_of_onnx(network, frames))


def lineage_tags(report: ExportReport, run_id: str) -> dict[str, str]:
    """Tags of a version as the stage `register` sets them."""
    return {
        "lineage.git_commit": "0123456789abcdef0123456789abcdef01234567",
        "lineage.git_dirty": "false",
        "lineage.data": json.dumps({"data/sessions": "d41d8cd98f00b204e9800998ecf8427e.dir"}),
        "lineage.onnx_sha256": report.onnx_sha256,
        "lineage.golden_sha256": report.golden_sha256,
        "lineage.run_id": run_id,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
