"""The TensorRT backend against stand-ins of three versions of TensorRT and of pycuda (tests/simulators/).

No GPU here: what is proven is which calls it makes, in which order, and what it says of everything it refuses. On a
robot: `make test-gpu`, docs/jetson.md.
"""

import dataclasses
import json
import sys
import threading
from pathlib import Path
from typing import Any, List

import msgspec
import numpy as np
import pytest

from serving import preprocess
from serving.config import EngineSettings
from serving.contracts.releases import EngineKey
from serving.engine import board, tensorrt_backend, worker
from serving.engine.client import Engine, EngineFailed
from serving.engine.loading import load as load_candidate
from serving.errors import OperatorError, RejectedError
from serving.slots import Candidate
from tests.conftest import ROOT
from tests.simulators.tensorrt_stand_in import FLOAT_ENDS, MAGIC, VERSIONS, Gpu, engine_file, install, tensorrt_module
from tests.test_robot_parts import BRIGHT, DARK, frame_of, logits_for, make_candidate

EXECUTES = {"8.2.1.8": "execute_async_v2", "8.5.2.2": "execute_async_v3", "10.3.0": "execute_async_v3"}
NANO = EngineKey(
    board="jetson-nano", compute_capability="5.3", runtime_version="8.2.1.8", precision="fp16", onnx_sha256="0" * 64
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU as the Jetson Nano has it; what a test puts into sys.modules is taken out again."""
    for name in ("tensorrt", "tensorrt_rtx", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    return Gpu()


def load(folder: Path, content: bytes) -> Any:
    file = folder / "engine.engine"
    file.write_bytes(content)
    return tensorrt_backend.Backend(str(file), 1, preprocess)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_is_driven_by_what_it_has(gpu: Gpu, tmp_path: Path, version: str) -> None:
    """8.2 by bindings, 8.5 and 10 by named tensors; each answer is that of the frame before it."""
    install(version, gpu)
    backend = load(tmp_path, engine_file(version))
    assert backend.name == f"TensorRT {version}"
    assert np.isnan(backend.logits).all(), "there is no answer before the first run"
    for brightness in (BRIGHT, DARK, BRIGHT):
        preprocess.into(frame_of(brightness), backend.batch)  # type: ignore[no-untyped-call]
        backend.run()
        np.testing.assert_allclose(backend.logits[0], logits_for(brightness), atol=1e-3)
    backend.close()
    run = ["memcpy_htod_async", EXECUTES[version], "memcpy_dtoh_async", "synchronize"]
    assert gpu.calls == [
        *["init", "make_context", "Runtime", "deserialize_cuda_engine", "create_execution_context"],
        *["pagelocked_empty", "pagelocked_empty", "mem_alloc", "mem_alloc", "Stream"],
        *(run * 3),
        *["free", "free", "context.pop", "context.detach"],
    ]
    assert not gpu.stack


def test_closing_twice_is_closing_once(gpu: Gpu, tmp_path: Path) -> None:
    """The context is popped once, whoever closes again."""
    install("8.2.1.8", gpu)
    backend = load(tmp_path, engine_file())
    backend.close()
    backend.close()
    assert gpu.calls.count("context.pop") == 1


def ends(**changes: "dict[int, Any]") -> List[Any]:
    """Input and output of a network; `changes` says what differs, such as frame={0: "image"} for the input's name."""
    made: List[Any] = json.loads(json.dumps(FLOAT_ENDS))
    for end in made:
        for place, value in changes.get(end[0], {}).items():
            end[place] = value
    return made


BAD_ENGINES = {
    "empty": (b"", "the engine is an empty file"),
    "no engine": (b"\x08\x01onnx", "no engine of TensorRT.*Magic tag"),
    "cut off": (engine_file()[:-20], "is not whole"),
    "other version": (engine_file(version="8.5.2.2"), "another version of TensorRT than TensorRT 8.2.1.8"),
    "other GPU": (engine_file(capability="7.2"), "another compute capability.*expecting compute 5.3 got compute 7.2"),
    "no memory": (engine_file().replace(b"}", b', "fits": false}'), "no memory on the GPU"),
    "input name": (engine_file(ends=ends(frame={0: "image"})), "input `image`.*a robot has input `frame`"),
    "output name": (engine_file(ends=ends(logits={0: "prob"})), "output `prob`"),
    "input shape": (engine_file(ends=ends(frame={2: [1, 3, 224, 224]})), r"\(1, 3, 224, 224\)"),
    "dynamic shape": (engine_file(ends=ends(frame={2: [-1, 224, 224, 3]})), r"\(-1, 224, 224, 3\)"),
    "output shape": (engine_file(ends=ends(logits={2: [1, 1000]})), r"\(1, 1000\)"),
    "input type": (engine_file(ends=ends(frame={3: "HALF"})), "`frame`.*of another type"),
    "one end": (engine_file(ends=FLOAT_ENDS[:1]), "the engine has input `frame`"),
    "swapped": (engine_file(ends=ends(frame={1: False}, logits={1: True})), "output `frame`"),
}


@pytest.mark.parametrize("version", ["8.2.1.8", "10.3.0"])
@pytest.mark.parametrize("which", BAD_ENGINES)
def test_every_bad_engine_is_named(gpu: Gpu, tmp_path: Path, which: str, version: str) -> None:
    """In one line that says what is wrong with it; the context is gone again afterwards."""
    content, said = BAD_ENGINES[which]
    if version != "8.2.1.8" and which != "other version":
        content, said = content.replace(b"8.2.1.8", version.encode()), said.replace("8.2.1.8", version)
    if which == "other version":
        said = said.replace("8.2.1.8", version)
    install(version, gpu)
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert gpu.calls[-2:] == ["context.pop", "context.detach"]
    assert not gpu.stack
    assert all(memory is None for memory in gpu.memory.values())


def test_an_engine_that_stops_working_gives_no_old_answer(gpu: Gpu, tmp_path: Path) -> None:
    """What TensorRT does not take raises, with TensorRT's words."""
    install("8.2.1.8", gpu, takes=False)
    backend = load(tmp_path, engine_file())
    with pytest.raises(RuntimeError, match=r"did not run the engine.*illegal memory access"):
        backend.run()
    backend.close()


def test_a_machine_without_a_gpu_is_not_the_engines_fault(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No TensorRT, no pycuda, no driver, no GPU: an ImportError of its own kind, by which the worker tells."""
    with pytest.raises(tensorrt_backend.NoRuntime, match="no TensorRT"):
        load(tmp_path, engine_file())
    install("8.2.1.8", gpu)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.delattr(sys.modules["pycuda"], "driver")
    with pytest.raises(tensorrt_backend.NoRuntime, match="no pycuda, or no NVIDIA driver"):
        load(tmp_path, engine_file())
    install("8.2.1.8", Gpu(broken="cuInit failed: no CUDA-capable device is detected"))
    with pytest.raises(tensorrt_backend.NoRuntime, match="no NVIDIA driver that works: cuInit failed"):
        load(tmp_path, engine_file())
    install("8.2.1.8", Gpu(count=0))
    with pytest.raises(tensorrt_backend.NoRuntime, match="finds no GPU"):
        load(tmp_path, engine_file())


def test_the_machine_says_what_it_is(gpu: Gpu) -> None:
    """Version and compute capability, as an engine's key holds them."""
    install("8.2.1.8", gpu)
    assert tensorrt_backend.machine() == {"runtime_version": "8.2.1.8", "compute_capability": "5.3"}  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"runtime_version": "8.5.2.2"}, "built for runtime version 8.5.2.2, this robot has 8.2.1.8"),
        ({"compute_capability": "7.2"}, "built for compute capability 7.2, this robot has 5.3"),
        ({"runtime_version": "", "compute_capability": ""}, ""),
    ],
)
def test_an_engine_of_another_key_is_not_even_loaded(gpu: Gpu, change: "dict[str, str]", said: str) -> None:
    """What differs is named, before anything of the engine is read; what the key leaves open fits."""
    install("8.2.1.8", gpu)
    key = msgspec.to_builtins(msgspec.structs.replace(NANO, **change))
    found = worker.misfit(tensorrt_backend, key)  # type: ignore[no-untyped-call]
    assert found == said or said in found.split("; ")[-1]
    assert bool(found) == bool(said)
    assert "make_context" not in gpu.calls


