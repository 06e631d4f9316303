"""One turn of the loop: images in, retrain, promote, and what the robot makes of it."""

import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.demo import robot_watch, workspace
from pipelines.demo.processes import Processes
from pipelines.demo.services import House
from pipelines.demo.terminal import Terminal
from serving.contracts.releases import MODEL_NAME
from serving.errors import OperatorError

STAGES = ("validate", "split", "train", "unseen", "evaluate", "export", "simulate", "register")


@dataclass
class Round:
    """What one turn of the loop came to; `summary.json` holds it."""

    number: int
    images: int
    left_out: list[str]
    stages_run: list[str] = field(default_factory=list)
    stages_skipped: list[str] = field(default_factory=list)
    version: str = ""
    run_id: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    status: str = ""
    reason: str = ""
    gates: dict[str, str] = field(default_factory=dict)
    release_id: str = ""
    engine_sha256: str = ""
    alias_to_first_decision_s: float | None = None
    takeover: robot_watch.Takeover | None = None


class Loop:
    """Drives the rounds; every step is the command or the API call that a person would use."""

    def __init__(self, house: House, processes: Processes, terminal: Terminal, environment: Mapping[str, str]) -> None:
        self._house = house
        self._processes = processes
        self._terminal = terminal
        self._environment = environment

    def turn(self, number: int, incoming: Sequence[Sequence[str]], drive_s: float) -> Round:
        """Ingests, retrains, promotes; then, if released, lets the robot drive `drive_s` seconds with it.

        Args:
            incoming: for each `jetloop ingest`, its arguments.
        """
        result = self._ingest(number, incoming)
        self._reproduce(result)
        set_at = self._promote(result)
        self._await_release(result)
        if result.status == "released":
            self._await_robot(result, set_at)
            self._drive(result, drive_s)
        return result

    def _run(self, name: str, command: list[str], **kwargs: Any) -> list[str]:
        return self._terminal.run(
            name,
            command,
            folder=self._house.workspace,
            environment=self._environment,
            guard=self._processes.guard,
            log=self._house.logs / "commands.log",
            **kwargs,
        )

    def _ingest(self, number: int, incoming: Sequence[Sequence[str]]) -> Round:
        reports = self._house.workspace / "build" / "ingest"
        before = set(reports.glob("*.json"))
        for arguments in incoming:
            self._run(f"round {number}: ingest", ["jetloop", "ingest", *arguments])
        left_out = [
            f"{file['file']}: {file['reason']}"
            for path in sorted(set(reports.glob("*.json")) - before)
            for file in json.loads(path.read_text())["left_out"]
        ]
        self._show_left_out(left_out)
        workspace.commit(self._house.workspace, f"images of round {number}")
        return Round(number, images=0, left_out=left_out)

    def _show_left_out(self, left_out: Sequence[str], most: int = 5) -> None:
        for line in left_out[:most]:
            self._terminal.say(f"    [yellow]left out: {line}[/]")
        if len(left_out) > most:
            where = self._house.workspace / "build" / "ingest"
            self._terminal.say(f"    [yellow]and {len(left_out) - most} more, all named in {where}[/]")

    def _reproduce(self, result: Round) -> None:
        # At a lower priority, since this machine drives the robot too.
        lines = self._run(
            f"round {result.number}: dvc repro",
            ["nice", "-n", "10", "dvc", "repro"],
            total=len(STAGES),
            counts=lambda line: line.startswith(("Running stage", "Stage '")),
        )
        result.stages_run = [s for s in STAGES if any(line.startswith(f"Running stage '{s}'") for line in lines)]
        result.stages_skipped = [s for s in STAGES if s not in result.stages_run]
        workspace.commit(self._house.workspace, f"retrained, round {result.number}")
        built = self._house.workspace / "build"
        registered = json.loads((built / "register" / "version.json").read_text())
        result.version, result.run_id = registered["version"], registered["run_id"]
        result.metrics = json.loads((built / "evaluate" / "metrics.json").read_text())["test"]
        result.images = sum(1 for _ in (built / "split" / "split.csv").open()) - 1

    def _promote(self, result: Round) -> float:
        from mlflow import MlflowClient

        client = MlflowClient(self._house.mlflow_url)
        page = f"{self._house.mlflow_url}/#/models/{MODEL_NAME}"
        self._terminal.say(f"  version {result.version} is registered; a person compares and promotes at {page}")
        set_at = time.time()
        client.set_registered_model_alias(MODEL_NAME, "champion", result.version)
        self._terminal.say(f"  [bold]champion[/] is set on version {result.version}, as the UI does it")
        return set_at

    def _await_release(self, result: Round) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(self._house.mlflow_url)

        def tags() -> dict[str, str]:
            return dict(client.get_model_version(MODEL_NAME, result.version).tags)

        with self._terminal.step(f"round {result.number}: gates, build, sign, publish") as update:
            self._until(lambda: tags().get("release.status") in ("released", "refused"), 120, "the release service")
            found = tags()
            update(found["release.status"], None)
        result.status, result.reason = found["release.status"], found.get("release.reason", "")
        result.release_id = found.get("release.id", "")
        result.gates = {k.removeprefix("gate."): v for k, v in found.items() if k.startswith("gate.")}
        for gate, outcome in result.gates.items():
            self._terminal.say(f"    {gate}: {outcome}")
        if result.status == "refused":
            self._terminal.say(f"  [yellow]refused: {result.reason}[/]\n  the robot keeps what it has")
            return
        passport = self.passport(result.release_id)
        result.engine_sha256 = passport["engine"]["sha256"]

    def _await_robot(self, result: Round, set_at: float) -> None:
        def taken() -> robot_watch.Takeover | None:
            return robot_watch.takeover(robot_watch.decisions(self._house.recorder), result.engine_sha256)

        with self._terminal.step(f"round {result.number}: robot pulls, verifies, activates"):
            self._until(lambda: taken() is not None, 60, "the robot's first decision with the new engine")
        found = taken()
        assert found is not None
        result.alias_to_first_decision_s = round(found.first_decision_unix_s - set_at, 2)

    def _drive(self, result: Round, drive_s: float) -> None:
        begun = time.monotonic()
        with self._terminal.step(f"round {result.number}: driving", total=drive_s) as update:
            while (elapsed := time.monotonic() - begun) < drive_s:
                self._processes.check()
                recorded = robot_watch.decisions(self._house.recorder)
                update(f"{len(recorded)} decisions, now {recorded[-1].action if recorded else 'none'}", elapsed)
                time.sleep(1.0)
        result.takeover = robot_watch.takeover(robot_watch.decisions(self._house.recorder), result.engine_sha256)

    def passport(self, release_id: str) -> dict[str, Any]:
        """The passport of a release for the demo's target, as the release service shows it."""
        from pipelines.demo.services import TARGET

        with urllib.request.urlopen(f"{self._house.release_url}/api/releases", timeout=10) as answer:
            releases = json.load(answer)
        found = next(one for one in releases if one["release_id"] == release_id and one["passports"])
        return dict(found["passports"][TARGET])

    def _until(self, condition: Any, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._processes.check()
            if time.monotonic() > deadline:
                raise OperatorError(f"{what} did not come within {timeout_s:.0f} s; the logs are in {self._house.logs}")
            time.sleep(0.2)
