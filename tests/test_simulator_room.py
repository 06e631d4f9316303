"""The room, its labels and the robot's motion: geometry alone, no pixels."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import labels
from simulator.arena import Arena
from simulator.furnish import SIDES_M, TABLE_SIDES_M, make_room
from simulator.robot import MAX_WHEEL_SPEED_M_S, STEP_S, WHEEL_BASE_M, Drive, Robot, make_drive
from simulator.room import ROBOT_RADIUS_M, Box, Cylinder, Look, Pose, Room

SAFETY_M = 0.35
HALF_CORRIDOR_M = ROBOT_RADIUS_M + labels.SIDE_MARGIN_M
cached_room = functools.lru_cache(make_room)


def hall(*things: Box | Cylinder) -> Room:
    """A bare hall of 10 by 10 m with these things in it."""
    boxes = tuple(thing for thing in things if isinstance(thing, Box))
    return Room(0, 10.0, 10.0, 2.4, boxes, tuple(thing for thing in things if isinstance(thing, Cylinder)))


def test_rooms_keep_their_promises() -> None:
    """Every room has the size promised, something to meet and a free start; some are tables, some have corners cut."""
    rooms = [make_room(seed) for seed in range(60)]
    for room in rooms:
        low, high = TABLE_SIDES_M if room.drop_m else SIDES_M
        assert low <= min(room.width_m, room.depth_m) <= max(room.width_m, room.depth_m) <= high
        assert len(room.looks) >= 2
        assert room.gap_m(room.start.x_m, room.start.y_m) > ROBOT_RADIUS_M + 0.1
    assert 2 <= sum(room.drop_m > 0 for room in rooms) <= 15
    assert 10 <= sum(Look.WALL in room.looks for room in rooms) <= 45
    assert set().union(*(room.looks for room in rooms)) == set(Look)


def test_the_robot_fits_between_any_two_things() -> None:
    """Things of different kinds leave a passage as wide as the robot, so that it is never walled in."""
    for seed in range(20):
        room = cached_room(seed)
        for thing in room.cylinders:
            if thing.look in (Look.LEG, Look.PERSON):
                continue  # they stand together, as legs do
            others = room.contacts(thing.x_m, thing.y_m)[0] - thing.radius_m
            assert np.sort(others)[1] > 2 * ROBOT_RADIUS_M  # the nearest is the thing itself


def test_a_seed_is_a_room() -> None:
    """The same seed gives the same room, another seed another."""
    assert make_room(5) == make_room(5)
    assert make_room(5) != make_room(6)


@pytest.mark.parametrize("heading", [0.0, 0.7, math.pi / 2, 2.5, -1.9])
@pytest.mark.parametrize("gap_m", [0.05, 0.34, 0.36, 1.5])
def test_clearance_is_the_gap_straight_ahead(heading: float, gap_m: float) -> None:
    """A box or a cylinder straight ahead is as far as it was put, whichever way the robot looks."""
    cos, sin = math.cos(heading), math.sin(heading)
    pose = Pose(5.0, 5.0, heading)
    reach = ROBOT_RADIUS_M + gap_m + 0.1
    x, y = 5.0 + reach * cos, 5.0 + reach * sin
    for room in (hall(Box(x, y, 0.1, 0.3, heading, 0.5)), hall(Cylinder(x, y, 0.1, 0.5))):
        assert labels.clearance_m(room, pose) == pytest.approx(gap_m, abs=1e-9)
        assert labels.label(room, pose, SAFETY_M) == ("blocked" if gap_m < SAFETY_M else "free")


def test_the_wall_counts() -> None:
    """A wall ahead blocks like any thing; a wall at the robot's side does not."""
    at_wall = Pose(10.0 - ROBOT_RADIUS_M - 0.2, 5.0, 0.0)
    assert labels.clearance_m(hall(), at_wall) == pytest.approx(0.2)
    along = Pose(5.0, HALF_CORRIDOR_M + 0.001, 0.0)
    assert labels.clearance_m(hall(), along) == pytest.approx(5.0 - ROBOT_RADIUS_M)


