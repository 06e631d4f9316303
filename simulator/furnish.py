"""From a seed to a furnished room: its size and outline, and which things stand where.

What is asked for is variety of the kind that Jetbots meet: homes, labs and table tops; things by the wall and in the
way; flat, low, slim and tall ones. Every thing keeps a passage to the others, so that the robot is never walled in.
"""

import dataclasses
import math

import numpy as np

from serving.errors import OperatorError
from simulator.room import ROBOT_RADIUS_M, WALLS, Box, Cylinder, Look, Pose, Room

PASSAGE_M = 0.30  # least gap between two things
SIDES_M = (2.4, 5.0)  # of a room
TABLE_SIDES_M = (1.6, 2.6)
THINGS = (6, 14)  # a table, a chair, a lamp or a person counts as one
_TRIES = 300  # placements tried for one thing before it is left out

# name, look, footprint (half length, half width) or (radius,) and height, each lowest to highest, in metres.
_BOXES = {
    Look.CARTON: ((0.05, 0.22), (0.05, 0.20), (0.06, 0.45)),
    Look.FLAT: ((0.04, 0.16), (0.04, 0.12), (0.004, 0.03)),
    Look.SHOE: ((0.10, 0.15), (0.04, 0.06), (0.05, 0.11)),
    Look.WALL: ((0.15, 0.45), (0.15, 0.35), (2.6, 2.6)),
}
_CYLINDERS = {
    Look.BAG: ((0.09, 0.20), (0.15, 0.45)),
    Look.TOY: ((0.05, 0.13), (0.08, 0.30)),
    Look.BOTTLE: ((0.03, 0.05), (0.16, 0.32)),
    Look.CUP: ((0.03, 0.06), (0.07, 0.13)),
    Look.BIN: ((0.09, 0.18), (0.20, 0.45)),
    Look.BALL: ((0.03, 0.14), (0.05, 0.25)),
}
_SMALL = (Look.CARTON, Look.FLAT, Look.SHOE, Look.BAG, Look.TOY, Look.BOTTLE, Look.CUP, Look.BIN, Look.BALL)
_SMALL_SHARES = (0.20, 0.16, 0.12, 0.10, 0.14, 0.09, 0.07, 0.05, 0.07)


def make_room(seed: int, site: int | None = None) -> Room:
    """A room of 2.4 to 5 m, or now and then a table top, with 6 to 14 things in it; the same for the same seed.

    A site lends several rooms its floor, walls and light, as those of one lab have them; it has no table tops.

    Raises:
        OperatorError: no free place to start was found (no seed is known to do that).
    """
    rng = np.random.default_rng([seed, 0])
    table = bool(rng.random() < 0.12) and site is None
    low, high = TABLE_SIDES_M if table else SIDES_M
    builder = _Builder(rng, float(rng.uniform(low, high)), float(rng.uniform(low, high)), table)
    builder.furnish(int(rng.integers(THINGS[0], THINGS[1] + 1)))
    room = Room(
        seed,
        builder.width,
        builder.depth,
        float(rng.uniform(2.2, 2.6)),
        tuple(builder.boxes),
        tuple(builder.cylinders),
        drop_m=float(rng.uniform(0.4, 0.9)) if table else 0.0,
        site=site,
    )
    return dataclasses.replace(room, start=_find_start(rng, room))


