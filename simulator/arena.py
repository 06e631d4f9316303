"""The arena: a room, the robot in it, its camera, and time. Everything follows from the seed and the commands given."""

import numpy as np

from simulator import labels
from simulator.camera import Camera, CameraSettings, make_settings
from simulator.furnish import make_room
from simulator.robot import STEP_S, Drive, Robot, make_drive
from simulator.room import Pose, Room


class Arena:
    """A room and a robot that starts in a free place of it.

    Args:
        seed: of the room, its looks, the start and the camera.
        room: a room to use instead of the seed's.
        camera: mounting, lens and sensor to use instead of the seed's.
        drive: motors and wheels to use instead of the seed's.
        site: seed of what it has in common with other rooms: floor, walls, light and camera.
    """

    def __init__(
        self,
        seed: int,
        room: Room | None = None,
        camera: CameraSettings | None = None,
        drive: Drive | None = None,
        site: int | None = None,
    ) -> None:
        self.seed = seed
        self.room = room if room is not None else make_room(seed, site)
        self.robot = Robot(self.room, self.room.start, drive if drive is not None else make_drive(seed))
        self.time_s = 0.0
        self._camera = Camera(camera if camera is not None else make_settings(seed if site is None else site), seed)
        self._owed_s = 0.0  # asked for, not yet integrated: less than one step

    @property
    def pose(self) -> Pose:
        """Of the robot's centre."""
        return self.robot.pose

    @property
    def collisions(self) -> int:
        """How many times the robot has run into something."""
        return self.robot.collisions

    @property
    def distance_m(self) -> float:
        """How far the robot's centre has travelled."""
        return self.robot.distance_m

    def place(self, pose: Pose) -> None:
        """Puts the robot somewhere by hand, standing still."""
        self.robot.put(pose)

    def step(self, left: float, right: float, dt_s: float) -> None:
        """Lets `dt_s` seconds pass under these motor commands (-1..1), in fixed steps; a rest below a step is kept.

        Raises:
            ValueError: `dt_s` is negative.
        """
        if dt_s < 0:
            raise ValueError(f"time does not run backwards: dt_s = {dt_s}")
        self.time_s += dt_s
        self._owed_s += dt_s
        steps = int(self._owed_s / STEP_S + 1e-9)
        self._owed_s = max(0.0, self._owed_s - steps * STEP_S)
        for _ in range(steps):
            if left == right == 0.0 and self.robot.still:
                break
            self.robot.step(left, right)

    def render(self) -> np.ndarray:
        """What the robot's camera sees now: (224, 224, 3) uint8, RGB."""
        return self._camera.render(self.room, self.pose, self.robot.turn_rad_s)

    def clearance_m(self) -> float:
        """Distance from the robot's front to the first thing in its way."""
        return labels.clearance_m(self.room, self.pose)

    def label(self, safety_distance_m: float) -> str:
        """`blocked` or `free`, from geometry; labels.py says exactly when."""
        return labels.label(self.room, self.pose, safety_distance_m)