@pytest.mark.parametrize("side", [-1, 1])
def test_only_what_reaches_into_the_corridor_blocks(side: int) -> None:
    """Beside the corridor: free. A centimetre inside it: blocked. Behind the robot: free."""
    pose = Pose(5.0, 5.0, 0.0)
    for offset_m, expected in ((0.001, "free"), (-0.01, "blocked")):
        y = 5.0 + side * (HALF_CORRIDOR_M + 0.1 + offset_m)
        for thing in (Box(5.3, y, 0.1, 0.1, 0.0, 0.4), Cylinder(5.3, y, 0.1, 0.4)):
            assert labels.label(hall(thing), pose, SAFETY_M) == expected
    behind = hall(Box(4.7, 5.0, 0.1, 0.1, 0.3, 0.4), Cylinder(4.8, 5.0 + side * 0.1, 0.05, 0.4))
    assert labels.label(behind, pose, SAFETY_M) == "free"


def test_clearance_agrees_with_sampled_points() -> None:
    """In real rooms the clearance is the first distance at which a point of the corridor lies in a solid."""
    rng = np.random.default_rng(1)
    lefts = np.linspace(-HALF_CORRIDOR_M, HALF_CORRIDOR_M, 45)
    for seed in range(4):
        room = cached_room(seed)
        for _ in range(12):
            pose = Pose(*rng.uniform(0.3, 2.7, 2), rng.uniform(-3, 3))
            if room.gap_m(pose.x_m, pose.y_m) < ROBOT_RADIUS_M:
                continue
            cos, sin = math.cos(pose.heading_rad), math.sin(pose.heading_rad)
            clearance = labels.clearance_m(room, pose)
            for ahead in np.arange(0.0, min(clearance, 1.0) - 0.01, 0.02) + ROBOT_RADIUS_M:
                points = [(pose.x_m + ahead * cos - v * sin, pose.y_m + ahead * sin + v * cos) for v in lefts]
                assert min(room.gap_m(*point) for point in points) > 0
            ahead = ROBOT_RADIUS_M + clearance + 1e-6
            points = [(pose.x_m + ahead * cos - v * sin, pose.y_m + ahead * sin + v * cos) for v in lefts]
            assert min(room.gap_m(*point) for point in points) < 0.006  # half the spacing of the sampled points


@pytest.mark.parametrize(
    ("ahead_m", "left_m", "expected"),
    [
        (0.2, 0.0, "blocked"),
        (0.30, 0.0, None),
        (0.40, 0.0, None),
        (0.5, 0.0, "free"),
        (0.2, 0.20, None),
        (0.2, 0.26, "free"),
    ],
)
def test_the_borderline_lies_ahead_and_at_the_sides(ahead_m: float, left_m: float, expected: str | None) -> None:
    """A label is certain only if a corridor 20 % shorter or longer, 3 cm narrower or wider, has it too."""
    thing = Cylinder(5.0 + ROBOT_RADIUS_M + ahead_m + 0.1, 5.0 + left_m, 0.1, 0.4)
    assert labels.certain_label(hall(thing), Pose(5.0, 5.0, 0.0), SAFETY_M) == expected


def test_two_motors_are_never_alike() -> None:
    """A robot with its own motors drifts off a straight line by centimetres a metre; the same seed drifts the same."""
    ends = []
    for seed in (3, 3, 4):
        robot = Robot(hall(), Pose(2.0, 5.0, 0.0), make_drive(seed))
        for _ in range(200):
            robot.step(0.8, 0.8)
        ends.append(robot.pose)
    assert ends[0] == ends[1] != ends[2]
    assert all(0.001 < abs(end.y_m - 5.0) < 0.5 and 2.5 < end.x_m < 3.0 for end in ends)


