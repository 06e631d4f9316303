"""The dead man's handle: the only way to the motors. No fresh decision in time, and they stop.

It watches with a thread of its own, so that nothing the rest of the daemon does, or fails to do, keeps a robot moving.
For when the daemon itself is gone there is the motor guard (motor_guard.py), a process of its own.
"""

import logging
import threading
import time

from serving.errors import OperatorError
from serving.hardware.base import Motors

log = logging.getLogger("motors")

_RETRY_STOP_S = 0.05
# A drive() that hangs on its bus must not keep stop() from trying.
_LOCK_TIMEOUT_S = 0.02


class DeadMan:
    """Holds the motors. Any thread may call stop(); one thread calls command().

    Attributes:
        reason: why the motors were stopped last; empty before.
    """

    def __init__(self, hardware: Motors, max_age_s: float) -> None:
        """Tells the motors to stop, for who knows what ran before, and starts the watching thread.

        Args:
            hardware: the motor guard, or a body whose motors live in this process.
            max_age_s: a decision older than this moves nothing.

        Raises:
            OperatorError: the motors do not answer.
        """
        hardware.stop()
        self.reason = ""
        self._hardware = hardware
        self._max_age_s = max_age_s
        self._lock = threading.Lock()  # of the motors
        self._wake = threading.Event()
        self._deadline_s = 0.0  # time.monotonic()
        self._moving = False
        self._closed = False
        self._complained = False
        self._thread = threading.Thread(target=self._watch, name="dead-man", daemon=True)
        self._thread.start()

    @property
    def moving(self) -> bool:
        """Whether the motors may be turning."""
        return self._moving

    def command(self, left: float, right: float, decided_at_s: float) -> bool:
        """Sets the motors, for at most `max_age_s` after the decision.

        Args:
            left, right: -1..1, forward positive.
            decided_at_s: time.monotonic() of the decision.

        Returns:
            False when the decision is too old already, or the handle is closed: nothing was set.

        Raises:
            OperatorError: the motors do not answer; they have been told to stop.
        """
        with self._lock:
            deadline_s = decided_at_s + self._max_age_s
            if self._closed or time.monotonic() >= deadline_s:
                return False
            started, self._moving = not self._moving, True
            self._deadline_s = deadline_s
            if started:
                self._wake.set()  # the watcher sleeps while nothing moves
            try:
                self._hardware.drive(left, right)
                return True
            except OperatorError:
                self._deadline_s = 0.0
                self._wake.set()
                raise

    def stop(self, reason: str) -> None:
        """Motors to zero now; `reason` is for the log. The next command() moves them again."""
        if self._moving:
            log.info("motors to zero: %s", reason)
        self.reason, self._deadline_s = reason, 0.0
        if not self._zero():
            self._wake.set()  # the watcher tries on

    def close(self) -> None:
        """Motors to zero, for good. They are told to stop even when nothing moved."""
        self._closed = True
        stopped = self._zero()
        self._wake.set()
        self._thread.join(timeout=1.0)
        if not stopped and self._moving:
            log.error("the motors did not stop when the daemon ended; switch the robot off")

    def _watch(self) -> None:
        while not (self._closed and not self._moving):
            if not self._moving:
                self._wake.wait()
                self._wake.clear()
                continue
            left_s = self._deadline_s - time.monotonic()
            if left_s > 0 and not self._closed:
                # Most commands only move the deadline; this thread finds out when the old one has passed.
                self._wake.wait(left_s)
                self._wake.clear()
                continue
            late = self._deadline_s > 0  # 0: whoever asked for it knows the reason
            if not self._zero(only_if_late=not self._closed):
                time.sleep(_RETRY_STOP_S)
            elif late and not self._moving:
                reason = f"no fresh decision within {self._max_age_s * 1e3:.0f} ms"
                self.reason = reason
                log.warning("motors to zero: %s", reason)

    def _zero(self, only_if_late: bool = False) -> bool:
        """Tells the motors to stop, once. False when they may still move: the watcher has to try again."""
        held = self._lock.acquire(timeout=_LOCK_TIMEOUT_S)
        try:
            if only_if_late and held and time.monotonic() < self._deadline_s:
                return True  # a fresh command came first
            self._hardware.stop()
            if held:  # without the lock a drive() that hangs may yet come through
                self._moving = False
                self._complained = False
            return held
        except Exception as problem:  # whatever the bus does, the answer is to try again
            if not self._complained:
                log.error("the motors do not stop, trying on: %s", problem)
                self._complained = True
            return False
        finally:
            if held:
                self._lock.release()
