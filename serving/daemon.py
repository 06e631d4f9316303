"""`jetloop-robot run`: wires the parts of one robot, tells its state, and ends with the motors at zero.

What each part does is in its module. Nothing here waits for the network: the robot boots with what its slots hold.
"""

import contextlib
import datetime
import fcntl
import importlib.metadata
import logging
import os
import platform
import secrets
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import click
import msgspec
import psutil

from serving.command_line import log_to_stderr
from serving.config import RobotConfig, load
from serving.contracts.events import RobotState, utc_now
from serving.control import Control, Status
from serving.decide import Action
from serving.engine.client import backend_file
from serving.engine.supervisor import Loaded, Supervisor
from serving.errors import OperatorError
from serving.guarded_motors import GuardedMotors
from serving.hardware import base
from serving.hardware.base import Frame
from serving.motors import DeadMan
from serving.mqtt import Link
from serving.outbox import Outbox
from serving.probation import Probation
from serving.recorder import Recorder
from serving.reporter import Reporter
from serving.shadow import Shadow
from serving.slots import Slots
from serving.systemd import Watchdog, notify
from serving.updater import Updater

log = logging.getLogger("robot")

LOCK_FILE = "robot.lock"
STATUS_FILE = "status.json"
_STATE_EVERY_S = 5.0
_LOOK_EVERY_S = 0.1
_CLOSE_WITHIN_S = 1.5
# Python's 5 ms would be the control thread's wait for any busy other one; a decision takes less.
_SWITCH_INTERVAL_S = 0.0005


class Daemon:
    """All that runs on one robot. A context manager: leaving it stops the motors and everything else.

    Raises:
        OperatorError: something of this machine is not as robot.toml says; nothing is left running.
    """

    def __init__(self, config: RobotConfig) -> None:
        self._config = config
        self._started_s = time.monotonic()
        self._told: Optional[RobotState] = None
        self._told_s = 0.0
        self._metrics_s = time.monotonic()
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
        self.reporter = Reporter(self.outbox, *who)
        self._closes("reporter", lambda: self.reporter.close(timeout_s=0.5))
        self.updater = Updater(
            config.repository,
            config.engine.target,
            robot.ring,
            self.slots,
            activate=lambda candidate: self.supervisor.activate(candidate),
            refused=self._refused,
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
        self.supervisor = Supervisor(config.engine, self.reporter, self.probation.failing)
        self._closes("engine", self.supervisor.close)
        guard = GuardedMotors.of(hardware, config.control.max_age_ms / 1e3)
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
        )
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
        if candidate is not None:
            self.supervisor.boot(candidate)
        self.control.start()
        self.link.start()
        self.probation.start()
        self.updater.start()
        if self.shadow is not None:
            self.shadow.start()

    def run(self, until: threading.Event) -> None:
        """Tells state and metrics until the event is set.

        Raises:
            OperatorError: the control loop ended by a fault.
        """
        self.start()
        notify("READY=1")
        watchdog = Watchdog()
        while not until.wait(_LOOK_EVERY_S):
            self.step()
            if self.control.crashed is not None:
                raise OperatorError(f"the control loop failed: {self.control.crashed!r}; the log has more")
            watchdog.pet()
        notify("STOPPING=1")
        self.probation.ended_well()

    def step(self) -> None:
        """Publishes the state when it changed or is old, and metrics when they are due."""
        now_s = time.monotonic()
        state = self._state(self.control.status())
        if _changed(state, self._told) or now_s - self._told_s >= _STATE_EVERY_S:
            if self._told is None or state.mode != self._told.mode:
                log.info("%s%s", state.mode, f": {state.reason}" if state.reason else "")
                notify(f"STATUS={state.mode}, release {state.release or 'none'}")
            state = self._with_vitals(state)
            self._told, self._told_s = state, now_s
            self.link.publish_state(state)
            self._write_status(state)
        if now_s - self._metrics_s >= self._config.metrics_interval_s:
            self._metrics_s = now_s
            shadow = {"shadow": self.shadow.take()} if self.shadow is not None else {}
            data = {**self.control.window.take(), "outbox_depth": self.outbox.depth(), **shadow}
            self.reporter.emit("metrics", data)

    def _state(self, status: Status) -> RobotState:
        config, candidate = self._config, self.supervisor.wanted
        passport = candidate.passport if candidate else None
        return RobotState(
            site=config.robot.site,
            robot=config.robot.name,
            session=self.session,
            online=True,
            at=utc_now(),
            mode=status.mode,
            reason=status.reason,
            ring=config.robot.ring,
            target=config.engine.target,
            release=passport.release_id if passport else "",
            model_version=passport.lineage.model_version if passport else "",
            engine=passport.engine.sha256 if passport else "",
            uptime_s=time.monotonic() - self._started_s,
            outbox_depth=self.outbox.depth(),
        )

    def _with_vitals(self, state: RobotState) -> RobotState:
        """Adds what costs more than a moment to find out."""
        body_c = self.control.readings.temperature_c
        return msgspec.structs.replace(
            state,
            temperature_c=hottest_c() if body_c is None else body_c,
            disk_free_mb=shutil.disk_usage(self._config.robot.state_dir).free / 1e6,
        )

    def _write_status(self, state: RobotState) -> None:
        """For `jetloop-robot status`. Not synced: after a power failure it says nothing anyway."""
        path = Path(self._config.robot.state_dir) / STATUS_FILE
        try:
            beside = path.with_suffix(".tmp")
            beside.write_bytes(msgspec.json.encode(StatusFile(state, self.outbox.next_sequence, os.getpid())))
            os.replace(beside, path)
        except OSError as problem:
            log.warning("%s: %s", path, problem.strerror)

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

    def _refused(self, release_id: str, engine_sha256: str, reason: str) -> None:
        self.reporter.emit("model.refused", {"release": release_id, "engine": engine_sha256, "reason": reason})

    def _shadow_refused(self, release_id: str, engine_sha256: str, reason: str) -> None:
        data = {"release": release_id, "engine": engine_sha256, "reason": reason, "shadow": True}
        self.reporter.emit("model.refused", data)