JETPACK = """#!/bin/sh
PYTHONPATH="{folder}:{root}" exec "{python}" "$@"
"""
TENSORRT = """
import sys
from tests.simulators.tensorrt_stand_in import Gpu, install
sys.modules.pop("tensorrt", None)
install("{version}", Gpu(broken="{broken}"))
"""


def jetpack(folder: Path, version: str = "8.2.1.8", broken: str = "") -> str:
    """An interpreter that has the stand-ins where JetPack's has TensorRT and pycuda; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensorrt.py").write_text(TENSORRT.format(version=version, broken=broken))
    python = folder / "python"
    python.write_text(JETPACK.format(folder=folder, root=ROOT, python=sys.executable))
    python.chmod(0o755)
    return str(python)


def settings(python: str) -> EngineSettings:
    return EngineSettings(target="jetson-nano-trt8.2-fp16", python=python)


def test_a_worker_process_drives_with_it(tmp_path: Path) -> None:
    """The daemon's client and a real worker process, TensorRT's stand-in in it: right logits, a checked key."""
    (tmp_path / "engine.engine").write_bytes(engine_file())
    chosen = settings(jetpack(tmp_path / "jetpack"))
    engine = Engine(tmp_path / "engine.engine", chosen, NANO)
    try:
        assert engine.runtime == "TensorRT 8.2.1.8"
        for brightness in (BRIGHT, DARK):
            np.testing.assert_allclose(engine.infer(frame_of(brightness), 5.0), logits_for(brightness), atol=1e-3)
    finally:
        engine.close()
    with pytest.raises(RejectedError, match=r"built for runtime version 8\.0\.1\.6, this robot has 8\.2\.1\.8"):
        Engine(tmp_path / "engine.engine", chosen, msgspec.structs.replace(NANO, runtime_version="8.0.1.6"))
    (tmp_path / "engine.engine").write_bytes(engine_file()[:-9])
    with pytest.raises(EngineFailed, match=r"cannot be loaded: ValueError: the engine of \d+ bytes is not whole"):
        Engine(tmp_path / "engine.engine", chosen)


def test_a_release_of_another_key_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Board, precision, GPU or version: refused with the reason, and never tried a second time."""
    model = tmp_path / "model"
    monkeypatch.setattr(board.wrong_key, "__defaults__", (model,))
    chosen, made = settings(jetpack(tmp_path / "jetpack")), make_candidate(tmp_path / "candidate")
    engine = tmp_path / "engine.engine"
    engine.write_bytes(engine_file())

    def candidate(**changes: str) -> Candidate:
        key = msgspec.structs.replace(NANO, **changes)
        passport = msgspec.structs.replace(made.passport, target=chosen.target, engine_key=key)
        return dataclasses.replace(made, passport=passport, engine=engine)

    model.write_bytes(b"NVIDIA Jetson Nano Developer Kit\0")
    loaded = load_candidate(candidate(), chosen, threading.Event())
    loaded.engine.close()
    for change, said in (
        ({"board": "xavier-nx"}, "built for xavier-nx in fp16, this robot is jetson-nano-trt8"),
        ({"precision": "fp32"}, "built for jetson-nano in fp32"),
        ({"compute_capability": "7.2"}, "compute capability 7.2, this robot has 5.3"),
        ({"runtime_version": "8.2.0.6"}, "runtime version 8.2.0.6, this robot has 8.2.1.8"),
    ):
        with pytest.raises(RejectedError, match=said):
            load_candidate(candidate(**change), chosen, threading.Event())
    model.write_bytes(b"NVIDIA Jetson Xavier NX Developer Kit\0")
    with pytest.raises(RejectedError, match="this one says `NVIDIA Jetson Xavier NX"):
        load_candidate(candidate(), chosen, threading.Event())


