"""What the robot's tests share: tiny networks, slots to boot with, a scripted body; and the tests of these parts."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from serving import preprocess
from serving.contracts.releases import (
    MODEL_NAME,
    Channel,
    Decision,
    EngineFile,
    GoldenFrames,
    Lineage,
    Measured,
    Passport,
    file_path,
)
from serving.errors import OperatorError
from serving.hardware.base import Frame, Hardware, Readings
from serving.slots import Candidate

TARGET = "cpu-ort-fp32"
BRIGHT, DARK, BLACK = 200, 60, 2  # free, blocked, and what makes the fragile network answer NaN
MAX_AGE_S = 0.2
MOTORS_GONE = "the motor board does not answer; check its cable"


def logits_for(brightness: float) -> np.ndarray:
    """What the tiny network says to a frame of one brightness: bright is free."""
    return np.array([8 - brightness / 16, brightness / 16 - 8], np.float32)


def write_network(path: Path, *, shift: float = 0.0, nan_below: Optional[float] = None, convolutions: int = 0) -> None:
    """A network whose logits come from the mean brightness.

    Args:
        path: the .onnx file to write.
        shift: added to both logits.
        nan_below: the logits are NaN for a mean brightness below this.
        convolutions: so many layers of work that change nothing, to make it slower.
    """
    nodes = [
        helper.make_node("ReduceMean", ["frame"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["column"]),
        helper.make_node("MatMul", ["column", "weights"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["said"]),
    ]
    weights: Dict[str, np.ndarray] = {
        "axis": np.array([1], np.int64),
        "weights": np.array([[-1 / 16, 1 / 16]], np.float32),
        "bias": np.array([[8 + shift, -8 + shift]], np.float32),
        "zero": np.array([0], np.float32),
    }
    last = "said"
    if nan_below is not None:
        weights["limit"] = np.array([nan_below], np.float32)
        nodes += [
            helper.make_node("Sub", ["column", "limit"], ["above"]),
            helper.make_node("Sqrt", ["above"], ["root"]),  # NaN below the limit
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Add", [last, "nothing"], ["fragile"]),
        ]
        last = "fragile"
    if convolutions:
        nodes.append(helper.make_node("Transpose", ["frame"], ["image0"], perm=[0, 3, 1, 2]))
        weights["kernel"] = np.full((3, 3, 3, 3), 0.01, np.float32)
        for number in range(convolutions):
            names = [f"image{number}", "kernel"]
            nodes.append(helper.make_node("Conv", names, [f"image{number + 1}"], pads=[1, 1, 1, 1]))
        nodes += [
            helper.make_node("ReduceMean", [f"image{convolutions}"], ["work"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Mul", ["work", "zero"], ["no_work"]),
            helper.make_node("Add", [last, "no_work"], ["worked"]),
        ]
        last = "worked"
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, preprocess.INPUT_SHAPE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, preprocess.OUTPUT_SHAPE)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def frame_of(brightness: int) -> np.ndarray:
    return np.full(preprocess.FRAME_SHAPE, brightness, np.uint8)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def channel_of(release: str, sequence: int = 1) -> Channel:
    return Channel(
        channel="champion",
        sequence=sequence,
        release_id=release,
        model_version="1",
        passports={TARGET: file_path(release, TARGET, "passport.json")},
        issued_at="2026-01-01T00:00:00Z",
    )


def make_candidate(folder: Path, version: str = "1", **network: Any) -> Candidate:
    """A release as the updater hands it over: engine, golden frames by an unshifted network, passport."""
    folder.mkdir(parents=True, exist_ok=True)
    engine, golden = folder / "engine.onnx", folder / "golden.npz"
    write_network(engine, **network)
    levels = (BRIGHT, DARK, 128, 30)
    logits = np.stack([logits_for(level) for level in levels])
    np.savez(golden, frames=np.stack([frame_of(level) for level in levels]), logits=logits)
    release = f"{MODEL_NAME}-v{version}-{digest(engine)[:8]}"
    passport = Passport(
        release_id=release,
        target=TARGET,
        preprocessing=preprocess.PREPROCESSING,
        engine=EngineFile(
            path=file_path(release, TARGET, "engine.onnx"), sha256=digest(engine), bytes=engine.stat().st_size
        ),
        golden=GoldenFrames(
            path=file_path(release, TARGET, "golden.npz"),
            sha256=digest(golden),
            bytes=golden.stat().st_size,
            count=len(levels),
            tolerance=0.01,
        ),
        decision=Decision(),
        measured=Measured(parity_max_abs=0.0, latency_p50_ms=5.0, latency_p99_ms=9.0, machine="test"),
        gates=[],
        lineage=Lineage(
            model_name=MODEL_NAME,
            model_version=version,
            run_id="0" * 32,
            git_commit="0" * 40,
            git_dirty=False,
            data={},
            onnx_sha256=digest(engine),
        ),
        approver="test",
        approved_at="2026-01-01T00:00:00Z",
        built_at="2026-01-01T00:00:00Z",
    )
    (folder / "passport.json").write_bytes(msgspec.json.encode(passport))
    return Candidate(passport=passport, folder=folder, engine=engine, golden=golden, channel=channel_of(release))


class Moved(NamedTuple):
    at_s: float  # time.monotonic()
    left: float
    right: float


class ScriptedBody(Hardware):
    """A body whose camera shows what a test says, and whose motors write down what they were told, and when.

    Attributes:
        brightness: of the next frames; a test sets it.
        camera: `fine`, `silent` (no frame comes), `late` (frames are old) or `gone` (it raises).
        moves: every command that reached the motors; stopping is (0, 0).
        collisions: what its bumper counted; None: it has no bumper.
    """

    def __init__(self, brightness: int = BRIGHT, frames_per_s: float = 100.0) -> None:
        self.brightness = brightness
        self.camera = "fine"
        self.moves: List[Moved] = []
        self.frames = 0
        self.collisions: Optional[int] = None
        self.motors_fail = False
        self._period_s = 1 / frames_per_s
        self._next_s = time.monotonic()
        self._pixels = frame_of(0)

    def read(self, timeout_s: float) -> Optional[Frame]:
        if self.camera == "gone":
            raise OperatorError("the camera is gone; check its cable")
        if self.camera == "silent":
            time.sleep(timeout_s)
            return None
        self._next_s = max(self._next_s + self._period_s, time.monotonic() - self._period_s)
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self._pixels[:] = self.brightness
        self.frames += 1
        return Frame(self._pixels, time.monotonic() - (1.0 if self.camera == "late" else 0.0))

    def drive(self, left: float, right: float) -> None:
        if self.motors_fail:
            raise OperatorError(MOTORS_GONE)
        self.moves.append(Moved(time.monotonic(), left, right))

    def stop(self) -> None:
        if self.motors_fail:
            raise OperatorError(MOTORS_GONE)
        self.moves.append(Moved(time.monotonic(), 0.0, 0.0))

    def readings(self) -> Readings:
        return Readings(collisions=self.collisions)

    def close(self) -> None:
        self.stop()

    @property
    def moving(self) -> bool:
        return bool(self.moves) and self.moves[-1][1:] != (0.0, 0.0)

    @property
    def moved(self) -> bool:
        """Whether it was ever told anything but zero."""
        return any(move[1:] != (0.0, 0.0) for move in list(self.moves))

    def stood_still_at(self, after_s: float) -> Optional[float]:
        """When, after a moment, the motors were told zero and then nothing else."""
        moves = list(self.moves)
        still = None
        for move in reversed(moves):
            if move[1:] != (0.0, 0.0) or move.at_s < after_s:
                break
            still = move.at_s
        return still


class Heard:
    """In the reporter's place: keeps what it is told."""

    def __init__(self) -> None:
        self.events: List[tuple[str, Dict[str, Any]]] = []
        self.engine = ("", "")
        self._lock = threading.Lock()

    def emit(self, event_type: str, data: Optional[Dict[str, Any]] = None, captured_at: Any = None) -> None:
        with self._lock:
            self.events.append((event_type, {**(data or {}), "_engine": self.engine[1]}))

    def engine_is(self, release_id: str, engine_sha256: str) -> None:
        self.engine = (release_id, engine_sha256)

    def of(self, event_type: str) -> List[Dict[str, Any]]:
        with self._lock:
            return [data for kind, data in self.events if kind == event_type]


@pytest.mark.parametrize("brightness", [BRIGHT, DARK, 128])
def test_the_tiny_network_says_what_the_tests_expect(tmp_path: Path, brightness: int) -> None:
    """Its logits, by ONNX Runtime alone, are those that the tests compute."""
    write_network(tmp_path / "net.onnx", nan_below=10, convolutions=2)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    batch = np.full(preprocess.INPUT_SHAPE, brightness, np.float32)
    (logits,) = session.run(None, {"frame": batch})
    np.testing.assert_allclose(logits[0], logits_for(brightness), atol=1e-3)
