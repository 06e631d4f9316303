"""dvc.yaml as a user runs it: a clean clone, `dvc repro`, and again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.sessions import make_session
from tests.conftest import ROOT, need

pytest.importorskip("dvc")

CODE = ("pipelines", "training", "serving", "simulator", "telemetry")


def run(folder: Path, *command: str) -> str:
    """Runs a program in the workspace with this interpreter first in PATH, and returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    identity = {f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**kept, **identity, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of its own with the code, three small simulated sessions and quick settings, all committed."""
    need("git")
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "dvc.yaml",
        ".dvcignore",
        ".gitignore",
        "data/labels.csv",
        "data/schema.yaml",
        ".dvc/config",
        ".dvc/.gitignore",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    sessions = folder / "data" / "sample"
    sessions.mkdir()
    for seed in (1, 2, 3, 4):
        make_session(sessions / f"s{seed}.zip", session_id=f"s{seed}", source="test", seed=seed, images=12)
    params = (ROOT / "params.yaml").read_text().splitlines()
    quick = {"epochs": "1", "batch": "8", "sessions": "data/sample", "golden_frames": "2", "rooms": "2"}
    quick["max_rooms"] = "2"
    changed = [
        f"{line.split(':')[0]}: {quick[line.split(':')[0].strip()]}" if line.split(":")[0].strip() in quick else line
        for line in params
    ]
    (folder / "params.yaml").write_text("\n".join(changed) + "\n")
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "a clone")
    return folder


def test_a_clean_clone_reproduces_once(clone: Path) -> None:
    """Everything runs without a server, a remote or a download; then nothing; then only what a change reaches."""
    run(clone, "dvc", "repro")
    version = json.loads((clone / "build/register/version.json").read_text())
    assert (version["name"], version["version"]) == ("collision-avoidance", "1")
    assert run(clone, "git", "status", "--porcelain").split() == ["??", "dvc.lock"]

    again = run(clone, "dvc", "repro")
    assert "Running stage" not in again
    assert "Data and pipelines are up to date" in again

    assert "test.balanced_accuracy" in run(clone, "dvc", "metrics", "show", "--md")
    run(clone, "dvc", "plots", "show", "-o", "plots")
    page = (clone / "plots/index.html").read_text()
    assert all(title in page for title in ("Loss", "ROC", "Confusion"))
    shutil.rmtree(clone / "plots")

    experiment = run(clone, "dvc", "exp", "run", "evaluate", "-S", "evaluate.min_blocked_recall=0.5")
    assert "Running stage 'evaluate'" in experiment
    assert "Running stage 'train'" not in experiment

    check_lineage(clone)


def check_lineage(clone: Path) -> None:
    """The version names the commit and DVC's hashes of the data that it was made of."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{clone / 'build/mlflow/mlflow.db'}")
    (version,) = client.search_model_versions("name = 'collision-avoidance'")
    assert version.tags["lineage.git_commit"] == run(clone, "git", "rev-parse", "HEAD").strip()
    assert version.tags["lineage.git_dirty"] == "false"
    hashes = json.loads(version.tags["lineage.data"])
    assert set(hashes) == {"data/sample", "data/labels.csv", "data/schema.yaml", "build/split/split.csv"}
    assert hashes["data/sample"].endswith(".dir")
    used = client.get_run(version.run_id).inputs.dataset_inputs
    assert {found.dataset.digest for found in used} == {hashes["data/sample"]}
