"""A drawing of a room from above, for people: what stands where, where the robot is, and its corridor."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from simulator.labels import SIDE_MARGIN_M
from simulator.room import ROBOT_RADIUS_M, Pose, Room
from simulator.surfaces import surfaces_of

_THING, _ROBOT, _BLOCKED, _FREE = (60, 60, 70), (30, 110, 220), (210, 40, 40), (30, 150, 60)
MARKS = (_ROBOT, _BLOCKED, _FREE)  # colours that mean something


At = Callable[[float, float], tuple[float, float]]  # metres in the room -> pixels of the picture

MARGIN_PX = 10


def plan(room: Room, side: int) -> tuple[Image.Image, At]:
    """A square picture of `side` pixels of a room without a robot, north (y) up, and where in it a place lies."""
    scale = (side - 2 * MARGIN_PX) / max(room.width_m, room.depth_m)

    def at(x_m: float, y_m: float) -> tuple[float, float]:
        return MARGIN_PX + x_m * scale, side - MARGIN_PX - y_m * scale

    looks = surfaces_of(room)
    texels = looks.floor.view(np.uint8).reshape(-1, looks.floor_stride, 4)
    floor = texels[: looks.floor_rows][::-1, :, :3]
    picture = Image.new("RGB", (side, side), (255, 255, 255))
    size = (round(room.width_m * scale), round(room.depth_m * scale))
    picture.paste(Image.fromarray(np.ascontiguousarray(floor)).resize(size), (MARGIN_PX, side - MARGIN_PX - size[1]))
    pen = ImageDraw.Draw(picture)
    pen.rectangle([at(0, room.depth_m), at(room.width_m, 0)], outline=_THING, width=3)
    for box in room.boxes:
        half = (box.half_length_m, box.half_width_m)
        pen.polygon([at(*corner) for corner in _rectangle(box.x_m, box.y_m, box.angle_rad, -half[0], *half)], _THING)
    for c in room.cylinders:
        pen.ellipse(_circle(at, c.x_m, c.y_m, c.radius_m), fill=_THING)
    return picture, at


def draw_robot(picture: Image.Image, at: At, pose: Pose, blocked: bool, safety_distance_m: float) -> None:
    """Adds the robot and its corridor: red if it is `blocked`, else green."""
    pen = ImageDraw.Draw(picture)
    x, y, heading = pose
    pen.ellipse(_circle(at, x, y, ROBOT_RADIUS_M), _ROBOT)
    ahead = ROBOT_RADIUS_M + safety_distance_m
    corridor = _rectangle(x, y, heading, ROBOT_RADIUS_M, ahead, ROBOT_RADIUS_M + SIDE_MARGIN_M)
    pen.polygon([at(*corner) for corner in corridor], outline=_BLOCKED if blocked else _FREE, width=3)


def draw(room: Room, pose: Pose, label: str, safety_distance_m: float, side: int) -> Image.Image:
    """A square picture of `side` pixels: north (y) up, the corridor red if the label is `blocked`, else green."""
    picture, at = plan(room, side)
    draw_robot(picture, at, pose, label == "blocked", safety_distance_m)
    return picture


def _circle(at: At, x_m: float, y_m: float, radius_m: float) -> list[tuple[float, float]]:
    """The box around a circle, as Pillow takes it."""
    return [at(x_m - radius_m, y_m + radius_m), at(x_m + radius_m, y_m - radius_m)]


def _rectangle(
    x: float, y: float, angle: float, begin: float, end: float, half_width: float
) -> list[tuple[float, float]]:
    """Corners of a rectangle from `begin` to `end` along the direction `angle` out of a point."""
    cos, sin = math.cos(angle), math.sin(angle)
    local = ((begin, -half_width), (end, -half_width), (end, half_width), (begin, half_width))
    return [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in local]
