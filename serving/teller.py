"""What the daemon tells, again and again: its state to the broker and into status.json, metrics to the outbox."""

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import msgspec
import psutil

from serving.config import RobotConfig
from serving.contracts.events import RobotState, utc_now
from serving.control import Control, Status
from serving.engine.supervisor import Supervisor
from serving.hardware import sensors
from serving.mqtt import Link
from serving.outbox import Outbox
from serving.reporter import Reporter
from serving.shadow import Shadow
from serving.status import STATUS_FILE, CaptureStatus, StatusFile
from serving.systemd import notify

log = logging.getLogger("robot")

_STATE_EVERY_S = 5.0


class Teller:
    """Builds the robot's state, and tells it when it changed or is old.

    Args:
        config: robot.toml.
        session: this start of the daemon.
        capture: asked for what is captured, whenever somebody asks.

    Attributes:
        troubles: by part: what does not work as it should, and does not keep the robot from driving. Any thread sets
            an entry, or empties it.
    """

    def __init__(
        self,
        config: RobotConfig,
        session: str,
        control: Control,
        supervisor: Supervisor,
        outbox: Outbox,
        link: Link,
        reporter: Reporter,
        shadow: Optional[Shadow],
        capture: Callable[[], CaptureStatus],
    ) -> None:
        self._config, self._session = config, session
        self._control, self._supervisor = control, supervisor
        self._outbox, self._link, self._reporter, self._shadow = outbox, link, reporter, shadow
        self._capture = capture
        self._state_dir = Path(config.robot.state_dir)
        self.troubles: Dict[str, str] = {}
        self._started_s = time.monotonic()
        self._told: Optional[RobotState] = None
        self._told_s = 0.0
        self._metrics_s = time.monotonic()
        self._vitals: Tuple[Optional[float], Optional[float]] = (None, None)  # °C, free MB; as of the last telling

    def step(self) -> None:
        """Publishes the state when it changed or is old, and metrics when they are due."""
        now_s = time.monotonic()
        state = self._state(self._control.status())
        if _changed(state, self._told) or now_s - self._told_s >= _STATE_EVERY_S:
            if self._told is None or state.mode != self._told.mode:
                log.info("%s%s", state.mode, f": {state.reason}" if state.reason else "")
                notify(f"STATUS={state.mode}, release {state.release or 'none'}")
            self._look_at_vitals()
            state = self._with_vitals(state)
            self._told, self._told_s = state, now_s
            self._link.publish_state(state)
            self._write(self._status_of(state))
        if now_s - self._metrics_s >= self._config.metrics_interval_s:
            self._metrics_s = now_s
            shadow = {"shadow": self._shadow.take()} if self._shadow is not None else {}
            data = {**self._control.window.take(), "outbox_depth": self._outbox.depth(), **shadow}
            self._reporter.emit("metrics", data)

    def status(self) -> StatusFile:
        """What the robot does at this moment. Any thread."""
        return self._status_of(self._with_vitals(self._state(self._control.status())))

    def _state(self, status: Status) -> RobotState:
        config, candidate = self._config, self._supervisor.wanted
        passport = candidate.passport if candidate else None
        return RobotState(
            site=config.robot.site,
            robot=config.robot.name,
            session=self._session,
            online=True,
            at=utc_now(),
            mode=status.mode,
            reason=status.reason or self.troubles.get("slots", ""),
            ring=config.robot.ring,
            target=config.engine.target,
            release=passport.release_id if passport else "",
            model_version=passport.lineage.model_version if passport else "",
            engine=passport.engine.sha256 if passport else "",
            uptime_s=time.monotonic() - self._started_s,
            outbox_depth=self._outbox.depth(),
        )

    def _look_at_vitals(self) -> None:
        """What costs more than a moment to find out."""
        body_c = self._control.readings.temperature_c
        celsius = hottest_c() if body_c is None else body_c
        try:
            free_mb: Optional[float] = shutil.disk_usage(self._state_dir).free / 1e6
        except OSError:  # _write() says what is wrong with it
            free_mb = None
        self._vitals = celsius, free_mb

    def _with_vitals(self, state: RobotState) -> RobotState:
        temperature_c, disk_free_mb = self._vitals
        return msgspec.structs.replace(state, temperature_c=temperature_c, disk_free_mb=disk_free_mb)

    def _status_of(self, state: RobotState) -> StatusFile:
        last = self._control.last
        return StatusFile(
            state,
            self._outbox.next_sequence,
            os.getpid(),
            p_blocked=last.action.p_blocked if last else None,
            action=last.action.motion.value if last else "",
            latency_ms=last.latency_ms if last else None,
            troubles=_texts(self.troubles),
            capture=self._capture(),
        )

    def _write(self, status: StatusFile) -> None:
        """For who asks when nobody answers. Not synced: after a power failure it says nothing anyway."""
        path = self._state_dir / STATUS_FILE
        try:
            beside = path.with_suffix(".tmp")
            beside.write_bytes(msgspec.json.encode(status))
            os.replace(beside, path)
            problem = ""
        except OSError as error:
            problem = f"state_dir cannot be written ({error.strerror}): nothing is remembered, events wait in memory"
        if problem and problem != self.troubles.get("disk"):
            log.error("%s", problem)
        self.troubles["disk"] = problem


def hottest_c() -> Optional[float]:
    """The hottest sensor of this machine in degrees Celsius; None where there is none."""
    zone_c = sensors.hottest_zone_c()  # knows which of a Jetson's zones is no sensor
    if zone_c is not None:
        return zone_c
    found = psutil.sensors_temperatures()
    return max((entry.current for entries in found.values() for entry in entries), default=None)


def _texts(troubles: Dict[str, str]) -> List[str]:
    return [text for text in list(troubles.values()) if text]


def _changed(state: RobotState, told: Optional[RobotState]) -> bool:
    if told is None:
        return True
    return (state.mode, state.reason, state.release) != (told.mode, told.reason, told.release)
