"""`jetloop mlflow`: a real server over the store that `dvc repro` writes without one."""

import os
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("mlflow.server")

from pipelines.tracking_server import ENVIRONMENT_FILE, read_environment
from serving.errors import OperatorError
from tests.conftest import ROOT, answers, end, free_port, start, wait_for
from training.tracking import STORE, Run


def jetloop_mlflow(port: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", "mlflow", "--port", str(port), "--folder", str(folder)]


@pytest.fixture
def without_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with a figure, logged in a folder of its own as `dvc repro` does where no server is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with Run.start("a run without a server", {"k": "v"}) as run:
        run.metrics({"accuracy": 0.5})
        (tmp_path / "figure.png").write_bytes(b"\x89PNG figure")
        run.artifact(tmp_path / "figure.png", "plots")
    return run


@pytest.fixture
def server(tmp_path: Path, without_server: Run) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    process = start(jetloop_mlflow(port, tmp_path / STORE), tmp_path / "log", cwd=ROOT)
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{uri}/health"), timeout_s=90, what="MLflow answering")
        yield process, uri
    finally:
        end(process)


def test_it_shows_what_was_logged_without_it_and_ends_whole(
    server: tuple[subprocess.Popen[bytes], str], without_server: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs and figures of the SQLite store are served; the experiment can be logged to over HTTP too; the key of the
    webhooks' secrets is kept for the owner alone; SIGTERM leaves no process behind."""
    from mlflow import MlflowClient

    process, uri = server
    run = MlflowClient(uri).get_run(without_server.id)
    assert (run.info.run_name, run.info.status) == ("a run without a server", "FINISHED")
    figure = f"{uri}/get-artifact?run_uuid={run.info.run_id}&path=plots/figure.png"
    assert urllib.request.urlopen(figure).read() == b"\x89PNG figure"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with Run.start("a run with it", {}) as later:
        later.artifact(tmp_path / "figure.png", "plots")
    assert [file.path for file in MlflowClient(uri).list_artifacts(later.id, "plots")] == ["plots/figure.png"]

    assert stat.S_IMODE((tmp_path / STORE / "webhook-secret.key").stat().st_mode) == 0o600

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()  # this process alone: it must pass the signal on
    process.wait(timeout=20)
    wait_for(lambda: not any(member.is_running() for member in family), what="the end of the server's processes")


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    """At once, and not after the seconds that MLflow takes to start."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = jetloop_mlflow(taken.getsockname()[1], tmp_path)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot listen on 127.0.0.1:")
    assert "--port" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    """The message names the folder and the option."""
    (tmp_path / "file").write_text("")
    command = jetloop_mlflow(free_port(), tmp_path / "file" / "store")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "choose another --folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_settings_are_read_and_a_broken_line_is_named(tmp_path: Path) -> None:
    """mlflow/server.env as shipped, and one with a mistake."""
    assert read_environment(ENVIRONMENT_FILE)["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    (tmp_path / "server.env").write_text("# a comment\n\nA=1=2\nB\n")
    with pytest.raises(OperatorError, match=r"server\.env:4: `B` is not NAME=value"):
        read_environment(tmp_path / "server.env")


def test_the_folder_mlflow_hides_no_library() -> None:
    """From the root of the repository `import mlflow` gives the library, because the folder holds no Python."""
    assert not list((ROOT / "mlflow").rglob("*.py"))
    code = "import mlflow, sys; sys.exit(not hasattr(mlflow, 'MlflowClient'))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}).returncode == 0
