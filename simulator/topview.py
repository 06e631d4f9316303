"""A drawing of a room from above, for people: what stands where, where the robot is, and its corridor."""

import math

import numpy as np
from PIL import Image, ImageDraw

from simulator.labels import SIDE_MARGIN_M
from simulator.room import ROBOT_RADIUS_M, Pose, Room
from simulator.surfaces import surfaces_of

_THING, _ROBOT, _BLOCKED, _FREE = (60, 60, 70), (30, 110, 220), (210, 40, 40), (30, 150, 60)


def draw(room: Room, pose: Pose, label: str, safety_distance_m: float, side: int) -> Image.Image:
    """A square picture of `side` pixels: north (y) up, the corridor red if the label is `blocked`, else green."""
    scale = (side - 20) / max(room.width_m, room.depth_m)

    def at(x_m: float, y_m: float) -> tuple[float, float]:
        return 10 + x_m * scale, side - 10 - y_m * scale

    looks = surfaces_of(room)
    texels = looks.floor.view(np.uint8).reshape(-1, looks.floor_stride, 4)
    floor = texels[: looks.floor_rows][::-1, :, :3]
    picture = Image.new("RGB", (side, side), (255, 255, 255))
    size = (round(room.width_m * scale), round(room.depth_m * scale))
    picture.paste(Image.fromarray(np.ascontiguousarray(floor)).resize(size), (10, side - 10 - size[1]))
    pen = ImageDraw.Draw(picture)
    pen.rectangle([at(0, room.depth_m), at(room.width_m, 0)], outline=_THING, width=3)
    for box in room.boxes:
        half = (box.half_length_m, box.half_width_m)
        pen.polygon([at(*corner) for corner in _rectangle(box.x_m, box.y_m, box.angle_rad, -half[0], *half)], _THING)
    for c in room.cylinders:
        pen.ellipse(
            [at(c.x_m - c.radius_m, c.y_m + c.radius_m), at(c.x_m + c.radius_m, c.y_m - c.radius_m)], fill=_THING
        )
    x, y, heading = pose
    pen.ellipse([at(x - ROBOT_RADIUS_M, y + ROBOT_RADIUS_M), at(x + ROBOT_RADIUS_M, y - ROBOT_RADIUS_M)], _ROBOT)
    ahead = ROBOT_RADIUS_M + safety_distance_m
    corridor = _rectangle(x, y, heading, ROBOT_RADIUS_M, ahead, ROBOT_RADIUS_M + SIDE_MARGIN_M)
    pen.polygon([at(*corner) for corner in corridor], outline=_BLOCKED if label == "blocked" else _FREE, width=3)
    return picture


def _rectangle(
    x: float, y: float, angle: float, begin: float, end: float, half_width: float
) -> list[tuple[float, float]]:
    """Corners of a rectangle from `begin` to `end` along the direction `angle` out of a point."""
    cos, sin = math.cos(angle), math.sin(angle)
    local = ((begin, -half_width), (end, -half_width), (end, half_width), (begin, half_width))
    return [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in local]