def test_a_robot_without_a_driver_blames_no_engine(tmp_path: Path) -> None:
    """An operator's error, which is tried again; a RejectedError would have the engine refused for good."""
    (tmp_path / "engine.engine").write_bytes(engine_file())
    chosen = settings(jetpack(tmp_path / "jetpack", broken="cuInit failed: unknown error"))
    for key in (None, NANO):
        with pytest.raises(OperatorError, match=r"engine\.python .* no NVIDIA driver that works: cuInit failed"):
            Engine(tmp_path / "engine.engine", chosen, key)


def test_the_stand_in_has_the_names_of_the_real_one() -> None:
    """Every name that the backend uses of TensorRT 10 is TensorRT-RTX's too, and bindings are gone there."""
    real: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    trt: Any = tensorrt_module("10.3.0", Gpu(), **VERSIONS["10.3.0"])
    for made, there in ((trt.engine_class, real.ICudaEngine), (trt.context_class, real.IExecutionContext)):
        names = [name for name in vars(made) if not name.startswith("_") and name not in ("body", "logger")]
        assert [name for name in names if not hasattr(there, name)] == []
    assert not hasattr(real.ICudaEngine, "num_bindings")
    assert not hasattr(real.IExecutionContext, "execute_async_v2")
    for name in ("FLOAT",):
        assert hasattr(real.DataType, name)
    assert real.ILogger.Severity.ERROR is not None
    assert real.TensorIOMode.INPUT is not None


def test_tensorrt_rtx_itself_refuses_what_is_no_engine() -> None:
    """Without a GPU the real runtime still says of garbage that it is none, and its words are understood."""
    real: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    errors: List[str] = []
    runtime = real.Runtime(tensorrt_backend.logger_of(real, errors))  # type: ignore[no-untyped-call]
    assert runtime.deserialize_cuda_engine(MAGIC.encode() * 20) is None
    said = tensorrt_backend.explain(errors, 120, "TensorRT-RTX")  # type: ignore[no-untyped-call]
    assert "is no engine" in said
