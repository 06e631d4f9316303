"""The training board's MLflow client, 2.17.2, against the current server; the Xavier NX can have no newer one.

The client lives in a virtual environment of its own (of Python 3.8, as on the board, where pyenv has one; else of this
one), kept in the folder build/ so that only the first run installs it. Everything that `training.tracking` calls is
called there, and looked at here with the current client.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow.server")

from tests.conftest import ROOT

CLIENT = "2.17.2"
# The newest of each that Python 3.8 can have; the Jetson's own torch is not needed for tracking.
REQUIREMENTS = [
    f"mlflow-skinny=={CLIENT}",
    *(
        "click==8.1.8",
        "msgspec==0.18.6",
        "numpy==1.24.4",
        "psutil==6.1.1",
        "pyyaml==6.0.2",
        "typing-extensions==4.12.2",
    ),
]
NO_INDEX = ("error sending request", "failed to connect", "could not connect", "dns error", "timed out", "offline")

SCRIPT = """
import json, sys, time
from pathlib import Path

import mlflow, msgspec

from serving.errors import OperatorError, RejectedError
from training import intervals, lineage, metrics, progress, settings, tracking
from training.tracking import Run

folder = Path(sys.argv[1])
(folder / "plots").mkdir()
(folder / "plots" / "roc.png").write_bytes(b"PNG")
(folder / "history.csv").write_text("epoch")
tracking.SYSTEM_METRICS_EVERY_S = 0.1

with Run.start("from the board", {"lineage.git_commit": "abc", "mlflow.source.name": "training.train"}) as run:
    run.params({"backbone": "resnet18", "epochs": 3})
    for step in (1, 2):
        run.metrics({"train/loss": 1.0 / step, "validation/loss": float("nan")}, step)
    run.dataset("sessions/train", "1a2b.dir", Path("data/sessions"), "train", {"num_rows": 3, "sources": "me"})
    run.artifact(folder / "history.csv", "train")
    run.artifact(folder / "plots", "plots")
    run.text("torch==2.1", "environment/packages.txt")
    deadline = time.monotonic() + 20
    measured = lambda: run.client.get_run(run.id).data.metrics
    while "system/cpu_utilization_percentage" not in measured() and time.monotonic() < deadline:
        time.sleep(0.05)
    (folder / "run.json").write_text(json.dumps(msgspec.to_builtins(run.file)))

ends = {}
for error in (RejectedError("no numbers"), KeyboardInterrupt()):
    try:
        with Run.resume(folder / "run.json") if not ends else Run.start("stopped", {}) as other:
            raise error
    except (RejectedError, KeyboardInterrupt):
        ends[other.client.get_run(other.id).info.status] = other.id
with Run.resume(folder / "run.json") as later:
    later.tags({"logged_model": "models:/m-1"})
    later.metrics({"test/balanced_accuracy": 0.9, "test/balanced_accuracy_low": 0.8})
try:
    run.params({"epochs": 4})
except OperatorError as problem:
    refused = str(problem)
print(json.dumps({
    "run": run.id, "ends": ends, "refused": refused, "torch": "torch" in sys.modules,
    "mlflow": mlflow.__version__, "python": sys.version_info[:2],
}))
"""


@pytest.fixture(scope="module")
def old_python() -> Path:
    """The interpreter of the old client's environment, made once."""
    environment = ROOT / "build/test-environments" / f"mlflow-{CLIENT}"
    environment.parent.mkdir(parents=True, exist_ok=True)
    wanted, whole = [str(board_python()), *REQUIREMENTS], environment / "installed.json"
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers of pytest-xdist one installs
        if not whole.exists() or json.loads(whole.read_text()) != wanted:
            shutil.rmtree(environment, ignore_errors=True)
            uv("venv", "--quiet", "--no-python-downloads", "--python", wanted[0], str(environment))
            uv("pip", "install", "--quiet", "--python", str(environment / "bin/python"), *REQUIREMENTS)
            whole.write_text(json.dumps(wanted))
    return environment / "bin/python"


def board_python() -> Path:
    """Python 3.8 if pyenv has one, which uv does not look for; else the one that runs this."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return next(iter(sorted(root.glob("versions/3.8.*/bin/python"))), Path(sys.executable))


def uv(*arguments: str) -> None:
    program = Path(sys.executable).with_name("uv")
    command = [str(program) if program.exists() else "uv", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except (FileNotFoundError, subprocess.TimeoutExpired) as problem:
        pytest.skip(f"the old client cannot be installed: {problem}")
    if done.returncode:
        message = f"uv {arguments[0]}: {' '.join(done.stderr.split())[-400:]}"
        if any(sign in message.lower() for sign in NO_INDEX):
            pytest.skip(f"no package index is reachable for the old client: {message}")
        pytest.fail(message)


@pytest.fixture(scope="module")
def told(old_python: Path, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script tells after it has made its calls with the old client."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON", "VIRTUAL"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": mlflow_server}
    environment.update({"MLFLOW_EXPERIMENT_NAME": "test-old-client", "GIT_PYTHON_REFRESH": "quiet"})
    command = [str(old_python), "-c", SCRIPT, str(tmp_path_factory.mktemp("board"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_client_is_the_old_one_and_needs_no_torch(told: dict[str, Any]) -> None:
    """Tracking and all that it imports works on a board before NVIDIA's torch is on it."""
    assert told["mlflow"] == CLIENT
    assert not told["torch"]


def test_everything_arrives(told: dict[str, Any], mlflow_server: str, tmp_path: Path) -> None:
    """Parameters, metrics by step, tags, dataset, files and system metrics are what the old client sent."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    run = client.get_run(told["run"])
    assert (run.info.run_name, run.info.status) == ("from the board", "FINISHED")
    assert run.data.params == {"backbone": "resnet18", "epochs": "3"}
    losses = client.get_metric_history(told["run"], "train/loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 1.0), (2, 0.5)]
    assert "validation/loss" not in run.data.metrics
    assert run.data.metrics["test/balanced_accuracy_low"] == 0.8
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert run.data.tags["lineage.git_commit"] == "abc"
    assert run.data.tags["logged_model"] == "models:/m-1"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("sessions/train", "1a2b.dir", "train")
    assert json.loads(used.dataset.profile)["num_rows"] == 3
    files = {file.path for folder in ("train", "plots") for file in client.list_artifacts(told["run"], folder)}
    assert files == {"train/history.csv", "plots/roc.png"}
    packages = Path(client.download_artifacts(told["run"], "environment/packages.txt", str(tmp_path)))
    assert packages.read_text() == "torch==2.1"


def test_failures_and_interrupts_are_told_apart(told: dict[str, Any], mlflow_server: str) -> None:
    """A stage that failed and then went well leaves no reason; Ctrl-C leaves the run killed."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    assert set(told["ends"]) == {"FAILED", "KILLED"}
    assert told["ends"]["FAILED"] == told["run"]
    assert "failed" not in client.get_run(told["run"]).data.tags
    assert client.get_run(told["ends"]["KILLED"]).data.tags["failed"] == "interrupted"
    assert told["refused"].startswith(f"MLflow at {mlflow_server}: ")
    assert "\n" not in told["refused"]
