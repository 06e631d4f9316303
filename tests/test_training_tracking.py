"""The MLflow run of a training: where it goes, and what it survives. On the SQLite store, or with a cable to cut."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

from serving.errors import OperatorError, RejectedError
from tests.conftest import ROOT, wait_for
from tests.simulators.cable import Cable
from training import lineage, tracking
from training.tracking import Run


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables, which MLflow takes seconds to make."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of this test's own, and no experiment name of the person who runs the tests."""
    database = tmp_path / "mlflow.db"
    shutil.copy(empty_store, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return database


def failing(times: int, then: Callable[..., None]) -> Callable[..., None]:
    """A client's method on a server that is away for some calls."""
    from mlflow.exceptions import MlflowException

    left = [times]

    def call(*arguments: Any, **named: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise MlflowException("API request to http://lab:5000 failed: connection refused")
        then(*arguments, **named)

    return call


def test_metrics_wait_for_a_server_that_restarts(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The training goes on, and every metric arrives with its step."""
    with Run.start("a run", {}) as run, caplog.at_level(logging.WARNING):
        monkeypatch.setattr(run.client, "log_batch", failing(2, run.client.log_batch))
        for step in (1, 2, 3):
            run.metrics({"loss": 1 / step}, step)
    history = run.client.get_metric_history(run.id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert "1 metrics wait" in caplog.text
    assert "2 metrics wait" in caplog.text


def test_what_is_not_a_number_is_left_out(store: Path) -> None:
    """An area under the curve that cannot be measured is no zero and no error."""
    with Run.start("a run", {}) as run:
        run.metrics({"roc_auc": float("nan"), "images": 3.0})
    assert run.client.get_run(run.id).data.metrics == {"images": 3.0}


def test_an_error_marks_the_run_as_failed(store: Path) -> None:
    """With its reason, and the error itself goes on."""
    with pytest.raises(OperatorError, match="disk"), Run.start("a run", {}) as run:
        raise OperatorError("the disk is full")
    found = run.client.get_run(run.id)
    assert (found.info.status, found.data.tags["failed"]) == ("FAILED", "the disk is full")


def test_a_stage_that_succeeds_after_all_leaves_no_reason_of_failure(store: Path, tmp_path: Path) -> None:
    """The run is finished, and does not say at the same time why it failed."""
    with Run.start("a run", {}) as run:
        file = tmp_path / "run.json"
        file.write_text(json.dumps({name: getattr(run.file, name) for name in run.file.__struct_fields__}))
    with pytest.raises(RejectedError), Run.resume(file):
        raise RejectedError("the network gives no numbers")
    assert run.client.get_run(run.id).data.tags["failed"] == "the network gives no numbers"
    with Run.resume(file) as later:
        later.metrics({"images": 3.0})
    found = run.client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert "failed" not in found.data.tags
    assert later.client.get_run(later.id).data.metrics == {"images": 3.0}


TRAINING = """
import sys, time
from training.tracking import Run
with Run.start("a run", {}) as run:
    print(run.id, flush=True)
    time.sleep(60)
"""


def test_ctrl_c_ends_the_run_as_killed(store: Path) -> None:
    """And at once: the thread that reads the machine does not hold it up."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TRAINING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().decode().strip()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    found = tracking.connect().get_run(run_id)
    assert (found.info.status, found.data.tags["failed"]) == ("KILLED", "interrupted")


def test_an_interrupted_training_leaves_nothing_and_can_be_run_again(tmp_path: Path) -> None:
    """Ctrl-C in the middle of an epoch: exit code 130, no model, a killed run, and the next training is whole."""
    pytest.importorskip("torch")
    from mlflow import MlflowClient

    from tests.test_training_stages import PARAMS, stage, workspace

    folder = workspace(tmp_path)
    (folder / "params.yaml").write_text(PARAMS.replace("epochs: 2", "epochs: 1000"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-u", "-m", "training.train"]
    with subprocess.Popen(command, cwd=folder, env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith(b"epoch 1/"))
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"KeyboardInterrupt" not in told  # no traceback of it
    assert not (folder / "build/train").exists() or not list((folder / "build/train").iterdir())
    client = MlflowClient(f"sqlite:///{folder / 'build/mlflow/mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    assert (run.info.status, run.data.tags["failed"]) == ("KILLED", "interrupted")

    (folder / "params.yaml").write_text(PARAMS.replace("epochs: 2", "epochs: 1"))
    again = stage("training.train", folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "build/train/model.pt").exists()


def test_what_the_machine_does_is_logged_while_a_run_is_open(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor and memory among it, for the runs that are started here and not for those that go on."""
    monkeypatch.setattr(tracking, "SYSTEM_METRICS_EVERY_S", 0.05)
    with Run.start("a run", {}) as run:
        wait_for(
            lambda: "system/cpu_utilization_percentage" in run.client.get_run(run.id).data.metrics,
            what="system metrics",
        )
    assert "system/system_memory_usage_megabytes" in run.client.get_run(run.id).data.metrics
    threads = {thread.name for thread in threading.enumerate()}
    assert "SystemMetricsMonitor" not in threads
    with Run(run.client, run.file):
        assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


def test_without_psutil_a_run_has_no_system_metrics_and_says_so(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A training board may lack it; nothing else changes."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    with Run.start("a run", {}) as run:
        run.metrics({"images": 3.0})
    assert "no system metrics" in caplog.text
    assert "pip install psutil" in caplog.text
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    caplog.clear()
    with Run.start("a quiet run", {}):
        assert caplog.text == ""


@pytest.fixture
def cable(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    with Cable(mlflow_server) as cable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", cable.uri)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test-tracking")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield cable


def test_a_server_that_is_away_for_a_moment_costs_no_training(
    cable: Cable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics wait, and what must arrive now is tried again until the server is back; the waiting is told."""
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    with Run.start("a run", {}) as run:
        cable.cut()
        run.metrics({"loss": 0.5}, step=1)
        threading.Timer(1.0, cable.mend).start()
        run.artifact(tmp_path / "history.csv", "train")
    found = run.client.get_run(run.id)
    assert (found.info.status, found.data.metrics["loss"]) == ("FINISHED", 0.5)
    assert [file.path for file in run.client.list_artifacts(run.id, "train")] == ["train/history.csv"]
    assert "1 metrics wait" in caplog.text
    assert "trying again" in caplog.text


def test_a_server_that_stays_away_ends_the_run_with_one_line(cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute, here less; nothing is said to be logged that is not."""
    monkeypatch.setattr(tracking, "LAST_TRY_S", 0.0)
    run = Run.start("a run", {})
    cable.cut()
    with pytest.raises(OperatorError) as problem, run:
        run.params({"epochs": 3})
    assert str(problem.value).startswith(f"MLflow at {cable.uri}: ")
    assert "\n" not in str(problem.value)
    cable.mend()
    assert run.client.get_run(run.id).info.status == "RUNNING"  # nobody could tell the server


def test_what_a_server_refuses_is_not_tried_again(cable: Cable) -> None:
    """An answer is an answer: the minute is for a server that gives none."""
    run = Run.start("a run", {})
    run.params({"epochs": 3})
    began = time.monotonic()
    with pytest.raises(OperatorError, match="epochs"):
        run.params({"epochs": 4})  # MLflow's parameters are written once
    assert time.monotonic() - began < tracking.LAST_TRY_S / 2


def test_a_deleted_experiment_is_told(store: Path) -> None:
    """MLflow itself would only say that it is not active."""
    run = Run.start("a run", {})
    run.client.delete_experiment(run.client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    with pytest.raises(OperatorError, match="restore it there or set MLFLOW_EXPERIMENT_NAME"):
        Run.start("another run", {})


def test_artifacts_that_would_go_to_another_machine_s_folder_are_refused(store: Path) -> None:
    """An experiment made without a server names a folder of the machine that made it."""
    client = tracking.connect()
    client.create_experiment(tracking.EXPERIMENT, artifact_location="file:///nowhere/on/this/machine")
    with pytest.raises(OperatorError, match="which is not on this machine; set MLFLOW_EXPERIMENT_NAME"):
        Run.start("a run", {})


def test_a_run_file_that_is_missing_or_broken_says_what_to_run(store: Path, tmp_path: Path) -> None:
    """The later stages need the train stage."""
    for content in (None, "{", '{"run_id": 3}'):
        if content is not None:
            (tmp_path / "run.json").write_text(content)
        with pytest.raises(OperatorError) as problem:
            Run.resume(tmp_path / "run.json")
        assert "\n" not in str(problem.value)


def lock(size: int) -> str:
    return f"""
schema: '2.0'
stages:
  validate:
    cmd: python -m pipelines.validate
    deps:
    - {{path: data/sample, hash: md5, md5: 1a2b.dir, size: {size}, nfiles: 1}}
    - {{path: data/labels.csv, hash: md5, md5: 3c, size: 4}}
    - {{path: pipelines/validate.py, hash: md5, md5: 5e, size: 4}}
  split:
    cmd: python -m pipelines.split
    outs:
    - {{path: build/split/split.csv, hash: md5, md5: 7f, size: 4}}
    - {{path: build/split/report.json, hash: md5, md5: 8a, size: 4}}
"""


def test_the_hashes_are_dvc_s_and_of_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions, corrections and split; no code, no report."""
    monkeypatch.chdir(tmp_path)
    Path("data/sample").mkdir(parents=True)
    Path("data/sample/s.zip").write_bytes(b"12345")
    Path("dvc.lock").write_text(lock(size=5))
    assert lineage.data_hashes(Path("data/sample")) == {
        "data/sample": "1a2b.dir",
        "data/labels.csv": "3c",
        "build/split/split.csv": "7f",
    }


def test_a_lock_of_other_data_gives_no_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rather none than wrong ones: the stage was run by hand on data that DVC has not seen."""
    monkeypatch.chdir(tmp_path)
    Path("data/sample").mkdir(parents=True)
    for content in (None, "", "stages: {}", lock(size=6)):
        if content is not None:
            Path("dvc.lock").write_text(content)
        assert lineage.data_hashes(Path("data/sample")) == {}
    assert caplog.text.count("the data has no DVC hash") == 4
