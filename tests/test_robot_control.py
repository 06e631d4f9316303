"""The control loop with real engine workers: what reaches the motors when things go wrong, and while engines change."""

import csv
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import msgspec
import pytest

from serving.config import ControlSettings, EngineSettings
from serving.control import Control
from serving.engine import client
from serving.engine.supervisor import Supervisor
from serving.errors import RejectedError
from serving.motors import DeadMan
from serving.recorder import Recorder
from serving.slots import Candidate
from tests.conftest import ROOT, wait_for
from tests.test_robot_parts import (
    BLACK,
    BRIGHT,
    DARK,
    MAX_AGE_S,
    MOTORS_GONE,
    TARGET,
    Heard,
    ScriptedBody,
    make_candidate,
)

pytestmark = pytest.mark.alone  # measures time

SLACK_S = 0.05


class Robot:
    """All of a robot but its network and disk."""

    def __init__(
        self, folder: Path, on_failing: Callable[[Candidate, str], None] = lambda *_: None, **engine: Any
    ) -> None:
        self.body = ScriptedBody()
        self.heard = Heard()
        self.path = folder / "decisions.csv"
        self.recorder = Recorder(self.path, 10_000_000)
        self.supervisor = Supervisor(EngineSettings(target=TARGET, **engine), self.heard, on_failing)
        self.motors = DeadMan(self.body, MAX_AGE_S)
        self.control = Control(
            self.body, ControlSettings(smoothing=0.0), 0.15, self.supervisor, self.motors, self.recorder, self.heard
        )
        self.control.start()

    def close(self) -> None:
        self.control.close()
        self.supervisor.close()
        self.recorder.close()

    def worker(self) -> int:
        loaded = self.supervisor._running
        assert loaded is not None
        return loaded.engine.pid

    def mode(self) -> str:
        return self.control.status().mode

    def decisions(self) -> "list[dict[str, str]]":
        """What the flight recorder holds, after the robot was closed."""
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    made = Robot(tmp_path)
    try:
        yield made
    finally:
        made.close()
        assert not made.body.moving
        assert made.control.crashed is None


@pytest.fixture
def first(tmp_path: Path) -> Candidate:
    return make_candidate(tmp_path / "first", "1")


def test_without_a_model_it_stands_still_and_its_camera_runs(robot: Robot) -> None:
    """No model is a mode, not an error: frames are read, nothing moves."""
    wait_for(lambda: robot.body.frames > 5, what="frames")
    assert robot.control.status() == ("no-model", "")
    assert not robot.body.moved


def test_bright_drives_forward_and_dark_turns(robot: Robot, first: Candidate) -> None:
    """From the frame to the motors: the network's word decides, and each avoidance is told from start to end."""
    robot.supervisor.activate(first)
    assert robot.mode() == "driving"
    wait_for(lambda: robot.body.moves[-1][1:] == (0.4, 0.4), what="forward")
    robot.body.brightness = DARK
    wait_for(lambda: robot.body.moves[-1][1:] == (-0.35, 0.35), what="left")
    robot.body.brightness = BRIGHT
    wait_for(lambda: robot.body.moves[-1][1:] == (0.4, 0.4), what="forward again")
    wait_for(lambda: robot.heard.of("avoidance.ended"), what="the event")
    (started,) = robot.heard.of("avoidance.started")
    assert started["action"] == "left"
    assert started["p_blocked"] > 0.9
    assert started["_engine"] == first.passport.engine.sha256
    assert robot.heard.of("avoidance.ended")[0]["duration_s"] > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_lost_worker_stops_the_motors_in_time_and_comes_back(
    robot: Robot, first: Candidate, number: signal.Signals
) -> None:
    """Measured at the motors: zero within 200 ms of the moment the worker died or hung; then it drives again."""
    robot.supervisor.activate(first)
    wait_for(lambda: robot.body.moving, what="driving")
    lost_s = time.monotonic()
    os.kill(robot.worker(), number)
    wait_for(lambda: robot.heard.of("engine.failed"), what="the event")
    stops = [move.at_s for move in robot.body.moves if move.at_s >= lost_s and move[1:] == (0.0, 0.0)]
    assert stops[0] - lost_s <= MAX_AGE_S + SLACK_S
    (failed,) = robot.heard.of("engine.failed")
    assert failed["cause"] == ("crashed" if number == signal.SIGKILL else "hung")
    wait_for(lambda: robot.mode() == "driving", what="driving again")
    driven = [move.at_s for move in robot.body.moves if move.at_s >= stops[0] and move[1:] != (0.0, 0.0)]
    assert driven
    assert robot.heard.engine[0] == first.passport.release_id
    assert len(robot.heard.of("model.activated")) == 1


