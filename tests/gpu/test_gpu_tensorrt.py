"""What needs a GPU, a driver and TensorRT: `make test-gpu`, on a Jetson or a PC with a GPU. Skipped everywhere else.

    JETLOOP_ENGINE_PYTHON   the interpreter that has tensorrt, pycuda and numpy; JetPack's /usr/bin/python3
    JETLOOP_TARGET          what this board is, such as jetson-nano-trt8.2-fp16
    JETLOOP_EXPORT          a folder with model.onnx and golden.npz, of `dvc repro`: an ordinary network, not a tiny one

Not yet run on any GPU: neither on a Jetson nor on a PC. The first run is to be noted in docs/jetson.md.
"""

import os
import signal
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from serving import build_engine, build_tensorrt, preprocess
from serving.build_order import Ordered
from serving.config import EngineSettings
from serving.contracts.builds import BuildOrder
from serving.contracts.releases import EngineFile
from serving.contracts.targets import kind_of
from serving.engine.board import wrong_board
from serving.engine.check import measure, read_golden
from serving.engine.client import Engine, EngineFailed
from serving.errors import OperatorError, RejectedError
from serving.files import sha256_of

TARGET = os.environ.get("JETLOOP_TARGET", "jetson-nano-trt8.2-fp16")
SETTINGS = EngineSettings(target=TARGET, python=os.environ.get("JETLOOP_ENGINE_PYTHON", ""), start_timeout_s=180)
LIMITS = build_engine.Limits()


@pytest.fixture(scope="session", autouse=True)
def gpu() -> "dict[str, str]":
    """What this machine is, as the engine's interpreter says; the end of the test where it has no GPU."""
    try:
        return build_engine._run([build_tensorrt.__file__], SETTINGS, 120)
    except (OperatorError, RejectedError) as problem:
        pytest.skip(f"no GPU for this: {problem}")


@pytest.fixture(scope="session")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Ordered:
    """An order for the network of JETLOOP_EXPORT, as the release service would give."""
    export = Path(os.environ.get("JETLOOP_EXPORT", "build/export"))
    if not (export / "model.onnx").is_file():
        pytest.skip(f"{export} holds no model.onnx and golden.npz: set JETLOOP_EXPORT")
    folder = tmp_path_factory.mktemp("order")
    files = []
    for name in ("model.onnx", "golden.npz"):
        (folder / name).write_bytes((export / name).read_bytes())
        size = (folder / name).stat().st_size
        files.append(EngineFile(path=f"releases/r/{TARGET}/{name}", sha256=sha256_of(folder / name), bytes=size))
    order = BuildOrder(
        release_id="r", target=TARGET, preprocessing=preprocess.PREPROCESSING, opset=13, onnx=files[0], golden=files[1]
    )
    return Ordered(order, folder / "model.onnx", folder / "golden.npz", None)


@pytest.fixture(scope="session")
def made(ordered: Ordered) -> build_engine.Made:
    """Built on this board, and measured; minutes on a Jetson Nano."""
    build_engine.check_before(ordered, SETTINGS, LIMITS)
    started = time.monotonic()
    found = build_engine.make(ordered, SETTINGS, LIMITS)
    print(f"built in {time.monotonic() - started:.0f} s: {found.key}, {found.measured}")
    return found


def test_the_board_is_what_its_target_says(gpu: "dict[str, str]") -> None:
    """Compute capability and the beginning of the version are those of the table."""
    kind = kind_of(TARGET)
    assert gpu["compute_capability"] == kind.compute_capability
    assert wrong_board(kind) == ""


def test_the_engine_answers_as_the_trained_network(made: build_engine.Made) -> None:
    """fp16 within 0.05 of a logit over the golden frames, and quicker than a camera's 30 frames a second."""
    assert made.measured.parity_max_abs < (0.5 if made.key.precision == "int8" else 0.05)
    assert made.measured.latency_p99_ms < 1000 / 30


def test_loading_it_again_and_again_leaves_nothing_behind(made: build_engine.Made, ordered: Ordered) -> None:
    """20 workers, one after the other: each answers; memory of the machine is back afterwards."""
    frames, logits = read_golden(ordered.golden)
    before = psutil.virtual_memory().available
    for _ in range(20):
        engine = Engine(made.engine, SETTINGS, made.key)
        measure(engine, frames, logits, SETTINGS, 1)
        engine.close()
    assert before - psutil.virtual_memory().available < 100e6


def test_the_memory_of_a_worker_stays(made: build_engine.Made, ordered: Ordered) -> None:
    """Buffers are made once: 5,000 inferences do not grow the process."""
    frames, _ = read_golden(ordered.golden)
    engine = Engine(made.engine, SETTINGS, made.key)
    try:
        for _ in range(200):
            engine.infer(frames[0], 5.0)
        begun_mb = engine.memory_mb()
        for number in range(5000):
            assert np.isfinite(engine.infer(frames[number % len(frames)], 5.0)).all()
        assert engine.memory_mb() - begun_mb < 5
    finally:
        engine.close()


def test_two_engines_are_loaded_beside_each_other(made: build_engine.Made, ordered: Ordered) -> None:
    """As at a swap: the second is loaded while the first answers, and kill -9 of one leaves the other alone."""
    frames, _ = read_golden(ordered.golden)
    first, second = Engine(made.engine, SETTINGS, made.key), Engine(made.engine, SETTINGS, made.key)
    try:
        same = first.infer(frames[0], 5.0), second.infer(frames[0], 5.0)
        np.testing.assert_allclose(*same, atol=1e-3)
        os.kill(first.pid, signal.SIGKILL)
        second.infer(frames[0], 5.0)
    finally:
        first.kill()
        second.close()


@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.999])
def test_an_engine_that_is_not_whole_is_refused(made: build_engine.Made, tmp_path: Path, keep: float) -> None:
    """Cut off anywhere: in words, and by an exit that is not a crash."""
    content = made.engine.read_bytes()
    (tmp_path / "cut.engine").write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(EngineFailed, match="cannot be loaded: ValueError"):
        Engine(tmp_path / "cut.engine", SETTINGS)


def test_what_is_no_engine_is_refused(ordered: Ordered) -> None:
    """An ONNX file in the place of an engine."""
    with pytest.raises(EngineFailed, match="no engine"):
        Engine(ordered.onnx, SETTINGS)


@pytest.mark.parametrize("change", [{"compute_capability": "3.7"}, {"runtime_version": "7.1.3.0"}])
def test_an_engine_of_another_key_is_refused(made: build_engine.Made, change: "dict[str, str]") -> None:
    """Before it is loaded, with both sides named."""
    with pytest.raises(RejectedError, match=r"the engine was built for .*, this robot has"):
        Engine(made.engine, SETTINGS, msgspec.structs.replace(made.key, **change))
