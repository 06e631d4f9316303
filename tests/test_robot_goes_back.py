"""Going back with real engine workers: what the motors see while the engine before takes over."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.config import ControlSettings, EngineSettings, ProbationSettings
from serving.control import Control
from serving.engine.supervisor import Supervisor
from serving.motors import DeadMan
from serving.probation import Probation
from serving.recorder import Recorder
from serving.slots import Candidate, Slots
from tests.conftest import wait_for
from tests.test_robot_parts import BLACK, BRIGHT, MAX_AGE_S, TARGET, Heard, ScriptedBody, make_candidate

pytestmark = pytest.mark.alone  # measures time


class Robot:
    """Camera, control, engine workers, slots and probation, wired as the daemon does it."""

    def __init__(self, folder: Path, **probation: Any) -> None:
        self.folder = folder
        self.body = ScriptedBody()
        self.heard = Heard()
        self.slots = Slots(folder / "slots", probation=True)
        self.probation = Probation(
            ProbationSettings(**probation),
            self.slots,
            lambda candidate: self.supervisor.activate(candidate, "going-back"),
            self.heard,
            lambda: None,
        )
        engine = EngineSettings(target=TARGET, max_failures=2)
        self.supervisor = Supervisor(engine, self.heard, self.probation.failing)
        self.motors = DeadMan(self.body, MAX_AGE_S)
        self.recorder = Recorder(folder / "decisions.csv", 10_000_000)
        self.control = Control(
            self.body,
            ControlSettings(smoothing=0.0),
            0.15,
            self.supervisor,
            self.motors,
            self.recorder,
            self.heard,
            lambda loaded, frame, action, ms: self.probation.decided(loaded, action.motion, ms),
        )
        self.control.start()
        self.probation.start()

    def install(self, version: str, **network: Any) -> Candidate:
        """As the updater does: into the free slot, activated, committed."""
        made = make_candidate(self.folder / f"release{version}", version, **network)
        folder = self.slots.prepare()
        shutil.copytree(made.folder, folder, dirs_exist_ok=True)
        candidate = self.slots.candidate(folder, made.channel)
        self.supervisor.activate(candidate)
        self.slots.commit(candidate)
        return candidate

    def drives(self, candidate: Candidate) -> bool:
        running = self.supervisor._running
        return running is not None and running.passport == candidate.passport and self.body.moving

    def worker(self) -> int:
        running = self.supervisor._running
        assert running is not None
        return running.engine.pid

    def close(self) -> None:
        self.control.close()
        self.supervisor.close()
        self.probation.close()
        self.recorder.close()


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    made = Robot(tmp_path)
    try:
        yield made
    finally:
        made.close()


def back(robot: Robot, cause: str) -> None:
    (told,) = robot.heard.of("model.rolled-back")
    assert told["cause"] == cause
    wait_for(lambda: robot.heard.of("model.activated")[-1]["cause"] == "going-back", what="the event")


def test_an_operator_goes_back_without_a_gap(robot: Robot) -> None:
    """While it drives: the engine before takes over between two frames, and the motors never stand still."""
    first = robot.install("1")
    robot.install("2", convolutions=1)
    before = len(robot.body.moves)
    robot.probation.go_back("operator", "too shy")
    wait_for(lambda: robot.drives(first), what="the engine before")
    assert all(any(move[1:]) for move in robot.body.moves[before:])
    back(robot, "operator")
    assert robot.heard.of("model.activated")[-1]["gap_ms"] < 100
    assert Slots(robot.folder / "slots").current() == robot.slots.running


def test_an_engine_that_keeps_crashing_is_left(robot: Robot) -> None:
    """On a dark floor the new engine answers NaN again and again: after two failures the one before drives, and the
    reason is remembered."""
    first = robot.install("1")
    second = robot.install("2", nan_below=10)
    robot.body.brightness = BLACK
    wait_for(lambda: robot.drives(first), what="the engine before")
    back(robot, "engine-failed")
    assert "useless answer" in str(robot.slots.refused(second.passport.engine.sha256))
    robot.body.brightness = BRIGHT
    wait_for(lambda: robot.drives(first), what="driving on")


def test_a_worker_that_is_killed_now_and_then_ends_the_probation(robot: Robot) -> None:
    """Not twice in a row, but twice during the probation: the engine before drives."""
    first = robot.install("1")
    second = robot.install("2", convolutions=1)
    wait_for(lambda: robot.probation._watched != "", what="the probation")
    for _ in range(2):
        wait_for(lambda: robot.drives(second) and robot.probation._tally.decisions > 0, what="the new engine")
        loaded = robot.probation._loaded
        os.kill(robot.worker(), signal.SIGKILL)
        robot.supervisor._failures = 0  # as after a while of driving
        wait_for(lambda: robot.probation._loaded is not loaded or robot.drives(first), what="its restart")  # noqa: B023
    wait_for(lambda: robot.drives(first), what="the engine before")
    back(robot, "engine-failed")