def test_nan_in_the_middle_of_a_drive_stops_and_restarts(robot: Robot, tmp_path: Path) -> None:
    """A network that answers NaN to a frame is stopped there, and tried again when the backoff is over."""
    robot.supervisor.activate(make_candidate(tmp_path / "fragile", nan_below=10))
    wait_for(lambda: robot.body.moving, what="driving")
    robot.body.brightness = BLACK
    wait_for(lambda: robot.heard.of("engine.failed"), what="the event")
    assert not robot.body.moving
    assert robot.heard.of("engine.failed")[0]["cause"] == "bad-output"
    robot.body.brightness = BRIGHT
    wait_for(lambda: robot.mode() == "driving", what="driving again")


BACKEND = ROOT / "tests" / "simulators" / "misbehaving_backend.py"


def misbehaving(folder: Path, wrong: str, version: str = "1") -> Candidate:
    """A release for tests/simulators/misbehaving_backend.py, which does this wrong at a black frame."""
    made = make_candidate(folder, version)
    made.engine.write_text(wrong)
    return made


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [("hang", "hung"), ("exit", "crashed"), ("nan", "bad-output"), ("shape", "bad-output")],
)
def test_an_engine_that_goes_wrong_stops_the_motors_in_time_and_comes_back(
    robot: Robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, cause: str
) -> None:
    """In the middle of a drive: zero within 200 ms, an event with the cause, and it drives on when started again."""
    monkeypatch.setattr(client, "backend_file", lambda target: BACKEND)
    robot.supervisor.activate(misbehaving(tmp_path / "wrong", wrong))
    wait_for(lambda: robot.body.moving, what="driving")
    wrong_s = time.monotonic()
    robot.body.brightness = BLACK
    wait_for(lambda: robot.heard.of("engine.failed"), what="the event")
    robot.body.brightness = BRIGHT
    stops = [move.at_s for move in robot.body.moves if move.at_s >= wrong_s and move[1:] == (0.0, 0.0)]
    assert stops[0] - wrong_s <= MAX_AGE_S + SLACK_S
    assert robot.heard.of("engine.failed")[0]["cause"] == cause
    wait_for(lambda: robot.mode() == "driving", what="driving again")


def test_an_engine_that_grows_is_ended_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is looked at about once a second; the event names the limit."""
    monkeypatch.setattr(client, "backend_file", lambda target: BACKEND)
    robot = Robot(tmp_path, max_memory_mb=250.0)
    try:
        robot.supervisor.activate(misbehaving(tmp_path / "grows", "grow"))
        robot.body.brightness = BLACK
        wait_for(lambda: robot.heard.of("engine.failed"), what="the event")
        robot.body.brightness = BRIGHT
        (failed,) = robot.heard.of("engine.failed")
        assert failed["cause"] == "memory"
        assert "engine.max_memory_mb allows 250" in failed["detail"]
        wait_for(lambda: robot.mode() == "driving", what="driving again")
    finally:
        robot.close()


def test_an_engine_that_keeps_failing_is_given_up_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many failures in a row the owner is told, once, with the cause, and may put another in its place."""
    monkeypatch.setattr(client, "backend_file", lambda target: BACKEND)
    good, bad = misbehaving(tmp_path / "good", "nothing"), misbehaving(tmp_path / "bad", "exit", "2")
    told: List[str] = []

    def go_back(candidate: Candidate, cause: str) -> None:
        told.append(cause)
        assert candidate is bad
        robot.supervisor.activate(good)

    robot = Robot(tmp_path, on_failing=go_back, max_failures=3)
    try:
        robot.supervisor.activate(bad)
        wait_for(lambda: robot.body.moving, what="driving")
        robot.body.brightness = BLACK
        wait_for(lambda: robot.mode() == "driving" and robot.supervisor.wanted is good, what="driving with the other")
        assert len(told) == 1
        assert "crashed" in told[0]
        assert robot.heard.engine[0] == good.passport.release_id
    finally:
        robot.close()