def test_a_command_arrives_late_and_a_small_one_not_at_all() -> None:
    """Within the delay nothing moves, though the robot does not count as still; below the dead band it never does."""
    robot = Robot(hall(), Pose(5.0, 5.0, 0.0), Drive(delay_s=0.05, dead_band=0.1))
    for _ in range(5):
        robot.step(0.5, 0.5)
    assert robot.distance_m == 0.0
    assert not robot.still
    robot.step(0.5, 0.5)
    assert robot.distance_m > 0.0
    robot.put(Pose(5.0, 5.0, 0.0))
    for _ in range(50):
        robot.step(0.09, -0.09)
    assert robot.pose == Pose(5.0, 5.0, 0.0)


def test_straight_and_turning_speeds_are_those_of_a_differential_drive() -> None:
    """Full command for two seconds: about the top speed, straight on; opposite commands turn on the spot."""
    robot = Robot(hall(), Pose(2.0, 5.0, 0.0))
    for _ in range(200):
        robot.step(1.0, 1.0)
    assert robot.pose.y_m == pytest.approx(5.0)
    assert robot.distance_m == pytest.approx(MAX_WHEEL_SPEED_M_S * (2.0 - 0.08), rel=0.03)
    robot = Robot(hall(), Pose(5.0, 5.0, 0.0), left_m_s=-0.1, right_m_s=0.1)
    for _ in range(10):
        robot.step(-0.1 / MAX_WHEEL_SPEED_M_S, 0.1 / MAX_WHEEL_SPEED_M_S)
    assert robot.pose.heading_rad == pytest.approx(0.2 / WHEEL_BASE_M * 10 * STEP_S)
    assert robot.pose[:2] == pytest.approx((5.0, 5.0))


def test_a_contact_is_one_collision() -> None:
    """Pressing on counts once; backing off and driving in again counts a second time."""
    robot = Robot(hall(Cylinder(5.5, 5.0, 0.1, 0.5)), Pose(5.0, 5.0, 0.0))
    for _ in range(300):
        robot.step(0.6, 0.6)
    assert robot.collisions == 1
    assert robot.touching
    assert robot.room.gap_m(*robot.pose[:2]) >= ROBOT_RADIUS_M
    for _ in range(60):
        robot.step(-0.6, -0.6)
    assert not robot.touching
    assert robot.room.gap_m(*robot.pose[:2]) > 0.2
    for _ in range(150):
        robot.step(0.6, 0.6)
    assert robot.collisions == 2


def test_a_robot_at_a_wall_can_turn_away() -> None:
    """Hard against a wall it turns on the spot and drives off: it never stays stuck."""
    robot = Robot(hall(), Pose(9.5, 5.0, 0.0))
    for _ in range(200):
        robot.step(1.0, 1.0)
    assert robot.collisions == 1
    for _ in range(200):
        robot.step(-0.2, 0.2)
        if abs(robot.pose.heading_rad) > 2.5:
            break
    for _ in range(200):
        robot.step(1.0, 1.0)
    assert robot.room.gap_m(*robot.pose[:2]) > 0.4
    assert robot.collisions == 1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 30),
    commands=st.lists(
        st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.integers(1, 60)), min_size=1, max_size=12
    ),
)
def test_no_command_leads_through_a_solid(seed: int, commands: list[tuple[float, float, int]]) -> None:
    """Whatever the motors are told, the body stays in the room and out of everything in it."""
    room = cached_room(seed)
    robot = Robot(room, room.start)
    for left, right, steps in commands:
        for _ in range(steps):
            robot.step(left, right)
            assert room.gap_m(*robot.pose[:2]) >= ROBOT_RADIUS_M


def test_time_is_split_as_one_likes() -> None:
    """The same commands over the same time end in the same place, however the time is cut up."""
    one, many = Arena(3), Arena(3)
    for _ in range(10):
        one.step(0.5, 0.3, 0.1)
    for _ in range(400):
        many.step(0.5, 0.3, 0.0025)
    assert many.pose == pytest.approx(one.pose, abs=1e-3)
    assert one.distance_m > 0.1


def test_time_does_not_run_backwards() -> None:
    """A negative time is a mistake of the caller."""
    with pytest.raises(ValueError, match="backwards"):
        Arena(1).step(0.0, 0.0, -0.1)
