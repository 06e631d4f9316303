"""The daemon: wires the parts of one robot, and ends with the motors at zero.

What each part does is in its module; what is told of them, again and again, in teller.py. Nothing here waits for the
network: the robot boots with what its slots hold.
"""

import contextlib
import datetime
import importlib.metadata
import logging
import os
import platform
import secrets
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict

import msgspec

from serving.capture import Capture
from serving.config import RobotConfig
from serving.control import Control
from serving.decide import Action
from serving.engine.client import backend_file
from serving.engine.loading import Loaded
from serving.engine.supervisor import Supervisor
from serving.errors import OperatorError
from serving.guarded_motors import GuardedMotors
from serving.hardware import base
from serving.hardware.base import Frame
from serving.local.doors import Doors
from serving.local.glimpse import Glimpse
from serving.lock import only_one
from serving.motors import DeadMan
from serving.mqtt import Link
from serving.outbox import Outbox
from serving.probation import Probation
from serving.recorder import Recorder
from serving.reporter import Reporter
from serving.shadow import Shadow
from serving.slots import Slots
from serving.status import CaptureStatus
from serving.systemd import Watchdog, notify
from serving.teller import Teller
from serving.updater import Updater
from serving.upload import Uploads

log = logging.getLogger("robot")

_LOOK_EVERY_S = 0.1
_CONTROL_HANGS_S = 3.0  # without a turn of the control loop: the service manager's watchdog shall know


