"""How the robot moves: differential drive, motors that lag, wheels that slip, a round body that stops and slides at
what it touches.

Lengths in metres, angles in radians, times in seconds; motor commands in -1..1, forward positive. The sizes are a
Jetbot's: wheels 0.11 m apart, about 0.5 m/s at full command.
"""

import collections
import math
from dataclasses import dataclass, field

import numpy as np

from simulator.room import ROBOT_RADIUS_M, Pose, Room

WHEEL_BASE_M = 0.11
MAX_WHEEL_SPEED_M_S = 0.5
STEP_S = 0.01  # of the integration: at most 5 mm of travel
_APART_M = 0.005  # a contact ends when the gap is wider, so that trembling at a wall is one collision
_STILL_M_S = 1e-4


_SLIP_TIME_S = 0.25  # how long a patch of floor lasts under a wheel


@dataclass(frozen=True)
class Drive:
    """What lies between a command and the wheels' way over the floor. The defaults are a perfect pair of motors."""

    left_gain: float = 1.0  # of the left motor's speed: no two motors are alike
    right_gain: float = 1.0
    lag_s: float = 0.08  # time constant of a wheel's speed after a new command
    delay_s: float = 0.0  # from a command to the motor's first answer
    dead_band: float = 0.0  # commands nearer to zero than this do not turn the wheel
    slip: float = 0.0  # standard deviation of what a wheel loses or gains on the floor, share of its speed
    seed: int = 0  # of the slip


def make_drive(seed: int) -> Drive:
    """A pair of motors as one robot's might be: up to some percent apart, a little late, slipping a little."""
    rng = np.random.default_rng([seed, 7])
    return Drive(
        left_gain=float(rng.uniform(0.92, 1.04)),
        right_gain=float(rng.uniform(0.92, 1.04)),
        lag_s=float(rng.uniform(0.05, 0.12)),
        delay_s=float(rng.uniform(0.01, 0.04)),
        dead_band=float(rng.uniform(0.0, 0.05)),
        slip=float(rng.uniform(0.0, 0.06)),
        seed=seed,
    )


@dataclass
class Robot:
    """A robot in a room. `step` moves it by `STEP_S`; everything else is what became of it."""

    room: Room
    pose: Pose
    drive: Drive = field(default_factory=Drive)
    left_m_s: float = 0.0
    right_m_s: float = 0.0
    distance_m: float = 0.0
    collisions: int = 0

    def __post_init__(self) -> None:
        self._touching: set[int] = set()
        steps = round(self.drive.delay_s / STEP_S)
        self._coming = collections.deque([(0.0, 0.0)] * steps)  # commands on their way to the motors
        self._rng = np.random.default_rng([self.drive.seed, 8])
        self._slips = [0.0, 0.0]
        self._clear_m = 0.0  # the robot may move so far before anything can be near

    @property
    def still(self) -> bool:
        """Whether it stands, and no command is on its way to change that."""
        stands = abs(self.left_m_s) < _STILL_M_S and abs(self.right_m_s) < _STILL_M_S
        return stands and not any(left or right for left, right in self._coming)

    @property
    def turn_rad_s(self) -> float:
        """How fast the wheels turn it, counter-clockwise positive."""
        return (self.right_m_s - self.left_m_s) / WHEEL_BASE_M

    @property
    def touching(self) -> bool:
        """Whether the body is against something now."""
        return bool(self._touching)

    def put(self, pose: Pose, left_m_s: float = 0.0, right_m_s: float = 0.0) -> None:
        """Puts it somewhere by hand, its wheels at these speeds, and forgets the commands on their way."""
        self.pose, self.left_m_s, self.right_m_s = pose, left_m_s, right_m_s
        self._coming = collections.deque([(0.0, 0.0)] * len(self._coming))
        self._clear_m = 0.0

    def step(self, left: float, right: float) -> None:
        """Moves by one step of `STEP_S` under these motor commands (clipped to -1..1)."""
        self._coming.append((_clip(left), _clip(right)))
        wanted_left, wanted_right = self._coming.popleft()
        blend = 1.0 - math.exp(-STEP_S / self.drive.lag_s)
        self.left_m_s += blend * (self._speed(wanted_left, self.drive.left_gain) - self.left_m_s)
        self.right_m_s += blend * (self._speed(wanted_right, self.drive.right_gain) - self.right_m_s)
        left_slip, right_slip = self._slip()
        over_left, over_right = self.left_m_s * (1.0 - left_slip), self.right_m_s * (1.0 - right_slip)
        turn = (over_right - over_left) / WHEEL_BASE_M * STEP_S
        travel = (over_left + over_right) / 2 * STEP_S
        middle = self.pose.heading_rad + turn / 2  # midpoint rule
        self._move(travel * math.cos(middle), travel * math.sin(middle), turn)

    def _speed(self, command: float, gain: float) -> float:
        return 0.0 if abs(command) < self.drive.dead_band else command * gain * MAX_WHEEL_SPEED_M_S

    def _slip(self) -> list[float]:
        """Of the left and the right wheel; wanders about zero, as the floor under them changes."""
        if self.drive.slip:
            keep = math.exp(-STEP_S / _SLIP_TIME_S)
            shake = self.drive.slip * math.sqrt(1.0 - keep * keep)
            self._slips = [keep * slip + shake * float(self._rng.standard_normal()) for slip in self._slips]
        return self._slips

    def _move(self, dx: float, dy: float, turn: float) -> None:
        """Goes as far as the body may: all the way, else along the surface, else nowhere. It can always turn."""
        x, y, heading = self.pose
        self._clear_m -= math.hypot(dx, dy)
        if self._clear_m <= 0.0:
            dx, dy = self._slide(x, y, dx, dy)
        self.distance_m += math.hypot(dx, dy)
        self.pose = Pose(x + dx, y + dy, math.remainder(heading + turn, 2 * math.pi))

    def _slide(self, x: float, y: float, dx: float, dy: float) -> tuple[float, float]:
        """How much of a move there is room for; notes what the body touches."""
        gaps, towards = self.room.contacts(x + dx, y + dy)
        self._clear_m = float(gaps.min()) - ROBOT_RADIUS_M - _APART_M
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
        return dx, dy

    def _note_contacts(self, hit: set[int], near: set[int]) -> None:
        self.collisions += len(hit - self._touching)
        self._touching = hit | (self._touching & near)


def _closer_than(gaps: np.ndarray, limit_m: float) -> set[int]:
    return set(np.flatnonzero(gaps < limit_m).tolist())


def _clip(command: float) -> float:
    return max(-1.0, min(1.0, command))
