"""The arena as a robot's body: what `hardware.kind = "simulated"` in robot.toml means.

Time is the wall clock's: whatever happens between two calls, the robot moves on under its last command, as a real one
would. There is no thread of its own; `read`, `drive` and `stop` first let the arena catch up with the clock. The motors
are memory that the motor guard drives from its own process, as it would a real board.
"""

import threading
import time

from serving.errors import OperatorError
from serving.hardware.base import Frame, Hardware, MotorsElsewhere, Readings
from simulator.arena import Arena
from simulator.motors import CellMotors

_MAX_FPS = 120.0


class SimulatedJetbot(Hardware):
    """A Jetbot in an arena.

    Args:
        seed: of the arena: its room, looks, camera and start.
        site: of what it shares with other rooms (`jetloop simulate sessions --site`); None: nothing.
        fps: frames the camera gives in a second.
        realtime: whether `read` waits for the next frame. If not, each `read` lets one frame's time pass in the arena
            at once, and `drive` and `stop` let none pass: for tests and for driving faster than the clock.
        camera_dies_after_s: from then on there are no more frames, as from a loose cable; None for a healthy camera.

    Raises:
        OperatorError: an option is not allowed.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        site: int | None = None,
        fps: float = 20.0,
        realtime: bool = True,
        camera_dies_after_s: float | None = None,
    ) -> None:
        if not isinstance(seed, int) or seed < 0:
            raise OperatorError(f"hardware.options.seed must be a whole number from 0, not {seed!r}")
        if site is not None and (not isinstance(site, int) or site < 0):
            raise OperatorError(f"hardware.options.site must be a whole number from 0, not {site!r}")
        if not 0 < fps <= _MAX_FPS:
            raise OperatorError(f"hardware.options.fps must be above 0 and at most {_MAX_FPS:g}, not {fps!r}")
        self._arena = Arena(seed, site=site)
        self._arena.render()  # bakes the room's looks now, not in the first frame
        self._frame_s = 1.0 / fps
        self._realtime = realtime
        self._lock = threading.Lock()
        self._motors = CellMotors()
        self._command = (0.0, 0.0)  # in force at self._now
        self._started = self._now = time.monotonic()
        self._frames_read = 0  # number of the last frame period that was read
        self._dead_after_s = camera_dies_after_s

    @property
    def arena(self) -> Arena:
        """The world behind the body, for those who may look behind it: tests and the demo's scoreboard."""
        return self._arena

    def motors(self) -> MotorsElsewhere | None:
        """The memory of the motors; None without real time, where each command must be there for the next frame."""
        if not self._realtime:
            return None
        return MotorsElsewhere("simulator.motors:CellMotors", {"path": self._motors.path})

    def read(self, timeout_s: float) -> Frame | None:
        """The newest frame: at once if one has come since the last read, else when the next is due.

        Frames that nobody read meanwhile are skipped, never queued.
        """
        if not self._realtime:
            return self._read_stepped()
        asked = time.monotonic()
        number = max(self._frames_read + 1, int((asked - self._started) / self._frame_s))
        wait_s = max(0.0, self._started + number * self._frame_s - asked)
        if wait_s > timeout_s or self._dead(asked + wait_s):
            time.sleep(max(0.0, timeout_s))
            return None
        time.sleep(wait_s)
        captured_at = time.monotonic()
        with self._lock:
            self._catch_up(captured_at)
        self._frames_read = number
        return Frame(self._arena.render(), captured_at)  # outside the lock: stop() need not wait for it

    def _read_stepped(self) -> Frame | None:
        with self._lock:
            _, left, right = self._motors.command()
            self._command = (left, right)
            self._arena.step(*self._command, self._frame_s)
        if self._dead(self._started + self._arena.time_s):
            return None
        return Frame(self._arena.render(), time.monotonic())

    def drive(self, left: float, right: float) -> None:
        """Sets both motors, each in -1..1; the motors lag a little, as real ones do."""
        with self._lock:
            self._catch_up(time.monotonic())
            self._motors.drive(float(left), float(right))

    def stop(self) -> None:
        self.drive(0.0, 0.0)

    def readings(self) -> Readings:
        """Collisions, counted by the arena. The arena has no thermometer and no battery, so those stay None."""
        return Readings(collisions=self._arena.collisions)

    def close(self) -> None:
        self.stop()

    def _catch_up(self, now: float) -> None:
        """Moves the arena on to `now` (seconds, time.monotonic()) under the commands in force. Needs the lock."""
        if not self._realtime or now <= self._now:
            return
        told, left, right = self._motors.command()
        changed = min(max(told, self._now), now)
        self._arena.step(*self._command, changed - self._now)
        self._command = (left, right)
        self._arena.step(*self._command, now - changed)
        self._now = now

    def _dead(self, at: float) -> bool:
        return self._dead_after_s is not None and at - self._started >= self._dead_after_s
