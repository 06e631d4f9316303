"""Horizontal rays from one point against a room: at what distance each enters and leaves each solid.

Rays are parametrised by horizontal distance in metres. The robot's room is 2.5-dimensional (everything rises straight
from the floor), so these distances are all that the camera needs besides heights.
"""

from typing import NamedTuple

import numpy as np

from simulator.room import WALLS, Room

_BEHIND_M = 0.2


class Hits(NamedTuple):
    """Of K rays against the S things that may be in view; infinite where a ray misses."""

    thing: np.ndarray  # (S,) number of each thing: boxes, then cylinders
    enter_m: np.ndarray  # (K, S)
    leave_m: np.ndarray  # (K, S)
    normal_x: np.ndarray  # (K, S) outward unit normal where the ray enters
    normal_y: np.ndarray
    across_m: np.ndarray  # (K, S) coordinate along the surface where the ray enters, for its picture
    profile: np.ndarray  # (K, S) the same across what one sees of the thing, -1..1, for its outline


class WallHits(NamedTuple):
    distance_m: np.ndarray  # (K,)
    wall: np.ndarray  # (K,) 0..3
    across_m: np.ndarray  # (K,)


def cast(room: Room, x_m: float, y_m: float, cos: np.ndarray, sin: np.ndarray) -> Hits:
    """Against everything but the walls.

    Args:
        room: what to cast against.
        x_m: start of all rays.
        y_m: start of all rays.
        cos: (K,) x of each ray's unit direction, from the right of the view to its left.
        sin: (K,) y of each ray's unit direction.
    """
    boxes, circles = room.box_array, room.cylinder_array
    look = float(cos[cos.size // 2]), float(sin[sin.size // 2])
    seen_boxes = _before(boxes, np.hypot(boxes[:, 2], boxes[:, 3]), x_m, y_m, look)
    seen_circles = _before(circles, circles[:, 2], x_m, y_m, look)
    parts = (_boxes(boxes[seen_boxes], x_m, y_m, cos, sin), _cylinders(circles[seen_circles], x_m, y_m, cos, sin))
    thing = np.concatenate([seen_boxes, seen_circles + len(boxes)])
    return Hits(thing, *(np.concatenate(pair, axis=1) for pair in zip(*parts, strict=True)))


def _before(things: np.ndarray, radius: np.ndarray, x_m: float, y_m: float, look: tuple[float, float]) -> np.ndarray:
    """Numbers of the things that are not behind; `_BEHIND_M` back, for rays of a wide lens that look past its side."""
    ahead = (things[:, 0] - x_m) * look[0] + (things[:, 1] - y_m) * look[1]
    return np.flatnonzero(ahead + radius > -_BEHIND_M)


def cast_walls(room: Room, x_m: float, y_m: float, cos: np.ndarray, sin: np.ndarray) -> WallHits:
    """Against the four walls, from inside the room."""
    safe_cos = np.where(np.abs(cos) < 1e-9, 1e-9, cos)
    safe_sin = np.where(np.abs(sin) < 1e-9, 1e-9, sin)
    to_x = np.where(safe_cos > 0, room.width_m - x_m, -x_m) / safe_cos
    to_y = np.where(safe_sin > 0, room.depth_m - y_m, -y_m) / safe_sin
    hits_x = to_x < to_y
    distance = np.where(hits_x, to_x, to_y)
    wall = np.where(hits_x, safe_cos > 0, 2 + (safe_sin > 0))
    across = np.where(hits_x, y_m + distance * sin, x_m + distance * cos)
    return WallHits(distance, wall, across)


def _boxes(boxes: np.ndarray, x_m: float, y_m: float, cos: np.ndarray, sin: np.ndarray) -> tuple[np.ndarray, ...]:
    """The slab method, in each box's own axes."""
    bx, by, half_length, half_width, _, bcos, bsin = boxes.T
    dx, dy = x_m - bx, y_m - by
    start = (dx * bcos + dy * bsin, dy * bcos - dx * bsin)  # (S,) each
    step = (np.outer(cos, bcos) + np.outer(sin, bsin), np.outer(sin, bcos) - np.outer(cos, bsin))  # (K, S) each
    near, far = [], []
    for begin, per_m, half in zip(start, step, (half_length, half_width), strict=True):
        inverse = 1.0 / np.where(np.abs(per_m) < 1e-9, 1e-9, per_m)
        one, two = (-half - begin) * inverse, (half - begin) * inverse
        near.append(np.minimum(one, two))
        far.append(np.maximum(one, two))
    enter, leave = np.maximum(*near), np.minimum(*far)
    miss = (enter >= leave) | (enter <= 0)
    end_face = near[0] > near[1]  # enters through a face at +-half_length
    sign_0, sign_1 = -np.sign(step[0]), -np.sign(step[1])
    normal_x = np.where(end_face, sign_0 * bcos, -sign_1 * bsin)
    normal_y = np.where(end_face, sign_0 * bsin, sign_1 * bcos)
    across = np.where(end_face, start[1] + enter * step[1], start[0] + enter * step[0])
    profile = across / np.where(end_face, half_width, half_length)
    return np.where(miss, np.inf, enter), np.where(miss, np.inf, leave), normal_x, normal_y, across, profile


def _cylinders(circles: np.ndarray, x_m: float, y_m: float, cos: np.ndarray, sin: np.ndarray) -> tuple[np.ndarray, ...]:
    cx, cy, radius, _ = circles.T
    dx, dy = cx - x_m, cy - y_m
    middle = np.outer(cos, dx) + np.outer(sin, dy)  # (K, S) distance at which the ray passes the centre
    half_chord_2 = radius**2 - (dx**2 + dy**2 - middle**2)
    half_chord = np.sqrt(np.maximum(half_chord_2, 0.0))
    enter = middle - half_chord
    miss = (half_chord_2 <= 0) | (enter <= 0)
    normal_x = (enter * cos[:, None] - dx) / radius
    normal_y = (enter * sin[:, None] - dy) / radius
    profile = (np.outer(sin, dx) - np.outer(cos, dy)) / radius
    across = profile * radius  # what one sees of a round thing is the same from all sides
    leave = np.where(miss, np.inf, middle + half_chord)
    return np.where(miss, np.inf, enter), leave, normal_x, normal_y, across, profile


def heights(room: Room) -> np.ndarray:
    """(S,) height in metres of everything but the walls, in the order of `Hits`."""
    return np.concatenate([room.box_array[:, 4], room.cylinder_array[:, 3]])


FIRST_THING = WALLS  # number of the first solid that is not a wall
