"""How the robot moves: differential drive, lagging motors, a round body that stops and slides at what it touches.

Lengths in metres, angles in radians, times in seconds; motor commands in -1..1, forward positive. The sizes are a
Jetbot's: wheels 0.11 m apart, about 0.5 m/s at full command.
"""

import math
from dataclasses import dataclass

import numpy as np

from simulator.room import ROBOT_RADIUS_M, Pose, Room

WHEEL_BASE_M = 0.11
MAX_WHEEL_SPEED_M_S = 0.5
MOTOR_LAG_S = 0.08  # time constant of a wheel's speed after a new command
STEP_S = 0.01  # of the integration: at most 5 mm of travel
_APART_M = 0.005  # a contact ends when the gap is wider, so that trembling at a wall is one collision
_STILL_M_S = 1e-4


@dataclass
class Robot:
    """A robot in a room. `step` moves it by `STEP_S`; everything else is what became of it."""

    room: Room
    pose: Pose
    left_m_s: float = 0.0
    right_m_s: float = 0.0
    distance_m: float = 0.0
    collisions: int = 0

    def __post_init__(self) -> None:
        self._touching: set[int] = set()

    @property
    def still(self) -> bool:
        return abs(self.left_m_s) < _STILL_M_S and abs(self.right_m_s) < _STILL_M_S

    @property
    def touching(self) -> bool:
        """Whether the body is against something now."""
        return bool(self._touching)

    def step(self, left: float, right: float) -> None:
        """Moves by one step of `STEP_S` under these motor commands (clipped to -1..1)."""
        blend = 1.0 - math.exp(-STEP_S / MOTOR_LAG_S)
        self.left_m_s += blend * (_clip(left) * MAX_WHEEL_SPEED_M_S - self.left_m_s)
        self.right_m_s += blend * (_clip(right) * MAX_WHEEL_SPEED_M_S - self.right_m_s)
        turn = (self.right_m_s - self.left_m_s) / WHEEL_BASE_M * STEP_S
        travel = (self.left_m_s + self.right_m_s) / 2 * STEP_S
        middle = self.pose.heading_rad + turn / 2  # midpoint rule
        self._move(travel * math.cos(middle), travel * math.sin(middle), turn)

    def _move(self, dx: float, dy: float, turn: float) -> None:
        """Goes as far as the body may: all the way, else along the surface, else nowhere. It can always turn."""
        x, y, heading = self.pose
        gaps, towards = self.room.contacts(x + dx, y + dy)
        hit = _closer_than(gaps, ROBOT_RADIUS_M)
        if hit:
            for solid in hit:  # keep what does not press into it
                east, north = towards[solid]
                into = max(0.0, dx * east + dy * north)
                dx, dy = dx - into * east, dy - into * north
            if self.room.gap_m(x + dx, y + dy) < ROBOT_RADIUS_M:
                dx = dy = 0.0
            gaps, _ = self.room.contacts(x + dx, y + dy)
        self._note_contacts(hit, _closer_than(gaps, ROBOT_RADIUS_M + _APART_M))
        self.distance_m += math.hypot(dx, dy)
        self.pose = Pose(x + dx, y + dy, math.remainder(heading + turn, 2 * math.pi))

    def _note_contacts(self, hit: set[int], near: set[int]) -> None:
        self.collisions += len(hit - self._touching)
        self._touching = hit | (self._touching & near)


def _closer_than(gaps: np.ndarray, limit_m: float) -> set[int]:
    return set(np.flatnonzero(gaps < limit_m).tolist())


def _clip(command: float) -> float:
    return max(-1.0, min(1.0, command))
