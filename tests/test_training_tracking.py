"""The MLflow run of a training: where it goes, and what it survives. On the SQLite store, without a server."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

from serving.errors import OperatorError
from training import lineage, tracking
from training.tracking import Run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of this test's own, and no experiment name of the person who runs the tests."""
    database = tmp_path / "mlflow.db"
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
