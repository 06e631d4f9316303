"""The arena as a robot's body, behind the interface that a real Jetbot implements."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from serving.errors import OperatorError
from serving.hardware.base import load
from simulator.hardware import SimulatedJetbot
from simulator.room import Pose

pytestmark = pytest.mark.alone  # measures time


@pytest.fixture
def robot() -> Iterator[SimulatedJetbot]:
    body = SimulatedJetbot(seed=3, fps=50)
    yield body
    body.close()


@pytest.fixture
def stepped() -> SimulatedJetbot:
    return SimulatedJetbot(seed=3, fps=20, realtime=False)


def test_the_entry_point_leads_here() -> None:
    """`hardware.kind = "simulated"` makes this body, with the options of robot.toml."""
    body = load("simulated", {"seed": 2, "fps": 30, "realtime": False})
    assert isinstance(body, SimulatedJetbot)
    assert body.arena.seed == 2


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": 1000}, {"seed": -1}, {"seed": "one"}])
def test_options_that_make_no_sense_are_named(options: dict[str, object]) -> None:
    """A bad value is refused with the option's name."""
    with pytest.raises(OperatorError, match=rf"hardware\.options\.{next(iter(options))}"):
        SimulatedJetbot(**options)  # type: ignore[arg-type]


def test_it_stands_still_until_told(stepped: SimulatedJetbot) -> None:
    """Without a command nothing moves, whatever time passes."""
    before = stepped.arena.pose
    for _ in range(20):
        assert stepped.read(1.0) is not None
    assert stepped.arena.pose == before


def test_it_drives_as_told_and_stops(stepped: SimulatedJetbot) -> None:
    """A command moves it on through the frames that follow; after stop() it comes to rest, also when told twice."""
    stepped.drive(0.4, 0.4)
    for _ in range(5):
        stepped.read(1.0)
    assert stepped.arena.distance_m > 0.02
    stepped.stop()
    stepped.stop()
    for _ in range(20):
        stepped.read(1.0)
    at_rest = stepped.arena.pose
    stepped.read(1.0)
    assert stepped.arena.pose == at_rest


def test_frames_come_at_their_rate(robot: SimulatedJetbot) -> None:
    """Ten frames at 50 a second take about a fifth of a second, never less; each is newer than the one before."""
    robot.read(1.0)
    start = time.monotonic()
    frames = [robot.read(1.0) for _ in range(10)]
    took = time.monotonic() - start
    captured = [frame.captured_at for frame in frames if frame is not None]
    assert len(captured) == 10
    assert np.all(np.diff(captured) > 0)
    assert took > 0.15


def test_missed_frames_are_skipped_not_queued(robot: SimulatedJetbot) -> None:
    """After a pause the next frame is of now, not one of those missed, and shows what the robot did meanwhile."""
    robot.read(1.0)
    robot.drive(0.3, 0.3)
    before = robot.arena.distance_m
    time.sleep(0.3)  # the pause is what is tested
    asked = time.monotonic()
    frame = robot.read(1.0)
    assert frame is not None
    assert frame.captured_at >= asked
    assert robot.arena.distance_m - before > 0.01
    again = robot.read(1.0)
    assert again is not None
    assert again.captured_at - frame.captured_at > 0.001


def test_no_frame_within_the_timeout_is_none() -> None:
    """A slow camera gives None in time, not a late frame."""
    body = SimulatedJetbot(seed=1, fps=0.5)
    start = time.monotonic()
    assert body.read(0.05) is None
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize("realtime", [True, False])
def test_a_dead_camera_gives_no_frames_but_the_robot_moves_on(realtime: bool) -> None:
    """From the moment it dies read() is None for ever; the motors do what they were told until told otherwise."""
    body = SimulatedJetbot(seed=3, fps=50, realtime=realtime, camera_dies_after_s=0.05)
    body.drive(0.3, 0.3)
    frames = [body.read(0.03) for _ in range(12)]
    assert frames[-1] is None
    body.stop()
    assert body.arena.distance_m > 0.005


def test_stop_works_from_any_thread_while_another_reads(robot: SimulatedJetbot) -> None:
    """A watchdog's stop() during read() takes effect at once: the robot comes to rest."""
    robot.drive(0.5, 0.5)
    reader = threading.Thread(target=lambda: [robot.read(0.5) for _ in range(15)])
    reader.start()
    robot.stop()
    reader.join()
    for _ in range(5):
        robot.read(0.5)
    at_rest = robot.arena.pose
    robot.read(0.5)
    assert robot.arena.pose == pytest.approx(at_rest, abs=1e-4)


def test_it_reads_what_it_has_and_nothing_else(stepped: SimulatedJetbot) -> None:
    """Collisions are counted; a thermometer and a battery it has not got, so it says None, not zero."""
    assert stepped.readings() == (None, None, 0)
    stepped.drive(1.0, 1.0)
    for _ in range(400):
        stepped.read(1.0)
    assert stepped.readings().collisions >= 1  # type: ignore[operator]


def test_against_a_wall_it_gets_away_again(stepped: SimulatedJetbot) -> None:
    """Told to back off and turn, a robot hard against a wall is free again within seconds."""
    arena = stepped.arena
    arena.place(Pose(arena.room.width_m / 2, 0.09, -1.57))
    for left, right, frames in ((0.5, 0.5, 10), (-0.3, -0.3, 20), (-0.2, 0.2, 18), (0.3, 0.3, 10)):
        stepped.drive(left, right)
        for _ in range(frames):
            stepped.read(1.0)
    assert arena.pose.y_m > 0.12
