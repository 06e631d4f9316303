"""Rooms: a floor, four walls, and the solid things that stand in it; all in metres.

Here is geometry alone: where things are and how far a point is from them. Which things a seed puts where is in
furnish.py, what they look like in surfaces.py, how the robot moves among them in robot.py.

The floor spans x in 0..width_m and y in 0..depth_m; angles are in radians, counter-clockwise from the x axis.
"""

import enum
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ROBOT_RADIUS_M = 0.08  # of the disc that covers a Jetbot's chassis and wheels
WALLS = 4  # solids 0..3 of a room: x = 0, x = width, y = 0, y = depth


class Look(enum.IntEnum):
    """What a thing is; its outline and colours follow from that (things.py). Collisions know its footprint only."""

    CARTON = 0
    FLAT = 1  # a pad, a mat, a book: millimetres to centimetres high
    SHOE = 2
    BAG = 3
    TOY = 4
    BOTTLE = 5
    CUP = 6
    BIN = 7
    BALL = 8
    LEG = 9  # of a table, a chair, a lamp
    PERSON = 10  # one leg of somebody who stands about
    CUPBOARD = 11
    SOFA = 12
    WALL = 13  # a pillar, or a part of the house that makes the floor less than a rectangle


class Pose(NamedTuple):
    x_m: float
    y_m: float
    heading_rad: float


class Box(NamedTuple):
    """A cuboid on the floor, turned by `angle_rad`."""

    x_m: float
    y_m: float
    half_length_m: float
    half_width_m: float
    angle_rad: float
    height_m: float
    look: Look = Look.CARTON


class Cylinder(NamedTuple):
    """A round thing on the floor: a bin, a bottle, a leg of a table."""

    x_m: float
    y_m: float
    radius_m: float
    height_m: float
    look: Look = Look.BIN


_ORIGIN = Pose(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Room:
    """One room. Its solids are numbered: the four walls, then the boxes, then the cylinders.

    With `drop_m` above zero it is a table top of that height: no walls stand at its edges, but they count as walls.
    """

    seed: int
    width_m: float
    depth_m: float
    height_m: float
    boxes: tuple[Box, ...] = ()
    cylinders: tuple[Cylinder, ...] = ()
    start: Pose = _ORIGIN
    drop_m: float = 0.0
    site: int | None = None  # rooms of one site have their floor, walls and light in common; None: looks of its own

    @property
    def looks_seed(self) -> int:
        return self.seed if self.site is None else self.site

    @functools.cached_property
    def box_array(self) -> np.ndarray:
        """(boxes, 7) float64: x, y, half length, half width, height, cosine and sine of the angle."""
        rows = [(b.x_m, b.y_m, b.half_length_m, b.half_width_m, b.height_m, b.angle_rad) for b in self.boxes]
        array = np.array(rows, np.float64).reshape(-1, 6)
        return np.column_stack([array[:, :5], np.cos(array[:, 5]), np.sin(array[:, 5])])

    @functools.cached_property
    def cylinder_array(self) -> np.ndarray:
        """(cylinders, 4) float64: x, y, radius, height."""
        return np.array([c[:4] for c in self.cylinders], np.float64).reshape(-1, 4)

    @functools.cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """(1 + boxes, 4, 2) float64, twice: where the edges of the room and of each box begin and end, from above."""
        corners = [[(0.0, 0.0), (self.width_m, 0.0), (self.width_m, self.depth_m), (0.0, self.depth_m)]]
        for box in self.boxes:
            cos, sin = math.cos(box.angle_rad), math.sin(box.angle_rad)
            signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
            local = [(sx * box.half_length_m, sy * box.half_width_m) for sx, sy in signs]
            corners.append([(box.x_m + u * cos - v * sin, box.y_m + u * sin + v * cos) for u, v in local])
        start = np.array(corners)
        return start, np.roll(start, -1, axis=1)

    @functools.cached_property
    def things(self) -> tuple[Box | Cylinder, ...]:
        """What stands in it, in the order of their numbers: the boxes, then the cylinders."""
        return (*self.boxes, *self.cylinders)

    @functools.cached_property
    def looks(self) -> tuple[Look, ...]:
        """What each of the things is."""
        return tuple(thing.look for thing in self.things)

    def contacts(self, x_m: float, y_m: float) -> tuple[np.ndarray, np.ndarray]:
        """How far a point is from each solid, and in which direction.

        Returns:
            gaps (solids,) in metres, zero or negative inside the solid; and (solids, 2) unit vectors from the point
            towards the nearest point of each solid (zero inside a box).
        """
        walls = np.array([x_m, self.width_m - x_m, y_m, self.depth_m - y_m])
        boxes, circles = self.box_array, self.cylinder_array
        dx, dy = x_m - boxes[:, 0], y_m - boxes[:, 1]
        along, across = dx * boxes[:, 5] + dy * boxes[:, 6], dy * boxes[:, 5] - dx * boxes[:, 6]
        out_along = along - np.clip(along, -boxes[:, 2], boxes[:, 2])
        out_across = across - np.clip(across, -boxes[:, 3], boxes[:, 3])
        box_gaps = np.hypot(out_along, out_across)
        scale = -1.0 / np.maximum(box_gaps, 1e-12)
        to_boxes = np.column_stack(
            [
                (out_along * boxes[:, 5] - out_across * boxes[:, 6]) * scale,
                (out_along * boxes[:, 6] + out_across * boxes[:, 5]) * scale,
            ]
        )
        to_circles = circles[:, :2] - (x_m, y_m)
        reach = np.hypot(to_circles[:, 0], to_circles[:, 1])
        gaps = np.concatenate([walls, box_gaps, reach - circles[:, 2]])
        towards = np.concatenate([_TO_WALLS, to_boxes, to_circles / np.maximum(reach, 1e-12)[:, None]])
        return gaps, towards

    def gap_m(self, x_m: float, y_m: float) -> float:
        """Distance from a point to the nearest solid, in metres; zero or negative inside one or outside the room."""
        return float(self.contacts(x_m, y_m)[0].min())


_TO_WALLS = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
