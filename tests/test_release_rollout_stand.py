"""A robot whose release is withdrawn: its motors, its state, and what it does with the next release. A real engine."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.test_robot_control import Robot
from tests.test_robot_parts import make_candidate

pytestmark = pytest.mark.alone  # measures time

WHY = "collision-avoidance-v1-00000000 is withdrawn; no release before it is named"


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    made = Robot(tmp_path)
    try:
        yield made
    finally:
        made.close()
        assert not made.body.moving
        assert made.control.crashed is None


def test_a_dismissed_engine_drives_no_longer_and_the_state_says_why(robot: Robot, tmp_path: Path) -> None:
    """In mid-drive: the motors stop and stay, no failure is told of, and the next release drives as a first one."""
    robot.supervisor.activate(make_candidate(tmp_path / "first", "1"))
    assert robot.mode() == "driving"
    robot.supervisor.dismiss(WHY)
    stopped_s = time.monotonic()
    wait_for(lambda: not robot.body.moving, timeout_s=1.0, what="the motors at zero")
    wait_for(lambda: robot.mode() == "no-model", what="the mode")
    assert robot.control.status().reason == WHY
    frames = robot.body.frames
    wait_for(lambda: robot.body.frames > frames + 10, what="more frames")
    still_s = robot.body.stood_still_at(stopped_s)
    assert still_s is not None
    assert robot.heard.of("engine.failed") == []
    assert robot.heard.engine == ("", "")

    robot.supervisor.activate(make_candidate(tmp_path / "second", "2"), "withdrawn")
    assert robot.mode() == "driving"
    assert robot.control.status().reason == ""
    activated = robot.heard.of("model.activated")[-1]
    assert (activated["from"], activated["cause"]) == ("", "withdrawn")