class _Builder:
    """Puts things into an empty room, each a passage away from the others."""

    def __init__(self, rng: np.random.Generator, width: float, depth: float, table: bool) -> None:
        self.rng, self.width, self.depth, self.table = rng, width, depth, table
        self.boxes: list[Box] = []
        self.cylinders: list[Cylinder] = []
        self._taken: list[tuple[float, float, float]] = []  # x, y, radius of the circle around each thing

    def furnish(self, things: int) -> None:
        """Adds up to `things`, the large ones first; at least one small box and one small cylinder."""
        if not self.table:
            self._cut_corners()
            for _ in range(int(self.rng.integers(1, 1 + things // 2))):
                things -= self._add_at_wall()
            for maker in self.rng.permutation(4)[: int(self.rng.integers(0, 3))]:
                things -= (self._add_table, self._add_chair, self._add_lamp, self._add_person)[int(maker)]()
        self._add_small(Look.CARTON)
        self._add_small(Look.TOY)
        for look in self.rng.choice(len(_SMALL), max(0, things - 2), p=_SMALL_SHARES):
            self._add_small(_SMALL[int(look)])

    def _uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

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

    def _add_small(self, look: Look) -> bool:
        *sizes, tall = _BOXES[look] if look in _BOXES else _CYLINDERS[look]
        footprint = [self._uniform(*size) * (0.6 if self.table else 1.0) for size in sizes]
        height = self._uniform(*tall)
        place = self._place(math.hypot(*footprint))
        if place and look in _BOXES:
            self.boxes.append(Box(*place, footprint[0], footprint[1], self._uniform(0, math.pi), height, look))
        elif place:
            self.cylinders.append(Cylinder(*place, footprint[0], height, look))
        return place is not None

    def _cut_corners(self) -> None:
        """Makes the floor an L, or less regular still: wall-high blocks in up to two corners."""
        for corner in self.rng.permutation(4)[: int(self.rng.choice(3, p=(0.55, 0.3, 0.15)))]:
            half_length, half_width = self._uniform(0.1, self.width / 6), self._uniform(0.1, self.depth / 6)
            x = half_length if corner % 2 == 0 else self.width - half_length
            y = half_width if corner < 2 else self.depth - half_width
            self._taken.append((x, y, math.hypot(half_length, half_width)))
            self.boxes.append(Box(x, y, half_length, half_width, 0.0, 2.6, Look.WALL))

    def _legs(self, half_x: float, half_y: float, radius: float, height: float, look: Look, count: int = 4) -> bool:
        """Legs at the corners of a turned rectangle; the robot may fit between them. What they carry is not seen."""
        angle = self._uniform(0, math.pi)
        place = self._place(math.hypot(half_x, half_y) + radius)
        if place:
            cos, sin = math.cos(angle), math.sin(angle)
            for sx, sy in ((-1, -1), (1, 1), (-1, 1), (1, -1))[:count]:
                dx, dy = sx * half_x, sy * half_y
                x, y = place[0] + dx * cos - dy * sin, place[1] + dx * sin + dy * cos
                self.cylinders.append(Cylinder(x, y, radius, height, look))
        return place is not None

    def _add_table(self) -> bool:
        half_x, half_y = self._uniform(0.2, 0.4), self._uniform(0.2, 0.4)
        return self._legs(half_x, half_y, self._uniform(0.015, 0.04), 0.72, Look.LEG)

    def _add_chair(self) -> bool:
        half_x, half_y = self._uniform(0.15, 0.22), self._uniform(0.15, 0.22)
        return self._legs(half_x, half_y, self._uniform(0.01, 0.02), 0.45, Look.LEG)

    def _add_person(self) -> bool:
        return self._legs(self._uniform(0.08, 0.16), 0.02, self._uniform(0.05, 0.07), 0.9, Look.PERSON, count=2)

    def _add_lamp(self) -> bool:
        """A flat round foot and a pole."""
        radius = self._uniform(0.10, 0.18)
        place = self._place(radius)
        if place:
            self.cylinders.append(Cylinder(*place, radius, self._uniform(0.015, 0.06), Look.LEG))
            self.cylinders.append(Cylinder(*place, self._uniform(0.01, 0.05), self._uniform(0.4, 1.5), Look.LEG))
        return place is not None

    def _add_at_wall(self) -> bool:
        """A cupboard, a sofa or a stack of boxes with its back to a wall."""
        look = (Look.CUPBOARD, Look.SOFA, Look.CARTON)[int(self.rng.choice(3, p=(0.5, 0.25, 0.25)))]
        half_length, half_width = self._uniform(0.2, 0.6), self._uniform(0.1, 0.25)
        height = self._uniform(0.3, 0.5) if look == Look.SOFA else self._uniform(0.25, 1.8)
        wall = int(self.rng.integers(WALLS))
        edge = half_length + PASSAGE_M
        for _ in range(_TRIES // 4):
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
                self.boxes.append(Box(x, y, half_length, half_width, angle, height, look))
                return True
        return False


def _find_start(rng: np.random.Generator, room: Room) -> Pose:
    """The roomiest of the places tried, so that a robot can turn on the spot there."""
    tries = [(float(rng.uniform(0, room.width_m)), float(rng.uniform(0, room.depth_m))) for _ in range(200)]
    x, y = max(tries, key=lambda place: room.gap_m(*place))
    if room.gap_m(x, y) < ROBOT_RADIUS_M + 0.1:
        raise OperatorError(f"room {room.seed} has no free place to start; take another seed")
    return Pose(x, y, float(rng.uniform(-math.pi, math.pi)))
