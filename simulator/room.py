"""Rooms: a rectangular floor, four walls, and the solid things that stand in it; all from one seed, all in metres.

Here is geometry alone: where things are and how far a point is from them. What they look like is in surfaces.py, what
the camera makes of them in camera.py, how the robot moves among them in robot.py.

The floor spans x in 0..width_m and y in 0..depth_m; angles are in radians, counter-clockwise from the x axis.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serving.errors import OperatorError

ROBOT_RADIUS_M = 0.08  # of the disc that covers a Jetbot's chassis and wheels
PASSAGE_M = 0.30  # least gap between two things, so that the robot is never walled in
WALLS = 4  # solids 0..3 of a room: x = 0, x = width, y = 0, y = depth
_TRIES = 400  # placements tried for one thing before it is left out


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


class Cylinder(NamedTuple):
    """A round thing on the floor: a bin, a bottle, a leg of a table."""

    x_m: float
    y_m: float
    radius_m: float
    height_m: float


_ORIGIN = Pose(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Room:
    """One room. Its solids are numbered: the four walls, then the boxes, then the cylinders."""

    seed: int
    width_m: float
    depth_m: float
    height_m: float
    boxes: tuple[Box, ...] = ()
    cylinders: tuple[Cylinder, ...] = ()
    start: Pose = _ORIGIN

    @functools.cached_property
    def box_array(self) -> np.ndarray:
        """(boxes, 7) float64: x, y, half length, half width, height, cosine and sine of the angle."""
        rows = [(b.x_m, b.y_m, b.half_length_m, b.half_width_m, b.height_m, b.angle_rad) for b in self.boxes]
        array = np.array(rows, np.float64).reshape(-1, 6)
        return np.column_stack([array[:, :5], np.cos(array[:, 5]), np.sin(array[:, 5])])

    @functools.cached_property
    def cylinder_array(self) -> np.ndarray:
        """(cylinders, 4) float64: x, y, radius, height."""
        return np.array(self.cylinders, np.float64).reshape(-1, 4)

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


def make_room(seed: int) -> Room:
    """A room of 3 to 5 m with 6 to 14 things in it (a table counts as one), the same for the same seed.

    Raises:
        OperatorError: no free place to start was found (no seed is known to do that).
    """
    rng = np.random.default_rng([seed, 0])
    builder = _Builder(rng, float(rng.uniform(3.0, 5.0)), float(rng.uniform(3.0, 5.0)))
    builder.furnish(int(rng.integers(6, 15)))
    height = float(rng.uniform(2.2, 2.5))
    room = Room(seed, builder.width, builder.depth, height, tuple(builder.boxes), tuple(builder.cylinders))
    return dataclasses.replace(room, start=_find_start(rng, room))


class _Builder:
    """Puts things into an empty room, each a passage away from the others."""

    def __init__(self, rng: np.random.Generator, width: float, depth: float) -> None:
        self.rng, self.width, self.depth = rng, width, depth
        self.boxes: list[Box] = []
        self.cylinders: list[Cylinder] = []
        self._taken: list[tuple[float, float, float]] = []  # x, y, radius of the circle around each thing

    def furnish(self, things: int) -> None:
        """Adds `things`, of which one is a box and one a cylinder; what finds no place makes way for another kind."""
        makers = (self._add_box, self._add_cylinder, self._add_cupboard, self._add_table)
        placed = self._add_box() + self._add_cylinder()
        for choice in self.rng.choice(4, 4 * things, p=(0.38, 0.3, 0.2, 0.12)):
            if placed < things:
                placed += makers[int(choice)]()

    def _uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def _height(self) -> float:
        """Three in ten are lower than the camera, so that one looks over them: a book, a shoe, a bowl."""
        return self._uniform(0.03, 0.07) if self.rng.random() < 0.3 else self._uniform(0.10, 0.9)

    def _is_free(self, x: float, y: float, radius: float) -> bool:
        return all(math.hypot(x - tx, y - ty) > radius + tr + PASSAGE_M for tx, ty, tr in self._taken)

    def _place(self, radius: float) -> tuple[float, float] | None:
        """A centre for a thing of this radius, a passage away from all others and the walls; None if it is full."""
        edge = radius + PASSAGE_M
        for _ in range(_TRIES):
            x, y = self._uniform(edge, self.width - edge), self._uniform(edge, self.depth - edge)
            if self._is_free(x, y, radius):
                self._taken.append((x, y, radius))
                return x, y
        return None

    def _add_box(self) -> bool:
        half_length, half_width = self._uniform(0.05, 0.25), self._uniform(0.05, 0.25)
        place = self._place(math.hypot(half_length, half_width))
        if place:
            self.boxes.append(Box(*place, half_length, half_width, self._uniform(0, math.pi), self._height()))
        return place is not None

    def _add_cylinder(self) -> bool:
        radius = self._uniform(0.03, 0.18)
        place = self._place(radius)
        if place:
            self.cylinders.append(Cylinder(*place, radius, self._height()))
        return place is not None

    def _add_table(self) -> bool:
        """Four legs; the robot fits between them. The top is too high to see or to hit."""
        half_x, half_y, leg = self._uniform(0.2, 0.35), self._uniform(0.2, 0.35), self._uniform(0.015, 0.035)
        angle = self._uniform(0, math.pi)
        place = self._place(math.hypot(half_x, half_y) + leg)
        if not place:
            return False
        cos, sin = math.cos(angle), math.sin(angle)
        for dx, dy in ((-half_x, -half_y), (-half_x, half_y), (half_x, -half_y), (half_x, half_y)):
            self.cylinders.append(Cylinder(place[0] + dx * cos - dy * sin, place[1] + dx * sin + dy * cos, leg, 0.7))
        return True

    def _add_cupboard(self) -> bool:
        """A box with its back to a wall."""
        half_length, half_width = self._uniform(0.2, 0.5), self._uniform(0.1, 0.25)
        wall, height = int(self.rng.integers(WALLS)), self._uniform(0.3, 1.8)
        edge = half_length + PASSAGE_M
        for _ in range(_TRIES):
            along = self._uniform(edge, (self.depth if wall < 2 else self.width) - edge)
            x, y, angle = (
                (half_width, along, math.pi / 2),
                (self.width - half_width, along, math.pi / 2),
                (along, half_width, 0.0),
                (along, self.depth - half_width, 0.0),
            )[wall]
            radius = math.hypot(half_length, half_width)
            if self._is_free(x, y, radius):
                self._taken.append((x, y, radius))
                self.boxes.append(Box(x, y, half_length, half_width, angle, height))
                return True
        return False


def _find_start(rng: np.random.Generator, room: Room) -> Pose:
    """The roomiest of the places tried, so that a robot can turn on the spot there."""
    tries = [(float(rng.uniform(0, room.width_m)), float(rng.uniform(0, room.depth_m))) for _ in range(200)]
    x, y = max(tries, key=lambda place: room.gap_m(*place))
    if room.gap_m(x, y) < ROBOT_RADIUS_M + 0.1:
        raise OperatorError(f"room {room.seed} has no free place to start; take another seed")
    return Pose(x, y, float(rng.uniform(-math.pi, math.pi)))