class Daemon:
    """All that runs on one robot. A context manager: leaving it stops the motors and everything else.

    Raises:
        OperatorError: something of this machine is not as robot.toml says; nothing is left running.
    """

    def __init__(self, config: RobotConfig) -> None:
        self._config = config
        self._parts = contextlib.ExitStack()
        try:
            self._make()
        except BaseException:
            self._parts.close()
            raise

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def _make(self) -> None:
        """The table of what runs. It is closed from the bottom up: motors first, the lock last."""
        config, robot = self._config, self._config.robot
        state = Path(robot.state_dir)
        self.session = session_name(robot.name)
        who = (robot.site, robot.name, self.session)
        _check_engine(config)
        self._parts.enter_context(only_one(state))
        self.outbox = Outbox(state / "outbox.db", int(config.outbox.max_mb * 1e6), config.outbox.max_age_h * 3600)
        self._closes("outbox", self.outbox.close)
        self.slots = Slots(state / "slots", probation=config.probation.duration_s > 0)
        hardware = base.load(config.hardware.kind, config.hardware.options)
        self._closes("hardware", hardware.close)
        record_at = Path(config.recorder.path or state / "decisions.csv")
        recorder = Recorder(record_at, int(config.recorder.max_mb * 1e6))
        self._closes("recorder", recorder.close)
        self.link = Link(config.mqtt, self.outbox, *who, ring=robot.ring, on_wakeup=lambda: self.updater.wake())
        self._closes("link", lambda: self.link.stop(timeout_s=0.8))
        self._ending = threading.Event()
        self.reporter = Reporter(self.outbox, *who)
        self._closes("reporter", lambda: self.reporter.close(timeout_s=0.5))
        self.updater = Updater(
            config.repository,
            config.engine.target,
            robot.ring,
            self.slots,
            activate=lambda candidate: self.supervisor.activate(candidate, candidate.cause),
            refused=self._refused,
            robot=robot.name,
            stand_still=lambda why: self.supervisor.dismiss(why),
        )
        self._closes("updater", lambda: self.updater.stop(timeout_s=0.3))
        self.probation = Probation(
            config.probation,
            self.slots,
            activate=lambda candidate: self.supervisor.activate(candidate, "going-back"),
            reporter=self.reporter,
            ended=self.updater.wake,
        )
        self._closes("probation", self.probation.close)
        self.shadow = Shadow.of(config, self._shadow_refused)
        if self.shadow is not None:
            self._closes("shadow", self.shadow.close)
            self.link.listen(config.shadow.channel, self.shadow.wake)
        self.glimpse = Glimpse(config.page.frames_per_s)
        self.capture = Capture(state / "captures", config.capture, robot.name)
        self.uploads = Uploads(config.upload, self.capture)
        self._closes("uploads", self.uploads.close)
        self.supervisor = Supervisor(config.engine, self.reporter, self.probation.failing)
        self._closes("engine", self.supervisor.close)
        guard = GuardedMotors.of(
            hardware,
            config.control.max_age_ms / 1e3,
            restarted=self._guard_restarted,
        )
        if guard is not None:
            self._closes("motor guard", guard.close)
        motors = DeadMan(guard or hardware, config.control.max_age_ms / 1e3)
        self._closes("motors", motors.close)
        self.control = Control(
            hardware,
            config.control,
            config.engine.decide_timeout_ms / 1e3,
            self.supervisor,
            motors,
            recorder,
            self.reporter,
            self._decided,
            self.glimpse.offer,
        )
        self.teller = Teller(
            config,
            self.session,
            self.control,
            self.supervisor,
            self.outbox,
            self.link,
            self.reporter,
            self.shadow,
            self._captured,
        )
        self.doors = Doors(
            config,
            control=self.control,
            probation=self.probation,
            slots=self.slots,
            reporter=self.reporter,
            glimpse=self.glimpse,
            capture=self.capture,
            uploads=self.uploads,
            teller=self.teller,
        )
        self._closes("socket and page", self.doors.close)
        self._closes("control", self.control.close)

    def _closes(self, name: str, close: Callable[[], None]) -> None:
        """What is made is closed, whatever becomes of the others."""

        def close_and_tell() -> None:
            try:
                close()
            except Exception:
                log.exception("%s did not close as it should", name)

        self._parts.callback(close_and_tell)

    def start(self) -> None:
        """Boots with the slot that ran last, then lets the network in."""
        candidate = self.probation.boot()
        target = self._config.engine.target
        if candidate is not None and candidate.passport.target != target:
            log.warning("the slot holds an engine for %s, this robot is %s", candidate.passport.target, target)
            candidate = None
        booted = candidate.passport.release_id if candidate else ""
        log.info("session %s, %s", self.session, f"booting with {booted}" if booted else "no model yet: standing still")
        self.reporter.emit("robot.started", self._about(booted))
        if self.slots.damage:
            self.teller.troubles["slots"] = self.slots.damage
            self.reporter.emit("slots.damaged", {"release": booted, "detail": self.slots.damage})
        if candidate is not None:
            self.supervisor.boot(candidate)
        self.control.start()
        self.link.start()
        self.probation.start()
        self.updater.start()
        if self.shadow is not None:
            self.shadow.start()
        self.uploads.start()
        self.doors.start()

    def run(self, until: threading.Event) -> None:
        """Tells state and metrics until the event is set.

        Raises:
            OperatorError: the control loop ended by a fault.
        """
        self._ending = until
        self.start()
        notify("READY=1")
        watchdog = Watchdog()
        while not until.wait(_LOOK_EVERY_S):
            self.teller.step()
            if self.control.crashed is not None:
                raise OperatorError(f"the control loop failed: {self.control.crashed!r}; the log has more")
            if time.monotonic() - self.control.turned_s < _CONTROL_HANGS_S:
                watchdog.pet()
        notify("STOPPING=1")
        self.probation.ended_well()

    def _about(self, release: str) -> Dict[str, Any]:
        config = self._config
        return {
            "version": importlib.metadata.version("jetloop"),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "hardware": config.hardware.kind,
            "target": config.engine.target,
            "ring": config.robot.ring,
            "release": release,
        }

    def _decided(self, loaded: Loaded, frame: Frame, action: Action, latency_ms: float) -> None:
        self.probation.decided(loaded, action.motion, latency_ms)
        if self.shadow is not None:
            self.shadow.offer(loaded, frame, action)

    def _captured(self) -> CaptureStatus:
        return msgspec.structs.replace(self.capture.status(), upload=self.uploads.said)

    def _guard_restarted(self, data: Dict[str, Any]) -> None:
        if not self._ending.is_set():  # a service manager ends the guard with the daemon, and that is no news
            self.reporter.emit("motors.guard-restarted", data)

    def _refused(self, release_id: str, engine_sha256: str, reason: str) -> None:
        self.reporter.emit("model.refused", {"release": release_id, "engine": engine_sha256, "reason": reason})

    def _shadow_refused(self, release_id: str, engine_sha256: str, reason: str) -> None:
        data = {"release": release_id, "engine": engine_sha256, "reason": reason, "shadow": True}
        self.reporter.emit("model.refused", data)


def session_name(robot: str) -> str:
    """Names one start of the daemon: robot, UTC time, and four digits in case the clock was not set."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{robot[:70]}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def _check_engine(config: RobotConfig) -> None:
    """Finds before the first release comes what would keep every engine from starting."""
    backend_file(config.engine.target)
    python = config.engine.python
    if python and not os.access(python, os.X_OK):
        raise OperatorError(f"engine.python is `{python}`, which is not a program that can be run")
