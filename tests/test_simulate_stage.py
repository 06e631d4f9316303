"""The stage `simulate` as `dvc repro` runs it: files, metrics in MLflow, and the comparison with the champion."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("mlflow.server")

from mlflow import MlflowClient

from serving import preprocess
from serving.contracts.releases import MODEL_NAME, Decision, ExportReport
from serving.errors import RejectedError
from tests.conftest import ROOT
from tests.simulators.constant_network import BLOCKED, FREE, constant_network

PARAMS = """\
simulate: {rooms: 2, max_rooms: 3, starts: 1, seconds: 6, frames_per_s: 10}
gates:
  min_balanced_accuracy: 0.7
  min_blocked_recall: 0.7
  max_parity_error: 0.01
  max_latency_ms: {}
  max_collisions_per_100m: null
  min_distance_m_per_min: 2
"""


def stage(folder: Path, uri: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipelines.simulate", "--processes", "1"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


class Workspace:
    """A folder as the stages before leave it, with a store that needs no server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(self.uri, self.uri)
        self.experiment = self.client.create_experiment("test", artifact_location=(folder / "artifacts").as_uri())
        (folder / "params.yaml").write_text(PARAMS)

    def export(self, logits: tuple[float, float]) -> str:
        """A new run with an exported network; returns the run's id."""
        out = self.folder / "build" / "export"
        model = constant_network(out / "model.onnx", logits).read_bytes()
        (out / "golden.npz").write_bytes(b"not looked at")
        report = ExportReport(
            onnx_sha256=hashlib.sha256(model).hexdigest(),
            onnx_bytes=len(model),
            opset=13,
            preprocessing=preprocess.PREPROCESSING,
            backbone="constant",
            parity_max_abs=0.0,
            golden_sha256="0" * 64,
            golden_count=2,
            decision=Decision(),
        )
        (out / "export.json").write_bytes(msgspec.json.encode(report))
        run_id = str(self.client.create_run(self.experiment).info.run_id)
        self.client.log_artifacts(run_id, str(out), "export")
        file = {"run_id": run_id, "tracking_uri": self.uri, "experiment": "test"}
        (self.folder / "build" / "train").mkdir(exist_ok=True)
        (self.folder / "build" / "train" / "run.json").write_text(json.dumps(file))
        return run_id

    def promote(self, run_id: str) -> None:
        """Registers the run's network and makes it the champion."""
        digest = hashlib.sha256((self.folder / "build/export/model.onnx").read_bytes()).hexdigest()
        if not self.client.search_registered_models():
            self.client.create_registered_model(MODEL_NAME)
        source = f"{self.client.get_run(run_id).info.artifact_uri}/export"
        tags = {"lineage.onnx_sha256": digest, "lineage.run_id": run_id}
        version = self.client.create_model_version(MODEL_NAME, source, run_id, tags=tags)
        self.client.set_registered_model_alias(MODEL_NAME, "champion", version.version)

    def simulate(self) -> "subprocess.CompletedProcess[str]":
        return stage(self.folder, self.uri)

    def metrics(self, run_id: str) -> dict[str, float]:
        return dict(self.client.get_run(run_id).data.metrics)


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str, str, str]:
    """A workspace after two networks: one that only turns, made champion, then one that only drives on."""
    workspace = Workspace(tmp_path_factory.mktemp("simulate"))
    first = workspace.export(BLOCKED)
    done = workspace.simulate()
    assert done.returncode == 0, done.stderr
    workspace.promote(first)
    second = workspace.export(FREE)
    compared = workspace.simulate()
    assert compared.returncode == 0, compared.stderr
    return workspace, first, second, compared.stdout


def test_the_figures_are_in_the_files_and_in_the_run(driven: tuple[Workspace, str, str, str]) -> None:
    """metrics.json tells what MLflow has; episodes, paths and clip are with the run."""
    workspace, _, second, said = driven
    written = json.loads((workspace.folder / "build/simulate/metrics.json").read_text())
    logged = workspace.metrics(second)
    assert written["model"]["distance_m_per_min"] == pytest.approx(logged["simulate/distance_m_per_min"], abs=1e-6)
    assert logged["simulate/missed_share"] == 1.0
    assert logged["simulate/collisions_per_100m_high"] >= logged["simulate/collisions_per_100m"]
    files = {artifact.path for artifact in workspace.client.list_artifacts(second, "simulate")}
    assert files == {f"simulate/{name}" for name in ("metrics.json", "episodes.csv", "paths.png", "clip.gif")}
    assert "collisions per 100 m" in said


