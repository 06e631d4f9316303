"""What the robot's measurements share: real networks as releases, a camera in memory, the loop as the daemon has it.

Motors are driven by the real motor guard, in its own process; what it did, and when, is read from their memory.
"""

import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, Optional

import msgspec
import numpy as np

from serving import preprocess
from serving.config import ControlSettings, EngineSettings
from serving.contracts.releases import EngineFile, GoldenFrames
from serving.control import Control
from serving.engine.supervisor import Supervisor
from serving.guarded_motors import GuardedMotors
from serving.hardware.base import Frame, Hardware, MotorsElsewhere, Readings
from serving.motors import DeadMan
from serving.recorder import Recorder
from serving.slots import Candidate
from simulator.motors import CellMotors
from tests.test_robot_parts import TARGET, Heard, digest, make_candidate

MAX_AGE_S = 0.2
# Asleep between two looks, as a loop that waits for its camera is: spinning here would keep a core that the guard may
# have been put on, for milliseconds. When the motors were set is the guard's own time, so this blurs nothing.
_LOOK_EVERY_S = 0.0001
_FRAMES = 16  # different ones, so that no cache of a processor flatters


def export(backbone: str, seed: int, resolution: int = 224) -> bytes:
    """An untrained network as ONNX: how long it takes does not depend on its weights."""
    import torch

    from pipelines.export import to_onnx
    from training.model import Network

    torch.manual_seed(seed)
    return to_onnx(Network(backbone, resolution))


def release_of(model: bytes, folder: Path, version: str) -> Candidate:
    """A release of a network, with golden frames that fit it."""
    from pipelines.export import logits_of_onnx

    made = make_candidate(folder, version)
    frames = noise(4)
    made.engine.write_bytes(model)
    np.savez(made.golden, frames=frames, logits=logits_of_onnx(model, frames))
    passport = msgspec.structs.replace(
        made.passport,
        release_id=f"collision-avoidance-v{version}-{digest(made.engine)[:8]}",
        engine=EngineFile(path=made.passport.engine.path, sha256=digest(made.engine), bytes=len(model)),
        golden=GoldenFrames(
            path=made.passport.golden.path,
            sha256=digest(made.golden),
            bytes=made.golden.stat().st_size,
            count=len(frames),
            tolerance=0.01,
        ),
    )
    (folder / "passport.json").write_bytes(msgspec.json.encode(passport))
    return Candidate(passport, folder, made.engine, made.golden, made.channel)


def noise(count: int) -> np.ndarray:
    """(count, 224, 224, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, *preprocess.FRAME_SHAPE), dtype=np.uint8)


class Given(NamedTuple):
    """A frame, and when it reached the motors."""

    captured_s: float  # time.monotonic()
    acted_s: float


class MemoryBody(Hardware):
    """A camera that plays frames from memory, at a rate or as fast as they are read, and motors behind the guard.

    Args:
        motors: path of the motors' memory, for a daemon in another process; empty: memory of its own.
        fps: frames a second; 0: there is always a new one.
        log: taken and not used; the tests' robot.toml has it.

    Attributes:
        playing: whether frames come.
        lockstep: whether the next frame waits until the guard has set the motors for the last one.
        given: one entry a frame in lockstep.
        due, read_count: how many frames came since play(), and how many of them were read.
    """

    def __init__(self, motors: str = "", fps: float = 30.0, log: str = "") -> None:
        self._motors = CellMotors(motors)
        self._frames = noise(_FRAMES)
        self._period_s = 1 / fps if fps else 0.0
        self.playing = threading.Event()
        self.lockstep = False
        self.given: list[Given] = []
        self._last_s: Optional[float] = None  # captured_at of the last frame in lockstep
        self._begun_s = 0.0
        self.due = self.read_count = 0
        if motors:
            self.play(fps)

    def play(self, fps: float, lockstep: bool = False) -> None:
        self._period_s = 1 / fps if fps else 0.0
        self.lockstep, self._last_s, self.given = lockstep, None, []
        self.due = self.read_count = 0
        self._begun_s = time.monotonic()
        self.playing.set()

    def motors(self) -> MotorsElsewhere:
        return MotorsElsewhere("simulator.motors:CellMotors", {"path": self._motors.path})

    @property
    def told(self) -> "tuple[float, float, float]":
        """What the motors were told last: when (time.monotonic()), left, right."""
        return self._motors.command()

    def read(self, timeout_s: float) -> Optional[Frame]:
        if not self.playing.wait(timeout_s):
            return None
        if self._last_s is not None:
            self._note_when_done(self._last_s)
        if self._period_s:
            number = max(self.due + 1, int((time.monotonic() - self._begun_s) / self._period_s))
            time.sleep(max(0.0, self._begun_s + number * self._period_s - time.monotonic()))
            self.due = number
        else:
            self.due += 1
        self.read_count += 1
        captured_s = time.monotonic()
        self._last_s = captured_s if self.lockstep else None
        return Frame(self._frames[self.read_count % _FRAMES], captured_s)

    def _note_when_done(self, captured_s: float) -> None:
        give_up_s = time.monotonic() + 0.05
        while time.monotonic() < give_up_s:
            acted_s = self._motors.command()[0]
            if acted_s > captured_s:
                self.given.append(Given(captured_s, acted_s))
                return
            time.sleep(_LOOK_EVERY_S)

    def drive(self, left: float, right: float) -> None:
        self._motors.drive(left, right)

    def stop(self) -> None:
        self._motors.stop()

    def readings(self) -> Readings:
        return Readings()

    def close(self) -> None:
        self.stop()


class Rig:
    """Supervisor, worker, guard, handle, loop and recorder, wired as in serving/daemon.py."""

    def __init__(self, folder: Path, **engine: Any) -> None:
        self.body = MemoryBody()
        self.heard = Heard()
        self.decisions = folder / "decisions.csv"
        self.recorder = Recorder(self.decisions, 1_000_000_000)
        self.supervisor = Supervisor(EngineSettings(target=TARGET, **engine), self.heard)
        self.guard = GuardedMotors.of(self.body, MAX_AGE_S)
        assert self.guard is not None
        self.motors = DeadMan(self.guard, MAX_AGE_S)
        self.control = Control(
            self.body, ControlSettings(), 0.15, self.supervisor, self.motors, self.recorder, self.heard
        )
        self.control.start()

    def close(self) -> None:
        self.control.close()
        self.supervisor.close()
        if self.guard is not None:
            self.guard.close()
        self.recorder.close()