class StatusFile(msgspec.Struct, frozen=True):
    """What the daemon leaves in its state_dir for `jetloop-robot status`."""

    state: RobotState
    next_sequence: int
    pid: int

    def age_s(self) -> float:
        return (utc_now() - self.state.at).total_seconds()


def session_name(robot: str) -> str:
    """Names one start of the daemon: robot, UTC time, and four digits in case the clock was not set."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{robot[:70]}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


@contextlib.contextmanager
def only_one(state_dir: Path) -> Iterator[None]:
    """Holds a state_dir for this process alone; the lock falls with the process.

    Raises:
        OperatorError: another daemon holds it, or it cannot be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as problem:
        raise OperatorError(f"robot.state_dir {state_dir} cannot be written: {problem.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise OperatorError(f"another jetloop-robot runs with {state_dir}; stop it, or give this one its own") from None
    finally:
        os.close(descriptor)


def read_status(state_dir: Path) -> Tuple[StatusFile, bool]:
    """What the daemon said last, and whether it runs.

    Raises:
        OperatorError: no daemon ran here, or its files cannot be read.
    """
    path = state_dir / STATUS_FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=StatusFile)
        descriptor = os.open(state_dir / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        raise OperatorError(f"{path} is not there: no jetloop-robot ran with this state_dir yet") from None
    except (OSError, ValueError) as problem:  # msgspec's errors are ValueErrors
        raise OperatorError(f"{path} cannot be read: {problem}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return found, False
    except BlockingIOError:
        return found, True
    finally:
        os.close(descriptor)


def hottest_c() -> Optional[float]:
    """The hottest sensor of this machine in degrees Celsius; None where there is none."""
    sensors = psutil.sensors_temperatures()
    return max((entry.current for entries in sensors.values() for entry in entries), default=None)


def _check_engine(config: RobotConfig) -> None:
    """Finds before the first release comes what would keep every engine from starting."""
    backend_file(config.engine.target)
    python = config.engine.python
    if python and not os.access(python, os.X_OK):
        raise OperatorError(f"engine.python is `{python}`, which is not a program that can be run")


def _changed(state: RobotState, told: Optional[RobotState]) -> bool:
    if told is None:
        return True
    return (state.mode, state.reason, state.release) != (told.mode, told.reason, told.release)


def _end_in_time() -> None:
    """Ends the process when a part does not close; the motors, closed first, stand still by then."""

    def end() -> None:
        log.warning("not everything closed within %.1f s; leaving", _CLOSE_WITHIN_S)
        os._exit(0)

    timer = threading.Timer(_CLOSE_WITHIN_S, end)
    timer.daemon = True
    timer.start()


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default="robot.toml",
    show_default=True,
    help="The settings of this robot.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def command(config_path: Path, log_level: str) -> None:
    """Run the robot: camera, model, motors, updates and events.

    Reads robot.toml; keeps everything it must remember in robot.state_dir; logs to stderr. Without a model the robot
    stands still until a release comes. SIGTERM or Ctrl-C stop the motors and end it within two seconds.

    Example: jetloop-robot run --config robot.toml
    """
    config = load(config_path)
    log_to_stderr(log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with Daemon(config) as daemon:
        daemon.run(until=stop)
        log.info("stopping")
        _end_in_time()
    log.info("stopped")