def test_a_network_that_never_drives_is_measured_all_the_same(driven: tuple[Workspace, str, str, str]) -> None:
    """Always blocked: no error, hardly any way, all of the time stuck; nothing was compared without a champion."""
    workspace, first, _, _ = driven
    logged = workspace.metrics(first)
    assert logged["simulate/distance_m_per_min"] < 2
    assert logged["simulate/stuck_share"] > 0.9
    assert not any("champion" in name for name in logged)


def test_the_champion_is_compared_in_the_same_rooms(driven: tuple[Workspace, str, str, str]) -> None:
    """Its episodes come from its own run; the difference is logged with the version it is to."""
    workspace, first, second, said = driven
    logged = workspace.metrics(second)
    above = (
        workspace.metrics(second)["simulate/distance_m_per_min"]
        - workspace.metrics(first)["simulate/distance_m_per_min"]
    )
    assert logged["simulate/above_champion/distance_m_per_min"] == pytest.approx(above)
    assert workspace.client.get_run(second).data.tags["simulate.champion"] == "1"
    assert "against version 1, the champion" in said
    assert len(list((workspace.folder / "build/cache/simulate").glob("*.csv"))) == 1


def test_a_champion_from_another_suite_is_driven_now(
    driven: tuple[Workspace, str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ONNX file is fetched and driven once; the next time the outcome is remembered."""
    from pipelines import champion, simulate
    from simulator.settings import SuiteSettings

    workspace, *_ = driven
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace.uri)
    suite, drives = SuiteSettings(rooms=2, starts=1, seconds=5, frames_per_s=8), []

    def drive(model: Path, decision: Decision) -> list[simulate.Episode]:
        drives.append(model)
        return simulate.drive(model, decision, suite, 1, "driving")

    found = champion.promoted()
    assert found is not None
    for _ in range(2):
        remembered = champion.drive_champion(*found, suite, drive)
    assert len(drives) == 1
    assert [one.seed for one in remembered.episodes] == list(suite.seeds)


def test_a_champion_that_cannot_be_had_is_told_and_left_out(
    driven: tuple[Workspace, str, str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged run of the champion's must not keep a new network from being measured."""
    from pipelines import simulate
    from pipelines.register import read_report
    from simulator.settings import SuiteSettings

    workspace, *_ = driven
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace.uri)

    def damaged(*_: object) -> None:
        raise RejectedError("its run holds no export/model.onnx")

    monkeypatch.setattr(simulate, "drive_champion", damaged)
    assert simulate.compare_with_champion(read_report(Path("build/export")), SuiteSettings(), 1) is None
    assert "holds no export/model.onnx" in caplog.text


@pytest.mark.parametrize(("hits", "rooms"), [(0.1, 10), (1.0, 40), (9.0, 10)])
def test_rooms_are_driven_until_the_verdict_is_sure(monkeypatch: pytest.MonkeyPatch, hits: float, rooms: int) -> None:
    """What is clearly good or bad is done after the first rooms; what is near the limit drives all, each room once."""
    from pipelines import simulate
    from simulator.scores import Limits
    from simulator.settings import SuiteSettings
    from simulator.suite import Counts, Episode

    nowhere, driven = np.empty((0, 2), np.float32), []

    def run_suite(model: Path, decision: Decision, suite: object, processes: int, seeds: range) -> list[list[Episode]]:
        driven.extend(seeds)
        counts = Counts(seconds=60.0, distance_m=8.0, frames=1200)
        return [
            [Episode(seed, 0, counts._replace(collisions=int(hits * (1 + seed % 2))), nowhere, nowhere)]
            for seed in seeds
        ]

    monkeypatch.setattr(simulate, "run_suite", run_suite)
    suite = SuiteSettings(rooms=10, max_rooms=40)
    episodes = simulate.drive_until_sure(Path("model.onnx"), Decision(), suite, Limits(20.0, 2.0), 1)
    assert driven == list(suite.of(rooms).seeds)
    assert [one.seed for one in episodes] == driven


def test_without_an_export_the_stage_says_what_to_run(tmp_path: Path) -> None:
    """One line, the command that mends it."""
    (tmp_path / "params.yaml").write_text(PARAMS)
    done = stage(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert done.returncode == 1
    assert "dvc repro export" in done.stderr
    assert "Traceback" not in done.stderr
