"""When a place is `blocked`: what the pictures of a session are sorted by, from geometry, not from pixels.

Straight ahead of the robot lies its corridor: as wide as the robot plus a margin on each side, from the robot's
front forward. The clearance is how far the robot's front is from the first solid thing that reaches into the corridor.

    blocked   something reaches into the corridor within the safety distance: drive on and you hit it
    free      nothing does: there is nothing to turn into within the safety distance in the robot's way

What stands beside the corridor does not block, however near. Height does not matter: a robot stops at a shoe too, and
at a sheet of cork. The edge of a table top counts as a wall. What is painted on the floor, and cables, are free.
"""

import math

import numpy as np

from simulator.room import ROBOT_RADIUS_M, Pose, Room

SIDE_MARGIN_M = 0.03  # added to the robot's radius on each side
BORDERLINE = 0.2  # share of the safety distance: frames so near to it are left out of sessions
BORDERLINE_SIDE_M = 0.03  # and those whose label would be another, were the corridor so much narrower or wider


def clearance_m(room: Room, pose: Pose, side_margin_m: float = SIDE_MARGIN_M) -> float:
    """Distance in metres from the robot's front to the first thing in its corridor; zero or more.

    Args:
        room: where the robot is.
        pose: of the robot's centre.
        side_margin_m: by how much the corridor is wider than the robot, on each side.
    """
    cos, sin = math.cos(pose.heading_rad), math.sin(pose.heading_rad)
    front = Pose(pose.x_m + ROBOT_RADIUS_M * cos, pose.y_m + ROBOT_RADIUS_M * sin, pose.heading_rad)
    half_width = ROBOT_RADIUS_M + side_margin_m
    return min(_polygons_ahead(room, front, half_width), _cylinders_ahead(room, front, half_width))


def label(room: Room, pose: Pose, safety_distance_m: float) -> str:
    """`blocked` or `free`, as defined above."""
    return "blocked" if clearance_m(room, pose) < safety_distance_m else "free"


def certain_label(room: Room, pose: Pose, safety_distance_m: float, share: float = BORDERLINE) -> str | None:
    """`blocked` or `free` where nobody would argue; None on the borderline, ahead or at the corridor's sides."""
    if clearance_m(room, pose, SIDE_MARGIN_M + BORDERLINE_SIDE_M) >= safety_distance_m * (1 + share):
        return "free"
    narrow = clearance_m(room, pose, SIDE_MARGIN_M - BORDERLINE_SIDE_M)
    return "blocked" if narrow <= safety_distance_m * (1 - share) else None


def _from_front(front: Pose, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World coordinates to metres ahead and to the left of the robot's front."""
    cos, sin = math.cos(front.heading_rad), math.sin(front.heading_rad)
    dx, dy = x - front.x_m, y - front.y_m
    return dx * cos + dy * sin, dy * cos - dx * sin


def _polygons_ahead(room: Room, front: Pose, half_width: float) -> float:
    """Least distance ahead at which an edge of a wall or a box lies in the strip |left| <= half_width, ahead >= 0."""
    start, end = room.edges
    ahead_0, left_0 = _from_front(front, start[..., 0], start[..., 1])
    ahead_1, left_1 = _from_front(front, end[..., 0], end[..., 1])
    # Clip each edge a + s (b - a), s in 0..1, to the strip, then to the half plane ahead.
    low, high = np.zeros_like(ahead_0), np.ones_like(ahead_0)
    for value, step in (
        (left_0 + half_width, left_1 - left_0),  # left >= -half_width
        (half_width - left_0, left_0 - left_1),  # left <= half_width
        (ahead_0, ahead_1 - ahead_0),  # ahead >= 0
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = -value / step
        low = np.where(step > 0, np.maximum(low, crossing), low)
        high = np.where(step < 0, np.minimum(high, crossing), high)
        high = np.where((step == 0) & (value < 0), -1.0, high)
    inside = low <= high
    nearest = np.minimum(ahead_0 + low * (ahead_1 - ahead_0), ahead_0 + high * (ahead_1 - ahead_0))
    return float(nearest[inside].min(initial=math.inf))


def _cylinders_ahead(room: Room, front: Pose, half_width: float) -> float:
    circles = room.cylinder_array
    ahead, left = _from_front(front, circles[:, 0], circles[:, 1])
    beside = np.maximum(np.abs(left) - half_width, 0.0)  # from the strip to the centre
    half_chord = np.sqrt(np.maximum(circles[:, 2] ** 2 - beside**2, 0.0))
    reaches = (beside < circles[:, 2]) & (ahead + half_chord >= 0)
    return float(np.maximum(ahead - half_chord, 0.0)[reaches].min(initial=math.inf))
