"""What people and the store get to know of the control loop: decisions written down, and the events of driving.

The control thread calls; recorder and reporter take what they are given in memory, so nothing here waits. Why the robot
stands still, and whether it may move, is control.py's.
"""

import datetime
import time
from typing import Any, Dict, NamedTuple, Optional

from serving.decide import Action, Motion
from serving.engine.loading import Loaded
from serving.hardware.base import Frame
from serving.recorder import Line, Recorder
from serving.reporter import Tells
from serving.window import Window

_STALE_EVENT_EVERY_S = 10.0


class _Done(NamedTuple):
    """A decision that reached the motors. Times are of time.monotonic()."""

    action: Action
    loaded: Loaded
    sequence: int
    captured_s: float
    received_s: float
    done_s: float


class Account:
    """Of one control loop; used by its thread alone.

    Attributes:
        window: counts for the next metrics event.
    """

    def __init__(self, recorder: Recorder, reporter: Tells) -> None:
        self._recorder, self._reporter = recorder, reporter
        self.window = Window()
        self._sequence = 0
        self._done: Optional[_Done] = None  # the last decision, not yet written down
        self._acted: Optional[Action] = None  # the last that reached the motors
        self._avoiding_since_s: Optional[float] = None
        self._collisions: Optional[int] = None
        self._stale_told_s = -_STALE_EVENT_EVERY_S
        self._stale_count = 0

    def acted(self, action: Action, loaded: Loaded, frame: Frame, received_s: float, done_s: float) -> None:
        """A decision reached the motors; it is written down by `write_down()`, when there is time.

        Args:
            received_s, done_s: time.monotonic() of having the frame, and of having set the motors.
        """
        self._sequence += 1
        self._acted = action
        self._done = _Done(action, loaded, self._sequence, frame.captured_at, received_s, done_s)

    def write_down(self) -> None:
        """Writes the last decision down, once."""
        done, self._done = self._done, None
        if done is None:
            return
        action = done.action
        latency_ms, age_ms = (done.done_s - done.received_s) * 1e3, (done.done_s - done.captured_s) * 1e3
        self.window.add(latency_ms, age_ms, action.motion is not Motion.FORWARD)
        self._recorder.record(
            Line(
                captured_unix_s=time.time() - (time.monotonic() - done.captured_s),
                sequence=done.sequence,
                engine=done.loaded.passport.engine.sha256,
                p_blocked=action.p_blocked,
                action=action.motion.value,
                age_ms=age_ms,
                latency_ms=latency_ms,
                left=action.left,
                right=action.right,
            )
        )

    def stale(self, cause: str, age_s: Optional[float]) -> None:
        """A frame that does not count: too old, decided on too late, or not there at all."""
        self.window.add_stale()
        self._stale_count += 1
        if time.monotonic() - self._stale_told_s < _STALE_EVENT_EVERY_S:
            return
        data: Dict[str, Any] = {"cause": cause, "count": self._stale_count}
        if age_s is not None:
            data["age_ms"] = age_s * 1e3
        self._reporter.emit("frame.stale", data)
        self._stale_told_s, self._stale_count = time.monotonic(), 0

    def avoiding(self, blocked: bool, action: Action, frame: Frame) -> None:
        """Whether the way is blocked, after each decision: an avoidance begins or ends when that changes."""
        if blocked and self._avoiding_since_s is None:
            self._avoiding_since_s = frame.captured_at
            data = {"p_blocked": action.p_blocked, "action": action.motion.value}
            self._reporter.emit("avoidance.started", data, _utc(frame.captured_at))
        elif not blocked and self._avoiding_since_s is not None:
            data = {"p_blocked": action.p_blocked, "duration_s": frame.captured_at - self._avoiding_since_s}
            self._avoiding_since_s = None
            self._reporter.emit("avoidance.ended", data, _utc(frame.captured_at))

    def bumped(self, collisions: Optional[int]) -> None:
        """What the bumper counted so far; None: the body has none."""
        before, self._collisions = self._collisions, collisions
        if before is None or collisions is None or collisions <= before:
            return
        data: Dict[str, Any] = {"count": collisions - before, "total": collisions}
        if self._acted is not None:
            data.update(action=self._acted.motion.value, p_blocked=self._acted.p_blocked)
        self._reporter.emit("collision", data)


def _utc(captured_at_s: float) -> datetime.datetime:
    """The UTC time of a time.monotonic()."""
    ago = datetime.timedelta(seconds=time.monotonic() - captured_at_s)
    return datetime.datetime.now(datetime.timezone.utc) - ago
