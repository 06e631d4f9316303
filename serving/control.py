"""The control loop: frame in, decision, motors.

The loop waits for the camera and, bounded, for the engine; for nothing else. What others get to know of it is
account.py. Which engine drives is the supervisor's business, stopping is the dead man's.
"""

import logging
import threading
import time
from typing import Callable, NamedTuple, Optional

from serving.account import Account
from serving.config import ControlSettings
from serving.decide import Action, DriveState, decide
from serving.engine.client import EngineFailed
from serving.engine.loading import Loaded
from serving.engine.supervisor import Supervisor
from serving.errors import OperatorError
from serving.hardware.base import Frame, Hardware, Readings
from serving.motors import DeadMan
from serving.recorder import Recorder
from serving.reporter import Tells

log = logging.getLogger("control")

_CAMERA_RETRY_S = 1.0
_READINGS_EVERY_S = 0.1


class Status(NamedTuple):
    """What the robot is doing now; `mode` as in the contract RobotState."""

    mode: str
    reason: str = ""


class Decided(NamedTuple):
    """What the network said last, whether or not it moved anything."""

    action: Action
    latency_ms: float  # from having the frame to the decision


def _nobody_listens(*_: object) -> None:
    """In the place of a listener."""


class Control:
    """The control thread.

    Args:
        on_decided: told of each decision that reached the motors, with its latency in ms. It must not wait; the
            frame's pixels are its own to read only until it returns.
        on_frame: the same for each frame, decided on or not, after its decision.

    Attributes:
        window: counts for the next metrics event.
        readings: what the body told last.
        turned_s: time.monotonic() of the last turn of the loop: what the service manager's watchdog goes by.
        last: what was decided last, and how long that took; also while the motors are held.
        crashed: what ended the thread, if it was not `close()`: a fault of jetloop's own.
    """

    def __init__(
        self,
        hardware: Hardware,
        settings: ControlSettings,
        decide_timeout_s: float,
        supervisor: Supervisor,
        motors: DeadMan,
        recorder: Recorder,
        reporter: Tells,
        on_decided: Callable[[Loaded, Frame, Action, float], None] = _nobody_listens,
        on_frame: Callable[[Frame], None] = _nobody_listens,
    ) -> None:
        self._hardware = hardware
        self._settings = settings
        self._max_age_s = settings.max_age_ms / 1e3
        self._decide_timeout_s = decide_timeout_s
        self._supervisor = supervisor
        self._motors = motors
        self._account = Account(recorder, reporter)
        self._on_decided = on_decided
        self._on_frame = on_frame
        self._held: Optional[str] = None  # why a person wants the motors at zero
        self._acting = threading.Lock()  # held while a command goes to the motors
        self._drive = DriveState()
        self._driver: Optional[Loaded] = None  # made the last decision
        self._standing = "no frame yet"  # why nothing moves, as far as this thread knows
        self._acted_s = 0.0  # time.monotonic() of the last decision that reached the motors
        self._readings_s = 0.0
        self._closing = threading.Event()
        self.window = self._account.window
        self.readings = Readings()
        self.turned_s = time.monotonic()
        self.last: Optional[Decided] = None
        self.crashed: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Motors to zero; ends the thread after the frame it is at."""
        self._closing.set()
        self._motors.close()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def hold(self, reason: str) -> None:
        """Motors to zero, and there they stay until `let_go()`: a person's word. Any thread, also before `start()`."""
        self._held = reason
        self._motors.stop(reason)
        # A command that was under way just now may have come after that stop.
        with self._acting:
            self._motors.stop(reason)

    def let_go(self) -> None:
        """The next decision moves the robot again."""
        self._held = None

    @property
    def held(self) -> Optional[str]:
        """Why a person stopped the robot; None when nobody did."""
        return self._held

    def status(self) -> Status:
        """What the robot is doing, for its state."""
        if self._closing.is_set() or self.crashed is not None:
            return Status("stopped", "" if self.crashed is None else repr(self.crashed))
        held = self._held
        if held is not None:
            return Status("stopped", held)
        if time.monotonic() - self._acted_s < self._max_age_s and self._motors.moving:
            return Status("driving")
        if self._supervisor.wanted is None:
            return Status("no-model", self._standing or self._supervisor.trouble)
        if not self._supervisor.running:
            return Status("loading", self._supervisor.trouble)
        return Status("standing", self._standing or self._motors.reason)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self.step()
        except Exception as problem:  # a fault of ours: the daemon ends, and is started anew by its supervisor
            log.exception("the control loop failed")
            self.crashed = problem
            self._motors.stop("the control loop failed")
        self._account.write_down()

    def step(self) -> None:
        """One turn of the loop: at most one frame and one decision; then, the motors set, what can wait."""
        self.turned_s = time.monotonic()
        frame = self._read()
        loaded = self._supervisor.take()
        if loaded is None:
            self._driver = None
        elif frame is not None:
            self._decide_on(frame, loaded, time.monotonic())
        if frame is None or loaded is None:
            self._account.write_down()
        if frame is not None:
            self._on_frame(frame)
        self._read_sensors()

    def _decide_on(self, frame: Frame, loaded: Loaded, received_s: float) -> None:
        """From the frame to the motors; nothing here waits for anything but the engine."""
        if received_s - frame.captured_at > self._max_age_s:
            self._stale("old-frame", received_s - frame.captured_at)
            return
        try:
            loaded.engine.begin(frame.pixels)
            self._account.write_down()  # while the engine computes
            logits = loaded.engine.result(self._decide_timeout_s, attentive=True)
        except EngineFailed as problem:
            self._motors.stop(str(problem))
            self._stand_still(str(problem))
            self._supervisor.failed(loaded, problem)
            return
        if loaded is not self._driver:
            self._drive, self._driver = self._drive.for_new_engine(), loaded
        action, drive = decide(logits, frame.captured_at, self._drive, loaded.passport.decision, self._settings)
        if self._act(action, loaded, frame, received_s):
            self._account.avoiding(drive.blocked, action, frame)
            self._drive = drive

    def _read(self) -> Optional[Frame]:
        """The newest frame; None when there is none."""
        try:
            frame = self._hardware.read(self._max_age_s / 2)
        except OperatorError as problem:
            self._motors.stop(str(problem))
            if self._stand_still(str(problem)):
                log.error("%s; trying again every %g s", problem, _CAMERA_RETRY_S)
            self._stale("no-camera", None)
            self._closing.wait(_CAMERA_RETRY_S)
            return None
        if frame is None:
            self._stale("no-frame", None)
        elif self._supervisor.wanted is None:
            self._standing = ""
        return frame

    def _act(self, action: Action, loaded: Loaded, frame: Frame, received_s: float) -> bool:
        """Sets the motors, and writes down what was done. False when the decision came too late or nothing moves."""
        decided_s = time.monotonic()
        if decided_s - frame.captured_at > self._max_age_s:
            self._stale("late-decision", decided_s - frame.captured_at)
            return False
        self.last = Decided(action, (decided_s - received_s) * 1e3)
        try:
            with self._acting:
                if self._held is not None:
                    self._supervisor.decided(loaded)  # a new engine takes over while the robot stands, too
                    return False
                if not self._motors.command(action.left, action.right, decided_s):
                    return False
        except OperatorError as problem:
            if self._stand_still(str(problem)):
                log.error("%s", problem)
            return False
        done_s = time.monotonic()
        self._supervisor.decided(loaded)
        self._acted_s, self._standing = done_s, ""
        self._account.acted(action, loaded, frame, received_s, done_s)
        self._on_decided(loaded, frame, action, (done_s - received_s) * 1e3)
        return True

    def _stand_still(self, reason: str) -> bool:
        """Remembers why nothing moves; True when the reason is new."""
        new, self._standing = reason != self._standing, reason
        return new

    def _stale(self, cause: str, age_s: Optional[float]) -> None:
        """A frame that does not count: too old, decided on too late, or not there at all."""
        if cause != "no-camera":
            self._stand_still(f"no fresh frame ({cause})")
        self._account.stale(cause, age_s)

    def _read_sensors(self) -> None:
        now_s = time.monotonic()
        if now_s - self._readings_s < _READINGS_EVERY_S:
            return
        self._readings_s = now_s
        self.readings = self._hardware.readings()
        self._account.bumped(self.readings.collisions)
