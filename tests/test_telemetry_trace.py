"""From an event back to its origin."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from serving.errors import JetloopError, RejectedError
from telemetry.origin import steps, trace
from telemetry.releases import Release
from telemetry.store import Batch, open_store
from telemetry.trace import command
from tests.conftest import ROOT, free_port
from tests.test_telemetry_samples import ENGINE, RELEASE, decision, event, passport, release_service


def _run(*arguments: str) -> "tuple[str, Exception | None]":
    """What the command prints and raises, without the seconds that a process and its imports take."""
    done = CliRunner().invoke(command, list(arguments))
    assert done.exception is None or isinstance(done.exception, JetloopError), done.output
    return done.stdout, done.exception


def _row(**changes: Any) -> dict[str, Any]:
    one = event(**changes)
    return {**msgspec.structs.asdict(one), "captured_at": one.time}


def _releases(*entries: dict[str, Any]) -> list[Release]:
    return msgspec.convert(list(entries), list[Release])


def test_the_chain_is_followed_to_the_data(tmp_path: Path) -> None:
    """One command answers engine, release, version, run, commit and data, each with what gets it back."""
    url = f"sqlite:///{tmp_path / 'events.db'}"
    one = event()
    open_store(url).add(Batch(events=[one]))
    refused = decision({}, status="refused", release_id="", sequence=None, current=False, version="4")
    with release_service([refused, decision()]) as service:
        cli = [sys.executable, "-m", "pipelines.cli", "trace"]
        arguments = [one.id[:23], "--store", url, "--releases", service]
        text = subprocess.run([*cli, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
        as_json, _ = _run(one.id, "--store", url, "--releases", service, "--json")
    assert text.returncode == 0, text.stderr
    lines = text.stdout.splitlines()
    starts = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert list(starts) == ["event", "robot", "engine", "release", "version", "run", "model", "commit", "data"]
    assert len({line.index(line.split()[1]) for line in starts.values()}) == 1  # aligned
    assert ENGINE in starts["engine"]
    assert RELEASE in starts["release"]
    commit = "4bb1f0c2" * 5
    for expected in (
        f"curl -fO {service}/targets/releases/{RELEASE}/cpu-ort-fp32/{ENGINE}.engine.onnx",
        "/#/models/collision-avoidance/versions/3",
        f"git checkout {commit}",
        f"dvc get . data/sessions --rev {commit}",
    ):
        assert expected in text.stdout

    found = json.loads(as_json)
    assert found["event"] == one.id
    assert found["passport"]["lineage"]["data"] == {"data/sessions": "d41d8cd98f00b204e9800998ecf8427e.dir"}
    assert [step["what"] for step in found["steps"]] == list(starts)


def test_what_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    """Unknown event, service down, something else at its address: one line each that says what to do."""
    url = f"sqlite:///{tmp_path / 'events.db'}"
    one = event()
    open_store(url).add(Batch(events=[one]))
    with release_service({"not": "a list"}) as other:
        cases = {
            (one.id, url, f"http://127.0.0.1:{free_port()}"): "`jetloop release serve` starts it",
            (one.id, url, other): "answers, but not with releases",
            ("ffffffff", url, other): "no event `ffffffff`",
            (one.id, f"sqlite:///{tmp_path / 'none.db'}", other): "there is no store",
        }
        for (event_id, store, service), expected in cases.items():
            _, problem = _run(event_id, "--store", store, "--releases", service)
            assert expected in str(problem)
            assert "\n" not in str(problem)


def test_the_engine_decides_not_the_name() -> None:
    """A release of the same name whose engines are others is no origin; nor is an unknown or a missing release."""
    known = _releases(decision())
    assert trace(_row(), known).passport == passport()
    with pytest.raises(RejectedError, match="the engine did not come from this service"):
        trace(_row(engine="00" * 32), known)
    with pytest.raises(RejectedError, match="knows no release `other`"):
        trace(_row(release="other"), known)
    with pytest.raises(RejectedError, match="ran no model"):
        trace(_row(release="", engine=""), known)


def test_every_decision_about_the_release_is_told() -> None:
    """A release that went out on two channels, and came back, is told with all of it; a dirty tree is pointed out."""
    lineage = msgspec.structs.replace(passport().lineage, git_dirty=True)
    dirty = {"cpu-ort-fp32": msgspec.structs.replace(passport(), lineage=lineage)}
    canary = decision(dirty, channel="canary", sequence=5, current=False, status="rolled-back")
    found = trace(_row(), _releases(canary, decision()))
    assert found.releases == [
        "canary 5 rolled-back 2026-11-23T12:01:00Z",
        "champion 2 released 2026-11-23T12:01:00Z, now running",
    ]
    notes = {step.what: step.note for step in steps(found)}
    assert "were not committed" in notes["commit"]


def test_run_and_version_are_verified_in_mlflow(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --mlflow the run's status and metrics are shown; a run that MLflow does not have is an error."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the command sets it for its own process
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    run = client.create_run(client.create_experiment(f"trace-{tmp_path.name}"))
    client.log_metric(run.info.run_id, "test/balanced_accuracy", 0.9375)
    client.set_terminated(run.info.run_id)
    name = f"traced-{free_port()}"
    client.create_registered_model(name)
    version = client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)

    def entry(run_id: str) -> dict[str, Any]:
        lineage = msgspec.structs.replace(
            passport(run_id=run_id).lineage, model_name=name, model_version=str(version.version)
        )
        return decision({"cpu-ort-fp32": msgspec.structs.replace(passport(), lineage=lineage)})

    url = f"sqlite:///{tmp_path / 'events.db'}"
    one = event()
    open_store(url).add(Batch(events=[one]))
    with release_service([entry(run.info.run_id)]) as service:
        good = _run(one.id, "--store", url, "--releases", service, "--mlflow", mlflow_server)
        down = _run(one.id, "--store", url, "--releases", service, "--mlflow", f"http://127.0.0.1:{free_port()}")
    with release_service([entry("0" * 32)]) as service:
        bad = _run(one.id, "--store", url, "--releases", service, "--mlflow", mlflow_server)
    assert good[1] is None
    assert "FINISHED, test/balanced_accuracy 0.9375" in good[0]
    assert f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in good[0]
    for (printed, problem), expected in ((bad, "does not have it"), (down, "does not answer")):
        assert "\ncommit" in printed  # what is known is shown all the same
        assert expected in str(problem)