@pytest.mark.parametrize("camera", ["silent", "late", "gone"])
def test_a_dead_camera_stops_the_motors_in_time(robot: Robot, first: Candidate, camera: str) -> None:
    """No frames, old frames, or an error: zero within 200 ms of the last good frame's decision, then on again."""
    robot.supervisor.activate(first)
    wait_for(lambda: robot.body.moving, what="driving")
    dead_s = time.monotonic()
    robot.body.camera = camera
    wait_for(lambda: not robot.body.moving, what="standing")
    stopped_s = robot.body.stood_still_at(dead_s)
    assert stopped_s is not None
    assert stopped_s - dead_s <= MAX_AGE_S + 2 * SLACK_S  # one frame may have been under way
    wait_for(lambda: robot.mode() == "standing", what="the mode")
    assert robot.control.status().reason
    wait_for(lambda: robot.heard.of("frame.stale"), what="the event")
    robot.body.camera = "fine"
    wait_for(lambda: robot.mode() == "driving", what="driving again")
    assert len(robot.heard.of("frame.stale")) == 1
    assert robot.control.window.take()["stale_frames"] >= 1


def test_a_swap_misses_no_frame(robot: Robot, first: Candidate, tmp_path: Path) -> None:
    """The engines change between two frames: the motors never see a zero, every frame is decided on, once, in order,
    by the old engine and then by the new one."""
    second = make_candidate(tmp_path / "second", "2", shift=0.001)
    robot.supervisor.activate(first)
    wait_for(lambda: robot.body.frames > 20, what="some driving")
    begun = len(robot.body.moves)
    old_worker = robot.worker()
    robot.supervisor.activate(second)
    frames = robot.body.frames
    wait_for(lambda: robot.body.frames > frames + 20, what="more driving")
    assert (0.0, 0.0) not in [move[1:] for move in robot.body.moves[begun:]]
    with pytest.raises(ProcessLookupError):
        os.kill(old_worker, 0)
    activated = robot.heard.of("model.activated")[-1]
    assert (activated["from"], activated["to"]) == (first.passport.release_id, second.passport.release_id)
    assert 0 < activated["gap_ms"] < 1e3 * MAX_AGE_S
    assert activated["_engine"] == second.passport.engine.sha256
    robot.close()
    decisions = robot.decisions()
    engines = [row["engine"] for row in decisions]
    old, new = (candidate.passport.engine.sha256[:8] for candidate in (first, second))
    change = engines.index(new)
    assert set(engines[:change]) == {old}
    assert set(engines[change:]) == {new}
    assert [int(row["sequence"]) for row in decisions] == list(range(1, len(decisions) + 1))
    captured = [float(row["captured_unix_s"]) for row in decisions]
    gaps = [after - before for before, after in itertools.pairwise(captured)]
    assert max(gaps) < MAX_AGE_S


def test_an_unfit_engine_is_refused_and_the_old_one_drives_on(robot: Robot, first: Candidate, tmp_path: Path) -> None:
    """NaN or other logits at the golden frames, no engine at all, the wrong target: refused, no zero at the motors."""
    robot.supervisor.activate(first)
    wait_for(lambda: robot.body.moving, what="driving")
    begun = len(robot.body.moves)
    broken = make_candidate(tmp_path / "broken")
    broken.engine.write_bytes(b"no network")
    foreign = make_candidate(tmp_path / "foreign")
    foreign = Candidate(
        msgspec.structs.replace(foreign.passport, preprocessing="bgr"), *list(vars(foreign).values())[1:]
    )
    refused = [
        (make_candidate(tmp_path / "nan", nan_below=100), "useless answer"),
        (make_candidate(tmp_path / "off", shift=1.0), "a logit is off by 1"),
        (broken, "cannot be loaded"),
        (foreign, "preprocessing bgr"),
    ]
    for candidate, message in refused:
        with pytest.raises(RejectedError, match=message):
            robot.supervisor.activate(candidate)
    assert robot.supervisor.wanted is first
    assert robot.mode() == "driving"
    assert (0.0, 0.0) not in [move[1:] for move in robot.body.moves[begun:]]
    assert robot.heard.engine == (first.passport.release_id, first.passport.engine.sha256)


def test_an_engine_that_fails_at_its_first_frame_gives_back(robot: Robot, first: Candidate, tmp_path: Path) -> None:
    """It passed its golden frames, and the first real frame broke it: the old engine decides the next frame."""
    robot.supervisor.activate(first)
    robot.body.brightness = BLACK
    wait_for(lambda: robot.body.moves and robot.body.moves[-1][1:] == (-0.35, 0.35), what="turning")
    with pytest.raises(RejectedError, match="at its first frame"):
        robot.supervisor.activate(make_candidate(tmp_path / "fragile", "2", nan_below=10))
    wait_for(lambda: robot.mode() == "driving", what="driving")
    assert robot.supervisor.wanted is first
    assert robot.heard.engine[0] == first.passport.release_id
    assert robot.heard.of("engine.failed") == []


def test_a_swap_while_the_old_engine_is_dead(robot: Robot, first: Candidate, tmp_path: Path) -> None:
    """A crash in the middle of an activation ends with the new engine driving, and with no worker too many."""
    second = make_candidate(tmp_path / "second", "2", shift=0.001)
    robot.supervisor.activate(first)
    activation = threading.Thread(target=robot.supervisor.activate, args=(second,))
    activation.start()
    os.kill(robot.worker(), signal.SIGKILL)
    activation.join(30)
    wait_for(lambda: robot.mode() == "driving", what="driving")
    assert robot.supervisor.wanted is second
    assert robot.heard.engine[0] == second.passport.release_id


def test_boot_starts_the_engine_of_the_slot(robot: Robot, first: Candidate) -> None:
    """In the background; told as an activation of its own kind."""
    robot.supervisor.boot(first)
    wait_for(lambda: robot.heard.of("model.activated"), what="the activation")
    (activated,) = robot.heard.of("model.activated")
    assert (activated["from"], activated["cause"]) == ("", "start")
    wait_for(lambda: robot.mode() == "driving", what="driving")


def test_a_boot_engine_that_does_not_start_is_tried_again(robot: Robot, first: Candidate) -> None:
    """The robot stands, says why, and drives as soon as the file is good again."""
    content = first.engine.read_bytes()
    first.engine.write_bytes(b"")
    robot.supervisor.boot(first)
    wait_for(lambda: "cannot be loaded" in robot.control.status().reason, what="the reason")
    assert robot.mode() == "loading"
    assert not robot.body.moved
    first.engine.write_bytes(content)
    wait_for(lambda: robot.mode() == "driving", 30, "driving")


def test_collisions_are_told_as_they_rise(robot: Robot, first: Candidate) -> None:
    """The counter of the body, not its value at the start, makes the events."""
    robot.body.collisions = 3
    robot.supervisor.activate(first)
    wait_for(lambda: robot.control.readings.collisions == 3, what="the first reading")
    robot.body.collisions = 5
    wait_for(lambda: robot.heard.of("collision"), what="the event")
    (collision,) = robot.heard.of("collision")
    assert (collision["count"], collision["total"], collision["action"]) == (2, 5, "forward")


def test_motors_that_do_not_answer_are_a_reason_to_stand(robot: Robot, first: Candidate) -> None:
    """An error of the motor board is told, and tried on; it ends nothing."""
    robot.supervisor.activate(first)
    wait_for(lambda: robot.body.moving, what="driving")
    robot.body.motors_fail = True
    wait_for(lambda: robot.control.status() == ("standing", MOTORS_GONE), what="the reason")
    robot.body.motors_fail = False
    wait_for(lambda: robot.mode() == "driving", what="driving again")


def test_metrics_count_what_was_decided(robot: Robot, first: Candidate) -> None:
    """Rates and percentiles of the time since the last call; none where nothing was decided."""
    empty = robot.control.window.take()
    assert empty["decisions"] == 0
    assert "latency_p50_ms" not in empty
    robot.supervisor.activate(first)
    robot.control.window.take()
    robot.body.brightness = DARK
    frames = robot.body.frames
    wait_for(lambda: robot.body.frames > frames + 30, what="frames")
    metrics = robot.control.window.take()
    assert metrics["decisions"] >= 20
    assert 0 < metrics["latency_p50_ms"] <= metrics["latency_p99_ms"] < 1e3 * MAX_AGE_S
    assert 0.5 < metrics["blocked_rate"] <= 1
    assert metrics["decisions_per_s"] == pytest.approx(metrics["decisions"] / metrics["interval_s"])


def test_a_fault_of_ours_ends_with_the_motors_at_zero(tmp_path: Path, first: Candidate) -> None:
    """An exception that nobody foresaw stops the robot and is kept for the daemon, which ends."""
    robot = Robot(tmp_path)
    try:
        robot.supervisor.activate(first)
        wait_for(lambda: robot.body.moving, what="driving")

        def broken() -> List[Any]:
            raise ZeroDivisionError("a fault")

        robot.body.readings = broken  # type: ignore[method-assign,assignment]
        wait_for(lambda: robot.control.crashed is not None, what="the end of the loop")
        assert not robot.body.moving
        assert robot.mode() == "stopped"
    finally:
        robot.close()
